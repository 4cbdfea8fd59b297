"""Show how full the queues of listeners are, and how often they overflow.

LENGTHS: how many connections found so many others in the accept queue, as length:connections. QUEUE
is its length now, LIMIT that of both queues. DROPS: what the listener dropped, for any reason.
"""

from __future__ import annotations

import struct
from typing import Annotated

from tcpcore.errors import OptionError
from tcpcore.loader import Attached, Slot, Way
from tcpcore.model import columns as col
from tcpcore.model import fields
from tcpcore.model.event import ConnectionEvent
from tcpcore.model.option import Option
from tcpcore.model.slots import TRANSITIONS
from tcpcore.model.tool import (
    Column,
    Counts,
    Histograms,
    Lines,
    Measures,
    Rodata,
    Sweep,
    Table,
    Tool,
)
from tcpcore.tools.synbl.listeners import Listener, Listeners

Lengths = Annotated[bytes, fields.Kind("128s", struct.Struct("=16Q").unpack)]


class Event(ConnectionEvent):
    """A listener as it is now, or at its end. Mirror of struct synbl_event, bpf/synbl.h."""

    ended: Annotated[int, fields.Kind("B", int)]
    queue: fields.U32
    limit: fields.U32
    syn_queue: fields.U32
    sk: fields.Count
    since_ns: fields.Time
    overflows: fields.Count
    drops: fields.Count
    syn_overflows: fields.Count
    cookies: fields.Count
    length_sum: fields.Count
    lengths: Lengths


def _columns(width: int) -> tuple[Column, ...]:
    return (
        col.address("LADDR", "laddr", width),
        col.port("LPORT", "lport"),
        Column("CONNS", "connections", 7),
        Column("QUEUE", "queue", 5),
        Column("LIMIT", "limit", 5),
        Column("OVERFLOWS", "overflows", 9),
        Column("DROPS", "drops", 7),
        Column("SYNQ", "syn_queue", 5),
        Column("SYNOVER", "syn_overflows", 7),
        Column("COOKIES", "cookies", 7),
    )


_LENGTHS = Column("LENGTHS", "buckets", 0)

_LINES = Lines(
    Listener,
    columns=(col.pid(7), col.comm(12), *_columns(15), _LENGTHS),
    wide=(*col.WIDE_OWNER, *_columns(39), col.UID, col.NETNS, _LENGTHS),
)

_OVERFLOWS = "overflows"


def _listeners(program: Attached) -> Counts:
    hooked = any(use.slot.name == _OVERFLOWS and use.way for use in program.uses)
    return Listeners(list(fields.kinds(Event)), hooked)


def _all(program: Attached) -> Counts:
    return Listeners(list(fields.kinds(Event)), hooked=False, idle=True)


def _lengths(program: Attached) -> Measures:
    from tcpcore.tools.synbl.lengths import Distributions

    return Distributions(_listeners(program))


_SYN_RECV = (
    "struct sock *, struct sk_buff *, struct request_sock *, struct dst_entry *, "
    "struct request_sock *, bool *"
)
_TYPES = {
    "tcp_conn_request": (
        "struct request_sock_ops *, struct tcp_request_sock_ops *, struct sock *, struct sk_buff *",
    ),
    # Linux 6.18 has a pointer to a function behind them, 5.10 has not.
    **dict.fromkeys(
        ("tcp_v4_syn_recv_sock", "tcp_v6_syn_recv_sock"), (_SYN_RECV, f"{_SYN_RECV}, function *")
    ),
    **dict.fromkeys(
        ("cookie_v4_init_sequence", "cookie_v6_init_sequence"), ("struct sk_buff *, __u16 *",)
    ),
}
_NEEDED = ("tcp_v4_syn_recv_sock", "tcp_conn_request")
# The kernel may be built without IPv6, or without cookies.
_MORE = ("tcp_v6_syn_recv_sock", "cookie_v4_init_sequence", "cookie_v6_init_sequence")

_HOOKS = Slot(
    _OVERFLOWS,
    (
        Way(
            tuple(f"fentry/{name}" for name in _NEEDED),
            optional=tuple(f"fentry/{name}" for name in _MORE),
            types=_TYPES,
        ),
        Way(
            tuple(f"kprobe/{name}" for name in _NEEDED),
            optional=tuple(f"kprobe/{name}" for name in _MORE),
        ),
    ),
    required=False,
)

TOOL = Tool(
    name="synbl",
    event=Event,
    kinds=(Table(_LINES, _listeners),),
    slots=(*TRANSITIONS, _HOOKS),
    sockets=("sockets",),
    asked=Sweep(map="sockets", section="raw_tp"),
    seed="iter/task_file",
)

EXAMPLES = (
    ("synbl --now", "all listeners there are, with their queues now"),
    ("synbl -i 10", "every ten seconds, those to which something came"),
    ("synbl -L 443 --hist", "of one port, lengths of the queue as bars"),
)


def tool(
    now: Annotated[bool, Option("All listeners as they are now, and no more.")] = False,
    hist: Annotated[bool, Option("A histogram of the lengths for each listener.")] = False,
) -> Tool:
    """now: all listeners as they are now, at once; drops count from the listener's beginning. hist:
    of each listener a histogram of the accept queue's lengths."""
    if now and hist:
        raise OptionError("hist", "there are no lengths with `now`: connections bring them")
    rodata: Rodata = {"target_now": now}
    if now:
        kinds = (Table(_LINES, _all),)
        return TOOL._replace(kinds=kinds, slots=(), rodata=rodata, at_once=True)
    kind = Histograms(_lengths) if hist else Table(_LINES, _listeners)
    return TOOL._replace(kinds=(kind,), rodata=rodata)
