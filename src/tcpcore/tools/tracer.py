"""Trace TCP connections that processes open (C), accept (A) and close (X).

Each C and A is followed by one X, when the connection is closed by its process or broken off by its
peer. PID and COMM of an X are those of the process that closed it last, or else the owner's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import typer

from tcpcore.model import columns as col
from tcpcore.model import fields
from tcpcore.model.event import ConnectionEvent
from tcpcore.model.slots import ACCEPTING, TRANSITIONS
from tcpcore.model.tool import Column, Tool
from tcpcore.request.options import Common, with_common
from tcpcore.session.run import stream


@dataclass(frozen=True, slots=True)
class Event(ConnectionEvent):
    """A connection begins or ends. Mirror of struct tracer_event, bpf/tracer.h."""

    action: fields.Action
    tid: fields.Pid
    cgroup_id: fields.CgroupId


_LETTERS = {"connect": "C", "accept": "A", "close": "X"}
_ACTION = Column("T", "action", 1, text=_LETTERS.__getitem__)
_PORTS = (col.port("SPORT", "lport"), col.port("DPORT", "rport"))

TOOL = Tool(
    name="tracer",
    event=Event,
    struct="tracer_event",
    columns=(
        _ACTION,
        col.pid(),
        col.comm(11),
        col.IP,
        col.address("SADDR", "laddr", 15),
        col.address("DADDR", "raddr", 15),
        *_PORTS,
    ),
    wide=(
        _ACTION,
        *col.WIDE_OWNER,
        col.address("SADDR", "laddr", 39),
        col.address("DADDR", "raddr", 39),
        *_PORTS,
        col.UID,
        col.NETNS,
    ),
    slots=TRANSITIONS + ACCEPTING,
    sockets=("sockets",),
)

EXAMPLES = (
    ("tracer -t", "everything, and seconds since start"),
    ("tracer -u 33 --raddr 10.0.0.0/8", "one user's, to and from a network"),
    ("tracer -6 --show-netns", "IPv6, with the network namespace"),
)


def tool() -> Tool:
    """tracer has no options of its own."""
    return TOOL


@with_common
def command(
    common: Common,
    show_uid: Annotated[
        bool, typer.Option("--show-uid", "-U", help="Show the owner's user id.")
    ] = False,
    show_netns: Annotated[
        bool, typer.Option("--show-netns", help="Show the network namespace.")
    ] = False,
    only_netns: Annotated[
        list[str], typer.Option("-N", help="The same as --netns.", metavar="NAME|PID|INODE")
    ] = [],  # noqa: B006
) -> None:
    chosen = tool()
    if show_uid:
        chosen = replace(chosen, columns=col.insert(chosen.columns, col.UID, before="pid"))
    if show_netns:
        chosen = replace(chosen, columns=(*chosen.columns, col.NETNS))
    stream(chosen, replace(common, netns=[*common.netns, *only_netns]))
