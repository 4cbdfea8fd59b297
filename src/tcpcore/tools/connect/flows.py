"""connect --count: connects per source, destination and port, counted in the kernel.

With the local port every connect may be a flow of its own. What the map has no room for is counted
together in BPF, and what would make a report too long is added to that: the row `other`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from tcpcore.loader import Attached
from tcpcore.loader.map import Map
from tcpcore.loader.perf import Record
from tcpcore.model import columns as col
from tcpcore.model import fields
from tcpcore.model.report import MOST_ROWS
from tcpcore.model.tool import Column, Lines, Records

FLOW = struct.Struct("=16s16sIHHH6x")
"""Mirror of struct flow, bpf/connect.h: laddr, raddr, netns, lport, rport, family."""
COUNT = struct.Struct("=QQ")
"""Mirror of struct flow_count: connects, failed."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Connects with one source, destination and port; lport is None unless it is asked for. raddr:
    `other`, and nothing else of it known, in the row of the rest."""

    netns: fields.KeyNetns
    family: fields.KeyFamily
    laddr: fields.KeyHost
    lport: fields.Port
    raddr: fields.KeyAddress
    rport: fields.Port
    connects: fields.Count
    failed: fields.Count


def lines(lports: bool) -> Lines:
    """lports: the local port tells flows apart, and is shown."""
    return Lines(Flow, columns=_columns(15, lports), wide=_columns(39, lports))


def _columns(width: int, lports: bool) -> tuple[Column, ...]:
    return (
        col.address("LADDR", "laddr", width),
        col.address("RADDR", "raddr", width),
        *([Column("LPORT", "lport", 6)] if lports else []),
        Column("RPORT", "rport", 6),
        Column("CONNECTS", "connects", 9),
        Column("FAILED", "failed", 7),
    )


_Counts = tuple[int, int]


class Flows:
    """The Counts of the table: the most connects first.

    counts: the map. others: what was counted for flows that it has no room for.
    """

    def __init__(self, counts: Map, others: Callable[[], Sequence[int]]) -> None:
        self._counts = counts
        self._others, self._told_others = others, [0, 0]
        self._told: dict[bytes, _Counts] = {}

    def add(self, records: Records) -> None:
        """The kernel counts."""

    def take(self) -> list[Record]:
        flows = sorted(self._new(), key=_rank)
        shown, rest = flows[:MOST_ROWS], flows[MOST_ROWS:]
        now, before = list(self._others()), self._told_others
        self._told_others = now
        connects, failed = (now[i] - before[i] + sum(flow[i - 2] for flow in rest) for i in (0, 1))
        other = (0, 0, b"", 0, b"", 0, connects, failed)
        return [*shown, other] if connects or failed else shown

    def _new(self) -> Iterator[Record]:
        """Nothing is taken out of the map, where a count could be lost: the difference is new."""
        for key in list(self._counts.keys()):
            now = self._read(key)
            before = self._told.get(key, (0, 0))
            if now == before:
                continue
            self._told[key] = now
            laddr, raddr, netns, lport, rport, family = FLOW.unpack(key)
            new = now[0] - before[0], now[1] - before[1]
            yield (netns, family, laddr, lport, raddr, rport, *new)

    def _read(self, key: bytes) -> _Counts:
        connects, failed = COUNT.unpack(self._counts.get(key) or bytes(COUNT.size))
        return connects, failed


def _rank(flow: Record) -> Record:
    netns, _, laddr, lport, raddr, rport, connects, _ = flow
    return (-connects, raddr, rport, laddr, lport, netns)


def counted(program: Attached) -> Flows:
    """What connect's programs count."""
    others = partial(program.counters, "other_connects", "other_failed")
    return Flows(program.map("flows"), others)
