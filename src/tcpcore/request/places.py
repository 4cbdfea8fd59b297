"""Network namespaces and cgroups, by the names that people have for them."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

from tcpcore.errors import OptionError
from tcpcore.request.values import number

_NS_GET_NSTYPE, _CLONE_NEWNET = 0xB703, 0x40000000  # include/uapi/linux/nsfs.h, sched.h
_FIRST_NAMESPACE = 0xEFFFFFF8  # below it, a number names a process; include/uapi/linux/nsfs.h


def namespace(option: str, text: str) -> int:
    """A network namespace's inode, from its name (ip-netns(8)), a pid, a path, or the inode."""
    bare = text.removeprefix("inode:").removeprefix("net:[").removesuffix("]")
    if re.fullmatch(r"[0-9]{1,19}", bare) and int(bare) >= _FIRST_NAMESPACE:
        return number(option, bare, "a namespace inode", _FIRST_NAMESPACE, (1 << 32) - 1)
    if text.isascii() and text.isdigit():
        path = Path("/proc", text, "ns/net")
    elif text.startswith("/"):
        path = Path(text)
    else:
        path = Path("/run/netns", text)
    try:
        inode = _network_namespace(path)
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else e
        raise OptionError(option, f"'{text}' is no network namespace: {path}: {why}") from None
    if inode is None:
        raise OptionError(option, f"'{text}' is no network namespace: {path} is something else")
    return inode


def _network_namespace(path: Path) -> int | None:
    """The inode of a network namespace; None if the file is anything else (ioctl_nsfs(2))."""
    # Only namespaces are on that device: open() meets no FIFO that blocks and no tape that winds.
    if path.stat().st_dev != Path("/proc/self/ns/net").stat().st_dev:
        return None
    with path.open("rb") as file:
        kind = fcntl.ioctl(file, _NS_GET_NSTYPE)
        return os.fstat(file.fileno()).st_ino if kind == _CLONE_NEWNET else None


def cgroup(option: str, text: str) -> Path:
    """A cgroup directory, absolute or relative to the cgroup v2 mount."""
    below = cgroup_root(option) / text.lstrip("/")
    for path in (Path(text), below) if text.startswith("/") else (below,):
        if text and _is_cgroup(path):
            return path
    raise OptionError(option, f"'{text}' is not a cgroup v2 directory")


def _is_cgroup(path: Path) -> bool:
    """Version 1 has cgroup.procs as well, but not this file; cgroups(7)."""
    try:
        return (path / "cgroup.controllers").is_file()
    except (OSError, ValueError):
        return False


def cgroup_root(option: str = "cgroup") -> Path:
    """Where cgroup v2 is mounted; OptionError where it is not."""
    found = mounted("cgroup2")
    if found is None:
        raise OptionError(option, "no cgroup v2 hierarchy is mounted here, and it needs one")
    return found


def mounted(kind: str) -> Path | None:
    """Where a file system of this type is mounted first (proc(5), mounts); None: nowhere."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, found, *_ = line.split()
        if found == kind:
            return Path(where)
    return None
