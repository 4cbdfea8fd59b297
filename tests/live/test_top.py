"""top: what each session sends and receives, what holds its sender back, and the live screen."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.facts import Facts
from tests.live import harness
from tests.live.harness import Event, Net, Tracer, tracer
from tests.live.screen import SHOWN, Screen

FACTS = Facts(
    header="PID     COMM         LADDR           LPORT RADDR           RPORT RX_KB     TX_KB",
    fields=frozenset(
        {
            *("tx_bytes", "rx_bytes", "retransmits", "out_of_order", "srtt_us", "cwnd"),
            *("delivery_rate", "rwnd_limited_ns", "sndbuf_limited_ns", "cwnd_limited_ns"),
            *("app_limited_ns", "limit", "interval_ns"),
        }
    ),
    queued=2,
    kept=2,
)
MIB = 1 << 20


@contextlib.contextmanager
def looking(*arguments: str) -> Iterator[Tracer]:
    """top, at this process alone."""
    with tracer("top", "--json", "-p", str(os.getpid()), "-r", "4096", *arguments) as running:
        yield running


def flows(running: Tracer) -> list[Event]:
    assert running.stop() == 0, running.errors()
    assert not [x for x in running.records() if x["type"] == "lost"]
    return [x for x in running.records() if x["type"] == "flow"]


def drain(sockets: list[socket.socket], sizes: list[int]) -> None:
    for one, size in zip(sockets, sizes, strict=True):
        left = size
        while left:
            left -= len(one.recv(min(left, MIB)))


@pytest.mark.each_variant
def test_bytes_of_many_sessions(attach: str) -> None:
    """At once, of different sizes, over several reports: each one's sum is what was sent."""
    sessions, unit = (16, 4096) if harness.EMULATED else (64, MIB // 2)
    sizes = [unit * (1 + n) for n in range(sessions)]  # 1 GiB in all
    with contextlib.ExitStack() as stack, looking("0.5", "--attach", attach) as running:
        pairs = [stack.enter_context(harness.pair()) for _ in sizes]
        halves = [size // 2 for size in sizes]
        for each in (halves, [size - half for size, half in zip(sizes, halves, strict=True)]):
            reader = threading.Thread(target=drain, args=([end for _, end in pairs], each))
            reader.start()
            for (client, _), size in zip(pairs, each, strict=True):
                client.sendall(bytes(size))
            reader.join()
            running.wait_for(lambda flow: flow["tx_bytes"] > 0)  # the rest is in a later report
        wanted = {
            harness.ports(client): size for (client, _), size in zip(pairs, sizes, strict=True)
        }
        found = flows(running)
    sent: Counter[tuple[int, int]] = Counter()
    received: Counter[tuple[int, int]] = Counter()
    for flow in found:
        sent[flow["lport"], flow["rport"]] += flow["tx_bytes"]
        received[flow["rport"], flow["lport"]] += flow["rx_bytes"]
    assert +sent == +received == wanted
    assert len({flow["time"] for flow in found}) > 1


def test_an_older_session_and_one_within_an_interval() -> None:
    with harness.pair() as (client, accepted):
        client.sendall(bytes(5000))
        accepted.recv(5000)
        with looking("60") as running:
            client.sendall(bytes(70))
            accepted.recv(70)
            port, server = harness.session(act=lambda one, other: one.sendall(bytes(300)))
            found = {(x["lport"], x["rport"]): x["tx_bytes"] for x in flows(running)}
        assert found[harness.ports(client)] == 70
    assert found[port, server] == 300


def of_sender(found: list[Event], client: socket.socket) -> list[Event]:
    """Whole intervals of a session: not the first one, in which it began."""
    return [x for x in found if x["lport"] == client.getsockname()[1]][1:-1]


def test_a_reader_that_sleeps_holds_back_by_its_window() -> None:
    with looking("0.3") as running, harness.pair() as (client, _):
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                client.send(bytes(MIB))
        time.sleep(2)
        rows = of_sender(flows(running), client)
    assert rows and {row["limit"] for row in rows} == {"rwnd"}
    assert all(row["rwnd_limited_ns"] > row["interval_ns"] * 0.8 for row in rows)


def test_a_writer_that_sleeps_is_its_application() -> None:
    with looking("0.3") as running, harness.pair() as (client, accepted):
        for _ in range(20):
            client.sendall(b"x" * 100)
            accepted.recv(100)
            time.sleep(0.1)
        rows = of_sender(flows(running), client)
    assert rows and {row["limit"] for row in rows} == {"app"}
    assert all(row["app_limited_ns"] > row["interval_ns"] * 0.5 for row in rows)


def test_what_nobody_acknowledges_waits_for_the_network(net: Net) -> None:
    here, there = net
    with (
        tracer("top", "--json", "--netns", here.name, "-i", "0.3") as running,
        there.entered(),
        harness.listener(there.address) as server,
    ):
        with here.entered():
            client = harness.connect(*server.getsockname())
        with client, server.accept()[0], harness.firewall(harness.DATA, "drop"):
            client.sendall(bytes(500))
            row = running.wait_for(lambda row: row.get("limit") == "cwnd")
    # The kernel counts from walk to walk, which on a slow machine is not quite the interval.
    assert 0 < row["cwnd_limited_ns"] < row["interval_ns"] * 5


def test_retransmits_and_round_trips(net: Net) -> None:
    here, there = net
    with tracer("top", "--json", "--netns", here.name, "-i", "60") as running:
        harness.lose_a_segment(here, there)
        (row,) = [x for x in flows(running) if x["tx_bytes"] == 500]
    assert row["retransmits"] >= 1
    assert row["srtt_us"] > 0 and row["cwnd"] > 0
    assert row["netns"] == here.inode


def test_the_rest_is_one_row() -> None:
    with looking("60", "-s", "tx", "-r", "1") as running, contextlib.ExitStack() as stack:
        for size in (10, 3000, 200):
            client, accepted = stack.enter_context(harness.pair())
            client.sendall(bytes(size))
            accepted.recv(size)
        first, rest = flows(running)
    assert (first["tx_bytes"], first["rx_bytes"]) == (3000, 0)
    assert (rest["raddr"], rest["tx_bytes"], rest["rx_bytes"]) == ("other", 210, 3210)
    assert rest["srtt_us"] is rest["limit"] is rest["pid"] is None


def test_sorted_by_what_they_receive() -> None:
    with looking("60", "--sort", "rx") as running, harness.pair() as (client, accepted):
        client.sendall(bytes(1000))
        accepted.recv(1000)
        accepted.sendall(bytes(10))
        assert [x["rx_bytes"] for x in flows(running)] == [1000, 10]


@pytest.mark.any_kernel
def test_so_many_reports_as_blocks() -> None:
    done = harness.run("top", "0.2", "3", "-p", str(os.getpid()))
    lines = done.stdout.splitlines()
    assert [line.rstrip() for line in lines[2::3]] == [FACTS.header] * 3
    assert all(" loadavg: " in line for line in lines[::3])
    assert all(line.startswith("rx 0.0 KB/s, ") for line in lines[1::3])
    quiet = harness.run("top", "0.1", "1", "-S", "-p", str(os.getpid()))
    assert quiet.stdout.splitlines() == [FACTS.header]


@pytest.mark.any_kernel
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("0", "INTERVAL: '0' is not a number of seconds"),
        ("1 0", "COUNT: '0' is not a number of reports"),
        ("-s size", "--sort: 'size' is none of all, tx, rx"),
        ("-r 0", "--rows: '0' is not a number of rows"),
    ],
)
def test_what_makes_no_sense(arguments: str, says: str) -> None:
    done = harness.run("top", *arguments.split())
    assert (done.returncode, done.stdout) == (2, "") and says in done.stderr


@contextlib.contextmanager
def screen(*arguments: str, width: int = 100, height: int = 12) -> Iterator[Screen]:
    command = shlex.join([*harness.TCPCORE, "top", "0.3", *arguments])
    shown = Screen(f"{command}; echo ended with $?; exec sleep 60", width, height)
    try:
        yield shown
    finally:
        shown.close()


@pytest.mark.any_kernel
def test_the_live_screen() -> None:
    with screen("-p", str(os.getpid())) as shown, harness.pair() as (client, _):
        shown.shows("sorted by all", "q quit")
        port = str(client.getsockname()[1])
        send = functools.partial(client.sendall, bytes(1024))
        shown.shows_after(send, "127.0.0.1", port, "1.0", "0.0")
        assert " loadavg: " in shown.lines()[0]
        shown.type("s")
        shown.shows("sorted by tx")
        shown.type("p")
        shown.shows("sorted by tx; paused")
        client.sendall(bytes(3 * 1024))
        time.sleep(SHOWN)
        assert not [line for line in shown.lines() if " 3.0 " in f"{line} "]
        shown.type("p")
        shown.shows_after(functools.partial(client.sendall, bytes(2048)), port, "2.0")
        shown.type("q")
        shown.shows("ended with 0")
        # The last report stays, on the screen that was there before.
        assert FACTS.header.split() in [line.split() for line in shown.lines()]


@pytest.mark.any_kernel
def test_a_narrow_terminal_and_one_that_grows() -> None:
    with screen("-p", str(os.getpid()), "--wide", width=40, height=4) as shown:
        shown.shows("sorted by all")
        with harness.pair() as (client, accepted):
            for _ in range(3):
                client.sendall(bytes(100))
                accepted.recv(100)
                time.sleep(0.2)
            assert all(len(line) <= 40 for line in shown.lines())
            shown.tmux("resize-window", "-x", "220", "-y", "20")
            shown.shows("PID", "LIMIT", "NETNS")
        shown.type("C-c")
        shown.shows("ended with 0")


@pytest.mark.any_kernel
def test_no_screen_where_it_is_not_wanted() -> None:
    with screen("-C", "-p", str(os.getpid())) as shown:
        harness.until(lambda: len([x for x in shown.lines() if x.startswith("PID")]) >= 2)
        assert not [line for line in shown.lines() if "q quit" in line]


@pytest.mark.any_kernel
def test_json_ends_with_its_reader() -> None:
    command = f"{shlex.join(harness.TCPCORE)} top --json 0.05 | head -c 1"
    with harness.pair() as (client, accepted):
        child = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE)
        while child.poll() is None:
            client.sendall(b"x")
            accepted.recv(1)
            time.sleep(0.01)
        assert child.communicate()[0] == json.dumps({})[:1].encode()
