"""Root only as long as needed: check before the load, give up the rest after the attach."""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from tcpcore.errors import LibbpfError, PrivilegeError
from tcpcore.loader import kernel
from tcpcore.loader.ffi import libc

_NOBODY = 65534  # where no user has the name: user_namespaces(7), overflowuid
_MAX_ID = (1 << 32) - 2  # setresuid(2): the next one means no change

# include/uapi/linux/capability.h, prctl.h
_CAP_SYS_ADMIN, _CAP_BPF = 1 << 21, 1 << 39
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 8, 24, 38


def require(tool: str) -> None:
    """PrivilegeError unless this process may load and attach BPF programs."""
    missing = kernel.missing_capabilities()
    if missing:
        command = f"sudo {Path(sys.argv[0]).resolve()} {tool}"
        raise PrivilegeError(f"{tool} needs {' and '.join(missing)}; this works: {command}")


threads: list[Callable[[Callable[[], None]], None]] = []
"""Threads of ours besides the main one; each takes what it shall do. Capabilities are a thread's
own, while glibc changes the user of all threads: those here have called keep_capabilities()."""


def keep_capabilities(keep: bool = True) -> None:
    """Of this thread, when its user changes; for now: drop() says which go."""
    libc().prctl(_PR_SET_KEEPCAPS, int(keep), 0, 0, 0)


def drop(read: Callable[[], object]) -> None:
    """Become an ordinary user, and give up every capability that `read` does not need.

    read: reads a BPF map. What is open stays open; nothing can be imported any more, as Python
    may be root's alone. A step that this process may not take (no CAP_SETUID, a user namespace
    without that id) is left out, and the others are taken: it had less to lose.

    Raises LibbpfError when `read` fails for any other reason than a missing capability.
    capabilities(7), credentials(7), prctl(2).
    """
    everywhere = (_here, *threads)
    for run in everywhere:
        run(_empty_bounding_set)
    if 0 in os.getresuid():
        _become(*ordinary_user(os.environ))
    for run in everywhere:
        run(partial(_confine, read))
    # We hold rings and packet sockets: no debugger of that user may take them from us, ptrace(2).
    libc().prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _here(act: Callable[[], None]) -> None:
    act()


def _empty_bounding_set() -> None:
    for capability in range(64):
        libc().prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def _confine(read: Callable[[], object]) -> None:
    """This thread."""
    needed = _needed(read)
    _set_capabilities(needed, needed)
    keep_capabilities(False)
    libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def ordinary_user(environment: Mapping[str, str]) -> tuple[int, int]:
    """The ids of the user and group who called sudo(8), else of nobody; never root's."""
    ids = [environment.get(name, "") for name in ("SUDO_UID", "SUDO_GID")]
    if all(x.isascii() and x.isdigit() and len(x) <= 10 and 0 < int(x) <= _MAX_ID for x in ids):
        return int(ids[0]), int(ids[1])
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        return _NOBODY, _NOBODY
    return nobody.pw_uid or _NOBODY, nobody.pw_gid or _NOBODY


def _become(user: int, group: int) -> None:
    """Real, effective and saved ids; those for files follow the effective ones."""
    with suppress(OSError):
        os.setgroups([])
    with suppress(OSError):
        os.setresgid(group, group, group)
    keep_capabilities()
    with suppress(OSError):
        os.setresuid(user, user, user)


def _needed(read: Callable[[], object]) -> int:
    """The capability without which `read` fails, as a set; 0 where it needs none.

    Before Linux 5.19 (c8644cd0efe7) every call of bpf() takes CAP_BPF, or CAP_SYS_ADMIN, where
    unprivileged ones are disabled.
    """
    permitted = _permitted()
    for capability in (0, _CAP_BPF, _CAP_SYS_ADMIN):
        if capability & ~permitted:
            continue
        _set_capabilities(capability, permitted)
        try:
            read()
        except LibbpfError as e:
            if e.errno != errno.EPERM:
                raise
        else:
            return capability
    return 0


class _CapHeader(ctypes.Structure):
    """struct __user_cap_header_struct, capget(2); pid 0 is the caller."""

    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


# (effective, permitted, inheritable) for the capabilities 0 to 31, then for 32 to 63.
_CapData = ctypes.c_uint32 * 6


def _permitted() -> int:
    sets = _CapData()
    libc().capget(ctypes.byref(_CapHeader(_CAPABILITY_VERSION_3)), sets)
    return int(sets[1] | sets[4] << 32)


def _set_capabilities(effective: int, permitted: int) -> None:
    """Sets both, and none inheritable. It cannot fail: only permitted ones are asked for."""
    low = (1 << 32) - 1
    sets = _CapData(effective & low, permitted & low, 0, effective >> 32, permitted >> 32, 0)
    libc().capset(ctypes.byref(_CapHeader(_CAPABILITY_VERSION_3)), sets)
