"""The network namespaces that ports looks at, and which ports connect() may choose there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from tcpcore.session import namespaces
from tcpcore.session.namespaces import Namespace

_SETTINGS = "/proc/sys/net/ipv4/"
_SET = (1 << 16) // 8  # bytes of one of struct port_sets

Ports = int
"""A set of them: bit n is port n."""


class Place:
    """A network namespace. Its settings are read anew for each pass."""

    def __init__(self, namespace: Namespace, stack: ExitStack) -> None:
        self.run, self.inode = namespace.run, namespace.inode
        # They stay those of the namespace in which they are opened.
        self._range = self._open("ip_local_port_range", stack)
        self._reserved = self._open("ip_local_reserved_ports", stack)

    def _open(self, name: str, stack: ExitStack) -> int:
        file = self.run(partial(os.open, _SETTINGS + name, os.O_RDONLY))
        stack.callback(os.close, file)
        return file

    @property
    def key(self) -> bytes:
        """In the map of namespaces."""
        return self.inode.to_bytes(4, sys.byteorder)

    def sets(self) -> bytes:
        """What a pass begins with: a struct port_sets where nothing is bound so far."""
        return self.allowed().to_bytes(_SET, sys.byteorder).ljust(3 * _SET, b"\0")

    def allowed(self) -> Ports:
        """Those that connect() may choose."""
        low, high = map(int, _read(self._range).split())
        return between(low, high) & ~listed(_read(self._reserved))


def allowed_and_bound(sets: bytes) -> tuple[Ports, Ports]:
    """After a pass, of a struct port_sets."""
    first, second = sets[:_SET], sets[_SET : 2 * _SET]
    return int.from_bytes(first, sys.byteorder), int.from_bytes(second, sys.byteorder)


def _read(file: int) -> str:
    return os.pread(file, 1 << 18, 0).decode()


def between(low: int, high: int) -> Ports:
    return (1 << high + 1) - (1 << low)


def listed(text: str) -> Ports:
    """Those of a list as `8080,30000-30010`."""
    found = 0
    for part in filter(None, text.strip().split(",")):
        low, _, high = part.partition("-")
        found |= between(int(low), int(high or low))
    return found


@contextmanager
def places(inodes: Sequence[int]) -> Iterator[list[Place]]:
    """The network namespaces with these inodes, or our own."""
    with ExitStack() as stack:
        yield [Place(each, stack) for each in stack.enter_context(namespaces.opened(inodes))]
