"""path on real packets."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from tests.facts import Facts
from tests.live import harness
from tests.live.harness import Event, Namespace, Net, Tracer, tracer
from tests.live.test_harness import retransmits

FACTS = Facts(
    header="STAGE           DELTA(us)    ELAPSED(us)  CPU IFNAME          NETNS      SEQ        "
    "LEN   REASON",
    fields=frozenset(
        {"packet", "stage", "delta_ns", "elapsed_ns", "cpu", "ifname", "seq", "len", "flags"}
        | {"reason"}
    ),
    packets=True,
)

# What every kernel shows of data over the loopback device, and what functions add.
BASE = ["dev_queue", "driver", "rx", "receive", "tcp_process", "copied"]
MORE = [
    "tcp_send",
    "ip_send",
    "ip_output",
    *BASE[:4],
    "ip_receive",
    "ip_deliver",
    "tcp_receive",
    "tcp_process",
    "socket_queue",
    "copied",
]


def packets(events: list[Event]) -> list[list[Event]]:
    """The stages of each packet."""
    found: dict[int, list[Event]] = {}
    for event in events:
        found.setdefault(event["packet"], []).append(event)
    return list(found.values())


def of_length(events: list[Event], length: int) -> list[list[Event]]:
    """Packets with so much data."""
    return [each for each in packets(events) if each[0]["len"] == length]


def stages(packet: list[Event]) -> list[str]:
    return [event["stage"] for event in packet]


def slowest(packet: list[Event]) -> Event:
    return max(packet, key=lambda event: event["delta_ns"])


def to(server: socket.socket) -> tuple[str, ...]:
    return "path", "--json", "--lport", str(server.getsockname()[1])


@contextmanager
def connected(
    server: socket.socket, here: Namespace | None = None
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """here: from there."""
    with here.entered() if here else nullcontext():
        client = harness.connect(*server.getsockname()[:2])
    with client, server.accept()[0] as accepted:
        yield client, accepted


def listener_in(there: Namespace) -> socket.socket:
    with there.entered():
        return harness.listener(there.address)


def deliver(running: Tracer, client: socket.socket, accepted: socket.socket, length: int) -> None:
    """Data that is read at once; and told, so that nothing of it is under way at the end."""
    client.sendall(b"x" * length)
    assert len(accepted.recv(length, socket.MSG_WAITALL)) == length
    running.wait_for(lambda e: e.get("stage") == "copied" and e["len"] == length)


@pytest.mark.each_variant
def test_the_way_of_data(attach: str) -> None:
    follow_data("127.0.0.1", attach)


def test_the_way_of_data_over_ipv6(attach: str) -> None:
    follow_data("::1", attach)


def follow_data(host: str, attach: str) -> None:
    with (
        harness.listener(host) as server,
        tracer(*to(server), "--attach", attach) as running,
        connected(server) as (here, there),
    ):
        ports = harness.ports(here)
        deliver(running, here, there, 321)
        events = running.events()
    (packet,) = of_length(events, 321)
    found = stages(packet)
    if running.ways["functions on the way"] == "no way":
        assert found == BASE
    else:  # a function may be inlined, or have another name
        assert [x for x in MORE if x in found] == found
        assert {*BASE, "tcp_receive", "socket_queue", "ip_output"} <= {*found}
    assert {(e["lport"], e["rport"]) for e in packet} == {ports}
    assert {e["ifname"] for e in packet} == {"lo", None}
    assert len({e["seq"] for e in packet}) == 1 and packet[0]["flags"] == "PSH|ACK"
    assert packet[0]["delta_ns"] == packet[0]["elapsed_ns"] == 0
    assert packet[-1]["elapsed_ns"] == sum(e["delta_ns"] for e in packet)
    assert {e["pid"] for e in packet} == {None, os.getpid()} and packet[-1]["pid"] == os.getpid()


@pytest.mark.any_kernel
def test_an_end_in_order_drops_nothing() -> None:
    """The kernel calls it a drop when the last FIN goes with its socket."""
    with harness.listener() as server, tracer(*to(server)) as running:
        for first in (0, 1):
            with connected(server) as ends:
                ends[first].close()
                ends[1 - first].recv(1)
        events = running.events()
    fins = [e for e in events if "FIN" in e["flags"]]
    assert len({e["packet"] for e in fins}) == 4
    assert {e["reason"] for e in events} == {None}
    assert "dropped" not in {e["stage"] for e in events}


def test_a_reader_that_sleeps(attach: str) -> None:
    """Its data waits in the socket's queue, and nowhere else."""
    with (
        harness.listener() as server,
        tracer(*to(server), "--attach", attach) as running,
        connected(server) as (here, there),
    ):
        here.sendall(b"x" * 300)
        time.sleep(1)
        there.recv(300)
        running.wait_for(lambda e: e.get("stage") == "copied")
        events = running.events()
    (packet,) = of_length(events, 300)
    late = slowest(packet)
    assert late["stage"] == "copied" and late["delta_ns"] >= 900_000_000
    assert late["delta_ns"] > packet[-1]["elapsed_ns"] / 2


@contextmanager
def shaped(end: Namespace, qdisc: str) -> Iterator[None]:
    """What leaves a namespace is queued so."""
    command = f"tc -n {end.name} qdisc add dev ve0 root {qdisc}".split()
    done = subprocess.run(command, capture_output=True, text=True)
    if "unknown" in done.stderr:
        pytest.skip(f"this kernel has no {qdisc.split()[0]}")
    assert done.returncode == 0, done.stderr
    try:
        yield
    finally:
        harness.sh(f"tc -n {end.name} qdisc del dev ve0 root")


def is_acknowledged(end: socket.socket) -> bool:
    """All that it has sent; else TCP might send it again together with what comes next, and tbf has
    no room for that."""
    return fcntl.ioctl(end, termios.TIOCOUTQ, bytes(4)) == bytes(4)


@pytest.mark.parametrize("qdisc", ["netem delay 500ms", "tbf rate 8kbit burst 600 latency 60s"])
def test_a_delay_at_the_qdisc(attach: str, net: Net, qdisc: str) -> None:
    here, there = net
    with (
        shaped(here, qdisc),
        listener_in(there) as server,
        tracer(*to(server), "--attach", attach) as running,
        connected(server, here) as (client, accepted),
    ):
        for length in (400, 401):  # tbf lets the first one through
            deliver(running, client, accepted, length)
            harness.until(lambda: is_acknowledged(client))
        events = running.events()
    (packet,) = of_length(events, 401)
    late = slowest(packet)
    assert late["stage"] == "qdisc_out" and late["ifname"] == "ve0"
    assert late["delta_ns"] > packet[-1]["elapsed_ns"] / 2 and late["delta_ns"] > 100_000_000


@pytest.fixture(scope="module")
def bridged(net: Net) -> Iterator[tuple[Namespace, Namespace, Namespace]]:
    """Two namespaces with a third one between them, which has a bridge."""
    names = [f"tcpcore-path-{os.getpid()}-{end}" for end in "abc"]
    one = Namespace(names[0], "10.78.0.1", "10.78.0.2")
    two = Namespace(names[1], "10.78.0.2", "10.78.0.1")
    middle = Namespace(names[2], "", "")
    try:
        for name in names:
            harness.sh(f"ip netns add {name}")
        harness.sh(f"ip -n {middle.name} link add br0 type bridge")
        harness.sh(f"ip -n {middle.name} link set br0 up")
        for end, port in ((one, "p1"), (two, "p2")):
            harness.sh(
                f"ip -n {end.name} link add ve0 type veth peer name {port} netns {middle.name}"
            )
            harness.sh(f"ip -n {middle.name} link set {port} master br0 up")
            harness.sh(f"ip -n {end.name} addr add {end.address}/24 dev ve0")
            harness.sh(f"ip -n {end.name} link set ve0 up")
        yield one, middle, two
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_two_namespaces_and_a_bridge(
    attach: str, bridged: tuple[Namespace, Namespace, Namespace]
) -> None:
    here, middle, there = bridged
    with (
        listener_in(there) as server,
        tracer(*to(server), "--attach", attach) as running,
        connected(server, here) as (client, accepted),
    ):
        deliver(running, client, accepted, 500)
        events = running.events()
    (packet,) = of_length(events, 500)
    places = [(e["netns"], e["ifname"]) for e in packet if e["ifname"]]
    assert list(dict.fromkeys(places)) == [
        (here.inode, "ve0"),
        (middle.inode, "p1"),
        (middle.inode, "p2"),
        (there.inode, "ve0"),
    ]
    assert stages(packet)[-1] == "copied" and packet[-1]["netns"] == there.inode


def test_a_retransmission_is_another_packet(attach: str, net: Net) -> None:
    """The first one is dropped, with the kernel's reason where it has reasons."""
    here, there = net
    with tracer("path", "--json", "--raddr", there.address, "--attach", attach) as running:
        harness.lose_a_segment(here, there)
        running.wait_for(lambda e: e.get("stage") == "copied")
        events = running.events()
    lost, again = of_length(events, 500)
    assert stages(lost)[-1] == "dropped" and "copied" not in stages(lost)
    assert lost[-1]["reason"] in ("NETFILTER_DROP", None)
    assert stages(again)[-1] == "copied" and "dropped" not in stages(again)
    assert lost[0]["seq"] == again[0]["seq"]


def test_a_reset_and_flags(attach: str) -> None:
    with harness.listener() as server:
        arguments = (*to(server), "--flags", "syn,rst", "--attach", attach)
        with tracer(*arguments) as running:
            with connected(server) as (here, _):
                here.sendall(b"x")
                harness.reset(here)
            running.wait_for(lambda e: "RST" in e.get("flags", ""))
            events = running.events()
    assert {packet[0]["flags"].split("|")[0] for packet in packets(events)} == {"SYN", "RST"}


@pytest.mark.any_kernel
def test_of_a_process(attach: str) -> None:
    """Also over sockets that are older than the trace; the other end is another process's."""
    with harness.listener() as server, connected(server) as (here, there):
        server.close()
        arguments = "path", "--json", "--attach", attach
        with (
            tracer(*arguments, "-p", str(os.getpid())) as mine,
            tracer(*arguments, "-p", "1") as no,
        ):
            deliver(mine, here, there, 444)
            assert not of_length(no.events(), 444)
            found = of_length(mine.events(), 444)
    assert [stages(packet)[-1] for packet in found] == ["copied"]


@pytest.mark.any_kernel
def test_of_a_user(attach: str) -> None:
    """Asked of the socket, as none is followed for it."""
    with harness.listener() as server, connected(server) as (here, there):
        arguments = "path", "--json", "--attach", attach
        with tracer(*arguments, "-u", "0") as mine, tracer(*arguments, "-u", "4711") as no:
            deliver(mine, here, there, 445)
            assert not no.events()
            found = of_length(mine.events(), 445)
    assert [stages(packet)[-1] for packet in found] == ["copied"]


def test_many_packets_none_twice(attach: str) -> None:
    """Each byte is in one packet."""
    total = 1 << 20
    with (
        harness.listener() as server,
        tracer(*to(server), "--attach", attach) as running,
        connected(server) as (here, there),
    ):
        reader = threading.Thread(target=lambda: there.recv(total, socket.MSG_WAITALL))
        reader.start()
        here.sendall(b"x" * total)
        reader.join()
        sent_again = retransmits(here)  # a slow machine's acknowledgements may come too late
        here.close()
        running.wait_for(lambda e: "FIN" in e.get("flags", ""))
        events = running.events()
    data = [each[0] for each in packets(events) if each[0]["len"]]
    twice = len(data) - len({first["seq"] for first in data})
    assert 0 <= twice <= sent_again
    assert sum(first["len"] for first in data) == total or twice


def test_a_closed_port(attach: str) -> None:
    """Nothing listens there, and no socket is known."""
    with tracer("path", "--json", "--raddr", "127.0.0.1", "-D", "9", "--attach", attach) as running:
        with socket.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect(("127.0.0.1", 9))
        running.wait_for(lambda e: e.get("stage") == "dropped" and e["rport"] == 9)
        events = running.events()
    (packet,) = [each for each in packets(events) if each[0]["flags"] == "SYN"]
    assert "receive" in stages(packet) and packet[-1]["stage"] == "dropped"
    assert packet[-1]["reason"] in ("NO_SOCKET", None)


def test_a_full_qdisc(attach: str, net: Net) -> None:
    """One packet goes, one waits, and the next one finds no room."""
    here, there = net
    with (
        listener_in(there) as server,
        connected(server, here) as (client, _),
        tracer(*to(server), "--attach", attach) as running,
        shaped(here, "tbf rate 1kbit burst 700 limit 700"),
    ):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for length in (500, 501, 502):
            client.sendall(b"x" * length)
        running.wait_for(lambda e: e.get("stage") == "dropped" and e["len"] == 502)
        events = running.events()
    lost = of_length(events, 502)[0]
    assert not {"qdisc_out", "driver"} & {*stages(lost)}
    assert lost[-1]["stage"] == "dropped" and lost[-1]["ifname"] == "ve0"
    assert "dropped" not in stages(of_length(events, 500)[0])


@pytest.mark.any_kernel
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_packets_for_wireshark(host: str, tmp_path: Path) -> None:
    """As tshark reads them: what the packets are, and each of their stages."""
    file = tmp_path / "packets.pcapng"
    with (
        harness.listener(host) as server,
        tracer(*to(server), "--flags", "PSH,SYN,FIN", "--pcapng", str(file)) as running,
        connected(server) as (here, there),
    ):
        ports = harness.ports(here)
        deliver(running, here, there, 321)
        events = running.events()
    shown = dissected(file)
    assert len(shown) == len(packets(events)) >= 2
    for frame, packet in zip(shown, packets(events), strict=True):
        first = packet[0]
        assert (frame["source"], frame["destination"]) == (host, host)
        assert (frame["sport"], frame["dport"]) == (str(first["lport"]), str(first["rport"]))
        assert (frame["seq"], frame["len"]) == (str(first["seq"]), str(first["len"]))
        assert (frame["interface"], frame["netns"]) == ("lo", f"netns {first['netns']}")
        assert frame["direction"] == OUTBOUND
        comments = frame["comments"].split(";")
        assert [comment.split()[0] for comment in comments] == stages(packet)
        assert [f"cpu {event['cpu']}" in comments[i] for i, event in enumerate(packet)]
        assert f", at {packet[-1]['elapsed_ns'] / 1e3:.1f} us, " in comments[-1]
        assert abs(float(frame["time"]) - time.time()) < 3600
    (data,) = [frame for frame in shown if frame["len"] == "321"]
    assert (int(data["sport"]), int(data["dport"])) == ports
    assert f", pid {os.getpid()} (" in data["comments"].split(";")[-1]


@pytest.mark.any_kernel
def test_received_packets_for_wireshark(net: Net, tmp_path: Path) -> None:
    """Seen from the driver on, where the IP header is not noted yet."""
    here, there = net
    file = tmp_path / "packets.pcapng"
    arguments = "--netns", str(there.inode), "--flags", "PSH", "--pcapng", str(file)
    with (
        listener_in(there) as server,
        tracer(*to(server), *arguments) as running,
        connected(server, here) as (client, accepted),
    ):
        deliver(running, client, accepted, 322)
        (packet,) = packets(running.events())
    (frame,) = dissected(file)
    assert packet[0]["ifname"] == frame["interface"] == "ve0" and frame["direction"] == INBOUND
    assert frame["netns"] == f"netns {there.inode}"
    assert (frame["source"], frame["destination"]) == (here.address, there.address)
    assert (frame["seq"], frame["len"]) == (str(packet[0]["seq"]), "322")


OUTBOUND, INBOUND = "0x00000002", "0x00000001"
_FIELDS = {
    "source": "_ws.col.Source",
    "destination": "_ws.col.Destination",
    "sport": "tcp.srcport",
    "dport": "tcp.dstport",
    "seq": "tcp.seq_raw",
    "len": "tcp.len",
    "time": "frame.time_epoch",
    "interface": "frame.interface_name",
    "netns": "frame.interface_description",
    "direction": "frame.packet_flags_direction",
    "comments": "frame.comment",
}


def dissected(file: Path) -> list[dict[str, str]]:
    """The packets in a file."""
    wanted = [word for field in _FIELDS.values() for word in ("-e", field)]
    command = ["tshark", "-n", "-r", str(file), "-T", "fields", "-E", "aggregator=;", *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = (line.split("\t") for line in done.stdout.splitlines())
    return [dict(zip(_FIELDS, line, strict=True)) for line in lines]


@pytest.mark.any_kernel
def test_summary() -> None:
    with harness.listener() as server:
        port = str(server.getsockname()[1])
        with tracer("path", "--json", "--summary", "-L", port) as running:
            with connected(server) as (here, there):
                here.sendall(b"x" * 100)
                time.sleep(0.1)
                there.recv(100)
            found = {each["key"]["stage"]: each for each in running.events("histogram")}
    assert {*found} >= {*BASE[1:]}
    assert {(each["measure"], each["unit"]) for each in found.values()} == {("time", "ns")}
    assert found["copied"]["count"] == 1 and found["copied"]["sum"] >= 90_000_000
    (bucket,) = found["copied"]["buckets"]
    assert bucket[0] <= found["copied"]["sum"] <= bucket[1]


@pytest.mark.any_kernel
def test_so_many_packets() -> None:
    with (
        harness.listener() as server,
        tracer(*to(server), "--flags", "PSH", "-n", "2") as running,
        connected(server) as (here, there),
    ):
        for _ in range(3):
            here.sendall(b"x" * 100)
            there.recv(100)
        assert running.wait() == 0
        found = packets(running.records())
    assert [stages(packet)[-1] for packet in found] == ["copied"] * 2


@pytest.mark.any_kernel
def test_slow_packets_only() -> None:
    with (
        harness.listener() as server,
        tracer(*to(server), "--min-latency", "400") as running,
        connected(server) as (here, there),
    ):
        for length, seconds in ((100, 0), (200, 0.5)):
            here.sendall(b"x" * length)
            time.sleep(seconds)
            there.recv(200)
        running.wait_for(lambda e: e.get("stage") == "copied")
        events = running.events()
    assert {packet[0]["len"] for packet in packets(events)} == {200}


@pytest.mark.any_kernel
@pytest.mark.parametrize("wide", [[], ["--wide"]])
@pytest.mark.parametrize("name", ["path", "trace"])
def test_columns(wide: list[str], name: str) -> None:
    with harness.listener() as server:
        port = server.getsockname()[1]
        with tracer(name, "-L", str(port), "--flags", "PSH", *wide) as running:
            with connected(server) as (here, there):
                client = here.getsockname()[1]
                here.sendall(b"x" * 100)
                there.recv(100)
            assert running.stop() == 0
    header, blank, heading, *rows = running.out.lines
    assert header == FACTS.header or wide
    assert blank == "" and heading == f"#1 127.0.0.1:{client} > 127.0.0.1:{port} PSH|ACK"
    assert [row.split()[0] for row in rows if row.split()[0] in BASE] == BASE
    assert all(row[at - 1] == " " for row in rows for at in (16, 29, 42))
