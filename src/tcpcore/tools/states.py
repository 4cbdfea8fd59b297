"""Trace TCP state changes, and the time each socket spent in the state it leaves.

PID and COMM are the socket's owner where the kernel showed it, else `-`. MS is `-` where the
socket came to its old state before the trace began.
"""

from __future__ import annotations

from tcpcore.model import columns as col
from tcpcore.model import fields
from tcpcore.model.event import ConnectionEvent
from tcpcore.model.slots import ACCEPTING, TRANSITIONS, optional
from tcpcore.model.tool import Column, Lines, Stream, Sweep, Tool


class Event(ConnectionEvent):
    """One state change. Mirror of struct states_event, bpf/states.h; times in ns."""

    oldstate: fields.State
    newstate: fields.State
    duration_ns: fields.Duration
    skaddr: fields.Pointer


_ARROW = Column("->", "newstate", 2, text=lambda state: "->")
_STATES = (
    Column("OLDSTATE", "oldstate", 11),
    _ARROW,
    Column("NEWSTATE", "newstate", 11),
    col.millis("MS", "duration_ns", 9, digits=3),
)

_LINES = Lines(
    Event,
    columns=(
        Column("SKADDR", "skaddr", 16),
        col.pid(7),
        col.comm(10),
        *col.local_remote(15),
        *_STATES,
    ),
    wide=(
        Column("SKADDR", "skaddr", 16),
        *col.WIDE_OWNER,
        *col.local_remote(39),
        *_STATES,
        col.UID,
        col.NETNS,
    ),
    record="event",
)

TOOL = Tool(
    name="states",
    event=Event,
    kinds=(Stream(_LINES),),
    slots=TRANSITIONS + optional(ACCEPTING),
    sockets=("sockets",),
    held=Sweep(map="sockets", section="raw_tp", changed="last_held_ns"),
)

EXAMPLES = (
    ("states -p 4711 -T", "of one process, with the time of day"),
    ("states -D 5432 --wide", "to port 5432, with room for IPv6"),
    ("states --json -n 100", "the next hundred, a JSON object a line"),
)


def tool() -> Tool:
    """states has no options of its own."""
    return TOOL
