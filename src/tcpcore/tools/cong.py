"""Show how long TCP connections are in each congestion state, and what changes it.

The times are of the last interval, or of the whole trace. Without --all, connections that were in
the state open all the time have no row.
"""

from __future__ import annotations

from typing import Annotated

from tcpcore.errors import OptionError
from tcpcore.loader import Slot, Way
from tcpcore.model import columns as col
from tcpcore.model import fields, net
from tcpcore.model.counted import Counted, Measured
from tcpcore.model.event import ConnectionEvent
from tcpcore.model.option import Argument, Option
from tcpcore.model.slots import ACCEPTING, TRANSITIONS, WALK, optional
from tcpcore.model.tool import Column, Histograms, Kind, Lines, Stream, Table, Tool
from tcpcore.request.values import number, seconds
from tcpcore.value import Value

State = Annotated[str, fields.Kind("B", net.CA_STATES.__getitem__)]
Algorithm = fields.Comm


class Event(ConnectionEvent):
    """One change. Mirror of struct cong_event, bpf/cong.h.

    duration_ns: how long oldstate lasted. cwnd, ssthresh: in segments; ssthresh is None as long as
    nothing has set it.
    """

    oldstate: State
    newstate: State
    algorithm: Algorithm
    duration_ns: fields.Duration
    cwnd: fields.U32
    ssthresh: fields.Ssthresh


class Key(Value):
    """A connection. Mirror of struct cong. since_ns: it was followed from then on, by
    CLOCK_MONOTONIC. raddr: `other` for the rest of a report."""

    since_ns: fields.KeyTime
    laddr: fields.KeyHost
    raddr: fields.KeyAddress
    pid: fields.Pid
    netns: fields.KeyNetns
    comm: fields.Comm
    lport: fields.Port
    rport: fields.Port
    family: fields.KeyFamily


class Connection(Key):
    """Changes of its state in one interval, and how long it was in each."""

    changes: fields.Count
    open_ns: fields.Count
    disorder_ns: fields.Count
    cwr_ns: fields.Count
    recovery_ns: fields.Count
    loss_ns: fields.Count
    interval_ns: fields.Interval


class Stays(Value):
    """What has a histogram of its own. Mirror of struct cong_stay."""

    state: Annotated[str, fields.Kind("Q", (fields.OTHER, *net.CA_STATES).__getitem__)]


# As tcpcong orders them.
_TIMES = (
    col.millis("OPEN(ms)", "open_ns", 10, digits=3),
    col.millis("DISORDER(ms)", "disorder_ns", 12, digits=3),
    col.millis("RECOVERY(ms)", "recovery_ns", 12, digits=3),
    col.millis("CWR(ms)", "cwr_ns", 10, digits=3),
    col.millis("LOSS(ms)", "loss_ns", 10, digits=3),
    Column("CHANGES", "changes", 7),
)
_CHANGE = (
    Column("OLDSTATE", "oldstate", 8),
    Column("->", "newstate", 2, text=lambda state: "->"),
    Column("NEWSTATE", "newstate", 8),
    col.millis("MS", "duration_ns", 10, digits=3),
    Column("CWND", "cwnd", 6),
    Column("SSTHRESH", "ssthresh", 8),
    Column("ALGORITHM", "algorithm", 9),
)

_ROWS = Lines(
    Connection,
    columns=(col.pid(7), col.comm(10), *col.local_remote(15), *_TIMES),
    wide=(*col.WIDE_OWNER, *col.local_remote(39), *_TIMES, col.NETNS),
)
_EVENTS = Lines(
    Event,
    columns=(col.pid(7), col.comm(10), *col.local_remote(15), *_CHANGE),
    wide=(*col.WIDE_OWNER, *col.local_remote(39), *_CHANGE, col.UID, col.NETNS),
    record="event",
)

_TABLE = Table(_ROWS, Counted("connections", Key, struct="cong", timed=True))
_HISTOGRAMS = Histograms(Measured("stays", "duration", "us", Stays, struct="cong_stay"))

_SOCK = ("struct sock *",)
_TYPES = {
    "tcp_fastretrans_alert": ("struct sock *, u32, int, int *, int *",),
    "tcp_enter_recovery": ("struct sock *, bool",),
    **dict.fromkeys(("tcp_enter_loss", "tcp_enter_cwr", "tcp_simple_retransmit"), _SOCK),
}

# The tracepoint is exact, and there since Linux 6.0. The functions are those that lead to changes.
_SETS = Slot(
    "congestion states",
    (
        Way(("tp_btf/tcp_cong_state_set",)),
        Way(("raw_tp/tcp_cong_state_set",)),
        Way(tuple(f"fexit/{name}" for name in _TYPES), types=_TYPES),
        Way(tuple(f"{kind}/{name}" for name in _TYPES for kind in ("kretprobe", "kprobe"))),
    ),
)

_FOLLOWING = (*TRANSITIONS, *optional(ACCEPTING), _SETS)

TOOL = Tool(
    name="cong",
    event=Event,
    kinds=(_TABLE,),
    slots=_FOLLOWING + WALK,
    sockets=("sockets",),
    seed="iter/task_file",
)

EXAMPLES = (
    ("cong 10", "every ten seconds, connections in trouble"),
    ("cong --events -T -D 443", "each change, with the time of day"),
    ("cong --dist -d 60", "how long the states last, for a minute"),
)

# That of tcpcong; its -d is --dist here.
ALIASES = {"rport": ("-R",)}


def tool(
    period: Annotated[str, Argument("Seconds between two reports.", "INTERVAL")] = "",
    reports: Annotated[str, Argument("End after so many.", "COUNT")] = "",
    all: Annotated[bool, Option("Connections that were open all the time as well.")] = False,
    dist: Annotated[
        bool, Option("Histograms of how long states last.", ("--dist", "--hist"))
    ] = False,
    events: Annotated[bool, Option("Each change as it happens instead.")] = False,
) -> Tool:
    """period: seconds between two reports, as `interval`. reports: how many. all: connections that
    were in the state open all the time as well. dist: a histogram for each state of how long it
    lasted. events: each change, with congestion window, threshold and algorithm."""
    if dist and events:
        raise OptionError("events", "and `dist`: one of them")
    if all and (dist or events):
        raise OptionError("all", "with `dist` and `events` there is no row for a connection")
    whole = TOOL._replace(
        interval=seconds("period", period) if period else None,
        reports=number("reports", reports, "a number of reports", 1, 1 << 31) if reports else None,
        rodata={"cong_has_quiet": all, "cong_has_events": events, "cong_has_stays": dist},
    )
    if not dist and not events:
        return whole
    kind: Kind = _HISTOGRAMS if dist else Stream(_EVENTS)
    return whole._replace(kinds=(kind,), slots=_FOLLOWING)
