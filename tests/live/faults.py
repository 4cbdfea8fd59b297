"""Memory whose first touch waits until it is told to go on: userfaultfd(2)."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import select
import struct

_SYSCALL = {"x86_64": 323, "aarch64": 282}  # asm/unistd.h
# include/uapi/linux/userfaultfd.h
_UFFD_API, _REGISTER_MODE_MISSING = 0xAA, 1
_UFFDIO_API, _UFFDIO_REGISTER, _UFFDIO_ZEROPAGE = 0xC018AA3F, 0xC020AA00, 0xC020AA04


class Page:
    """A page that blocks whoever touches it, also the kernel on behalf of a system call."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = libc.syscall(_SYSCALL[platform.machine()], os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        fcntl.ioctl(self._fd, _UFFDIO_API, struct.pack("=3Q", _UFFD_API, 0, 0))
        whole = self.address, mmap.PAGESIZE
        fcntl.ioctl(
            self._fd, _UFFDIO_REGISTER, struct.pack("=4Q", *whole, _REGISTER_MODE_MISSING, 0)
        )

    def wait(self, seconds: float) -> bool:
        """Until somebody touches it and waits."""
        return bool(select.select([self._fd], [], [], seconds)[0])

    def release(self) -> None:
        fcntl.ioctl(
            self._fd, _UFFDIO_ZEROPAGE, struct.pack("=4Q", self.address, mmap.PAGESIZE, 0, 0)
        )
