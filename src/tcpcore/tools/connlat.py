"""Trace active connects: how long each took, and how it ended.

From connect() to the answer of the peer, or to the error: RESULT is ok or the errno's name.
ECONNABORTED: the process closed the socket before an answer came.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, NamedTuple

import typer

from tcpcore import columns as col
from tcpcore import fields
from tcpcore.errors import UsageError
from tcpcore.filters import Rodata
from tcpcore.loader import Variant
from tcpcore.options import Common, decimal, with_common
from tcpcore.output import Writer
from tcpcore.run import stream, style
from tcpcore.tool import Column, Tool


class Event(NamedTuple):
    """One finished connect. Mirror of struct connlat_event, bpf/connlat.h; times in ns."""

    ts_ns: fields.Time
    latency_ns: fields.Time
    laddr: fields.Address
    raddr: fields.Address
    pid: fields.Pid
    uid: fields.U32
    netns: fields.U32
    lport: fields.Port
    rport: fields.Port
    family: fields.Family
    result: fields.Result
    comm: fields.Comm


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
        col.pid(7),
        col.comm(16),
        col.IP,
        col.address("SADDR", "laddr", 39),
        _LPORT,
        col.address("DADDR", "raddr", 39),
        *_END,
        col.UID,
        col.NETNS,
    ),
    # Hooks on connect() see its start and the errors it returns itself. The end is the state
    # change everywhere: it knows the result.
    variants=(
        Variant(
            "fentry",
            (
                "fentry/tcp_v4_connect",
                "fexit/tcp_v4_connect",
                "tp_btf/inet_sock_set_state",
                "tp_btf/tcp_destroy_sock",
            ),
            optional=("fentry/tcp_v6_connect", "fexit/tcp_v6_connect"),
            parameters={"tcp_v4_connect": 3, "tcp_v6_connect": 3},
            rodata={"connect_is_hooked": True},
        ),
        Variant(
            "kprobe",
            (
                "kprobe/tcp_v4_connect",
                "kretprobe/tcp_v4_connect",
                "raw_tp/inet_sock_set_state",
                "raw_tp/tcp_destroy_sock",
            ),
            optional=("kprobe/tcp_v6_connect", "kretprobe/tcp_v6_connect"),
            rodata={"connect_is_hooked": True},
        ),
        Variant("tracepoint", ("tp_btf/inet_sock_set_state", "tp_btf/tcp_destroy_sock")),
        Variant("tracepoint", ("raw_tp/inet_sock_set_state", "raw_tp/tcp_destroy_sock")),
    ),
    sockets=("starts",),
)


def rodata(min_ms: float = 0, failed: bool = False) -> Rodata:
    """min_ms: only connects that took so many milliseconds. failed: only those that failed."""
    if not 0 <= min_ms < 1e9:
        raise UsageError(f"min_ms: {min_ms} is not a number of milliseconds")
    return {"targ_min_us": round(min_ms * 1000), "target_failed": failed}


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
    chosen = rodata(decimal("MIN_MS", min_ms, "a number of milliseconds"), failed)
    tool = _with_lport() if show_lport else TOOL
    stream(tool, common, chosen, _summary(common) if summary else None)


def _with_lport() -> Tool:
    at = next(i for i, column in enumerate(TOOL.columns) if column.field == "raddr")
    return replace(TOOL, columns=(*TOOL.columns[:at], _LPORT, *TOOL.columns[at:]))


def _summary(common: Common) -> Writer:
    from tcpcore.summary import Summary

    return Summary(TOOL.name, Event._fields, style(common))
