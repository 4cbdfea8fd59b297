"""The ids of classic tracepoints, which only tracefs tells, mounted or not."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tcpcore.errors import LibbpfError
from tcpcore.loader.ffi import syscall

ROOTS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))

# New since Linux 5.2, with the same numbers on every architecture: asm-generic/unistd.h.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
# include/uapi/linux/mount.h
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_CMD_CREATE = 6
_MOUNT_ATTR_RDONLY = 1

_UNMOUNTED = (
    "tracefs is not mounted: run as root, or mount it: mount -t tracefs tracefs /sys/kernel/tracing"
)
_FORBIDDEN = {
    errno.EPERM: _UNMOUNTED,
    errno.EACCES: "only root may look into tracefs: run as root, or with CAP_DAC_READ_SEARCH",
}
_HINTS = {
    errno.ENOENT: "this kernel has no such tracepoint",
    errno.ENODEV: "this kernel is built without tracefs",
    errno.ENOSYS: _UNMOUNTED,  # a container's seccomp filter may say so
    **_FORBIDDEN,
}


class TracefsError(LibbpfError):
    """A tracepoint's id cannot be had; the message has the cause and a remedy."""

    def __init__(self, call: str, errno: int, tracepoint: str) -> None:
        super().__init__(call, errno)
        self.tracepoint = tracepoint

    @property
    def is_forbidden(self) -> bool:
        """More privilege would have helped."""
        return self.errno in _FORBIDDEN

    @property
    def telling(self) -> str:
        hint = _HINTS.get(self.errno)
        return f"tracepoint {self.tracepoint}" + (f": {hint}" if hint else "")


def tracepoint_id(group: str, name: str) -> int:
    """The number that perf_event_open(2) knows the tracepoint group/name by.

    Read from tracefs: a mounted one, or else a mount of our own that is in no mount namespace.
    Raises TracefsError.
    """
    tracepoint = f"{group}/{name}"
    try:
        with _tracefs() as root:
            return int(_read(root, f"events/{tracepoint}/id"))
    except LibbpfError as e:
        raise TracefsError(e.call, e.errno, tracepoint) from None
    except OSError as e:
        raise TracefsError("open", e.errno or 0, tracepoint) from None


def _read(folder: int, path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.read(fd, 32)
    finally:
        os.close(fd)


@contextmanager
def _tracefs() -> Iterator[int]:
    """A descriptor of tracefs' root."""
    fd = _open_root()
    try:
        yield fd
    finally:
        os.close(fd)


def _open_root() -> int:
    closed = None
    for root in ROOTS:
        try:
            # The folder is there without a mount, too: what is in it tells.
            return os.open(root / "events/..", os.O_PATH | os.O_CLOEXEC)
        except PermissionError as e:
            closed = e
        except OSError:
            continue
    try:
        return _mount()
    except LibbpfError as e:
        # That one is closed to us says more than that we may not mount it either.
        raise closed or e from None


def _mount() -> int:
    """A mount without a place: fsopen(2), fsconfig(2), fsmount(2). It ends with its descriptor."""
    context = syscall("fsopen", _FSOPEN, b"tracefs", _FSOPEN_CLOEXEC)
    try:
        syscall("fsconfig", _FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return syscall("fsmount", _FSMOUNT, context, _FSMOUNT_CLOEXEC, _MOUNT_ATTR_RDONLY)
    finally:
        os.close(context)
