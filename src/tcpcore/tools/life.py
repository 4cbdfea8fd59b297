"""Trace TCP sessions: a line for each at its end, with its owner, bytes each way and duration.

MS counts from the first SYN that was sent, or from the answer to the peer's. TX_KB and RX_KB are
payload, without retransmits. PID and COMM are of the process that closed the session, or else the
last one known to have it.
"""

from __future__ import annotations

from typing import Annotated

from tcpcore.model import clock, fields
from tcpcore.model import columns as col
from tcpcore.model.event import ConnectionEvent
from tcpcore.model.option import Option
from tcpcore.model.slots import ACCEPTING, TRANSITIONS, optional
from tcpcore.model.tool import Column, Lines, Snapshot, Stream, Sweep, Tool


class Event(ConnectionEvent):
    """One session. Mirror of struct life_event, bpf/life.h; times in ns or us as named.

    reason: fin, reset sent, reset received, timeout, or open where the trace ended first. The last
    times: how long the sender had something to send, and waited for the network, for the receiver's
    window, for room in its send buffer.
    """

    role: fields.Role
    reason: fields.Reason
    retransmits: fields.U32
    rtt_min_us: fields.MinRtt
    srtt_us: fields.Srtt
    duration_ns: fields.Duration
    tx_bytes: fields.Bytes
    rx_bytes: fields.Bytes
    cwnd_limited_ns: fields.Time
    rwnd_limited_ns: fields.Time
    sndbuf_limited_ns: fields.Time
    cgroup_id: fields.CgroupId


_COUNTS = (
    col.kilobytes("TX_KB", "tx_bytes"),
    col.kilobytes("RX_KB", "rx_bytes"),
    col.millis("MS", "duration_ns", 8, digits=2),
)

_LINES = Lines(
    Event,
    columns=(
        col.pid(),
        col.comm(10),
        *col.local_remote(15),
        *_COUNTS,
    ),
    wide=(
        *col.WIDE_OWNER,
        *col.local_remote(39),
        *_COUNTS,
        Column("REASON", "reason", 14),
        Column("RETRANS", "retransmits", 7),
        Column("MINRTT(us)", "rtt_min_us", 10),
        Column("SRTT(us)", "srtt_us", 8),
        col.millis("CWND(ms)", "cwnd_limited_ns", 8, digits=0),
        col.millis("RWND(ms)", "rwnd_limited_ns", 8, digits=0),
        col.millis("SNDBUF(ms)", "sndbuf_limited_ns", 10, digits=0),
        col.UID,
        col.NETNS,
    ),
    record="event",
)

TOOL = Tool(
    name="life",
    event=Event,
    kinds=(Stream(_LINES),),
    slots=TRANSITIONS + optional(ACCEPTING),
    sockets=("sockets",),
)

EXAMPLES = (
    ("life --comm curl --wide", "of curl, with round-trip times"),
    ("life --all --open", "older ones too, and those still open"),
    ("life -L 443 --csv -o life.csv", "of a server, into a file"),
)


_OPEN = Snapshot(_LINES, Sweep(map="sockets", section="raw_tp"))


def tool(
    all: Annotated[bool, Option("Sessions older than the trace as well.")] = False,
    open: Annotated[bool, Option("At the end, list the sessions that are still open.")] = False,
) -> Tool:
    """all: sessions older than the trace, too. open: at the end, those that are open still."""
    return TOOL._replace(
        kinds=(*TOOL.kinds, _OPEN) if open else TOOL.kinds,
        rodata={"target_all": all, "jiffy_ns": clock.jiffy_ns()},
        seed="iter/task_file" if all else None,
    )
