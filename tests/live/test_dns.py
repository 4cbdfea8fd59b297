"""connect --dns on real queries and answers."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import pytest
from dnslib import EDNS0, QTYPE, RR, A, DNSQuestion, DNSRecord
from dnslib.label import DNSLabel

from tests.live import harness
from tests.live.harness import Event, Namespace, Net, Tracer, tracer

STUB, RESOLVER6 = "127.0.0.53", "::1"  # as systemd-resolved's, and another
HOST, HOST6, UNKNOWN = "10.78.0.1", "fd78::1", "10.78.0.2"
# A new one for each connect, and others where the same test runs beside this one (make mutants).
PORTS = itertools.count(1001 + os.getpid() % 100 * 100)
LARGE = 4096  # bytes of an answer; over UDP it takes EDNS (RFC 6891, 6.2.5) to exceed 512


@pytest.fixture(scope="module", autouse=True)
def inside(net: Net) -> Iterator[None]:
    """All here runs in a namespace with addresses to connect to; nobody listens there."""
    addresses = [f"{HOST}/32", f"{UNKNOWN}/32", f"{HOST6}/128"]
    for address in addresses:
        harness.sh(f"ip -n {net[0].name} addr add {address} dev lo")
    try:
        with net[0].entered():
            yield
    finally:
        for address in addresses:
            harness.sh(f"ip -n {net[0].name} addr del {address} dev lo")


@pytest.fixture(scope="module")
def running(inside: None) -> Iterator[Tracer]:
    with tracer("connect", "--dns", "--json") as shared:
        yield shared


def connect(running: Tracer, host: str) -> Event:
    """What is shown of a connect that begins now."""
    port = next(PORTS)
    harness.refuse(host, port)
    return running.wait_for(lambda e: e.get("rport") == port)


def name(running: Tracer, host: str) -> str | None:
    found: str | None = connect(running, host)["query"]
    return found


@contextmanager
def udp(
    resolver: str, where: Namespace | None = None
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client and its DNS server. where: the server's namespace, if another."""
    family = socket.AF_INET6 if ":" in resolver else socket.AF_INET
    with ExitStack() as stack:
        client = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        with where.entered() if where else nullcontext():
            server = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        server.bind((resolver, 53))
        client.connect((resolver, 53))
        server.connect(client.getsockname())
        for end in (client, server):
            end.settimeout(harness.PATIENCE)
        yield client, server


@contextmanager
def tcp(resolver: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    with (
        harness.listener(resolver, 53) as listening,
        harness.connect(resolver, 53) as client,
        listening.accept()[0] as server,
    ):
        yield client, server
        harness.reset(client)


def answer(question: bytes, *records: RR) -> bytes:
    reply = DNSRecord.parse(question).reply()
    reply.add_answer(*records)
    return bytes(reply.pack())


def ask_udp(
    resolver: str, question: DNSRecord, *records: RR, where: Namespace | None = None
) -> bytes:
    """The server answers what the client asks; the answer, once the client has it."""
    with udp(resolver, where) as (client, server):
        client.send(question.pack())
        server.send(answer(server.recv(LARGE), *records))
        return client.recv(LARGE)


def ask_tcp(resolver: str, question: DNSRecord, *records: RR) -> bytes:
    """The same with a length before each message (RFC 1035, 4.2.2)."""

    def send(sender: socket.socket, message: bytes) -> None:
        sender.sendall(len(message).to_bytes(2, "big") + message)

    def receive(receiver: socket.socket) -> bytes:
        length = int.from_bytes(receiver.recv(2, socket.MSG_WAITALL), "big")
        return receiver.recv(length, socket.MSG_WAITALL)

    with tcp(resolver) as (client, server):
        send(client, question.pack())
        send(server, answer(receive(server), *records))
        return receive(client)


Ask = Callable[..., bytes]
MANY = "\n".join(f"{{name}} 60 A 10.78.1.{i}" for i in range(100))
CASES = {
    "v4": (ask_udp, STUB, HOST, f"{{name}} 60 A {HOST}"),
    "v6": (ask_udp, RESOLVER6, HOST6, f"{{name}} 60 AAAA {HOST6}"),
    "chain": (
        *(ask_udp, STUB, HOST),
        f"{{name}} 60 CNAME one.test\none.test 60 CNAME two.test\ntwo.test 60 A {HOST}",
    ),
    "edns": (ask_udp, STUB, HOST, f"{MANY}\n{{name}} 60 A {HOST}"),
    "tcp": (ask_tcp, STUB, HOST, f"{{name}} 60 A {HOST}"),
    "tcp6": (ask_tcp, RESOLVER6, HOST6, f"{MANY}\n{{name}} 60 AAAA {HOST6}"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_name_that_was_asked_for(case: str, running: Tracer) -> None:
    ask, resolver, host, zone = CASES[case]
    wanted = f"Www.{case}.test"
    question = DNSRecord.question(wanted, "AAAA" if ":" in host else "A")
    question.add_ar(EDNS0(udp_len=LARGE))
    answered = ask(resolver, question, *RR.fromZone(zone.format(name=wanted)))
    assert (len(answered) > 512) == ("10.78.1" in zone)
    assert name(running, host) == wanted


def test_an_alias_that_is_asked_for_next(running: Tracer) -> None:
    """The resolver follows it; the process asked for the first name."""
    first = RR.fromZone("first.alias.test 60 CNAME second.alias.test")
    ask_udp(STUB, DNSRecord.question("first.alias.test"), *first)
    second = RR.fromZone(f"second.alias.test 60 A {HOST}")
    ask_udp(STUB, DNSRecord.question("second.alias.test"), *second)
    assert name(running, HOST) == "first.alias.test"


def test_an_address_that_nobody_asked_for(running: Tracer) -> None:
    ask_udp(STUB, DNSRecord.question("asked.test"), *RR.fromZone(f"asked.test 60 A {HOST}"))
    assert name(running, UNKNOWN) is None


def test_an_address_of_this_host(running: Tracer) -> None:
    """Whatever was asked for."""
    ask_udp(STUB, DNSRecord.question("this.test"), *RR.fromZone("this.test 60 A 127.0.0.1"))
    hosts = ("127.0.0.1", "::1", "::ffff:127.0.0.1", STUB)
    assert [name(running, host) for host in hosts] == ["localhost"] * len(hosts)
    assert connect(running, STUB)["query_age_ns"] is None


def test_an_answer_over_veth(running: Tracer, net: Net) -> None:
    """From a server that is not in this namespace."""
    record = RR.fromZone(f"far.test 60 A {HOST}")
    ask_udp(net[0].peer, DNSRecord.question("far.test"), *record, where=net[1])
    assert name(running, HOST) == "far.test"


def test_an_old_answer_shows_its_age(running: Tracer) -> None:
    with tracer("connect", "--dns") as table:
        ask_udp(STUB, DNSRecord.question("old.test"), *RR.fromZone(f"old.test 60 A {HOST}"))
        time.sleep(0.12)
        event = connect(running, HOST)
        assert (event["query"], event["query_age_ns"] >= 120_000_000) == ("old.test", True)
        line = table.out.wait_for(lambda line: str(event["rport"]) in line.split())
        assert table.stop() == 0
    match = re.search(r" old\.test \(([0-9]+\.[0-9]{3})ms\)$", line)
    assert match and float(match[1]) >= 120


def packet_sockets(running: Tracer) -> list[str]:
    """The protocols of its packet sockets, as in include/uapi/linux/if_ether.h."""
    names = [str(fd.readlink()) for fd in Path(f"/proc/{running.pid}/fd").iterdir()]
    inodes = {x.removeprefix("socket:[").removesuffix("]") for x in names if "socket:" in x}
    rows = [x.split() for x in Path(f"/proc/{running.pid}/net/packet").read_text().splitlines()]
    return sorted(row[3] for row in rows if row[8] in inodes)


def test_the_sockets_receive_only(running: Tracer) -> None:
    """ETH_P_ALL, 0003, would have the kernel copy every packet that the host sends."""
    assert packet_sockets(running) == ["0800", "86dd"]


def test_a_flood_is_counted_and_does_not_last() -> None:
    """The sockets take some MiB."""
    with tracer("connect", "--dns", "--json") as flooded:
        flooded.send(signal.SIGSTOP)
        with udp(STUB) as (_, server):
            for _ in range(400):
                server.send(b"\xff" * 60_000)
        flooded.send(signal.SIGCONT)
        lost = flooded.wait_for(lambda e: e["type"] == "lost")
        ask_udp(STUB, DNSRecord.question("after.test"), *RR.fromZone(f"after.test 60 A {HOST}"))
        deadline = time.monotonic() + harness.PATIENCE
        while name(flooded, HOST) != "after.test":  # what waited comes first
            assert time.monotonic() < deadline
        assert flooded.stop() == 0
    assert 0 < lost["answers"] < 400
    assert any("DNS packets: not read in time" in line for line in flooded.errors())


def malformed() -> list[bytes]:
    question = DNSRecord.question("bad.test").pack()
    good = answer(question, *RR.fromZone(f"bad.test 60 A {UNKNOWN}"))
    header = good[:12]
    return [
        *(b"", b"\0", bytes(600), b"\xff" * 600),
        *(good[:length] for length in (4, 11, 12, 14, 20, len(good) - 1)),
        header + b"\xc0\x0c" + bytes(20),  # a name that is its own end
        header + b"\x3f" + b"x" * 20,  # one that goes on behind the packet's end
        header + b"\7" + b"bad-one" * 50,  # one that is too long
        good[:6] + b"\xff\xff" + good[8:-4],  # fewer records than it says
        good[:-6] + b"\xff\xff" + good[-4:],  # one that is longer than the packet
        question,
    ]


def test_malformed_packets_harm_nothing(running: Tracer) -> None:
    packets = malformed()
    for i in range(2):
        with udp(STUB) as (_, server):
            for packet in packets:
                server.send(packet)
        with tcp(STUB) as (_, server):
            server.sendall(b"\0\0" + b"\xff" * 600)
        wanted = f"after{i}.test"
        ask_tcp(STUB, DNSRecord.question(wanted), *RR.fromZone(f"{wanted} 60 A {HOST}"))
        assert name(running, HOST) == wanted
        ask_udp(STUB, DNSRecord.question(f"u{wanted}"), *RR.fromZone(f"u{wanted} 60 A {HOST}"))
        assert name(running, HOST) == f"u{wanted}"
    assert name(running, UNKNOWN) is None


def test_a_hostile_name(running: Tracer) -> None:
    """Nothing of it reaches the terminal."""
    hostile = DNSLabel([b"ev\x1b[31m\r\nil\xc2\x9b\xe2\x80\xae", b"a b", b"test"])
    with tracer("connect", "--dns") as table:
        ask_udp(STUB, DNSRecord(q=DNSQuestion(hostile, QTYPE.A)), RR(hostile, rdata=A(HOST)))
        port = next(PORTS)
        harness.refuse(HOST, port)
        row = table.out.wait_for(lambda line: str(port) in line.split())
        assert table.stop() == 0
        escaped = name(running, HOST)
    assert (
        escaped and escaped.startswith("ev") and escaped.endswith(".test") and escaped.isprintable()
    )
    header = table.out.lines[0]
    assert row[header.index("QUERY") :].startswith(escaped)
    assert all(line.isprintable() for line in table.out.lines)


def test_flows_have_no_names() -> None:
    running = Tracer("connect", "-c", "--dns")
    assert running.wait() == 2
    (line,) = running.errors()
    assert "--dns" in line and "--count" in line
