"""Trace active connects: how long each took, and how it ended.

From connect() to the answer of the peer, or to the error: RESULT is ok or the errno's name.
ECONNABORTED: the process closed the socket before an answer came.
"""

from __future__ import annotations

from typing import Annotated

from tcpcore.model import columns as col
from tcpcore.model import fields
from tcpcore.model.event import ConnectionEvent
from tcpcore.model.option import Argument, Option
from tcpcore.model.slots import CONNECTING, TRANSITIONS
from tcpcore.model.tool import Column, Kind, Lines, Rodata, Stream, Table, Tool
from tcpcore.request.values import decimal


class Event(ConnectionEvent):
    """One finished connect. Mirror of struct connlat_event, bpf/connlat.h; times in ns."""

    result: fields.Result
    latency_ns: fields.Time


_LPORT = col.port("LPORT", "lport")
_END = (
    col.port("DPORT", "rport"),
    col.millis("LAT(ms)", "latency_ns", 7, digits=2),
    Column("RESULT", "result", 12),
)

_LINES = Lines(
    Event,
    columns=(
        *col.OWNER,
        *col.source_destination(15),
        *_END,
    ),
    wide=(
        *col.WIDE_OWNER,
        *col.source_destination(39, _LPORT),
        *_END,
        col.UID,
        col.NETNS,
    ),
    record="event",
)

TOOL = Tool(
    name="connlat",
    event=Event,
    kinds=(Stream(_LINES),),
    slots=TRANSITIONS + CONNECTING,
    sockets=("sockets",),
)

EXAMPLES = (
    ("connlat 10", "those that took 10 ms or more"),
    ("connlat --failed --raddr 10.0.0.0/8", "those that failed, to a network"),
    ("connlat --summary -i 60", "percentiles, every minute"),
)


def tool(
    min_ms: Annotated[
        float, Argument("Only connects that took at least so many ms.", "MIN_MS")
    ] = 0,
    failed: Annotated[bool, Option("Only connects that failed.")] = False,
    show_lport: Annotated[bool, Option("Show the local port.")] = False,
    summary: Annotated[
        bool, Option("A line per destination, at the end or each interval.")
    ] = False,
) -> Tool:
    """min_ms: only connects that took so many milliseconds. failed: only those that failed.
    show_lport: one more column. summary: a row per destination instead of each connect."""
    least = decimal("min_ms", min_ms, "a number of milliseconds")
    rodata: Rodata = {"targ_min_us": round(least * 1000), "target_failed": failed}
    return TOOL._replace(kinds=(_kind(show_lport, summary),), rodata=rodata)


def _kind(show_lport: bool, summary: bool) -> Kind:
    if summary:
        from tcpcore.tools.connlat.destinations import LINES, Destinations

        return Table(LINES, lambda program: Destinations(list(fields.kinds(Event))))
    if not show_lport:
        return Stream(_LINES)
    return Stream(_LINES._replace(columns=col.insert(_LINES.columns, _LPORT, before="raddr")))
