"""connect --count: connects per source, destination and port, counted in the kernel.

With the local port every connect may be a flow of its own. What found no room is counted together
in BPF, and what would make a report too long is added to that: the row `other`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from tcpcore.loader import Attached
from tcpcore.loader.aggregate import Counters
from tcpcore.loader.perf import Record
from tcpcore.model import columns as col
from tcpcore.model import fields
from tcpcore.model.report import MOST_ROWS
from tcpcore.model.tool import Column, Lines, Records

FLOW = struct.Struct("=16s16sIHHH6x")
"""Mirror of struct flow, bpf/connect.h: laddr, raddr, netns, lport, rport, family. Its counters are
those of struct flow_count: connects, failed."""
REST = bytes(FLOW.size)
"""The key of what found no room."""


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


class Flows:
    """The Counts of the table: the most connects first. take: what is new, by FLOW."""

    def __init__(self, take: Callable[[], Counters]) -> None:
        self._take = take

    def add(self, records: Records) -> None:
        """The kernel counts."""

    def take(self) -> list[Record]:
        new = self._take()
        connects, failed = new.pop(REST, (0, 0))
        flows = sorted((_flow(key, *counts) for key, counts in new.items()), key=_rank)
        shown, rest = flows[:MOST_ROWS], flows[MOST_ROWS:]
        connects += sum(flow[-2] for flow in rest)
        failed += sum(flow[-1] for flow in rest)
        return [*shown, (0, 0, b"", 0, b"", 0, connects, failed)] if connects else shown


def _flow(key: bytes, connects: int, failed: int) -> Record:
    laddr, raddr, netns, lport, rport, family = FLOW.unpack(key)
    return (netns, family, laddr, lport, raddr, rport, connects, failed)


def _rank(flow: Record) -> Record:
    netns, _, laddr, lport, raddr, rport, connects, _ = flow
    return (-connects, raddr, rport, laddr, lport, netns)


def counted(program: Attached) -> Flows:
    """What connect's programs count."""
    return Flows(program.aggregates["flows"].take)
