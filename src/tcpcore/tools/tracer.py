"""Trace TCP connections that processes open (C), accept (A) and close (X).

Each C and A is followed by one X, when the connection is closed by its process or broken off by its
peer. PID and COMM of an X are those of the process that closed it last, or else the owner's.
"""

from __future__ import annotations

from typing import Annotated

from tcpcore.model import columns as col
from tcpcore.model import fields
from tcpcore.model.event import ConnectionEvent
from tcpcore.model.option import Option
from tcpcore.model.slots import ACCEPTING, TRANSITIONS
from tcpcore.model.tool import Column, Lines, Stream, Tool


class Event(ConnectionEvent):
    """A connection begins or ends. Mirror of struct tracer_event, bpf/tracer.h."""

    action: fields.Action
    tid: fields.Pid
    cgroup_id: fields.CgroupId


_LETTERS = {"connect": "C", "accept": "A", "close": "X"}
_ACTION = Column("T", "action", 1, text=_LETTERS.__getitem__)
_PORTS = (col.port("SPORT", "lport"), col.port("DPORT", "rport"))

_LINES = Lines(
    Event,
    columns=(
        _ACTION,
        *col.OWNER,
        *col.source_destination(15),
        *_PORTS,
    ),
    wide=(
        _ACTION,
        *col.WIDE_OWNER,
        *col.source_destination(39),
        *_PORTS,
        col.UID,
        col.NETNS,
    ),
    record="event",
)

TOOL = Tool(
    name="tracer",
    event=Event,
    kinds=(Stream(_LINES),),
    slots=TRANSITIONS + ACCEPTING,
    sockets=("sockets",),
)

EXAMPLES = (
    ("tracer -t", "everything, and seconds since start"),
    ("tracer -u 33 --raddr 10.0.0.0/8", "one user's, to and from a network"),
    ("tracer -6 --show-netns", "IPv6, with the network namespace"),
)


ALIASES = {"netns": ("-N",)}


def tool(
    show_uid: Annotated[bool, Option("Show the owner's user id.", ("--show-uid", "-U"))] = False,
    show_netns: Annotated[bool, Option("Show the network namespace.")] = False,
) -> Tool:
    """show_uid, show_netns: one more column each."""
    columns = _LINES.columns
    if show_uid:
        columns = col.insert(columns, col.UID, before="pid")
    if show_netns:
        columns = (*columns, col.NETNS)
    return TOOL._replace(kinds=(Stream(_LINES._replace(columns=columns)),))
