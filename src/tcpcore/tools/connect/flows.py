"""connect --count: connects per source, destination and port.

With the local port every connect may be a flow of its own.
"""

from __future__ import annotations

from tcpcore.model import columns as col
from tcpcore.model import fields
from tcpcore.model.counted import Counted
from tcpcore.model.flow import Flow
from tcpcore.model.tool import Column, Lines, Table


class Connects(Flow):
    """Of one flow; lport is None unless it is asked for."""

    connects: fields.Count
    failed: fields.Count


def table(lports: bool) -> Table:
    """lports: the local port tells flows apart, and is shown."""
    lines = Lines(Connects, columns=_columns(15, lports), wide=_columns(39, lports))
    return Table(lines, Counted("flows", Flow, struct="flow"))


def _columns(width: int, lports: bool) -> tuple[Column, ...]:
    return (
        col.address("LADDR", "laddr", width),
        col.address("RADDR", "raddr", width),
        *([Column("LPORT", "lport", 6)] if lports else []),
        Column("RPORT", "rport", 6),
        Column("CONNECTS", "connects", 9),
        Column("FAILED", "failed", 7),
    )
