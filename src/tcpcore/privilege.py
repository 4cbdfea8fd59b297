"""Root only as long as needed: check before the load, give up the rest after the attach."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from tcpcore.errors import PrivilegeError
from tcpcore.loader import kernel
from tcpcore.loader.ffi import libc

_CAP_BPF = 39
_LAST_CAP = Path("/proc/sys/kernel/cap_last_cap")
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAPABILITY_VERSION_3 = 0x20080522


def require(tool: str) -> None:
    """PrivilegeError unless this process may load and attach BPF programs."""
    missing = kernel.missing_capabilities()
    if missing:
        command = f"sudo {Path(sys.argv[0]).resolve()} {tool}"
        raise PrivilegeError(f"{tool} needs {' and '.join(missing)}; this works: {command}")


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def drop() -> None:
    """Keep CAP_BPF, which reading maps takes before Linux 5.19, and nothing else.

    capset(2), prctl(2). What the process has open stays open. A process that may not do this
    (it has no CAP_SETPCAP) goes on as it is: it had little to lose.
    """
    for capability in range(int(_LAST_CAP.read_text()) + 1):
        if capability != _CAP_BPF:
            libc().prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    # Two sets of (effective, permitted, inheritable): capabilities 0 to 31, then 32 to 63.
    high = 1 << _CAP_BPF - 32
    sets = (ctypes.c_uint32 * 6)(0, 0, 0, high, high, 0)
    if libc().capset(ctypes.byref(header), sets) != 0:
        libc().capset(ctypes.byref(header), (ctypes.c_uint32 * 6)())
