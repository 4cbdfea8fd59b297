"""Work in other network namespaces: what the kernel shows only to who is inside."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tcpcore.errors import OptionError
from tcpcore.loader.ffi import libc
from tcpcore.session import privilege

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

Result = TypeVar("Result")
_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_OWN = Path("/proc/thread-self/ns/net")


class Namespace:
    """A network namespace. inode: its number. thread: one inside it; None: we are there."""

    def __init__(self, inode: int, thread: ThreadPoolExecutor | None = None) -> None:
        self.inode, self._thread = inode, thread

    def run(self, act: Callable[[], Result]) -> Result:
        """Do this in it."""
        if self._thread is None:
            return act()
        return self._thread.submit(act).result()


@contextmanager
def opened(inodes: Sequence[int]) -> Iterator[list[Namespace]]:
    """Those with these numbers, or our own: threads inside as long as the block lasts.

    Raises OptionError for one that cannot be found or entered.
    """
    own = _OWN.stat().st_ino
    with ExitStack() as stack:
        yield [
            Namespace(inode) if inode == own else _entered(inode, stack)
            for inode in dict.fromkeys(inodes or [own])
        ]


def _entered(inode: int, stack: ExitStack) -> Namespace:
    from concurrent.futures import ThreadPoolExecutor  # few traces need it

    thread = stack.enter_context(ThreadPoolExecutor(1, f"netns-{inode}"))
    namespace = Namespace(inode, thread)
    namespace.run(partial(_enter, inode))
    privilege.threads.append(namespace.run)
    stack.callback(privilege.threads.remove, namespace.run)
    return namespace


def _enter(inode: int) -> None:
    """This thread alone: setns(2)."""
    privilege.keep_capabilities()
    for path in _paths():
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # its process has ended
            continue
        try:
            if os.fstat(descriptor).st_ino == inode:
                _set(descriptor)
                return
        finally:
            os.close(descriptor)
    raise OptionError("netns", f"no process is in {inode}, and it has no name in /run/netns")


def _set(descriptor: int) -> None:
    if libc().setns(descriptor, _CLONE_NEWNET):
        why = os.strerror(ctypes.get_errno())
        raise OptionError("netns", f"cannot enter the namespace: {why}")


def _paths() -> Iterator[Path]:
    """Files that stand for network namespaces; only those are looked at that are on that device."""
    device = _OWN.stat().st_dev
    for folder, names in (("/run/netns", "*"), ("/proc", "[0-9]*/ns/net")):
        for path in Path(folder).glob(names):
            try:
                if path.stat().st_dev == device:
                    yield path
            except OSError:
                continue
