"""Follow packets on their way through the stack: where each was when, and what took how long.

A block per packet: its ends, flags and bytes, then a line per stage. DELTA is the time since the
stage before, so what was spent there; ELAPSED since the first. Filters are about connections: both
of their directions are followed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated

from tcpcore.errors import OptionError
from tcpcore.loader import Slot, Way
from tcpcore.loader.perf import Record
from tcpcore.model import columns as col
from tcpcore.model import fields, net
from tcpcore.model.option import Option
from tcpcore.model.slots import ACCEPTING, TRANSITIONS
from tcpcore.model.tool import Column, Derive, Histograms, Lines, Rodata, Stream, Tool
from tcpcore.request.values import decimal
from tcpcore.tools.path.event import Event, Flags, Reason, Seq, WithBytes
from tcpcore.tools.path.stages import STAGES
from tcpcore.value import Value

if TYPE_CHECKING:
    from tcpcore.tools.path.pcapng import Capture

At = Annotated[str, fields.Kind("", lambda raw: STAGES[raw[0]])]
Packet = Annotated[int, fields.Kind("", int)]


class Step(Value):
    """A stage of a packet. packet: its number in this trace.

    laddr, lport: of who sent it; raddr, rport: of whom it is for. pid, comm, uid: of who reads it,
    at the stage `copied`. netns: inode of the namespace where the stage is. delta_ns: since the
    stage before, elapsed_ns: since the first one. ifname: None where there is no interface. seq,
    len: of the data that came by this stage, which may be a segment of the packet. reason: of a
    drop.
    """

    ts_ns: fields.Time
    laddr: fields.Address
    raddr: fields.Address
    pid: fields.Pid
    uid: fields.Uid
    netns: fields.KeyNetns
    comm: fields.Comm
    lport: fields.Port
    rport: fields.Port
    family: fields.Family
    packet: Packet
    stage: At
    delta_ns: fields.Time
    elapsed_ns: fields.Time
    cpu: fields.U32
    ifname: fields.Comm
    seq: Seq
    len: Seq
    flags: Flags
    reason: Reason


_NAMES = list(fields.kinds(Step))


def _heading(row: Record) -> str:
    """What a packet's block begins with, told by its first stage."""
    raw = dict(zip(_NAMES, row, strict=True))
    ends = (f"{net.address_text(raw[x + 'addr'])}:{raw[x + 'port']}" for x in "lr")
    return f"#{raw['packet']} {' > '.join(ends)} {net.flag_names(raw['flags'])}"


def _stages(column: fields.Column) -> list[str]:
    """Those of a part of the packet stand further right."""
    return [f"{'  ' * depth}{STAGES[stage]}".ljust(15) for stage, depth in column]


def _micros(title: str, field: str) -> Column:
    return Column(title, field, 12, cells=fields.scaled(12, 1, 1e3))


_COLUMNS = (
    Column("STAGE", "stage", 15, cells=_stages),
    _micros("DELTA(us)", "delta_ns"),
    _micros("ELAPSED(us)", "elapsed_ns"),
    Column("CPU", "cpu", 3),
    Column("IFNAME", "ifname", 15),
    col.NETNS,
    Column("SEQ", "seq", 10, cells=lambda column: [str(x).ljust(10) for x in column]),
    Column("LEN", "len", 5, cells=lambda column: [str(x).ljust(5) for x in column]),
    Column("REASON", "reason", 0),
)

_LINES = Lines(
    Step,
    columns=_COLUMNS,
    wide=(*_COLUMNS[:-1], col.pid(7), col.comm(16), col.UID, _COLUMNS[-1]),
    record="event",
    heading=("packet", _heading),
)

_FUNCTIONS = ("ip_output", "ip_rcv", "ip_local_deliver", "tcp_v4_rcv", "tcp_queue_rcv")
# The kernel may be built without IPv6, and what is static may be inlined or have another name.
_MAYBE = (
    "__tcp_transmit_skb",
    "__ip_queue_xmit",
    "inet6_csk_xmit",
    "ip6_output",
    "ipv6_rcv",
    "ip6_input",
    "tcp_v6_rcv",
)
_OUTPUT = ("struct net *, struct sock *, struct sk_buff *",)
_RECEIVE = ("struct sk_buff *, struct net_device *, struct packet_type *, struct net_device *",)
_TYPES = {
    "__tcp_transmit_skb": ("struct sock *, struct sk_buff *, int, gfp_t, u32",),
    "__ip_queue_xmit": ("struct sock *, struct sk_buff *, struct flowi *, __u8",),
    "inet6_csk_xmit": ("struct sock *, struct sk_buff *, struct flowi *",),
    **dict.fromkeys(("ip_output", "ip6_output"), _OUTPUT),
    **dict.fromkeys(("ip_rcv", "ipv6_rcv"), _RECEIVE),
    **dict.fromkeys(
        ("ip_local_deliver", "ip6_input", "tcp_v4_rcv", "tcp_v6_rcv"), ("struct sk_buff *",)
    ),
    "tcp_queue_rcv": ("struct sock *, struct sk_buff *, bool *",),
}

_SLOTS = (
    Slot(
        "packets end",
        (Way(("raw_tp/kfree_skb", "raw_tp/consume_skb", "raw_tp/skb_copy_datagram_iovec")),),
    ),
    Slot(
        "packets are received",
        (
            Way(
                ("raw_tp/netif_receive_skb", "raw_tp/tcp_probe"),
                optional=("raw_tp/netif_rx", "raw_tp/napi_gro_receive_entry"),
            ),
        ),
    ),
    Slot(
        "packets are sent",
        (
            Way(
                ("raw_tp/net_dev_start_xmit", "raw_tp/qdisc_dequeue", "raw_tp/net_dev_queue"),
                optional=("raw_tp/qdisc_enqueue",),  # Linux 5.15
            ),
        ),
    ),
    Slot(
        "functions on the way",
        (
            Way(
                tuple(f"fentry/{name}" for name in _FUNCTIONS),
                optional=tuple(f"fentry/{name}" for name in _MAYBE),
                types=_TYPES,
            ),
            Way(
                tuple(f"kprobe/{name}" for name in _FUNCTIONS),
                optional=tuple(f"kprobe/{name}" for name in _MAYBE),
            ),
        ),
        required=False,
    ),
)

# With all that it may have: most runs ask for no owner, and follow no socket.
TOOL = Tool(
    name="path",
    event=Event,
    kinds=(Stream(_LINES),),
    slots=TRANSITIONS + ACCEPTING + _SLOTS,
    sockets=("sockets", "flows"),
    seed="iter/task_file",
    one_event=itemgetter(_NAMES.index("packet")),
)

EXAMPLES = (
    ("path -L 8080", "of a server, packets both ways"),
    ("path -L 8080 --pcapng FILE", "for Wireshark as well"),
    ("path -L 8080 --summary -i 10", "times by stage, every ten seconds"),
)


def tool(
    flags: Annotated[
        str, Option("Only packets with one of these TCP flags: SYN,RST.", metavar="FLAGS")
    ] = "",
    min_latency: Annotated[
        float, Option("Only packets that took so many milliseconds.", metavar="MS")
    ] = 0,
    quiet: Annotated[
        float, Option("Show a packet of which nothing was seen for so long.", metavar="SEC")
    ] = 10,
    summary: Annotated[bool, Option("How long each stage takes instead.")] = False,
    pcapng: Annotated[
        str, Option("The packets for Wireshark, with their stages as comments.", metavar="FILE")
    ] = "",
) -> Tool:
    """flags: only packets with one of these TCP flags, as "SYN,RST". min_latency: only packets that
    took so many milliseconds. quiet: seconds after which a packet is shown of whose end nothing was
    seen. summary: how long each stage takes instead of each packet. pcapng: a file that gets the
    packets' first bytes, with their stages as comments."""
    least = decimal("min_latency", min_latency, "a number of milliseconds")
    patience = decimal("quiet", quiet, "a number of seconds", positive=True)

    event = WithBytes if pcapng else Event

    @contextmanager
    def packets() -> Iterator[Derive]:
        from tcpcore.tools.path.packets import Packets

        with _capture(pcapng) as capture:
            times = round(patience * 1e9), round(least * 1e6)
            yield Packets(list(fields.kinds(event)), *times, capture)

    rodata: Rodata = {"target_flags": _mask(flags), "path_has_bytes": bool(pcapng)}
    kinds = (_summary(),) if summary else TOOL.kinds
    following = TOOL._replace(
        event=event, kinds=kinds, rodata=rodata | {"path_has_owners": True}, derive=packets
    )
    return following._replace(
        slots=_SLOTS, sockets=("flows",), seed=None, rodata=rodata, with_owners=following
    )


def _mask(flags: str) -> int:
    """TCP flags by name, separated by commas."""
    found = 0
    for name in flags.upper().split(",") if flags else ():
        if name not in net.TCP_FLAGS:
            raise OptionError("flags", f"'{name}' is none of {', '.join(net.TCP_FLAGS)}")
        found |= 1 << net.TCP_FLAGS.index(name)
    return found


def _capture(path: str) -> AbstractContextManager[Capture | None]:
    if not path:
        return nullcontext()
    from tcpcore.tools.path.pcapng import capture

    return capture(path)


def _summary() -> Histograms:
    from tcpcore.tools.path.summary import Stages

    return Histograms(lambda _: Stages(_NAMES), summary=True)
