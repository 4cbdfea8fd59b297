"""connect --count: connects per source, destination and port, counted in the kernel.

With the local port every connect may be a flow of its own. What found no room is counted together
in BPF, and what would make a report too long is added to that: the row "other".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from tcpcore.loader.aggregate import Counters
from tcpcore.model.net import FAMILIES, address_text
from tcpcore.sinks.output import MOST_ROWS, OTHER, Records, csv_lines, json_line, table_lines

FLOW = struct.Struct("=16s16sIHHH6x")
"""Mirror of struct flow, bpf/connect.h: laddr, raddr, netns, lport, rport, family. Its counters are
those of struct flow_count: connects, failed."""
REST = bytes(FLOW.size)
"""The key of what found no room."""


class Flow(NamedTuple):
    """A line; the names are those of JSON and CSV. raddr: `other`, and nothing else of it known,
    in the row of the rest."""

    netns: int | None
    family: str | None
    laddr: str | None
    lport: int | None
    raddr: str
    rport: int | None
    connects: int
    failed: int


def _flow(key: bytes, connects: int, failed: int) -> Flow:
    laddr, raddr, netns, lport, rport, family = FLOW.unpack(key)
    ends = address_text(laddr), lport or None, address_text(raddr), rport or None
    return Flow(netns, FAMILIES[family], *ends, connects, failed)


def _rank(flow: Flow) -> tuple[Any, ...]:
    return (-flow.connects, flow.raddr, flow.rport or 0, flow.laddr, flow.lport or 0, flow.netns)


def _other(connects: int, failed: int) -> Flow:
    return Flow(None, None, None, None, OTHER, None, connects, failed)


class Flows:
    """A writer that prints what was counted since it was last asked to finish, the most first.

    take: what is new, by FLOW. style: "table", "json" or "csv". lports: the local port tells flows
    apart, and is shown.
    """

    def __init__(
        self, tool: str, take: Callable[[], Counters], style: str, lports: bool, wide: bool
    ) -> None:
        self._tool, self._take, self._style, self._lports = tool, take, style, lports
        self._width = 39 if wide else 15
        self._header = True

    def header(self) -> str:
        return ""

    def rows(self, records: Records) -> str:
        return ""

    def finish(self) -> str:
        flows = self._rows()
        if self._style == "json":
            return "".join(self.record("flow", flow._asdict()) for flow in flows)
        if self._style == "csv":
            header, self._header = [Flow._fields] * self._header, False
            return csv_lines([*header, *flows])
        return self._table(flows)

    def _rows(self) -> list[Flow]:
        new = self._take()
        connects, failed = new.pop(REST, (0, 0))
        flows = sorted((_flow(key, *counts) for key, counts in new.items()), key=_rank)
        shown, rest = flows[:MOST_ROWS], flows[MOST_ROWS:]
        connects += sum(flow.connects for flow in rest)
        failed += sum(flow.failed for flow in rest)
        return [*shown, _other(connects, failed)] if connects else shown

    def _table(self, flows: list[Flow]) -> str:
        columns = [("LADDR", self._width), ("RADDR", self._width), ("LPORT", 6), ("RPORT", 6)]
        columns += [("CONNECTS", 9), ("FAILED", 7)]
        rows = [
            [f.laddr or "-", f.raddr, f.lport or 0, f.rport or 0, f.connects, f.failed]
            for f in flows
        ]
        if not self._lports:
            del columns[2]
            for row in rows:
                del row[2]
        return table_lines(columns, ([str(cell) for cell in row] for row in rows))

    def record(self, kind: str, content: dict[str, Any]) -> str:
        return json_line(self._tool, kind, content) if self._style == "json" else ""
