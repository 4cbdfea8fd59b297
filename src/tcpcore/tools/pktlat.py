"""Trace how long received TCP data waited until it was read, by process and thread.

MS counts from the time when the first byte of what was read could be read. Data that is only looked
at (MSG_PEEK) goes on waiting. MIN_US: only waits of so many microseconds or more.
"""

from __future__ import annotations

from typing import Annotated

from tcpcore.errors import OptionError
from tcpcore.loader import Slot, Way
from tcpcore.model import columns as col
from tcpcore.model import fields
from tcpcore.model.counted import Measured
from tcpcore.model.event import ConnectionEvent
from tcpcore.model.option import Argument, Option
from tcpcore.model.slots import TRANSITIONS
from tcpcore.model.tool import Histograms, Lines, Rodata, Stream, Tool
from tcpcore.request.values import decimal
from tcpcore.value import Value


class Event(ConnectionEvent):
    """Data that was read. Mirror of struct pktlat_event, bpf/pktlat.h; times in ns.

    pid, tid, comm: of the task that read it.
    """

    tid: fields.Pid
    latency_ns: fields.Time


class Key(Value):
    """What has a histogram of its own. Mirror of struct pktlat, bpf/pktlat.h."""

    pid: fields.Pid
    comm: fields.Comm


_MS = col.millis("MS", "latency_ns", 8, digits=2)
_READER = (col.pid(7), col.TID, col.comm(16))

_LINES = Lines(
    Event,
    columns=(*_READER, *col.local_remote(15), _MS),
    wide=(*_READER, col.IP, *col.local_remote(39), _MS, col.UID, col.NETNS),
    record="event",
)

_QUEUE = {"tcp_queue_rcv": ("struct sock *, struct sk_buff *, bool *",)}
_ESTABLISHED_ONLY = {"sees_established_only": 1}

# At the tracepoint a segment has not been looked at yet, and most have no data; and it is there in
# TCP_ESTABLISHED alone. So the function is better, also for a kprobe.
_ARRIVALS = Slot(
    "data comes",
    (
        Way(("fentry/tcp_queue_rcv",), types=_QUEUE),
        Way(("kprobe/tcp_queue_rcv",)),
        Way(("tp_btf/tcp_probe",), rodata=_ESTABLISHED_ONLY),
        Way(("raw_tp/tcp_probe",), rodata=_ESTABLISHED_ONLY),
    ),
)
_READS = Slot(
    "data is read",
    (Way(("tp_btf/tcp_rcv_space_adjust",)), Way(("raw_tp/tcp_rcv_space_adjust",))),
)

TOOL = Tool(
    name="pktlat",
    event=Event,
    kinds=(Stream(_LINES),),
    slots=(*TRANSITIONS, _READS, _ARRIVALS),
    sockets=("sockets",),
)

EXAMPLES = (
    ("pktlat 1000 --comm nginx", "of nginx, waits of 1 ms or more"),
    ("pktlat --hist -i 10", "by process, every ten seconds"),
    ("pktlat -L 5432 --csv -o pktlat.csv", "of a server, into a file"),
)

_HISTOGRAMS = Histograms(Measured("waits", "latency", "us", Key, struct="pktlat"))

ALIASES = {"lport": ("-l",), "rport": ("-r",)}


def tool(
    min_us: Annotated[
        float, Argument("Only waits of at least so many microseconds.", "MIN_US")
    ] = 0,
    tid: Annotated[
        float, Option("Only what this thread read; 0: any.", ("--tid",), None, "TID")
    ] = 0,
    hist: Annotated[bool, Option("Histograms by process instead.")] = False,
) -> Tool:
    """min_us: only waits of so many microseconds. tid: only what this thread read, 0 is any. hist:
    histograms by process instead of each wait."""
    least = decimal("min_us", min_us, "a number of microseconds")
    rodata: Rodata = {
        "targ_min_ns": round(least * 1000),
        "targ_tid": _thread(tid),
        "count_waits": hist,
    }
    return TOOL._replace(kinds=(_HISTOGRAMS,) if hist else TOOL.kinds, rodata=rodata)


def _thread(tid: float) -> int:
    found = decimal("tid", tid, "a thread id")
    if found % 1:
        raise OptionError("tid", f"'{tid}' is not a thread id")
    return int(found)
