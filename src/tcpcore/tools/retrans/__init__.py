"""Trace TCP retransmits: what is sent again, of whose connection, and why.

T> is R (retransmit), S (SYN), A (SYN-ACK) or L (tail-loss probe). PID and COMM have the socket, or
the listener of a SYN-ACK. RESULT: ok, or the errno of an attempt that failed, on kernels that tell.
"""

from __future__ import annotations

from typing import Annotated

from tcpcore.loader import Slot, Way
from tcpcore.model import clock, fields, net
from tcpcore.model import columns as col
from tcpcore.model.event import ConnectionEvent
from tcpcore.model.option import Option
from tcpcore.model.slots import ACCEPTING, TRANSITIONS, optional
from tcpcore.model.tool import Column, Lines, Rodata, Stream, Tool

# Each kind, in the order of enum retrans_kind, and its letter: R and L as in tcpretrans.
_LETTERS = {"retransmit": "R", "syn": "S", "synack": "A", "tlp": "L", "tlp_new": "L"}

Retransmission = Annotated[str, fields.Kind("B", tuple(_LETTERS).__getitem__)]
CaState = Annotated[str | None, fields.Kind("B", dict(enumerate(net.CA_STATES)).get)]
Timeouts = Annotated[int, fields.Kind("B", int)]
Window = Annotated[int | None, fields.Kind("I", lambda raw: raw or None)]
Micros = Annotated[int | None, fields.Kind("I", lambda raw: raw or None, few=False)]


class Event(ConnectionEvent):
    """What is sent again. Mirror of struct retrans_event, bpf/retrans.h.

    kind: "retransmit", "syn", "synack", "tlp" (a tail-loss probe that sends the last segment again)
    or "tlp_new" (one that sends new data). timeouts: in a row, with this one; of a SYN-ACK, how
    often it was sent again. cwnd, ssthresh: in segments. What is not known is None.
    """

    kind: Retransmission
    state: fields.State
    ca_state: CaState
    timeouts: Timeouts
    result: fields.Result
    seq: fields.U32
    segs: fields.U32
    cwnd: Window
    ssthresh: fields.Ssthresh
    srtt_us: fields.Srtt
    rto_us: Micros


_ARROW = Column("T>", "kind", 2, text=lambda kind: f"{_LETTERS[kind]}>")
_WHAT = (
    Column("STATE", "state", 12),
    col.SEQ,
    Column("SEGS", "segs", 4),
    Column("CA_STATE", "ca_state", 8),
    Column("RESULT", "result", 6),
)
_SENDER = (
    Column("CWND", "cwnd", 5),
    Column("SSTHRESH", "ssthresh", 8),
    Column("SRTT(us)", "srtt_us", 8),
    Column("RTO(us)", "rto_us", 8),
    Column("TIMEOUTS", "timeouts", 8),
)


def _ends(width: int) -> tuple[Column, ...]:
    return col.insert(col.local_remote(width), _ARROW, before="raddr")


_LINES = Lines(
    Event,
    columns=(*col.OWNER, *_ends(15), *_WHAT),
    wide=(*col.WIDE_OWNER, *_ends(39), *_WHAT, *_SENDER, col.UID, col.NETNS),
    record="event",
)

_PROBE = "tcp_send_loss_probe"

_RETRANSMITS = tuple(
    Slot(name, (Way((f"tp_btf/{hook}",)), Way((f"raw_tp/{hook}",))))
    for name, hook in (
        ("retransmits", "tcp_retransmit_skb"),
        ("SYN-ACKs sent again", "tcp_retransmit_synack"),
    )
)
_PROBES = Slot(
    "loss probes with new data",
    (
        Way((f"fexit/{_PROBE}", f"fentry/{_PROBE}"), types={_PROBE: ("struct sock *",)}),
        Way((f"kretprobe/{_PROBE}", f"kprobe/{_PROBE}")),
    ),
    required=False,
)
_FOLLOWING = TRANSITIONS + optional(ACCEPTING)

TOOL = Tool(
    name="retrans",
    event=Event,
    kinds=(Stream(_LINES),),
    slots=(*_FOLLOWING, *_RETRANSMITS, _PROBES),
    sockets=("sockets",),
    seed="iter/task_file",
    needs_seed=False,
)

EXAMPLES = (
    ("retrans -T --wide", "with the time of day, and the sender's numbers"),
    ("retrans -l --rport 443", "to port 443, with all tail-loss probes"),
    ("retrans -c -i 10", "counts per connection, every ten seconds"),
)


def tool(
    by_flow: Annotated[bool, Option("Count per connection instead.", ("--count", "-c"))] = False,
    lossprobe: Annotated[
        bool, Option("Tail-loss probes with new data, too.", ("--lossprobe", "-l"))
    ] = False,
) -> Tool:
    """by_flow: counts per connection instead of each retransmit. lossprobe: tail-loss probes that
    send new data, too."""
    seen = (*_RETRANSMITS, *([_PROBES] if lossprobe else []))
    rodata: Rodata = {"count_flows": by_flow, "jiffy_ns": clock.jiffy_ns()}
    following = TOOL._replace(slots=(*_FOLLOWING, *seen), rodata=rodata)
    if not by_flow:
        return following
    from tcpcore.tools.retrans.flows import TABLE

    # Counts have no owner: sockets are followed where a filter asks for one.
    counting = following._replace(kinds=(TABLE,))
    return counting._replace(slots=seen, sockets=(), seed=None, with_owners=counting)
