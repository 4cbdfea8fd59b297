"""How to trace: buffers, maps, ways to attach."""

from __future__ import annotations

import os
from pathlib import Path

from tcpcore.loader import RingSize, Slot
from tcpcore.value import Value


def default_buffer() -> int:
    """Bytes per CPU: 2 MiB, which a burst of 50,000 connections on a saturated host does not
    fill, but on many CPUs no more than 32 MiB in all.

    512 KiB and a control page are what perf_event_mlock_kb allows without CAP_IPC_LOCK.
    """
    cpus = os.cpu_count() or 1
    return max(512 << 10, min(2 << 20, (32 << 20) // cpus))


class Machinery(Value):
    """How to trace.

    buffer: bytes per CPU; None: the default, or as much of it as the kernel gives. map_size:
    sockets to follow, and keys to count apart; None: the defaults. attach, btf: as in Settings.
    compat: with the slots for 32-bit programs, which cost every system call of the host some time.
    """

    buffer: int | None = None
    map_size: int | None = None
    attach: tuple[str, ...] = ()
    btf: Path | None = None
    compat: bool = False

    @property
    def sockets(self) -> int:
        """How many can be followed at once."""
        return self.map_size or 65536

    @property
    def keys(self) -> int:
        """How many can be counted apart in a report: each takes room on every possible CPU, and a
        start takes 20 ms for 65536 of them."""
        return self.map_size or 16384

    @property
    def histograms(self) -> int:
        """How many, of 520 bytes each, twice on every possible CPU."""
        return self.map_size or 2048

    def slots(self, of: tuple[Slot, ...]) -> tuple[Slot, ...]:
        """Those of a tool's slots that are asked for."""
        return tuple(slot for slot in of if self.compat or not slot.beside)

    def ring(self) -> RingSize:
        """A size that was asked for is what the user gets, or an error."""
        if self.buffer is None:
            return RingSize(default_buffer(), least=1)
        return RingSize(self.buffer, least=self.buffer)
