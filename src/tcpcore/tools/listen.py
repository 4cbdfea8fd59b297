"""Trace listen(): who listens where, with what backlog, and with what result.

BACKLOG is what was asked for, GIVEN what net.core.somaxconn left of it; `-` where listen() failed.
V6ONLY: `no` is a dual-stack listener, which takes IPv4 as well.
"""

from __future__ import annotations

from typing import Annotated

from tcpcore.loader import Slot, Way
from tcpcore.model import columns as col
from tcpcore.model import fields
from tcpcore.model.event import ConnectionEvent
from tcpcore.model.slots import compat
from tcpcore.model.tool import Column, Lines, Stream, Tool

_UNKNOWN_BACKLOG = 1 << 62
_FAILED = (1 << 32) - 1

Protocol = Annotated[str, fields.Kind("B", ("tcp", "mptcp").__getitem__)]
V6only = Annotated[
    bool | None,
    fields.Kind(
        "B", (None, False, True).__getitem__, text={None: "-", False: "no", True: "yes"}.get
    ),
]
Backlog = Annotated[
    int | None, fields.Kind("q", lambda raw: None if raw == _UNKNOWN_BACKLOG else raw)
]
Limit = Annotated[int | None, fields.Kind("I", lambda raw: None if raw == _FAILED else raw)]


class Event(ConnectionEvent):
    """One listen(). Mirror of struct listen_event, bpf/listen.h. A listener has no peer.

    backlog: asked for; None: not known. limit: connections that may wait for accept(); None where
    it failed. v6only: None for IPv4.
    """

    protocol: Protocol
    v6only: V6only
    tid: fields.U32
    backlog: Backlog
    cgroup_id: fields.CgroupId
    limit: Limit
    result: fields.Result


def _columns(width: int) -> tuple[Column, ...]:
    return (
        Column("RET", "result", 10),
        Column("BACKLOG", "backlog", 7),
        Column("PROTO", "protocol", 5, text=str.upper),
        Column("PORT", "lport", 5, text=lambda port: str(port or 0)),
        col.address("ADDR", "laddr", width),
        Column("GIVEN", "limit", 7),
        Column("V6ONLY", "v6only", 6),
    )


_LINES = Lines(
    Event,
    columns=(col.pid(7), col.comm(16), *_columns(15)),
    wide=(*col.WIDE_OWNER, *_columns(39), col.TID, col.UID, col.NETNS),
    record="event",
)

_LISTEN = ("struct socket *, int",)

_CALLS = Slot(
    "listen()",
    (
        Way(
            ("fexit/inet_listen",),
            optional=("fexit/mptcp_listen",),
            types={"inet_listen": _LISTEN, "mptcp_listen": _LISTEN},
        ),
        Way(
            ("kretprobe/inet_listen", "kprobe/inet_listen"),
            optional=("kretprobe/mptcp_listen", "kprobe/mptcp_listen"),
        ),
        Way(("tp/syscalls/sys_exit_listen", "tp/syscalls/sys_enter_listen")),
    ),
)

TOOL = Tool(
    name="listen",
    event=Event,
    kinds=(Stream(_LINES),),
    slots=(_CALLS, compat("listen()", "sys_exit", "sys_enter")),
)

EXAMPLES = (
    ("listen --wide", "with user, thread and network namespace"),
    ("listen -L 80,443", "on these ports"),
    ("listen --comm nginx --json", "of nginx, a JSON object a line"),
)


def tool() -> Tool:
    """listen has no options of its own."""
    return TOOL
