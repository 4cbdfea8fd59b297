"""states on real connections."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.facts import Facts
from tests.live import harness
from tests.live.harness import Event, Net, tracer

FACTS = Facts(
    header="SKADDR           PID     COMM       LADDR           LPORT RADDR           RPORT "
    "OLDSTATE    -> NEWSTATE    MS",
    fields=frozenset({"skaddr", "oldstate", "newstate", "duration_ns"}),
    reset=3 + 1,  # the client's end, the server's
    closed=5 + 3,
    ownerless=2,
    listener=2,
    queued=2,
    kept=2,
)

ACTIVE = ["CLOSE>SYN_SENT", "SYN_SENT>ESTABLISHED"]
PASSIVE = ["LISTEN>SYN_RECV", "SYN_RECV>ESTABLISHED"]
FIRST = ["ESTABLISHED>FIN_WAIT1", "FIN_WAIT1>FIN_WAIT2", "FIN_WAIT2>CLOSE"]
SECOND = ["ESTABLISHED>CLOSE_WAIT", "CLOSE_WAIT>LAST_ACK", "LAST_ACK>CLOSE"]


def changes(events: list[Event]) -> list[str]:
    return [f"{e['oldstate']}>{e['newstate']}" for e in events]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("server_first", [False, True])
def test_a_whole_session(attach: str, host: str, server_first: bool) -> None:
    with tracer("states", "--json", "--attach", attach) as running:
        lport, port = harness.session(host, server_closes_first=server_first)
        events = running.events()
    assert attach in running.ways.values()
    ends = (SECOND, FIRST) if server_first else (FIRST, SECOND)
    client = [e for e in events if e["lport"] == lport]
    server = [e for e in events if e["lport"] == port and e["rport"] == lport]
    listening = [e for e in events if e["lport"] == port and e["rport"] is None]
    assert changes(client) == ACTIVE + ends[0]
    assert changes(server) == PASSIVE + ends[1]
    assert changes(listening) == ["CLOSE>LISTEN", "LISTEN>CLOSE"]
    for event in client + server:
        assert (event["laddr"], event["raddr"]) == (host, host)
    assert {e["rport"] for e in client} == {port}
    check_owners(client, server)
    check_durations(client)


def check_owners(client: list[Event], server: list[Event]) -> None:
    """Ours where the kernel worked for us, never that of the softirq's victim. The server's end
    is nobody's until it is accepted."""
    assert {e["pid"] for e in client} == {os.getpid()}
    assert [e["pid"] for e in server] == [None] * len(PASSIVE) + [os.getpid()] * len(FIRST)


def check_durations(client: list[Event]) -> None:
    """Each is the time since the row before; the first one's start was not seen."""
    assert client[0]["duration_ns"] is None
    for before, event in pairwise(client):
        assert event["duration_ns"] == event["ts_ns"] - before["ts_ns"]


def test_v4mapped_is_ipv4(attach: str) -> None:
    with tracer("states", "--json", "--attach", attach, "-4") as running:
        with harness.listener("::") as server:
            port = server.getsockname()[1]
            client = harness.connect("::ffff:127.0.0.1", port)
            lport = client.getsockname()[1]
            accepted, _ = server.accept()
            client.close()
            accepted.close()
        events = running.events()
    mine = [e for e in events if {e["lport"], e["rport"]} == {lport, port}]
    assert {e["family"] for e in mine} == {"ipv4"}
    assert {(e["laddr"], e["raddr"]) for e in mine} == {("127.0.0.1", "127.0.0.1")}
    assert len(mine) == 10
    assert not [e for e in events if e["family"] == "ipv6"]


@pytest.mark.each_variant
def test_a_socket_older_than_the_trace(attach: str) -> None:
    with harness.listener() as server:
        client = harness.connect("127.0.0.1", server.getsockname()[1])
        lport = client.getsockname()[1]
        accepted, _ = server.accept()
        with tracer("states", "--json", "--attach", attach) as running:
            client.close()
            accepted.close()
            events = [e for e in running.events() if e["lport"] == lport]
    assert changes(events) == FIRST
    assert events[0]["duration_ns"] is None
    assert all(e["duration_ns"] is not None for e in events[1:])


def test_lport_of_a_connect_that_hangs(attach: str, net: Net) -> None:
    """The first transition comes while the socket hangs, with the port it got after it."""
    here = net[0]
    with tracer("states", "--json", "--attach", attach, "--netns", here.name) as running:
        with here.entered():
            client = harness.start_hanging(here.nobody, 1004)
            lport = client.getsockname()[1]
        row = running.wait_for(lambda e: e["rport"] == 1004)
        client.close()
        events = [e for e in running.events() if e["rport"] == 1004]
    assert (row["lport"], row["oldstate"], row["newstate"]) == (lport, "CLOSE", "SYN_SENT")
    assert changes(events) == ["CLOSE>SYN_SENT", "SYN_SENT>CLOSE"]
    assert {e["lport"] for e in events} == {lport}


def to_port(port: int) -> Callable[[Event], bool]:
    return lambda event: bool(event["rport"] == port)


@pytest.mark.parametrize("wait", [False, True])
def test_rows_of_connects_that_hang_are_shown_once(attach: str, net: Net, wait: bool) -> None:
    """By the reader while they hang, or at the end of the trace, or with their next change."""
    here, many = net[0], 20
    arguments = ("--attach", attach, "--netns", here.name, "-D", "1100-1199")
    with tracer("states", "--json", *arguments) as running, contextlib.ExitStack() as stack:
        with here.entered():
            clients = [harness.start_hanging(here.nobody, 1100 + i) for i in range(many)]
        for client in clients:
            stack.enter_context(client)
        if wait:
            for i in range(many):
                running.wait_for(to_port(1100 + i))
            for client in clients[: many // 2]:
                client.close()
        events = running.events()
    rows = Counter((e["rport"], e["newstate"]) for e in events)
    assert rows == {
        **{(1100 + i, "SYN_SENT"): 1 for i in range(many)},
        **{(1100 + i, "CLOSE"): 1 for i in range(many // 2 if wait else 0)},
    }


def test_lport_filter_keeps_the_first_transition(attach: str, net: Net) -> None:
    here, there = net
    with there.entered(), harness.listener(there.address) as server:
        arguments = ("--attach", attach, "--netns", here.name, "-L", "46000-46009")
        with (
            tracer("states", "--json", *arguments) as running,
            here.entered(),
            harness.local_ports("46000 46009"),
        ):
            client = harness.connect(there.address, server.getsockname()[1])
            accepted, _ = server.accept()
            client.close()
            accepted.close()
            with harness.local_ports("46100 46109"):
                harness.connect(there.address, server.getsockname()[1]).close()
            events = running.events()
    assert changes(events) == ACTIVE + FIRST
    assert len({e["lport"] for e in events}) == 1


def test_full_ipv6_text(net: Net) -> None:
    here = net[0]
    long = "2001:db8:1111:2222:3333:4444:5555:6666"
    harness.sh(f"ip -n {here.name} addr add {long}/128 dev lo nodad")
    with tracer("states", "--wide", "--netns", here.name) as running:
        with here.entered():
            harness.session(long)
        assert running.stop() == 0
    assert [line for line in running.out.lines if line.count(long) == 2]


def test_an_aborted_connection() -> None:
    with tracer("states", "--json") as running, harness.listener() as server:
        client = harness.connect("127.0.0.1", server.getsockname()[1])
        lport = client.getsockname()[1]
        accepted, _ = server.accept()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        accepted.close()
        events = [e for e in running.events() if e["lport"] == lport]
    assert changes(events) == [*ACTIVE, "ESTABLISHED>CLOSE"]
    assert events[-1]["pid"] == os.getpid()


def test_a_socket_that_connects_twice(attach: str) -> None:
    """How long it was closed in between is no time in a state: it may as well be another one."""
    with tracer("states", "--json", "--attach", attach) as running, harness.listener() as server:
        port = server.getsockname()[1]
        with socket.socket() as client:
            for _ in range(2):
                client.connect(("127.0.0.1", port))
                harness.disconnect(client)
        events = [e for e in running.events() if e["rport"] == port]
    once = [*ACTIVE, "ESTABLISHED>CLOSE"]
    assert changes(events) == once * 2
    assert len({e["skaddr"] for e in events}) == 1
    check_durations(events[:3])
    check_durations(events[3:])
