"""Trace accepted connections: who accepts from where, and how long each waited for it.

WAIT(ms) is the time in the listener's queue, from the end of the handshake to accept(); `-` where
the handshake ended before the trace began.
"""

from __future__ import annotations

from tcpcore.model import columns as col
from tcpcore.model import fields
from tcpcore.model.event import ConnectionEvent
from tcpcore.model.slots import ACCEPTING, TRANSITIONS
from tcpcore.model.tool import Lines, Stream, Tool


class Event(ConnectionEvent):
    """One accepted connection. Mirror of struct accept_event, bpf/accept.h; times in ns."""

    tid: fields.U32
    wait_ns: fields.Duration
    cgroup_id: fields.CgroupId


_WAIT = col.millis("WAIT(ms)", "wait_ns", 8, digits=3)

_LINES = Lines(
    Event,
    columns=(
        *col.OWNER,
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
    record="event",
)

TOOL = Tool(
    name="accept",
    event=Event,
    kinds=(Stream(_LINES),),
    slots=TRANSITIONS + ACCEPTING,
    sockets=("sockets",),
)

EXAMPLES = (
    ("accept -L 443", "accepted on port 443"),
    ("accept --comm nginx --json", "by nginx, a JSON object a line"),
    ("accept --raddr 10.0.0.0/8 -d 60", "from this network, for a minute"),
)


ALIASES = {"lport": ("--port", "-P")}


def tool() -> Tool:
    """accept has no options of its own."""
    return TOOL
