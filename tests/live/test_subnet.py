"""subnet: bytes by the peer's prefix, and the walk over sockets that it is made of."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcpcore.model import fields
from tcpcore.request.request import request
from tcpcore.session.session import opened
from tcpcore.tools import subnet
from tests.facts import Facts
from tests.live import harness
from tests.live.harness import Event, Net, Tracer, tracer

FACTS = Facts(
    header="SUBNET                TX_B         RX_B",
    fields=frozenset({"subnet", "tx_bytes", "rx_bytes", "interval_ns"}),
    queued=2,
    kept=2,
)
MIB = 1 << 20
ME = {"pid": [os.getpid()]}


def totals(flows: list[Event]) -> dict[str, tuple[int, int]]:
    """All reports together: sent and received, by prefix."""
    sent: Counter[str] = Counter()
    received: Counter[str] = Counter()
    for flow in flows:
        sent[flow["subnet"]] += flow["tx_bytes"]
        received[flow["subnet"]] += flow["rx_bytes"]
    return {name: (sent[name], received[name]) for name in sent}


def exchange(client: socket.socket, accepted: socket.socket, up: int, down: int) -> None:
    for one, other, size in ((client, accepted, up), (accepted, client, down)):
        child = harness.fork(lambda one=one, size=size: one.sendall(bytes(size)))  # type: ignore[misc]
        left = size
        while left:
            left -= len(other.recv(min(left, MIB)))
        assert harness.reap(child) == 0


@contextlib.contextmanager
def counting(*arguments: str) -> Iterator[Tracer]:
    """subnet, of this process alone."""
    with tracer("subnet", "--json", "-p", str(os.getpid()), *arguments) as running:
        yield running


def of(running: Tracer) -> dict[str, tuple[int, int]]:
    assert running.stop() == 0, running.errors()
    assert not [x for x in running.records() if x["type"] == "lost"]
    return totals([x for x in running.records() if x["type"] == "flow"])


def test_the_longest_prefix_counts(attach: str) -> None:
    wanted = "127.0.0.0/8,127.0.0.2,127.0.0.0/30,::/0"
    with counting("--subnets", wanted, "--attach", attach) as running:
        for host, up in (("127.0.0.2", 1000), ("127.0.0.3", 200), ("127.1.1.1", 30), ("::1", 4)):
            with harness.pair(host, bound=host) as (client, accepted):
                exchange(client, accepted, up, 2 * up)
        found = of(running)
    # The client's end is at 127.0.0.1 or ::1, the peer of what the server sends.
    assert found == {
        "127.0.0.2/32": (1000, 2000),
        "127.0.0.0/30": (200 + 2460, 400 + 1230),
        "127.0.0.0/8": (30, 60),
        "::/0": (4 + 8, 8 + 4),
    }


def test_ipv4_is_in_no_prefix_of_ipv6() -> None:
    with counting("--subnets", "::/0,::1") as running:
        for host in ("127.0.0.1", "::1"):
            with harness.pair(host) as (client, accepted):
                exchange(client, accepted, 10, 0)
        assert of(running) == {"other": (10, 10), "::1/128": (10, 10)}


def test_a_v4_mapped_socket_is_ipv4() -> None:
    server = socket.socket(socket.AF_INET6)
    server.bind(("::ffff:127.0.0.1", 0))
    server.listen()
    with counting() as running, server:
        port = server.getsockname()[1]
        with harness.connect("127.0.0.1", port) as client, server.accept()[0] as accepted:
            exchange(client, accepted, 10, 20)
        assert of(running) == {"127.0.0.0/8": (30, 30)}


def test_sessions_older_than_the_trace_count_from_its_start() -> None:
    with harness.pair() as (client, accepted):
        exchange(client, accepted, 12345, 678)
        with counting() as running:
            exchange(client, accepted, 100, 20)
            assert of(running) == {"127.0.0.0/8": (120, 120)}


def test_what_comes_before_accept_belongs_to_who_accepts() -> None:
    with harness.listener() as server, counting("-i", "0.1") as running:
        client = harness.connect("127.0.0.1", server.getsockname()[1])
        client.sendall(bytes(1000))
        running.wait_for(lambda flow: flow["tx_bytes"] == 1000)
        accepted, _ = server.accept()
        with client, accepted:
            accepted.recv(1000)
        assert of(running) == {"127.0.0.0/8": (1000, 1000)}


def test_bytes_are_what_the_applications_sent(net: Net) -> None:
    """Not retransmissions, and no FIN; over a link that loses packets."""
    here, there = net
    with counting("--netns", here.name, "--subnets", there.address) as running:
        with there.entered():
            server = harness.listener(there.address)
        with here.entered():
            client = harness.connect(there.address, server.getsockname()[1])
        with server, client, server.accept()[0] as accepted:
            harness.lose_a_segment(here, there)
            exchange(client, accepted, MIB, MIB)
        lost = 500  # the segment that came at the second try
        assert of(running) == {f"{there.address}/32": (MIB + lost, MIB)}


def test_an_interval_has_its_own_bytes(attach: str) -> None:
    """A session that goes on is in each report with what it has done since the one before."""
    with harness.pair() as (client, _), counting("-i", "0.2", "--attach", attach) as running:
        for size in (100, 20):
            client.sendall(bytes(size))
            running.wait_for(lambda flow, size=size: flow["tx_bytes"] == size)  # type: ignore[misc]
        assert of(running)["127.0.0.0/8"][0] == 120
    intervals = [x["interval_ns"] for x in running.records() if x["type"] == "flow"]
    assert all(0 < x < 3_600e9 for x in intervals)


@pytest.mark.each_variant
def test_walks_and_ends_at_the_same_time() -> None:
    """Reports without a pause, while sessions begin and end: each byte is in one of them."""
    connections, size = (300, 1000) if harness.EMULATED else (3000, 1000)
    with opened(subnet.tool(), request(ME)) as session, harness.listener() as server:
        port = server.getsockname()[1]

        def talk() -> None:
            for _ in range(connections):
                client = harness.connect("127.0.0.1", port)
                client.sendall(bytes(size))
                client.close()

        child = harness.fork(talk)
        received, flows, walks = 0, [], 0
        server.settimeout(0.01)
        while received < connections * size:
            with contextlib.suppress(TimeoutError):
                accepted, _ = server.accept()
                with accepted:
                    while data := accepted.recv(65536):
                        received += len(data)
            session.walk()
            walks += 1
            flows += [row for _, rows in session.tables() for row in rows]
        assert harness.reap(child) == 0
        session.read(last=True)
        session.walk()
        flows += [row for _, rows in session.tables() for row in rows]
        losses = session.losses()
    rows = list(fields.values(subnet.Traffic, flows))
    assert sum(row.rx_bytes for row in rows) == connections * size
    # The kernel may skip a program for a moment: here it is another one that saw the same.
    assert not losses._replace(missed=0) and walks > connections / 2


@pytest.mark.parametrize("way", ["iter", "call"])
def test_each_way_to_walk(way: str) -> None:
    """Where the kernel takes no iterator, socket by socket."""
    if way == "iter" and harness.run("subnet", "--attach", "iter", "-d", "0.1").returncode:
        pytest.skip("this kernel has no compare-and-exchange for BPF, or no BTF")
    with counting("--attach", way, "-i", "0.1") as running, harness.pair() as (client, accepted):
        exchange(client, accepted, 1000, 1)
        running.wait_for(lambda flow: flow["tx_bytes"] > 0)
        assert of(running) == {"127.0.0.0/8": (1001, 1001)}


def test_a_v4_mapped_prefix_is_one_of_ipv4() -> None:
    with counting("--subnets", "::ffff:127.0.0.0/104") as running:
        with harness.pair() as (client, accepted):
            exchange(client, accepted, 10, 0)
        assert of(running) == {"127.0.0.0/8": (10, 10)}


@pytest.mark.any_kernel
def test_prefixes_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "networks"
    path.write_text("# ours\n127.0.0.0/24\n\n  127.0.1.1  # one\n")
    with counting("--subnets", f"@{path}") as running, harness.pair() as (client, accepted):
        exchange(client, accepted, 5, 5)
        assert of(running) == {"127.0.0.0/24": (10, 10)}


def test_many_prefixes(tmp_path: Path) -> None:
    path = tmp_path / "networks"
    path.write_text("".join(f"10.{n >> 8}.{n & 255}.0/24\n" for n in range(10_000)) + "127.0.0.1")
    with counting("--subnets", f"@{path}") as running, harness.pair() as (client, accepted):
        exchange(client, accepted, 5, 5)
        assert of(running) == {"127.0.0.1/32": (10, 10)}


@pytest.mark.any_kernel
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("10.0.0.0/8\n\n10.0.0.0/33\n", ":3: '10.0.0.0/33' is not an address or a prefix"),
        ("nonsense\x1b[31m", ":1: 'nonsense\\x1b[31m' is not"),
    ],
)
def test_bad_prefixes_are_named_with_their_line(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "networks"
    path.write_text(content)
    done = harness.run("subnet", "--subnets", f"@{path}")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"--subnets: {path}{says}" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.any_kernel
@pytest.mark.parametrize(
    ("unit", "header", "row"),
    [
        ("B", ["SUBNET", "TX_B", "RX_B"], ["127.0.0.1/32", "1048576", "1048576"]),
        ("m", ["SUBNET", "TX_MBIT", "RX_MBIT"], ["127.0.0.1/32", "8.00", "8.00"]),
        ("K", ["SUBNET", "TX_KB", "RX_KB"], ["127.0.0.1/32", "1024.00", "1024.00"]),
    ],
)
def test_units(unit: str, header: list[str], row: list[str]) -> None:
    arguments = ("-i", "60", "-f", unit, "-p", str(os.getpid()), "--subnets", "127.0.0.1")
    with tracer("subnet", *arguments) as running, harness.pair() as (client, accepted):
        exchange(client, accepted, MIB, 0)
        assert running.stop() == 0
        assert [line.split() for line in running.out.lines] == [header, row]


@pytest.mark.any_kernel
def test_a_report_each_second() -> None:
    done = harness.run("subnet", "-d", "2.5", "-p", str(os.getpid()))
    assert done.stdout.splitlines() == [FACTS.header] * 3
