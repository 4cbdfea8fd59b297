"""retrans --count: what was sent again, by connection."""

from __future__ import annotations

from tcpcore.model import columns as col
from tcpcore.model import fields
from tcpcore.model.counted import Counted
from tcpcore.model.flow import Flow
from tcpcore.model.tool import Column, Lines, Table


class Resent(Flow):
    """What one connection sent again.

    retransmits: of any kind; segs: of them. probes: tail-loss probes, of which those that send a
    segment again are retransmits, too. failed: attempts that are none of these.
    """

    retransmits: fields.Count
    segs: fields.Count
    probes: fields.Count
    failed: fields.Count


def _columns(width: int) -> tuple[Column, ...]:
    return (
        *col.local_remote(width),
        Column("RETRANSMITS", "retransmits", 11),
        Column("SEGS", "segs", 8),
        Column("PROBES", "probes", 8),
        Column("FAILED", "failed", 6),
    )


TABLE = Table(
    Lines(Resent, columns=_columns(15), wide=(*_columns(39), col.NETNS)),
    Counted("flows", Flow, struct="flow"),
)
