"""drop on real packets, each dropped for a reason of its own."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import struct
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tcpcore.loader import Btf
from tcpcore.model import drop_reasons
from tests.facts import Facts
from tests.live import harness
from tests.live.harness import Event, Net, Tracer, tracer

FACTS = Facts(
    header="IP DIR      LADDR           LPORT RADDR           RPORT STATE       FLAGS       "
    "REASON               FUNCTION",
    fields=frozenset(
        {
            *("direction", "state", "flags", "reason", "reason_code", "function"),
            *("seq", "ack", "len", "ifindex", "ifname"),
        }
    ),
    packets=True,
)
FIN, SYN, RST, PSH, ACK, URG = (1 << bit for bit in range(6))
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27  # include/uapi/asm-generic/socket.h
NOWHERE = "10.99.99.99"  # no route leads there


@dataclass(frozen=True)
class Segment:
    """One that no TCP of ours sends: RFC 9293, 3.1. doff: in words, other than it is."""

    source: tuple[str, int]
    dest: tuple[str, int]
    flags: int
    seq: int = 1
    ack: int = 0
    data: bytes = b""
    doff: int = 5
    window: int = 1024
    spoilt: int = 0  # added to the checksum

    def send(self, times: int = 1) -> None:
        ends = [socket.inet_aton(host) for host, _ in (self.source, self.dest)]
        ports = self.source[1], self.dest[1]
        parts = (*ports, self.seq, self.ack, self.doff << 4, self.flags, self.window)
        pseudo = struct.pack("!4s4sBBH", *ends, 0, socket.IPPROTO_TCP, 20 + len(self.data))
        empty = struct.pack("!HHIIBBHHH", *parts, 0, 0)
        check = (_sum(pseudo + empty + self.data) + self.spoilt) & 0xFFFF
        segment = struct.pack("!HHIIBBHHH", *parts, check, 0) + self.data
        header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, socket.IPPROTO_TCP, 0, *ends)
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            for _ in range(times):
                raw.sendto(header + segment, (self.dest[0], 0))


def _sum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    total = (total >> 16) + (total & 0xFFFF)
    return 0xFFFF & ~(total + (total >> 16))


TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21  # include/uapi/linux/tcp.h
_OFF_SILENTLY, _RECEIVED, _SENT = -1, 1, 2


def numbers(end: socket.socket) -> tuple[int, int]:
    """The sequence numbers that an end of a connection sends and expects next."""
    end.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    found = []
    for queue in (_SENT, _RECEIVED):
        end.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
        found.append(end.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ) & 0xFFFFFFFF)
    end.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, _OFF_SILENTLY)
    return found[0], found[1]


@dataclass
class Traffic:
    """What makes drops while a trace runs, in the first of two namespaces."""

    running: Tracer
    net: Net

    def seen(self, lport: int, rport: int, **more: object) -> Event:
        """The first drop between two ports. more: other fields that it has."""
        wanted = {"lport": lport, "rport": rport, **more}.items()
        return self.running.wait_for(lambda e: wanted <= e.items())

    def stray(self, segment: Segment) -> Event:
        segment.send()
        return self.seen(segment.dest[1], segment.source[1])


def forged(client: socket.socket, ahead: int = 0, beyond: int = 0, **more: Any) -> Segment:
    """One that the client of a connection did not send. ahead: of what it would send next; beyond:
    what it acknowledges, of what has come."""
    seq, ack = (number + by for number, by in zip(numbers(client), (ahead, beyond), strict=True))
    given = {"flags": ACK | PSH, "data": b"x" * 10, **more}
    ends = client.getsockname(), client.getpeername()
    return Segment(*ends, seq=seq & 0xFFFFFFFF, ack=ack & 0xFFFFFFFF, **given)


def no_socket(made: Traffic) -> Event:
    return made.stray(Segment(("127.0.0.1", 40001), ("127.0.0.1", 9), SYN))


def bad_checksum(made: Traffic) -> Event:
    return made.stray(Segment(("127.0.0.1", 40002), ("127.0.0.1", 9), SYN, spoilt=1))


def short_header(made: Traffic) -> Event:
    return made.stray(Segment(("127.0.0.1", 40003), ("127.0.0.1", 9), SYN, doff=4))


def netfilter(made: Traffic) -> Event:
    with harness.firewall("tcp sport 40004", "drop"):
        return made.stray(Segment(("127.0.0.1", 40004), ("127.0.0.1", 9), SYN))


def netfilter_output(made: Traffic) -> Event:
    with harness.firewall("tcp sport 40005", "drop", hook="output"):
        with contextlib.suppress(PermissionError):
            Segment(("127.0.0.1", 40005), ("127.0.0.1", 9), SYN).send()
        return made.seen(40005, 9)


def no_route_back(made: Traffic) -> Event:
    here, there = made.net
    Path("/proc/sys/net/ipv4/conf/ve0/rp_filter").write_text("1")
    try:
        with there.entered():
            segment = Segment((NOWHERE, 40006), (here.address, 9), SYN)
            segment.send()
        return made.seen(9, 40006)
    finally:
        Path("/proc/sys/net/ipv4/conf/ve0/rp_filter").write_text("0")


def out_of_window(made: Traffic) -> Event:
    with harness.pair() as (client, _):
        return made.stray(forged(client, ahead=1 << 30))


def old_data(made: Traffic) -> Event:
    with harness.pair() as (client, accepted):
        client.sendall(b"x" * 20)
        assert len(accepted.recv(20, socket.MSG_WAITALL)) == 20
        return made.stray(forged(client, ahead=-20))


def no_flags(made: Traffic) -> Event:
    with harness.pair() as (client, _):
        return made.stray(forged(client, flags=0))


def unsent_data_acknowledged(made: Traffic) -> Event:
    with harness.pair() as (client, _):
        return made.stray(forged(client, beyond=1 << 20))


def blind_reset(made: Traffic) -> Event:
    """In the window, but not the next byte: RFC 5961, 3.2."""
    with harness.pair() as (client, _):
        return made.stray(forged(client, flags=RST, ahead=10, data=b""))


def socket_filter(made: Traffic) -> Event:
    """Its only instruction lets nothing pass: struct sock_fprog, struct sock_filter."""
    with harness.pair() as (client, accepted):
        instruction = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0))
        program = struct.pack("HxxxxxxP", 1, ctypes.addressof(instruction))
        accepted.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        found = made.stray(forged(client))
        accepted.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        return found


def listen_overflow(made: Traffic) -> Event:
    """The last ACK of a handshake; a SYN is consumed. Other clients take all places."""
    with socket.socket() as server, contextlib.ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(2)
        port = server.getsockname()[1]
        with harness.firewall(f"tcp dport {port} tcp flags & (syn|ack) == ack", "drop"):
            late = stack.enter_context(harness.connect("127.0.0.1", port))
        for _ in range(3):
            stack.enter_context(harness.connect("127.0.0.1", port))
        late.send(b"x")
        return made.seen(port, late.getsockname()[1], len=1)


def full_receive_buffer(made: Traffic) -> Event:
    with harness.pair() as (client, accepted):
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        first = forged(client, data=b"x" * 1000)
        for n in range(4):
            replace(first, seq=(first.seq + n * 1000) & 0xFFFFFFFF).send()
        return made.seen(accepted.getsockname()[1], client.getsockname()[1], len=1000)


def no_socket_ipv6(made: Traffic) -> Event:
    port = harness.refused_port("::1")
    with harness.start_connect("::1", port) as client:
        return made.seen(port, client.getsockname()[1])


# Some of these segments the kernel treats as of another kind, by release.
KINDS: dict[Callable[[Traffic], Event], tuple[str, ...]] = {
    no_socket: ("NO_SOCKET",),
    no_socket_ipv6: ("NO_SOCKET",),
    bad_checksum: ("TCP_CSUM",),
    short_header: ("PKT_TOO_SMALL",),
    netfilter: ("NETFILTER_DROP",),
    netfilter_output: ("NETFILTER_DROP",),
    no_route_back: ("IP_RPFILTER",),
    out_of_window: ("TCP_INVALID_SEQUENCE",),
    old_data: ("TCP_OLD_SEQUENCE", "TCP_INVALID_SEQUENCE"),
    no_flags: ("TCP_FLAGS",),
    unsent_data_acknowledged: ("TCP_ACK_UNSENT_DATA",),
    blind_reset: ("TCP_RESET",),
    socket_filter: ("SOCKET_FILTER",),
    listen_overflow: ("TCP_LISTEN_OVERFLOW",),
    full_receive_buffer: ("PROTO_MEM",),
}


# What TCP itself drops, the tracepoint does not see there.
BEFORE_REASONS = {no_socket, no_socket_ipv6, bad_checksum, short_header, netfilter, no_route_back}
BEFORE_REASONS |= {socket_filter, listen_overflow}


def _reasons() -> dict[int, str]:
    """Those of this kernel; none before Linux 5.17."""
    found = Btf().enumerators("skb_drop_reason") or {}
    return {number: name.removeprefix("SKB_DROP_REASON_") for number, name in found.items()}


def _tells_socket() -> bool:
    """Of what is received: since Linux 6.11."""
    return "struct sock *" in (Btf().types("btf_trace_kfree_skb") or ())


def _wanted(names: tuple[str, ...]) -> str | None:
    """What this kernel calls a drop."""
    known = _reasons().values()
    if not known:
        return None
    return next((name for name in names if name in known), "NOT_SPECIFIED")


@pytest.mark.each_variant
def test_each_kind_of_drop(net: Net) -> None:
    kinds = {x: names for x, names in KINDS.items() if _reasons() or x in BEFORE_REASONS}
    with net[0].entered(), tracer("drop", "--json") as running:
        made = Traffic(running, net)
        found = {kind: kind(made) for kind in kinds}
        events = running.events()
    told = {kind.__name__: e["reason"] for kind, e in found.items()}
    assert told == {kind.__name__: _wanted(names) for kind, names in kinds.items()}
    sent = {kind for kind, e in found.items() if e["direction"] == "sent"}
    assert sent == {netfilter_output} & kinds.keys()
    for e in found.values():
        same = [x for x in events if all(x[k] == e[k] for k in ("lport", "rport", "seq", "len"))]
        assert same == [e]
    if not _tells_socket():  # nor has it a route any more
        found.pop(full_receive_buffer, None)
    assert {e["netns"] for e in found.values()} == {net[0].inode}


@pytest.mark.each_variant
def test_the_owner_of_a_connection(net: Net) -> None:
    """Also where TCP does not look for the socket: the checksum is wrong. One connection is older
    than the trace."""
    mine = os.getpid()
    with (
        net[0].entered(),
        harness.pair() as (older, _),
        tracer("drop", "--json", "--pid", str(mine)) as running,
        harness.pair() as (newer, _),
    ):
        made = Traffic(running, net)
        _strays(9, 1)
        found = [made.stray(forged(client, spoilt=1)) for client in (older, newer)]
        events = running.events()
    assert [(e["pid"], e["state"]) for e in found] == [(mine, "ESTABLISHED")] * 2
    assert {e["pid"] for e in events} == {mine} and 9 not in {e["lport"] for e in events}


def test_the_owner_of_what_is_sent(net: Net) -> None:
    with (
        net[0].entered(),
        tracer("drop", "--json", "--owner") as running,
        harness.firewall("tcp dport 9", "drop", hook="output"),
        harness.start_connect("127.0.0.1", 9) as client,
    ):
        e = Traffic(running, net).seen(client.getsockname()[1], 9)
    assert (e["pid"], e["state"], e["direction"]) == (os.getpid(), "SYN_SENT", "sent")


def _followed(running: Tracer) -> set[str]:
    """The sockets of its connections, as the kernel's addresses."""
    shown = json.loads(harness.sh("bpftool -j map show"))
    mine = [x["id"] for x in shown if ("map", x["id"]) in running.objects()]
    (kept,) = (x["id"] for x in shown if x["id"] in mine and x["name"] == "connections")
    rows = json.loads(harness.sh(f"bpftool -j map dump id {kept}"))
    return {"".join(row["value"]) for row in rows}


@pytest.mark.any_kernel
def test_nothing_is_kept_of_a_socket_that_is_gone(net: Net) -> None:
    """Of those older than the trace, too, and of those that are reset."""
    where = ["--netns", str(net[0].inode)]
    with net[0].entered(), contextlib.ExitStack() as older:
        older.enter_context(harness.pair())
        with tracer("drop", "--owner", *where) as running:
            with harness.pair() as (client, _):
                harness.until(lambda: len(_followed(running)) == 4)
                sockets = _followed(running)
                harness.reset(client)
            older.close()
            harness.until(lambda: not _followed(running))
            kept = {key for name, key, _ in running.entries() if name == "sockets"}
    assert not kept & sockets


def _strays(port: int, count: int, flags: int = SYN, **more: Any) -> None:
    for n in range(count):
        Segment(("127.0.0.1", 41000 + n), ("127.0.0.1", port), flags, **more).send()


def _flood(times: int, port: int = 9, **more: Any) -> None:
    Segment(("127.0.0.1", 40001), ("127.0.0.1", port), SYN, **more).send(times)


def test_counts_equal_what_was_dropped(net: Net) -> None:
    """By reason and place."""
    with net[0].entered(), tracer("drop", "-c", "--json", "-L", "9") as running:
        _flood(500)
        _flood(300, spoilt=1)
        _flood(20, port=10)
        rows = running.events("flow")
    found = Counter[str | None]()
    for row in rows:
        assert row["place"].startswith("tcp_v4_rcv+0x")
        found[row["reason"]] += row["drops"]
    if _reasons():
        assert found == {"NO_SOCKET": 500, "TCP_CSUM": 300}
    else:
        assert found == {None: 800}
    assert all(r["type"] == "flow" for r in running.records())


@pytest.mark.any_kernel
@pytest.mark.parametrize("options", [[], ["-c"], ["--rate", "100"]])
def test_a_flood(net: Net, options: list[str]) -> None:
    """Each packet is shown, counted, or told as lost. The kernel answers none of them."""
    with net[0].entered(), tracer("drop", "--json", "-L", "9", *options) as running:
        _flood(20_000, doff=4)
        shown = running.events()
        records = running.records()
    counted = [r["drops"] for r in records if r["type"] == "flow"]
    losses = [sum(n for n in r.values() if isinstance(n, int)) for r in records if "ring" in r]
    assert len(shown) + sum(counted) + sum(losses[-1:]) == 20_000
    assert bool(shown) == (options != ["-c"]) and bool(counted) == bool(options)


def test_the_stack(net: Net) -> None:
    with net[0].entered(), tracer("drop", "--json", "--stack", "-L", "9") as running:
        _strays(9, 1)
        (e,) = running.events()
    innermost, *frames = e["stack"].split(";")
    assert innermost == e["function"] and innermost.startswith("tcp_v4_rcv+0x")
    assert any(frame.startswith("ip_local_deliver") for frame in frames)


@pytest.mark.any_kernel
def test_the_stack_and_the_owner_in_the_table(net: Net) -> None:
    with net[0].entered(), tracer("drop", "--stack", "--owner", "-L", "9") as running:
        _strays(9, 2)
        assert running.stop() == 0
    header, *lines = running.out.lines
    assert header.split()[:3] == ["PID", "COMM", "IP"] and header.split()[-1] == "STACK"
    rows = [n for n, line in enumerate(lines) if line.split()[:3] == ["-", "-", "4"]]
    assert len(rows) == 2 and all(lines[n + 1].startswith("        tcp_v4_rcv+0x") for n in rows)


def test_what_is_beyond_the_rate_is_counted(net: Net) -> None:
    with net[0].entered(), tracer("drop", "--rate", "5", "--json", "-L", "9") as running:
        _flood(200)
        events = running.events()
        rows = [r for r in running.records() if r["type"] == "flow"]
    assert len(events) + sum(row["drops"] for row in rows) == 200
    assert {e["reason"] for e in events} == {row["reason"] for row in rows}
    seconds = Counter(e["ts_ns"] // 1_000_000_000 for e in events)
    assert seconds and max(seconds.values()) <= 5 + (os.cpu_count() or 1)


@pytest.mark.each_variant
def test_the_reasons_of_a_module() -> None:
    subsystems = (Btf().enumerators("skb_drop_reason_subsys") or {}).items()
    ours = [number for number, name in subsystems if name.endswith("OPENVSWITCH")]
    loads = subprocess.run(["modprobe", "-q", "openvswitch"], check=False)
    if not ours or loads.returncode:
        pytest.skip("this kernel has no such module with reasons")
    found = drop_reasons.numbers(["OVS_DROP_EXPLICIT"])
    assert found["OVS_DROP_EXPLICIT"] >> 16 == ours[0]


def test_the_filter_by_reason(net: Net) -> None:
    numbers = {name: number for number, name in _reasons().items()}
    if "TCP_CSUM" not in numbers:
        pytest.skip("this kernel gives no reasons")
    wanted, options = {"TCP_CSUM", _reasons()[3]}, ["--reason", "3,TCP_CSUM"]
    with net[0].entered(), tracer("drop", "--json", "-L", "9", *options) as running:
        _strays(9, 3)
        _strays(9, 3, spoilt=1)
        _strays(9, 1, doff=4)
        events = running.events()
    told = [(e["reason"], e["reason_code"]) for e in events]
    made = ["NO_SOCKET"] * 3 + ["TCP_CSUM"] * 3 + ["PKT_TOO_SMALL"]
    assert told == [(name, numbers[name]) for name in made if name in wanted]


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        (["--rport", "41001"], [41001]),
        (["--lport", "10"], []),
        (["--raddr", "127.0.0.0/8", "--laddr", "127.0.0.1"], [41000, 41001, 41002]),
        (["--raddr", "10.0.0.0/8"], []),
        (["-6"], []),
        (["--pid", "1"], []),  # no packet of nobody's
        (["--uid", "0"], []),  # nor a user, where there is no socket
    ],
)
@pytest.mark.any_kernel
def test_the_common_filters(net: Net, options: list[str], seen: list[int]) -> None:
    where = ["--netns", str(net[0].inode)]
    with net[0].entered(), tracer("drop", "--json", *where, *options) as running:
        _strays(9, 3)
        events = running.events()
    assert [e["rport"] for e in events if e["lport"] == 9] == seen
    assert {e["netns"] for e in events} <= {net[0].inode}


@pytest.mark.any_kernel
def test_other_namespaces_are_filtered_out(net: Net) -> None:
    with tracer("drop", "--json", "--netns", str(net[1].inode)) as running:
        for namespace in net:
            with namespace.entered():
                _strays(9, 1)
        (answered, e) = running.events()  # the RST has no socket to go to, either
    assert {answered["netns"], e["netns"]} == {net[1].inode}


@pytest.mark.each_variant
def test_what_is_not_tcp_and_what_is_consumed_are_no_drops(net: Net) -> None:
    """A datagram for nobody is dropped for want of a socket as well; a session loses nothing,
    whoever ends it."""
    with net[0].entered(), tracer("drop", "--json", "--netns", str(net[0].inode)) as running:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"E" * 100, ("127.0.0.1", 9))
        one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with one, two:
            one.send(b"E\0\0\x28" + bytes(5) + b"\6" + bytes(30))
        for server_closes_first in (False, True):
            harness.session(server_closes_first=server_closes_first)
        assert running.events() == []


@pytest.mark.any_kernel
@pytest.mark.parametrize(
    ("reason", "message"),
    [("NO_SUCH", "this kernel has no drop reason 'NO_SUCH'"), ("1,", "no drop reason ''")],
)
def test_a_wrong_reason_is_told(reason: str, message: str) -> None:
    done = harness.run("drop", "--reason", reason)
    assert done.returncode == 2 and message in done.stderr


@pytest.mark.any_kernel
@pytest.mark.parametrize(
    "options", [["--rate", "x"], ["--rate", "1", "-c"], ["--stack", "-c"], ["--owner", "-c"]]
)
def test_wrong_options_are_told(options: list[str]) -> None:
    done = harness.run("drop", *options)
    assert done.returncode == 2 and options[0].strip("-") in done.stderr
