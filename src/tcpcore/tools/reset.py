"""Trace RST segments: who sends and receives them, and why.

REASON is the kernel's own where it gives one (Linux 6.10), CAUSE what can be told on every kernel.
STATE is that of the socket before, `-` where the RST answers a segment that belongs to none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from tcpcore.loader import Slot, Way
from tcpcore.model import columns as col
from tcpcore.model import fields
from tcpcore.model.enums import KernelEnum
from tcpcore.model.event import ConnectionEvent
from tcpcore.model.slots import ACCEPTING, TRANSITIONS, optional
from tcpcore.model.tool import Column, Lines, Stream, Tool
from tcpcore.value import Value

_REASONS = KernelEnum("sk_rst_reason", "SK_RST_REASON_")
_OWN = 0x8000
_CAUSES = (
    None,
    "no listener",
    "no connection",
    "time-wait",
    "late data",
    "listen overflow",
    "unexpected",
    "unread data",
    "linger 0",
    "linger2",
    "disconnect",
    "listener closed",
    "keepalive",
    "user timeout",
    "aborted",
    "mptcp",
    "refused",
    "by peer",
)


def _reason(raw: int) -> str | None:
    """0 is the kernel's NOT_SPECIFIED."""
    if raw & _OWN:
        return _CAUSES[raw - _OWN]
    return _REASONS(raw) if raw else None


Reason = Annotated[str | None, fields.Kind("H", _reason, enums=(_REASONS,))]
Cause = Annotated[str | None, fields.Kind("B", _CAUSES.__getitem__)]


class Event(ConnectionEvent):
    """One RST. Mirror of struct reset_event, bpf/reset.h.

    state: None where there is no socket. reason: the kernel's name for it, else the cause. cause:
    our word for it, the same on all kernels. seq: of the RST.
    """

    direction: fields.Direction
    state: fields.OptionalState
    reason: Reason
    cause: Cause
    seq: fields.SeqNumber


_RESET = (
    Column("RST", "direction", 8),
    Column("STATE", "state", 11),
    Column("CAUSE", "cause", 15),
    Column("REASON", "reason", 20),
)

_LINES = Lines(
    Event,
    columns=(col.pid(7), col.comm(10), *col.local_remote(15), *_RESET),
    wide=(
        *col.WIDE_OWNER,
        *col.local_remote(39),
        *_RESET,
        col.SEQ,
        col.UID,
        col.NETNS,
    ),
    record="event",
)

_TRACEPOINT = ("tcp_send_reset",)
_ACTIVE = "tcp_send_active_reset"
_FUNCTIONS = (_ACTIVE, "tcp_v4_send_reset")
_OF_IPV6 = ("tcp_v6_send_reset",)  # a kernel may lack it


class _Shape(Value):
    """Parameters that differ between kernels: the last one, and those of _ACTIVE."""

    last: str
    active: str
    rodata: Mapping[str, int]


_OLD = _Shape("", "struct sock *, gfp_t", {})
_WITH_REASON = _Shape(
    ", enum sk_rst_reason", "struct sock *, gfp_t, enum sk_rst_reason", {"reset_reason_at": 2}
)
# Without the priority of memory: Linux 7.2 has it so, 6.18 not yet.
_WITHOUT_PRIORITY = _Shape(
    ", enum sk_rst_reason", "struct sock *, enum sk_rst_reason", {"reset_reason_at": 1}
)


def _way(kind: str, shape: _Shape, hooks: tuple[str, ...], optional: tuple[str, ...] = ()) -> Way:
    """Programs of a kind."""
    whole = "struct sock *, struct sk_buff *" + shape.last
    return Way(
        tuple(f"{kind}/{hook}" for hook in hooks),
        optional=tuple(f"{kind}/{hook}" for hook in optional),
        types={x: (shape.active if x == _ACTIVE else whole,) for x in (*hooks, *optional)},
        rodata=shape.rodata,
    )


# Where the tracepoint tells no reason, it is not called for resets that no full socket sends:
# both came with Linux 6.10 (19822a980e19, b533fb9cf4f7). There the functions see more. A kprobe
# that wants no reason fits any shape, also where no BTF tells which it is.
_SENT = Slot(
    "RST sent",
    (
        _way("tp_btf", _WITH_REASON, _TRACEPOINT),
        _way("raw_tp", _WITH_REASON, _TRACEPOINT),
        _way("fentry", _WITHOUT_PRIORITY, _FUNCTIONS, _OF_IPV6),
        _way("fentry", _WITH_REASON, _FUNCTIONS, _OF_IPV6),
        _way("fentry", _OLD, _FUNCTIONS, _OF_IPV6),
        _way("kprobe", _WITHOUT_PRIORITY, _FUNCTIONS, _OF_IPV6),
        _way("kprobe", _WITH_REASON, _FUNCTIONS, _OF_IPV6),
        _way("kprobe", _OLD, _FUNCTIONS, _OF_IPV6)._replace(types={}),
        _way("tp_btf", _OLD, _TRACEPOINT),
        _way("raw_tp", _OLD, _TRACEPOINT),
    ),
)

_WITH_SEGMENT = {"tcp_reset": ("struct sock *, struct sk_buff *",)}
_ALONE = {"tcp_reset": ("struct sock *",)}
_HAS_SEGMENT = {"reset_has_segment": 1}

# The function knows the segment, but not in older kernels: then it tells what the tracepoint tells.
_RECEIVED = Slot(
    "RST received",
    (
        Way(("fentry/tcp_reset",), types=_WITH_SEGMENT, rodata=_HAS_SEGMENT),
        Way(("kprobe/tcp_reset",), types=_WITH_SEGMENT, rodata=_HAS_SEGMENT),
        Way(("tp_btf/tcp_receive_reset",)),
        Way(("raw_tp/tcp_receive_reset",)),
        Way(("fentry/tcp_reset",), types=_ALONE),
        Way(("kprobe/tcp_reset",), types=_ALONE),
    ),
)

TOOL = Tool(
    name="reset",
    event=Event,
    kinds=(Stream(_LINES),),
    slots=TRANSITIONS + optional(ACCEPTING) + (_SENT, _RECEIVED),
    sockets=("sockets",),
    seed="iter/task_file",
    needs_seed=False,
)

EXAMPLES = (
    ("reset --wide", "with sequence numbers, user and namespace"),
    ("reset --comm nginx -T", "of nginx, with the time of day"),
    ("reset -L 443 --json", "of a server, a JSON object a line"),
)


def tool() -> Tool:
    """reset has no options of its own."""
    return TOOL
