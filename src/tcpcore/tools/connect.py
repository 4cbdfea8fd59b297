"""Trace TCP connects: who connects where, and with what result.

All of them, also those that fail at once. RESULT is ok or the errno's name, and EINPROGRESS where
the trace ended before an answer came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import typer

from tcpcore.errors import UsageError
from tcpcore.loader.perf import Record
from tcpcore.model import columns as col
from tcpcore.model import fields, hooks
from tcpcore.model.event import ConnectionEvent
from tcpcore.model.tool import Column, Derive, Sweep, Tool
from tcpcore.request.options import Common, with_common
from tcpcore.session.run import stream, style
from tcpcore.session.tracing import Trace
from tcpcore.sinks.output import Writer


@dataclass(frozen=True, slots=True)
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
    """What stands in for the names without --dns."""

    def __call__(self, records: list[Record]) -> list[Record]:
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

TOOL = Tool(
    name="connect",
    event=Event,
    struct="connect_event",
    columns=(
        col.pid(),
        col.comm(11),
        col.IP,
        col.address("SADDR", "laddr", 15),
        col.address("DADDR", "raddr", 15),
        *_RESULT,
    ),
    wide=(
        *col.WIDE_OWNER,
        col.address("SADDR", "laddr", 39),
        _LPORT,
        col.address("DADDR", "raddr", 39),
        *_RESULT,
        col.TID,
        col.UID,
        col.NETNS,
    ),
    variants=hooks.connecting(),
    sockets=("sockets", "flows"),
    pending=Sweep(map="sockets", section="raw_tp"),
    derive=lambda: nullcontext(_Nameless()),
)

EXAMPLES = (
    ("connect -p 4711 --wide", "by one process, with more columns"),
    ("connect -c -i 10", "counts per destination, every ten seconds"),
    ("connect --dns -D 443", "to port 443, with the names asked for"),
)


def tool(dns: bool = False) -> Tool:
    """dns: tell the names that were asked for."""
    if not dns:
        return TOOL
    columns, wide = (*TOOL.columns, *_QUERY), (*TOOL.wide, *_QUERY)
    return replace(TOOL, columns=columns, wide=wide, derive=_names)


def _counting(lports: bool) -> Tool:
    return replace(tool(), rodata={"count_flows": True, "count_lports": lports})


@with_common
def command(
    common: Common,
    by_flow: Annotated[
        bool,
        typer.Option("--count", "-c", help="Count per source, destination and port instead."),
    ] = False,
    dns: Annotated[
        bool, typer.Option("--dns", help="Show the name that was most likely asked for.")
    ] = False,
    show_uid: Annotated[
        bool, typer.Option("--show-uid", "-U", help="Show the owner's user id.")
    ] = False,
    show_lport: Annotated[
        bool, typer.Option("--show-lport", help="Show the local port; with -c, count it apart.")
    ] = False,
    port: Annotated[
        list[str], typer.Option("--port", "-P", help="The same as --rport.", metavar="PORTS")
    ] = [],  # noqa: B006
) -> None:
    common = replace(common, rport=[*common.rport, *port])
    if by_flow:
        if dns:
            raise UsageError("--count and --dns: one of them")
        if common.count is not None:
            raise UsageError("-n: --count counts in the kernel, where no number ends it; -d does")
        stream(_counting(show_lport), common, _flows(common, show_lport))
        return
    chosen = tool(dns)
    if show_uid:
        chosen = replace(chosen, columns=col.insert(chosen.columns, col.UID, before="pid"))
    if show_lport:
        chosen = replace(chosen, columns=col.insert(chosen.columns, _LPORT, before="raddr"))
    stream(chosen, common)


def _flows(common: Common, lports: bool) -> Callable[[Trace], Writer]:
    from tcpcore.sinks.flows import Flows

    chosen = style(common)

    def flows(trace: Trace) -> Writer:
        program = trace.program
        others = partial(program.counters, "other_connects", "other_failed")
        return Flows(TOOL.name, program.map("flows"), others, chosen, lports, common.wide)

    return flows
