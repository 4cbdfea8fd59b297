"""cong on connections that lose segments; the kernel's own word is TCP_INFO (tcp(7))."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.facts import Facts
from tests.live import harness
from tests.live.harness import Event, Namespace, Net, Tracer, tracer

FACTS = Facts(
    header="PID     COMM       LADDR           LPORT RADDR           RPORT OPEN(ms)   DISORDER(ms) "
    "RECOVERY(ms) CWR(ms)    LOSS(ms)   CHANGES",
    fields=frozenset(
        {
            *("since_ns", "changes", "open_ns", "disorder_ns", "cwr_ns", "recovery_ns"),
            *("loss_ns", "interval_ns"),
        }
    ),
    queued=2,
    kept=2,
)
STATES = ("open", "disorder", "cwr", "recovery", "loss")
HAS_TRACEPOINT = b"\0btf_trace_tcp_cong_state_set\0" in Path("/sys/kernel/btf/vmlinux").read_bytes()


def state(of: socket.socket) -> str:
    """tcpi_ca_state."""
    return STATES[of.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[1]]


def total(row: Event) -> int:
    return sum(int(row[f"{name}_ns"]) for name in STATES)


class Stay(NamedTuple):
    """CLOCK_MONOTONIC around the change to a state, and around the one from it."""

    before: int
    since: int
    until: int
    after: int


def watched(of: socket.socket, wanted: str, before: int = 0) -> tuple[int, int]:
    """When it was last seen in another state, and when it was first seen in this one. before: it
    was in another state then."""
    deadline = time.monotonic() + harness.PATIENCE
    while True:
        now = time.monotonic_ns()
        if state(of) == wanted:
            return before, time.monotonic_ns()
        before = now
        assert time.monotonic() < deadline, f"still {state(of)}"
        time.sleep(0.001)


def suffer(
    client: socket.socket,
    accepted: socket.socket,
    trouble: contextlib.AbstractContextManager[object],
    wanted: str,
    until: Tracer | None = None,
) -> Stay:
    """Trouble that leads to a state; what is sent behind it leads back. until: its reports say that
    nothing changed for an interval."""
    with trouble:
        begin = time.monotonic_ns()
        client.sendall(bytes(500))
        before, since = watched(client, wanted, begin)
        if until:
            until.wait_for(lambda row: row[f"{wanted}_ns"] > 0 and not row["changes"])
        last = time.monotonic_ns()
    client.sendall(bytes(500))
    assert len(accepted.recv(1000, socket.MSG_WAITALL)) == 1000
    _, after = watched(client, "open")
    return Stay(before, since, last, after)


def lose(client: socket.socket, accepted: socket.socket, until: Tracer | None = None) -> Stay:
    """All that is sent, for a while; the thread is where it would come in."""
    return suffer(client, accepted, harness.lossy(""), "loss", until)


@contextlib.contextmanager
def connection(net: Net) -> Iterator[tuple[socket.socket, socket.socket]]:
    """From the first namespace to the second one, which the thread is in."""
    here, there = net
    with there.entered(), harness.listener(there.address) as server:
        with here.entered():
            client = harness.connect(*server.getsockname())
        with client, server.accept()[0] as accepted:
            yield client, accepted


@contextlib.contextmanager
def looking(here: Namespace, *arguments: str) -> Iterator[Tracer]:
    """At one end of the connection: the other one is in another namespace."""
    with tracer("cong", "--json", "--netns", here.name, *arguments) as running:
        yield running


def rows(running: Tracer) -> list[Event]:
    found = running.events("flow")
    assert not [x for x in running.records() if x["type"] == "lost"]
    return found


# The tracepoint where the kernel has it; else the functions, which nobody needs elsewhere.
BEST_WAY, OTHER_WAY = ("tp_btf", "raw_tp") if HAS_TRACEPOINT else ("fentry", "kprobe")


@pytest.mark.each_variant
def test_each_interval_has_its_share_of_the_life(net: Net) -> None:
    """Also of a state that spans intervals, of the time before it, and of the state at the end."""
    with looking(net[0], "--all", "-i", "0.1", "--attach", BEST_WAY) as running:
        begin = time.monotonic_ns()
        with connection(net) as (client, accepted):
            connected = time.monotonic_ns()
            lost = lose(client, accepted, until=running)
            closing = time.monotonic_ns()
            harness.reset(client)
            closed = time.monotonic_ns()
        found = rows(running)
    assert {begin < row["since_ns"] < connected for row in found} == {True}
    assert closing - connected < sum(map(total, found)) < closed - begin
    assert lost.until - lost.since < sum(row["loss_ns"] for row in found) < lost.after - lost.before
    assert sum(row["changes"] for row in found) >= 2
    assert [row for row in found if row["loss_ns"] == total(row) and not row["changes"]]


@pytest.mark.each_variant
def test_each_change(net: Net) -> None:
    """What TCP_INFO sees between them, and what the changes made of the window."""
    arguments = ("--events", "--attach", OTHER_WAY)
    with looking(net[0], *arguments) as running, connection(net) as (client, end):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        port = client.getsockname()[1]
        lost = lose(client, end)
        running.wait_for(lambda event: event["newstate"] == "open")
        found = running.events()
    assert {(x["lport"], x["pid"], x["algorithm"]) for x in found} == {(port, os.getpid(), "reno")}
    path = [found[0]["oldstate"], *(x["newstate"] for x in found)]
    assert path[1:] == [x["oldstate"] for x in found[1:]] + ["open"] and path[0] == "open"
    (enters,) = [x for x in found if x["newstate"] == "loss"]
    (leaves,) = [x for x in found if x["oldstate"] == "loss"]
    assert lost.before < enters["ts_ns"] < lost.since
    assert lost.until < leaves["ts_ns"] < lost.after
    assert leaves["duration_ns"] == leaves["ts_ns"] - enters["ts_ns"]
    assert (enters["cwnd"], enters["ssthresh"]) == (1, 5)  # half of 10, RFC 5681, 3.1


@pytest.mark.any_kernel  # a slow one may know of the loss by its timer alone
def test_a_hole_is_recovered_from(net: Net) -> None:
    """One segment of many is lost again and again: every state that TCP_INFO shows is there."""
    seen = ["open"]
    with looking(net[0], "--events") as running, connection(net) as (client, accepted):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with harness.lossy("", "meta l4proto tcp meta length > 800"):
            client.sendall(bytes(1000))
            for _ in range(8):
                client.sendall(bytes(10))
                seen.append(state(client))
            while seen[-1] != "loss":
                seen.append(state(client))
        assert len(accepted.recv(1080, socket.MSG_WAITALL)) == 1080
        running.wait_for(lambda event: event["newstate"] == "open" and "loss" in seen)
        found = iter(["open", *(x["newstate"] for x in running.events())])
    assert "recovery" in seen
    assert all(one in found for one, _ in itertools.groupby(seen))  # in this order


@pytest.mark.any_kernel
def test_a_row_has_the_states_of_all_changes(net: Net) -> None:
    with (
        looking(net[0]) as counting,
        looking(net[0], "--events") as running,
        connection(net) as (client, accepted),
    ):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")

        def are_seen() -> bool:
            client.sendall(bytes(30_000))
            assert len(accepted.recv(30_000, socket.MSG_WAITALL)) == 30_000
            return {"disorder", "recovery"} <= {x["newstate"] for x in running.records()}

        with harness.lossy(harness.every(10)):
            harness.until(are_seen)
        changes = running.events()
        (row,) = rows(counting)
    assert row["changes"] == len(changes)
    states = {"open", *(x["newstate"] for x in changes)}
    assert {name for name in STATES if row[f"{name}_ns"]} == states


def test_a_queue_that_is_full(net: Net) -> None:
    with looking(net[0]) as running, connection(net) as (client, accepted):
        stay = suffer(client, accepted, harness.full_queue(net[0]), "cwr")
        (row,) = rows(running)
    assert stay.until - stay.since < row["cwr_ns"] < stay.after - stay.before
    assert (row["changes"], total(row)) == (2, row["open_ns"] + row["cwr_ns"])


def test_a_mark_of_congestion(net: Net) -> None:
    """Of a router that would rather not drop the packet: RFC 3168."""
    here, _ = net
    with (
        looking(here, "--events") as running,
        here.entered(),
        harness.sysctl("tcp_ecn", "1"),
        connection(net) as (client, accepted),
    ):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        marks = harness.firewall(harness.DATA, "ip ecn set ce")
        stay = suffer(client, accepted, marks, "cwr")
        enters, leaves = running.events()
    assert (enters["newstate"], leaves["oldstate"], leaves["newstate"]) == ("cwr", "cwr", "open")
    assert stay.before < enters["ts_ns"] < stay.since
    assert stay.until < leaves["ts_ns"] < stay.after
    assert (enters["ssthresh"], leaves["cwnd"]) == (5, 5)  # half of 10


@contextlib.contextmanager
def in_loss(net: Net) -> Iterator[tuple[socket.socket, int]]:
    """A connection, and when it was there."""
    with connection(net) as (client, accepted):
        with harness.lossy(""):
            client.sendall(bytes(500))
            _, since = watched(client, "loss")
            yield client, since
            assert state(client) == "loss"
        accepted.recv(500, socket.MSG_WAITALL)
        watched(client, "open")


def test_a_connection_that_is_older_than_the_trace(net: Net) -> None:
    """It counts from the start of the trace, and has a row though nothing changes."""
    with contextlib.ExitStack() as stack:
        with in_loss(net) as (_, since):
            running = stack.enter_context(looking(net[0], "-i", "0.1"))
            attached = time.monotonic_ns()
            running.wait_for(lambda row: row["loss_ns"] == total(row) and not row["changes"])
            lost = time.monotonic_ns() - attached
        found = rows(running)
    assert {since < row["since_ns"] < attached for row in found} == {True}
    assert sum(row["loss_ns"] for row in found) > lost
    assert sum(row["changes"] for row in found) >= 1


def test_since_when_an_older_one_has_its_state_is_not_known(net: Net) -> None:
    with contextlib.ExitStack() as stack:
        with in_loss(net):
            running = stack.enter_context(looking(net[0], "--events"))
        found = running.events()
    assert (found[0]["oldstate"], found[0]["duration_ns"]) == ("loss", None)


def test_how_long_states_last(net: Net) -> None:
    with looking(net[0], "--dist") as running, connection(net) as (client, accepted):
        begin = time.monotonic_ns()
        lost = lose(client, accepted)
        harness.reset(client)
        end = time.monotonic_ns()
        found = {x["key"]["state"]: x for x in running.events("histogram")}
    assert {(x["measure"], x["unit"]) for x in found.values()} == {("duration", "us")}
    assert found["loss"]["count"] == 1
    assert lost.until - lost.since < found["loss"]["sum"] * 1000 + 1000
    assert found["loss"]["sum"] * 1000 < lost.after - lost.before
    assert found["open"]["count"] >= 2  # the first one, and the one that the end of all ended
    assert sum(x["sum"] for x in found.values()) * 1000 > end - begin - 1000 * len(found) * 10


@contextlib.contextmanager
def stopped(running: Tracer) -> Iterator[None]:
    """It does nothing meanwhile."""
    running.send(signal.SIGSTOP)
    harness.until(lambda: Path(f"/proc/{running.pid}/stat").read_text().split()[2] == "T")
    try:
        yield
    finally:
        running.send(signal.SIGCONT)


def change_stay(running: Tracer, port: int, by: int) -> None:
    """In the entry of a connection: the state that lasts, and above STAY_BITS since when."""
    mine = running.objects()
    maps = json.loads(harness.sh("bpftool -j map show"))
    (number,) = [m["id"] for m in maps if m.get("name") == "sockets" and ("map", m["id"]) in mine]
    with stopped(running):
        entries = json.loads(harness.sh(f"bpftool -j map dump id {number}"))
        (entry,) = [x for x in entries if x["formatted"]["value"]["conn"]["lport"] == port]
        stay = entry["formatted"]["value"]["part"]["kept"]["stay"]
        value = bytes(int(x, 16) for x in entry["value"])
        value = value.replace(struct.pack("=Q", stay), struct.pack("=Q", stay + by))
        update = f"bpftool map update id {number} key hex {' '.join(entry['key'])}"
        harness.sh(f"{update} value hex {value.hex(' ')}")


STAY_BITS = 4  # bpf/cong.bpf.c


@pytest.mark.any_kernel
def test_a_report_in_the_middle_of_a_change(net: Net) -> None:
    """As another CPU may see it, half of it written: the connection is left out, and its time comes
    with the next report."""
    with looking(net[0], "--all", "-i", "0.1") as running, connection(net) as (idle, _):
        begin = time.monotonic_ns()
        with connection(net) as (client, _):
            connected = time.monotonic_ns()
            ours, other = (end.getsockname()[1] for end in (client, idle))
            running.wait_for(lambda row: row["lport"] == ours)

            def reports() -> int:
                return [row["lport"] for row in running.records()].count(other)

            change_stay(running, ours, 10**9 << STAY_BITS)
            told = reports()
            harness.until(lambda: reports() > told + 2)
            change_stay(running, ours, -(10**9 << STAY_BITS))
            closing = time.monotonic_ns()
            harness.reset(client)
            closed = time.monotonic_ns()
        found = [row for row in rows(running) if row["lport"] == ours]
    assert closing - connected < sum(map(total, found)) < closed - begin


@pytest.mark.any_kernel
@pytest.mark.skipif(not HAS_TRACEPOINT, reason="only the tracepoint tells the state before")
def test_a_change_that_was_missed(net: Net) -> None:
    """As if the kernel had skipped the program when the state became open."""
    with (
        looking(net[0]) as counting,
        looking(net[0], "--events") as running,
        connection(net) as (client, accepted),
    ):
        for each in (counting, running):
            change_stay(each, client.getsockname()[1], STATES.index("loss"))
        suffer(client, accepted, harness.full_queue(net[0]), "cwr")
        first, second = running.events()
        (row,) = rows(counting)
    assert (first["oldstate"], first["newstate"], first["duration_ns"]) == ("open", "cwr", None)
    assert second["duration_ns"] == second["ts_ns"] - first["ts_ns"]
    assert row["changes"] == 3 and row["loss_ns"] > 0


def test_a_syn_that_is_lost(net: Net) -> None:
    """The state changes before there is a connection."""
    here, there = net
    with looking(here, "--events") as running, there.entered():
        lossy = harness.lossy(harness.first(1), "tcp flags syn")
        with lossy, harness.listener(there.address) as server, here.entered():
            client = harness.connect(*server.getsockname())
            ports = harness.ports(client)
            client.close()
        found = running.events()
    assert {(x["lport"], x["rport"]) for x in found} == {ports}
    assert (found[0]["oldstate"], found[0]["newstate"]) == ("open", "loss")


@pytest.mark.any_kernel
def test_connections_without_trouble_are_left_out(net: Net) -> None:
    for arguments, number in (((), 0), (("--all",), 2)):
        with looking(net[0], *arguments) as running, connection(net), connection(net):
            found = rows(running)
        assert [total(row) == row["open_ns"] > 0 for row in found] == [True] * number


@pytest.mark.any_kernel
def test_the_same_ports_twice(net: Net) -> None:
    here, there = net
    with looking(here, "--all") as running, there.entered():
        with harness.listener(there.address) as server:
            for _ in range(2):
                with here.entered(), socket.socket() as client:
                    client.bind((here.address, 45002))
                    client.connect(server.getsockname())
                    harness.reset(client)
        found = rows(running)
    assert [row["lport"] for row in found] == [45002] * 2
    assert found[0]["since_ns"] != found[1]["since_ns"]


@pytest.mark.any_kernel
def test_so_many_reports_as_blocks() -> None:
    done = harness.run("cong", "0.1", "2", "-R", "1")
    assert done.stdout.splitlines() == [FACTS.header] * 2


@pytest.mark.any_kernel
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("0", "INTERVAL: '0' is not a number of seconds"),
        ("1 0", "COUNT: '0' is not a number of reports"),
        ("--dist --events", "--events: and --dist: one of them"),
        ("--all --dist", "--all: with --dist and --events there is no row for a connection"),
    ],
)
def test_what_makes_no_sense(arguments: str, says: str) -> None:
    done = harness.run("cong", *arguments.split())
    assert (done.returncode, done.stdout) == (2, "") and says in done.stderr
