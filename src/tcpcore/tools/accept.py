"""Trace accepted connections: who accepts from where, and how long each waited for it.

WAIT(ms) is the time in the listener's queue, from the end of the handshake to accept(); `-` where
the handshake ended before the trace began.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, NamedTuple

import typer

from tcpcore import columns as col
from tcpcore import fields, hooks
from tcpcore.options import Common, with_common
from tcpcore.run import stream
from tcpcore.tool import Tool


class Event(NamedTuple):
    """One accepted connection. Mirror of struct accept_event, bpf/accept.h; times in ns."""

    ts_ns: fields.Time
    wait_ns: fields.Duration
    cgroup_id: fields.CgroupId
    laddr: fields.Address
    raddr: fields.Address
    pid: fields.Pid
    tid: fields.U32
    uid: fields.U32
    netns: fields.U32
    lport: fields.Port
    rport: fields.Port
    family: fields.Family
    comm: fields.Comm


_WAIT = col.millis("WAIT(ms)", "wait_ns", 8, digits=3)

TOOL = Tool(
    name="accept",
    event=Event,
    struct="accept_event",
    columns=(
        col.pid(),
        col.comm(11),
        col.IP,
        col.address("RADDR", "raddr", 15),
        col.port("RPORT", "rport"),
        col.address("LADDR", "laddr", 15),
        col.port("LPORT", "lport"),
        _WAIT,
    ),
    wide=(
        *col.WIDE_OWNER,
        col.address("RADDR", "raddr", 39),
        col.port("RPORT", "rport"),
        col.address("LADDR", "laddr", 39),
        col.port("LPORT", "lport"),
        _WAIT,
        col.TID,
        col.UID,
        col.NETNS,
    ),
    variants=hooks.accepting(),
    sockets=("sockets",),
)

EXAMPLES = (
    ("accept -L 443", "accepted on port 443"),
    ("accept --comm nginx --json", "by nginx, a JSON object a line"),
    ("accept --raddr 10.0.0.0/8 -d 60", "from this network, for a minute"),
)


def tool() -> Tool:
    """accept has no options of its own."""
    return TOOL


@with_common
def command(
    common: Common,
    port: Annotated[
        list[str], typer.Option("--port", "-P", help="The same as --lport.", metavar="PORTS")
    ] = [],  # noqa: B006
) -> None:
    stream(tool(), replace(common, lport=[*common.lport, *port]))
