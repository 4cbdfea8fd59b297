"""rtt on real connections."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import shlex
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import tcpcore
from tests.facts import Facts
from tests.live import harness
from tests.live.harness import Event, Namespace, Net, Tracer, tracer
from tests.live.screen import Screen

FACTS = Facts()
ROUNDS = 30
Ends = tuple[socket.socket, socket.socket]


def talk(client: socket.socket, accepted: socket.socket, rounds: int = ROUNDS) -> None:
    """A byte each way, again and again, until all of it is acknowledged: no segment comes later."""
    for _ in range(rounds):
        client.sendall(b"x")
        accepted.recv(1)
        accepted.sendall(b"y")
        client.recv(1)
    harness.until(lambda: unacknowledged(client) == unacknowledged(accepted) == 0)


def of_info(connection: socket.socket, offset: int) -> int:
    """A number of struct tcp_info, include/uapi/linux/tcp.h."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("=I", info, offset)[0])


def unacknowledged(connection: socket.socket) -> int:
    """Segments (tcpi_unacked)."""
    return of_info(connection, 24)


def segments(connection: socket.socket) -> int:
    """That came for it (tcpi_segs_in), but for the first one: SYN-ACK, or the ACK of ours."""
    return of_info(connection, 140) - 1


def records(running: Tracer) -> list[Event]:
    """Ends the tracer; its histograms."""
    assert running.stop() == 0, running.errors()
    return [record for record in running.records() if record["type"] == "histogram"]


def counts(found: Sequence[Event], *names: str) -> dict[Any, int]:
    """How many values, by fields of the key, over all reports."""
    sums: dict[Any, int] = {}
    for each in found:
        values = tuple(each["key"][name] for name in names)
        key = values if len(values) > 1 else values[0]
        sums[key] = sums.get(key, 0) + each["count"]
    return sums


def at_port(connection: socket.socket) -> tuple[str, str]:
    return "-L", str(connection.getsockname()[1])


@pytest.mark.parametrize(
    "host", [pytest.param("127.0.0.1", marks=pytest.mark.each_variant), "::1", "::ffff:127.0.0.1"]
)
def test_each_segment_counts(attach: str, host: str) -> None:
    with (
        harness.pair(host, "::" if "::" in host else None) as (client, accepted),
        tracer("rtt", "--json", "--by", "raddr,lport", "--attach", attach) as running,
    ):
        before = segments(client), segments(accepted)
        talk(client, accepted)
        came = segments(client) - before[0], segments(accepted) - before[1]
        lports = client.getsockname()[1], accepted.getsockname()[1]
        found = [each for each in records(running) if each["key"]["lport"] in lports]
    assert running.ways["segments received"] in (attach, "tp_btf")
    assert {each["key"]["raddr"] for each in found} == {host.removeprefix("::ffff:")}
    assert [counts(found, "lport")[port] for port in lports] == list(came)
    for each in found:
        assert (each["measure"], each["unit"]) == ("srtt", "us")
        assert sum(number for *_, number in each["buckets"]) == each["count"]
        low, high = each["buckets"][0][0], each["buckets"][-1][1]
        assert low <= each["sum"] / each["count"] <= high


@pytest.mark.parametrize("way", ["tp_btf", "raw_tp"])
def test_both_ways_at_the_tracepoint(way: str) -> None:
    with (
        harness.pair() as (client, accepted),
        tracer("rtt", "--json", *at_port(client), "--attach", way) as running,
    ):
        before = segments(client)
        talk(client, accepted)
        came = segments(client) - before
        (found,) = records(running)
    assert running.ways == {"segments received": way}
    assert (found["key"], found["count"]) == ({}, came)


@pytest.mark.parametrize(
    ("flags", "measure", "unit", "offset"),
    [
        ([], "srtt", "us", 68),
        (["--jitter"], "jitter", "us", 72),
        (["--min-rtt"], "min_rtt", "us", 148),
        (["-m"], "srtt", "ms", 68),
    ],
)
def test_measures_are_those_of_the_socket(
    flags: list[str], measure: str, unit: str, offset: int
) -> None:
    """A segment counts what tcp_info has just before it: tcpi_rtt, tcpi_rttvar, tcpi_min_rtt."""
    with harness.pair() as (client, accepted):
        talk(client, accepted)
        client.sendall(b"x")
        time.sleep(0.1)  # the answer makes the time longer
        accepted.sendall(b"y")
        client.recv(1)
        with tracer("rtt", "--json", *at_port(client), *flags) as running:
            value = of_info(client, offset)
            accepted.sendall(b"y")
            client.recv(1)
            (found,) = records(running)
    assert (found["measure"], found["unit"], found["count"]) == (measure, unit, 1)
    assert found["sum"] == (value // 1000 if unit == "ms" else value) > 0


@contextlib.contextmanager
def no_timestamps() -> Iterator[None]:
    """In the namespace that the thread is in: with them, what was sent twice can be told apart."""
    path = Path("/proc/sys/net/ipv4/tcp_timestamps")
    before = path.read_text()
    path.write_text("0")
    try:
        yield
    finally:
        path.write_text(before)


@pytest.mark.parametrize(
    "flags", [[], ["--jitter"], ["--min-rtt"], ["--weight", "connection"]], ids=str
)
def test_what_was_never_measured_does_not_count(flags: list[str], net: Net) -> None:
    """The server's SYN-ACK was sent twice, so that it tells nothing (RFC 6298, 3), and it sends no
    more: it has no round-trip time, whatever comes."""
    here, there = net
    with tracer("rtt", "--json", "--by", "lport", "--netns", there.name, *flags) as running:
        with there.entered(), no_timestamps(), harness.listener(there.address) as server:
            port = server.getsockname()[1]
            with (
                here.entered(),
                harness.lossy(harness.first(1), "tcp flags & (syn|ack) == syn|ack"),
            ):
                client = harness.connect(there.address, port)
            with client, server.accept()[0] as accepted:
                client.sendall(b"x" * 10)
                assert len(accepted.recv(10)) == 10
                assert of_info(accepted, 68) == 0 and segments(accepted) >= 1
                harness.reset(accepted)
        found = records(running)
    assert counts(found, "lport") == {}


# Keys.


@contextlib.contextmanager
def pairs(*hosts: str) -> Iterator[list[Ends]]:
    """A connection to each of these addresses."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(harness.pair(host)) for host in hosts]


def test_prefixes(net: Net) -> None:
    here = net[0]
    distant = "2001:db8:0:1:2:3:4:567"
    hosts = "127.0.1.1", "127.0.1.200", "127.0.2.1", distant
    harness.sh(f"ip -n {here.name} addr replace {distant}/128 dev lo nodad")
    subnet = "2001:db8:0:1::/64"
    by = {
        "raddr/24": ["127.0.1.0/24", "127.0.1.0/24", "127.0.2.0/24", subnet],
        "raddr/22": ["127.0.0.0/22"] * 3 + [subnet],
        "raddr/32,128": [*hosts],
        "raddr/0,0": ["0.0.0.0/0"] * 3 + ["::/0"],
        "raddr/31,124": ["127.0.1.0/31", "127.0.1.200/31", "127.0.2.0/31", f"{distant[:-1]}0/124"],
    }
    with contextlib.ExitStack() as stack:
        with here.entered():
            ends = stack.enter_context(pairs(*hosts))
        ports = ",".join(str(client.getsockname()[1]) for client, _ in ends)
        running = {
            key: stack.enter_context(
                tracer("rtt", "--json", "--by", key, "-L", ports, "--netns", here.name)
            )
            for key in by
        }
        before = [segments(client) for client, _ in ends]
        for pair in ends:
            talk(*pair)
        came = [segments(client) - n for (client, _), n in zip(ends, before, strict=True)]
        for key, prefixes in by.items():
            expected: dict[str, int] = {}
            for prefix, number in zip(prefixes, came, strict=True):
                expected[prefix] = expected.get(prefix, 0) + number
            assert counts(records(running[key]), "raddr") == expected, key


@pytest.mark.parametrize("flag", ["-b", "--byladdr", "-B", "--byraddr", "--by=laddr"])
def test_addresses(flag: str) -> None:
    side = "raddr" if "raddr" in flag or "B" in flag else "laddr"
    with (
        pairs("127.0.3.1", "127.0.3.2") as ends,
        tracer("rtt", "--json", flag, "-a", "127.0.3.0/24") as running,
    ):
        for pair in ends:
            talk(*pair)
        found = records(running)
    assert counts(found, side).keys() == (
        {"127.0.3.1", "127.0.3.2"} if side == "laddr" else {"127.0.0.1"}
    )


def test_ports_and_network_namespaces(net: Net) -> None:
    _, there = net
    with (
        tracer("rtt", "--json", "--by", "netns,rport,lport", "--attach", "tracepoint") as running,
        there.entered(),
        harness.pair(there.address) as (client, accepted),
    ):
        talk(client, accepted)
        lport, rport = harness.ports(client)
        found = counts(records(running), "netns", "lport", "rport")
    assert {(there.inode, lport, rport), (there.inode, rport, lport)} <= found.keys()


# Owners.


def child_that_answers(port: int) -> int:
    """A process that connects, and sends back what it gets until there is no more; its pid."""

    def act() -> None:
        with harness.connect("127.0.0.1", port) as connection:
            while data := connection.recv(1):
                connection.sendall(data)

    return harness.fork(act)


@contextlib.contextmanager
def echo(rounds: int = ROUNDS) -> Iterator[tuple[int, int, Callable[[], None]]]:
    """A child's pid, the port that it has connected to, and talk with it."""
    with harness.listener() as server:
        port = server.getsockname()[1]
        pid = child_that_answers(port)
        connection = server.accept()[0]

        def act() -> None:
            for _ in range(rounds):
                connection.sendall(b"x")
                assert connection.recv(1) == b"x"

        try:
            yield pid, port, act
        finally:
            connection.close()
            assert harness.reap(pid) == 0


@pytest.mark.parametrize("older", [pytest.param(True, marks=pytest.mark.each_variant), False])
def test_processes(attach: str, older: bool) -> None:
    """Of a connection older than the trace, too: whoever has its file open."""
    arguments = ("rtt", "--json", "--by", "process", "--attach", attach)
    with contextlib.ExitStack() as stack:
        if older:
            pid, _, act = stack.enter_context(echo())
            running = stack.enter_context(tracer(*arguments))
        else:
            running = stack.enter_context(tracer(*arguments))
            pid, _, act = stack.enter_context(echo())
        act()
        found = counts(records(running), "pid", "comm")
    comm = Path("/proc/self/comm").read_text().strip()
    assert found[pid, comm] >= ROUNDS and found[os.getpid(), comm] >= ROUNDS


def test_nobody_known_is_no_one_else() -> None:
    """A connection that waits to be accepted."""
    with harness.listener() as server:
        port = server.getsockname()[1]
        with (
            tracer("rtt", "--json", "--by", "process,container", "-L", str(port)) as running,
            harness.connect("127.0.0.1", port) as client,
        ):
            client.sendall(b"x")
            harness.until(lambda: unacknowledged(client) == 0)
            found = [each["key"] for each in records(running)]
    assert found == [{"pid": None, "comm": None, "container": None, "cgroup_id": None}]


@pytest.mark.parametrize("older", [True, pytest.param(False, marks=pytest.mark.each_variant)])
def test_a_filter_on_the_owner(attach: str, older: bool) -> None:
    with contextlib.ExitStack() as stack:
        first = [stack.enter_context(echo()) for _ in range(2)] if older else []
        pid = first[0][0] if older else os.getpid()
        arguments = ("--by", "lport,rport", "-p", str(pid), "--attach", attach)
        running = stack.enter_context(tracer("rtt", "--json", *arguments))
        both = first or [stack.enter_context(echo()) for _ in range(2)]
        for _, _, act in both:
            act()
        found = counts(records(running), "lport", "rport")
    one, two = (port for _, port, _ in both)
    if older:  # the child's end
        assert {rport for _, rport in found} == {one}
    else:  # ours, of both
        assert {lport for lport, _ in found} == {one, two}
    assert {"end of sockets", "state changes", "accept()"} <= running.ways.keys()


def test_the_end_of_a_followed_socket_counts_nothing() -> None:
    with tracer("rtt", "--json", "--by", "lport", "-p", str(os.getpid())) as running:
        with harness.pair() as (client, accepted):
            talk(client, accepted)
            lport, came = client.getsockname()[1], segments(client)
            harness.reset(client)
        found = counts(records(running), "lport")
    assert found[lport] == came


def test_containers_and_cgroups() -> None:
    """Under a name like that of a container's cgroup; no runtime knows its name."""
    key = "c0ffee" * 10 + "cafe"
    with harness.cgroup() as group:
        inside = group / f"docker-{key}.scope"
        inside.mkdir()
        (inside / "below").mkdir()

        def connect() -> None:
            harness.join_cgroup(inside / "below")
            with harness.pair() as ends:
                talk(*ends)

        try:
            with (
                tracer("rtt", "--json", "--by", "container") as running,
                tracer("rtt", "--json", "--by", "container", "--cgroup", str(group)) as other,
            ):
                inode = (inside / "below").stat().st_ino
                assert harness.reap(harness.fork(connect)) == 0
                found, filtered = records(running), records(other)
        finally:
            harness.until(lambda: not (inside / "below/cgroup.procs").read_text())
            (inside / "below").rmdir()
            inside.rmdir()
    wanted = (key[:12], inode)
    assert counts(filtered, "container", "cgroup_id").keys() == {wanted}
    assert counts(found, "container", "cgroup_id")[wanted] >= 2 * ROUNDS


def test_an_entry_goes_with_its_socket() -> None:
    with tracer("rtt", "--json", "-p", str(os.getpid())) as running:
        before = running.entries()
        for _ in range(20):
            harness.session()
        harness.until(lambda: len(running.entries()) <= len(before))


def test_no_socket_is_followed_where_nobody_asks_for_owners() -> None:
    with tracer("rtt", "--json", "-u", "0") as running, harness.pair() as ends:
        talk(*ends)
        assert running.entries() == set()
        assert list(running.ways) == ["segments received"]


# Connections rather than segments.


@pytest.mark.each_variant
def test_each_connection_counts_once_a_report(attach: str) -> None:
    """Of whatever age; with the time that it has at the report."""
    arguments = ("--weight", "connection", "--by", "lport", "-i", "0.5", "--attach", attach)
    with (
        harness.pair() as old,
        tracer("rtt", "--json", *arguments) as running,
        harness.pair() as new,
    ):
        for pair in (old, new):
            talk(*pair)
        expected = {end.getsockname()[1]: of_info(end, 68) for end in (*old, *new)}
        lport = new[0].getsockname()[1]
        for _ in range(2):
            seen = len(running.out.lines)
            harness.until(lambda: f'"lport":{lport}}}' in "".join(running.out.lines[seen:]))  # noqa: B023
        found = [each for each in records(running) if each["key"]["lport"] in expected]
    assert {each["key"]["lport"] for each in found} == expected.keys()
    assert {each["count"] for each in found} == {1}
    # The last one is sure to be behind what was said.
    last = {each["key"]["lport"]: each["sum"] for each in found}
    assert last == expected
    assert running.ways.keys() >= {"walk over the sockets", "state changes"}
    assert "segments received" not in running.ways


def test_a_connection_that_ends_counts_once() -> None:
    """In the report after its end, and in no later one."""
    arguments = ("--weight", "connection", "--by", "lport,rport", "-i", "0.2")
    with tracer("rtt", "--json", *arguments) as running:
        ends = []
        for server_closes_first in (True, False):
            one, two = harness.session("127.0.0.1", server_closes_first)
            ends += [(one, two), (two, one)]
        with harness.pair() as (client, accepted):
            ends += [harness.ports(client), harness.ports(accepted)]
            harness.reset(client)
        time.sleep(0.5)
        found = counts(records(running), "lport", "rport")
    assert [found.get(each) for each in ends] == [1] * len(ends)


@pytest.mark.parametrize("older", [True, False])
def test_connections_of_a_process(older: bool) -> None:
    with contextlib.ExitStack() as stack:
        first = [stack.enter_context(echo()) for _ in range(2)] if older else []
        pid = first[0][0] if older else os.getpid()
        arguments = ("--weight", "connection", "--by", "process,rport", "-p", str(pid))
        running = stack.enter_context(tracer("rtt", "--json", *arguments))
        both = first or [stack.enter_context(echo()) for _ in range(2)]
        for _, _, act in both:
            act()
        found = counts(records(running), "pid")
    assert found == {pid: 1 if older else 2}


# Filters: those of the tuple and the user; owners have theirs above.


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["-4"], {"127.0.4.1", "127.0.4.2"}),
        (["-6"], {"::1"}),
        (["--raddr", "127.0.4.1"], {"127.0.4.1"}),
        (["-A", "127.0.4.0/31,::1"], {"127.0.4.1", "::1"}),
        (["--raddr", "0.0.0.0/0"], {"127.0.4.1", "127.0.4.2"}),
        (["-D", "{0}"], {"127.0.4.1"}),
        (["-P", "{1},{2}"], {"127.0.4.2", "::1"}),
        (["-u", "0"], {"127.0.4.1", "127.0.4.2", "::1"}),
        (["-u", "12345"], set()),
        (["--netns", "{netns}"], {"127.0.4.1", "127.0.4.2", "::1"}),
        (["--netns", "{other}"], set()),
        (["--comm", "nobody"], set()),
        (["--comm", "{comm}"], {"127.0.4.1", "127.0.4.2", "::1"}),
        (["-p", "{pid}", "-6"], {"::1"}),
    ],
)
def test_filters(options: list[str], wanted: set[str], net: Net) -> None:
    with pairs("127.0.4.1", "127.0.4.2", "::1") as ends:
        servers = [client.getpeername()[1] for client, _ in ends]
        values = {
            "netns": Path("/proc/self/ns/net").stat().st_ino,
            "other": net[0].name,
            "comm": Path("/proc/self/comm").read_text().strip(),
            "pid": os.getpid(),
        }
        given = [option.format(*servers, **values) for option in options]
        with tracer("rtt", "--json", "--by", "raddr,rport", *given) as running:
            for pair in ends:
                talk(*pair)
            found = counts(records(running), "raddr", "rport")
    assert {raddr for raddr, rport in found if rport in servers} == wanted


# Reports.


def coalesced() -> int:
    """Segments that the kernel put into one that waited for the socket's lock, in the thread's
    namespace: they come as one (tcp_add_to_backlog)."""
    names, values, *_ = Path("/proc/thread-self/net/netstat").read_text().splitlines()
    return int(values.split()[names.split().index("TCPBacklogCoalesce")])


def test_nothing_is_lost_between_two_reports(net: Net) -> None:
    """Neither silently: what the kernel skipped is told."""
    with (
        net[0].entered(),
        harness.pair() as (client, accepted),
        tracer("rtt", "--json", "-i", "0.02", "--by", "lport", "--netns", net[0].name) as running,
    ):
        before = segments(client) + segments(accepted) - coalesced()
        for _ in range(20):
            talk(client, accepted, 100)
            time.sleep(0.01)
        came = segments(client) + segments(accepted) - coalesced() - before
        lport = client.getsockname()[1]
        found = records(running)
    missed = max([each["missed"] for each in running.records() if each["type"] == "lost"] or [0])
    assert sum(counts(found, "lport").values()) + missed == came
    assert len([each for each in found if each["key"]["lport"] == lport]) > 5


def test_a_map_that_is_too_small_is_told() -> None:
    hosts = [f"127.0.5.{n}" for n in range(1, 9)]
    with pairs(*hosts) as ends:
        ports = ",".join(str(client.getsockname()[1]) for client, _ in ends)
        with tracer("rtt", "--json", "-B", "-L", ports, "--map-size", "3") as running:
            before = sum(segments(client) for client, _ in ends)
            for pair in ends:
                talk(*pair)
            came = sum(segments(client) for client, _ in ends) - before
            found = counts(records(running), "raddr")
    assert len(found) == 4 and found["other"] > found["127.0.5.1"]
    assert sum(found.values()) == came


@pytest.mark.any_kernel
def test_text_has_percentiles_and_the_time() -> None:
    with (
        harness.pair() as (client, accepted),
        tracer("rtt", "-T", "-e", "-i", "0.2", *at_port(client)) as running,
    ):
        talk(client, accepted)
        running.out.wait_for(lambda line: "srtt(us)" in line)
        assert running.stop() == 0
    time_, summary, header, *_ = running.out.lines
    assert re.fullmatch(r"\d\d:\d\d:\d\d", time_)
    assert re.fullmatch(r"average = \d+\.\d, p50 = \d+, p90 = \d+, p99 = \d+", summary)
    assert header == "     srtt(us)            : count    distribution"


@pytest.mark.any_kernel
def test_csv_says_the_same_as_json() -> None:
    with harness.pair() as (client, accepted):
        arguments, rport = (
            ("rtt", "--by", "raddr/24,rport", *at_port(client)),
            client.getpeername()[1],
        )
        with tracer(*arguments, "--json") as one, tracer(*arguments, "--csv") as two:
            talk(client, accepted)
            (found,) = records(one)
            assert two.stop() == 0
    rows = list(csv.DictReader(io.StringIO("\n".join(two.out.lines))))
    assert [[int(row[x]) for x in ("lower", "upper", "count")] for row in rows] == found["buckets"]
    assert {(row["raddr"], row["rport"], row["measure"]) for row in rows} == {
        ("127.0.0.0/24", str(rport), "srtt")
    }


def test_the_library() -> None:
    with harness.pair() as (client, accepted):
        port = client.getsockname()[1]
        with tcpcore.trace("rtt", by="lport", min_rtt=True, lport=port, duration=1) as found:
            before = segments(client)
            talk(client, accepted)
            came = segments(client) - before
            (histogram,) = found
    assert (histogram.key, histogram.measure, histogram.count) == ({"lport": port}, "min_rtt", came)


# Against delays.

DELAYS = (20, 80)  # ms; their buckets have another one between them


@contextlib.contextmanager
def delayed(end: Namespace, delay: int) -> Iterator[None]:
    """What leaves by its end of the link comes later."""
    with harness.netem(end, f"delay {delay}ms") as there_is:
        if not there_is:
            pytest.skip("this kernel has no netem")
        yield


def ss_rtt(end: Namespace, port: int) -> float:
    """What `ss -i` says of a connection from this port, in ms."""
    (told,) = re.findall(
        r"\brtt:([\d.]+)/", harness.sh(f"ip netns exec {end.name} ss -tin sport = :{port}")
    )
    return float(told)


@pytest.mark.flaky_because("a machine that is busy adds its own delay")
@pytest.mark.parametrize(
    "delay", [DELAYS[0], pytest.param(DELAYS[1], marks=pytest.mark.each_variant)]
)
def test_delays_are_in_their_buckets(attach: str, delay: int, net: Net) -> None:
    here, there = net
    # Neighbours know each other by then: the first SYN would wait for ARP as well.
    with there.entered(), harness.listener(there.address) as server, here.entered():
        harness.connect(*server.getsockname()).close()
    with (
        delayed(there, delay),
        there.entered(),
        harness.listener(there.address) as server,
        tracer(
            "rtt", "--json", "--by", "raddr", "--attach", attach, "--raddr", there.address
        ) as run,
    ):
        with here.entered():
            client = harness.connect(*server.getsockname())
        with client, server.accept()[0] as accepted:
            talk(client, accepted, 10)
            by_ss = ss_rtt(here, client.getsockname()[1])
            (found,) = records(run)
    low, high, _ = max(found["buckets"], key=lambda bucket: bucket[2])
    assert low <= delay * 1000 <= high
    assert low <= by_ss * 1000 <= high
    assert low <= found["p50"] <= high and low <= found["sum"] / found["count"] <= high


# The picture.


@pytest.mark.any_kernel
def test_a_heatmap_in_a_pipe() -> None:
    with (
        harness.pair() as (client, accepted),
        tracer("rtt", "--heatmap", "-i", "0.2", *at_port(client)) as running,
    ):
        for _ in range(5):
            talk(client, accepted)
            time.sleep(0.2)
        assert running.stop() == 0, running.errors()
    title, header, *rows = running.out.lines
    assert title.strip() == "srtt(us)" and header.split()[:: len(header.split()) - 1] == [
        "TIME",
        "COUNT",
    ]
    drawn = [row for row in rows if re.fullmatch(r"\d\d:\d\d:\d\d [ .:=+*#%@-]+ \d+", row)]
    assert len(drawn) >= 4 and not any("\x1b" in row for row in rows)


@pytest.mark.any_kernel
@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_heatmap_on_a_terminal(no_color: str) -> None:
    """What is on the screen: lines that fit, colours unless nobody wants them."""
    with harness.pair() as (client, accepted):
        command = [*harness.TCPCORE, "rtt", "--heatmap", "-i", "0.3", *at_port(client)]
        environment = ["env", f"NO_COLOR={no_color}", f"PYTHONPATH={os.pathsep.join(sys.path)}"]
        shown = Screen(shlex.join([*environment, *command]))

        def has_rows() -> bool:
            talk(client, accepted)
            return sum(bool(re.match(r"\d\d:\d\d:\d\d", line)) for line in shown.lines()) >= 3

        try:
            harness.until(has_rows)
            title, header, *rows = [line for line in shown.lines() if line]
            coloured = shown.coloured()
        finally:
            shown.close()
    assert title.strip() == "srtt(us)" and header.startswith("TIME") and header.endswith("COUNT")
    assert all(
        re.match(r"\d\d:\d\d:\d\d ", row)
        for row in rows
        if "COUNT" not in row and "srtt" not in row
    )
    assert ("\x1b[48;5;" in coloured) == (not no_color)
    assert bool(re.search(r"[.:=+*#%@-]{5}", "".join(row[9:] for row in rows))) == bool(no_color)
