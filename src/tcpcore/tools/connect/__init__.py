"""Trace TCP connects: who connects where, and with what result.

All of them, also those that fail at once. RESULT is ok or the errno's name, and EINPROGRESS where
the trace ended before an answer came.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated

from tcpcore.errors import OptionError
from tcpcore.loader.perf import Record
from tcpcore.model import columns as col
from tcpcore.model import fields
from tcpcore.model.event import ConnectionEvent
from tcpcore.model.option import Option
from tcpcore.model.slots import CONNECTING, TRANSITIONS
from tcpcore.model.tool import Column, Derive, Lines, Stream, Sweep, Tool


class Event(ConnectionEvent):
    """One connect. Mirror of struct connect_event, bpf/connect.h; times in ns.

    query, query_age_ns: with --dns, the name that was asked for, and how old the answer was.
    """

    result: fields.Result
    tid: fields.U32
    duration_ns: fields.Time
    cgroup_id: fields.CgroupId
    query: fields.Name
    query_age_ns: fields.NameAge


class _Nameless:
    """Without --dns there are no names."""

    def __call__(self, records: list[Record], last: bool = False) -> list[Record]:
        return [(*record, None, None) for record in records]

    def lost(self) -> int:
        return 0


@contextmanager
def _names() -> Iterator[Derive]:
    from tcpcore.enrich import dns

    with dns.Sniffer() as sniffer:
        yield dns.Namer(sniffer, list(fields.kinds(Event)))


_FRESH_NS = 100_000_000  # a younger answer is what the connect waited for


def _ages(column: fields.Column) -> list[str]:
    return [f"({ns / 1e6:.3f}ms)" if ns and ns > _FRESH_NS else "" for ns in column]


_LPORT = col.port("LPORT", "lport")
_RESULT = (col.port("DPORT", "rport"), Column("RESULT", "result", 12))
# At the end of the line, so without padding: the age stands right behind the name.
_QUERY = (Column("QUERY", "query", 0), Column("", "query_age_ns", 0, cells=_ages))

_LINES = Lines(
    Event,
    columns=(
        *col.OWNER,
        *col.source_destination(15),
        *_RESULT,
    ),
    wide=(
        *col.WIDE_OWNER,
        *col.source_destination(39, _LPORT),
        *_RESULT,
        col.TID,
        col.UID,
        col.NETNS,
    ),
    record="event",
)

TOOL = Tool(
    name="connect",
    event=Event,
    kinds=(Stream(_LINES),),
    slots=TRANSITIONS + CONNECTING,
    sockets=("sockets",),
    pending=Sweep(map="sockets", section="raw_tp"),
    derive=lambda: nullcontext(_Nameless()),
)

EXAMPLES = (
    ("connect -p 4711 --wide", "by one process, with more columns"),
    ("connect -c -i 10", "counts per destination, every ten seconds"),
    ("connect --dns -D 443", "to port 443, with the names asked for"),
)


ALIASES = {"rport": ("--port", "-P")}


def tool(
    by_flow: Annotated[
        bool, Option("Count per source, destination and port instead.", ("--count", "-c"))
    ] = False,
    dns: Annotated[bool, Option("Show the name that was most likely asked for.")] = False,
    show_uid: Annotated[bool, Option("Show the owner's user id.", ("--show-uid", "-U"))] = False,
    show_lport: Annotated[bool, Option("Show the local port; with -c, count it apart.")] = False,
) -> Tool:
    """by_flow: counts per source, destination and port instead of each connect. dns: the names that
    were asked for. show_uid, show_lport: one more column each; with by_flow the local port is
    counted apart."""
    if by_flow and dns:
        raise OptionError("dns", "there are no names with `by_flow`, which counts")
    if by_flow:
        return _counting(show_lport)
    columns, wide = _LINES.columns, _LINES.wide
    if show_uid:
        columns = col.insert(columns, col.UID, before="pid")
    if show_lport:
        columns = col.insert(columns, _LPORT, before="raddr")
    if dns:
        columns, wide = (*columns, *_QUERY), (*wide, *_QUERY)
    shown = TOOL._replace(kinds=(Stream(_LINES._replace(columns=columns, wide=wide)),))
    return shown._replace(derive=_names) if dns else shown


def _counting(lports: bool) -> Tool:
    from tcpcore.tools.connect.flows import table

    return TOOL._replace(
        kinds=(table(lports),),
        rodata={"count_flows": True, "count_lports": lports},
    )
