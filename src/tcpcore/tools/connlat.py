"""Trace active connects: how long each took, and how it ended.

From connect() to the answer of the peer, or to the error: RESULT is ok or the errno's name.
ECONNABORTED: the process closed the socket before an answer came.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import typer

from tcpcore.errors import UsageError
from tcpcore.model import columns as col
from tcpcore.model import fields, hooks
from tcpcore.model.event import ConnectionEvent
from tcpcore.model.tool import Column, Tool
from tcpcore.request.options import Common, decimal, with_common
from tcpcore.session.run import stream, style
from tcpcore.session.tracing import Trace
from tcpcore.sinks.output import Writer


@dataclass(frozen=True, slots=True)
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

TOOL = Tool(
    name="connlat",
    event=Event,
    struct="connlat_event",
    columns=(
        col.pid(),
        col.comm(11),
        col.IP,
        col.address("SADDR", "laddr", 15),
        col.address("DADDR", "raddr", 15),
        *_END,
    ),
    wide=(
        *col.WIDE_OWNER,
        col.address("SADDR", "laddr", 39),
        _LPORT,
        col.address("DADDR", "raddr", 39),
        *_END,
        col.UID,
        col.NETNS,
    ),
    variants=hooks.connecting(),
    sockets=("sockets",),
)

EXAMPLES = (
    ("connlat 10", "those that took 10 ms or more"),
    ("connlat --failed --raddr 10.0.0.0/8", "those that failed, to a network"),
    ("connlat --summary -i 60", "percentiles, every minute"),
)


def tool(min_ms: float = 0, failed: bool = False) -> Tool:
    """min_ms: only connects that took so many milliseconds. failed: only those that failed."""
    if not 0 <= min_ms < 1e9:
        raise UsageError(f"min_ms: {min_ms} is not a number of milliseconds")
    return replace(TOOL, rodata={"targ_min_us": round(min_ms * 1000), "target_failed": failed})


@with_common
def command(
    common: Common,
    min_ms: Annotated[
        str, typer.Argument(help="Only connects that took at least so many ms.", metavar="MIN_MS")
    ] = "0",
    failed: Annotated[bool, typer.Option("--failed", help="Only connects that failed.")] = False,
    show_lport: Annotated[bool, typer.Option("--show-lport", help="Show the local port.")] = False,
    summary: Annotated[
        bool, typer.Option("--summary", help="A line per destination, at the end or each interval.")
    ] = False,
) -> None:
    chosen = tool(decimal("MIN_MS", min_ms, "a number of milliseconds"), failed)
    if show_lport:
        chosen = replace(chosen, columns=col.insert(chosen.columns, _LPORT, before="raddr"))
    stream(chosen, common, _summary(common) if summary else None)


def _summary(common: Common) -> Callable[[Trace], Writer]:
    from tcpcore.sinks.summary import Summary

    writer = Summary(TOOL.name, list(fields.kinds(Event)), style(common))
    return lambda trace: writer
