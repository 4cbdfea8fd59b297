"""life on real sessions."""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.facts import Facts
from tests.live import harness
from tests.live.harness import Event, Net, tracer

FACTS = Facts(
    header="PID    COMM       LADDR           LPORT RADDR           RPORT TX_KB  RX_KB  MS",
    fields=frozenset(
        {
            *("duration_ns", "tx_bytes", "rx_bytes", "cgroup_id", "retransmits"),
            *("rtt_min_us", "srtt_us", "role", "reason"),
            *("cwnd_limited_ns", "rwnd_limited_ns", "sndbuf_limited_ns"),
        }
    ),
    reset=2,
    closed=2,
    queued=2,
    kept=2,
)
Act = Callable[[socket.socket, socket.socket], None]

MIB = 1 << 20


def sides(events: list[Event], client: int, server: int) -> tuple[Event, Event]:
    """The one line of each end of a connection."""
    (one,) = (e for e in events if (e["lport"], e["rport"]) == (client, server))
    (two,) = (e for e in events if (e["lport"], e["rport"]) == (server, client))
    return one, two


def exchange(client: socket.socket, accepted: socket.socket, up: int, down: int) -> None:
    """So many bytes each way, all of them read."""
    for sender, receiver, size in ((client, accepted, up), (accepted, client, down)):
        thread = threading.Thread(target=sender.sendall, args=(b"x" * size,))
        thread.start()
        while size:
            size -= len(receiver.recv(size))
        thread.join()


def close_in_order(first: socket.socket, second: socket.socket) -> None:
    first.close()
    assert second.recv(1) == b""
    second.close()


def server_first(client: socket.socket, accepted: socket.socket) -> None:
    close_in_order(accepted, client)


AMOUNTS = [(0, 0), (1, 0), (0, 1), (100, MIB), (MIB, 7)]


@pytest.mark.each_variant
def test_bytes(attach: str) -> None:
    """What the applications counted, at both ends, whoever closes first."""
    cases = list(itertools.product(AMOUNTS, ("127.0.0.1", "::1"), (close_in_order, server_first)))
    ends = []
    with tracer("life", "--json", "--attach", attach) as running:
        for (up, down), host, close in cases:
            with harness.pair(host) as (client, accepted):
                ends.append(harness.ports(client))
                exchange(client, accepted, up, down)
                close(client, accepted)
        events = running.events()
    assert attach in running.ways.values()
    for ((up, down), host, _), (lport, port) in zip(cases, ends, strict=True):
        check_session(*sides(events, lport, port), host, up, down)


def check_session(one: Event, two: Event, host: str, up: int, down: int) -> None:
    assert (one["tx_bytes"], one["rx_bytes"]) == (up, down)
    assert (two["tx_bytes"], two["rx_bytes"]) == (down, up)
    assert (one["role"], two["role"]) == ("active", "passive")
    for event in (one, two):
        assert (event["pid"], event["uid"]) == (os.getpid(), 0)
        assert event["comm"] == Path("/proc/self/comm").read_text().strip()
        assert (event["laddr"], event["raddr"], event["reason"]) == (host, host, "fin")
        assert event["netns"] == Path("/proc/self/ns/net").stat().st_ino
        assert event["duration_ns"] > 0
        assert event["rtt_min_us"] is not None and event["srtt_us"]


def half_closed(client: socket.socket, accepted: socket.socket) -> None:
    """The server answers after it has seen the end of the request."""
    client.sendall(b"x" * 10)
    client.shutdown(socket.SHUT_WR)
    assert accepted.recv(10, socket.MSG_WAITALL) and accepted.recv(1) == b""
    accepted.sendall(b"x" * 20)
    accepted.close()
    assert client.recv(20, socket.MSG_WAITALL) and client.recv(1) == b""
    client.close()


def half_closed_by_server(client: socket.socket, accepted: socket.socket) -> None:
    accepted.sendall(b"x" * 20)
    accepted.shutdown(socket.SHUT_WR)
    assert client.recv(20, socket.MSG_WAITALL) and client.recv(1) == b""
    client.sendall(b"x" * 10)
    client.shutdown(socket.SHUT_WR)
    assert accepted.recv(10, socket.MSG_WAITALL) and accepted.recv(1) == b""


@pytest.mark.parametrize("act", [half_closed, half_closed_by_server])
def test_half_closed(attach: str, act: Act) -> None:
    with tracer("life", "--json", "--attach", attach) as running:
        with harness.pair() as (client, accepted):
            lport, port = harness.ports(client)
            act(client, accepted)
        found = sides(running.events(), lport, port)
    assert [(e["tx_bytes"], e["rx_bytes"]) for e in found] == [(10, 20), (20, 10)]
    assert [(e["reason"], e["pid"]) for e in found] == [("fin", os.getpid())] * 2


def test_a_socket_that_connects_twice(attach: str) -> None:
    """Two sessions, each with its own bytes."""
    with tracer("life", "--json", "--attach", attach) as running, harness.listener() as server:
        port = server.getsockname()[1]
        with socket.socket() as client:
            for size in (10, 20):
                client.connect(("127.0.0.1", port))
                with server.accept()[0] as accepted:
                    exchange(client, accepted, size, size * 2)
                    harness.disconnect(client)
        events = [e for e in running.events() if e["rport"] == port]
    assert [(e["tx_bytes"], e["rx_bytes"]) for e in events] == [(10, 20), (20, 40)]
    assert [(e["reason"], e["pid"]) for e in events] == [("reset sent", os.getpid())] * 2
    assert all(e["duration_ns"] > 0 for e in events)


def test_a_socket_that_listens_after_its_session(attach: str) -> None:
    """Its end as a listener is none of a session."""
    with tracer("life", "--json", "--attach", attach, "-p", f"{os.getpid()}") as running:
        with harness.listener() as server, socket.socket() as client:
            client.connect(server.getsockname())
            lport, port = harness.ports(client)
            server.accept()[0].close()
            harness.disconnect(client)
            client.listen()
        told = [e["lport"] for e in running.events()]
    assert sorted(told) == sorted([lport, port])


def test_a_child_that_serves(attach: str) -> None:
    """It closes first: the rest happens in softirq, in whatever task that hits."""

    def serve() -> None:
        with harness.task_name(b"child"), server.accept()[0] as accepted:
            accepted.sendall(b"hello")

    with tracer("life", "--json", "--attach", attach) as running, harness.listener() as server:
        child = harness.fork(serve)
        with harness.connect("127.0.0.1", server.getsockname()[1]) as client:
            lport, port = harness.ports(client)
            assert client.recv(5, socket.MSG_WAITALL) == b"hello"
            assert client.recv(1) == b""
        assert harness.reap(child) == 0
        one, two = sides(running.events(), lport, port)
    assert (one["pid"], two["pid"], two["comm"]) == (os.getpid(), child, "child")
    assert (two["tx_bytes"], one["rx_bytes"]) == (5, 5)


def test_v4mapped_is_ipv4(attach: str) -> None:
    with tracer("life", "--json", "--attach", attach) as running:
        with harness.pair("::ffff:127.0.0.1", "::") as (client, accepted):
            lport, port = harness.ports(client)
            close_in_order(client, accepted)
        both = sides(running.events(), lport, port)
    for event in both:
        assert (event["family"], event["laddr"], event["raddr"]) == (
            *("ipv4", "127.0.0.1"),
            "127.0.0.1",
        )


def test_duration_holds_the_handshake(attach: str) -> None:
    """A session is at least as long as its connect() took."""
    with (
        tracer("life", "--json", "--attach", attach) as life,
        tracer("connlat", "--json") as connlat,
    ):
        lport, port = harness.session()
        one, _ = sides(life.events(), lport, port)
        (connect,) = (e for e in connlat.events() if e["lport"] == lport)
    assert one["duration_ns"] > connect["latency_ns"] * 0.9  # each takes its own time stamps


def test_duration_over_a_known_delay(attach: str) -> None:
    """100 ms one way: no session is shorter than a round trip, neither end's."""
    if subprocess.run(["modprobe", "-q", "sch_netem"], check=False).returncode:
        pytest.skip("this kernel has no netem")
    with harness.namespaces() as (here, there):
        harness.sh(f"tc -n {here.name} qdisc add dev ve0 root netem delay 100ms")
        with tracer("life", "--json", "--attach", attach) as running:
            with there.entered(), harness.listener(there.address) as server, here.entered():
                client = harness.connect(there.address, server.getsockname()[1])
                lport, port = harness.ports(client)
                with server.accept()[0] as accepted:
                    close_in_order(client, accepted)
            running.wait_for(lambda e: e["lport"] == lport)
            running.wait_for(lambda e: e["lport"] == port)
            one, two = sides(running.events(), lport, port)
    assert one["duration_ns"] >= 100_000_000 and two["duration_ns"] >= 100_000_000


def linger(client: socket.socket, accepted: socket.socket) -> None:
    harness.reset(client)
    with pytest.raises(ConnectionResetError):
        accepted.recv(1)


def unread(client: socket.socket, accepted: socket.socket) -> None:
    accepted.sendall(b"unread")
    client.recv(1, socket.MSG_PEEK)
    client.close()
    with pytest.raises(ConnectionResetError):
        accepted.recv(1)


@pytest.mark.parametrize("act", [linger, unread])
@pytest.mark.parametrize("by_server", [False, True])
def test_reset(attach: str, act: Act, by_server: bool) -> None:
    with tracer("life", "--json", "--attach", attach) as running:
        with harness.pair() as (client, accepted):
            lport, port = harness.ports(client)
            ends = (accepted, client) if by_server else (client, accepted)
            exchange(client, accepted, 10, 20)
            act(*ends)
        found = sides(running.events(), lport, port)
    reasons = [e["reason"] for e in found]
    expected = ["reset sent", "reset received"]
    assert reasons == (expected[::-1] if by_server else expected)
    assert {e["pid"] for e in found} == {os.getpid()}
    up, down = 10 + unread_by(act, by_server), 20 + unread_by(act, not by_server)
    assert [(e["tx_bytes"], e["rx_bytes"]) for e in found] == [(up, down), (down, up)]


def test_who_resets_it_is_its_owner(attach: str) -> None:
    """Also where another process began it."""
    with tracer("life", "--json", "--attach", attach) as running:
        with harness.pair() as (client, _):
            lport, port = harness.ports(client)
            begin, begun = os.pipe()

            def end_it() -> None:
                os.read(begin, 1)
                harness.reset(client)

            child = harness.fork(end_it)
            client.close()
            os.write(begun, b"x")
            os.close(begin)
            os.close(begun)
            assert harness.reap(child) == 0
        (one,) = [e for e in running.events() if (e["lport"], e["rport"]) == (lport, port)]
    assert (one["pid"], one["reason"]) == (child, "reset sent")


def unread_by(act: Act, receiver_is_server: bool) -> int:
    return len(b"unread") if act is unread and receiver_is_server else 0


def test_reset_after_a_fin(attach: str) -> None:
    """The peer's FIN is no end while this side still sends."""
    with (
        tracer("life", "--json", "--attach", attach) as running,
        harness.pair() as (client, accepted),
    ):
        lport, port = harness.ports(client)
        client.shutdown(socket.SHUT_WR)
        assert accepted.recv(1) == b""
        harness.reset(client)
        one, two = sides(running.events(), lport, port)
    assert (one["reason"], two["reason"]) == ("reset sent", "reset received")


def test_closed_while_the_peer_still_sends(attach: str) -> None:
    """Without a process there is nobody to wait for the peer's FIN: the session is over."""
    with tracer("life", "--json", "--attach", attach) as running, harness.pair() as (client, _):
        lport, _ = harness.ports(client)
        client.close()
        event = running.wait_for(lambda e: e["lport"] == lport)
    assert (event["reason"], event["pid"]) == ("fin", os.getpid())


def test_reset_while_it_waits_for_the_peers_fin(attach: str) -> None:
    """With TCP_LINGER2 beyond a minute (tcp(7)) the socket itself waits, without a process."""
    with (
        tracer("life", "--json", "--attach", attach) as running,
        harness.pair() as (client, accepted),
    ):
        lport, port = harness.ports(client)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 100)
        client.close()
        harness.until(lambda: harness.sh(f"ss -Htn state fin-wait-2 sport = :{lport}"))
        harness.reset(accepted)
        one, two = sides(running.events(), lport, port)
    assert (one["reason"], two["reason"]) == ("reset received", "reset sent")


def test_both_close_at_once(attach: str) -> None:
    """RFC 9293, 3.6, case 3. The client's FIN is lost on its way to a wrong link address, so that
    the server's comes first; then it is sent again."""
    lost = "lladdr 02:00:00:00:00:77 nud permanent"
    with harness.namespaces() as (here, there):
        arguments = ("--json", "--attach", attach, "--netns", here.name)
        with tracer("life", *arguments) as running:
            with there.entered(), harness.listener(there.address) as server, here.entered():
                client = harness.connect(there.address, server.getsockname()[1])
                lport, _ = harness.ports(client)
                accepted, _ = server.accept()
            harness.sh(f"ip -n {here.name} neigh replace {there.address} dev ve0 {lost}")
            client.shutdown(socket.SHUT_WR)
            accepted.close()
            harness.until(lambda: state(client) == CLOSING)
            harness.sh(f"ip -n {here.name} neigh del {there.address} dev ve0")
            event = running.wait_for(lambda e: e["lport"] == lport)
            client.close()
    assert (event["reason"], event["pid"]) == ("fin", os.getpid())


CLOSING = 11  # include/net/tcp_states.h


def state(connection: socket.socket) -> int:
    """struct tcp_info begins with it."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def test_timeout(attach: str) -> None:
    """The neighbour gets another link address, so that it hears nothing any more."""
    with (
        harness.namespaces() as (here, there),
        tracer("life", "--json", "--attach", attach, "--netns", here.name) as running,
    ):
        with there.entered():
            server = harness.listener(there.address)
        with server, here.entered():
            client = harness.connect(there.address, server.getsockname()[1])
            lport, port = harness.ports(client)
            accepted, _ = server.accept()
        with client, accepted:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
            harness.sh(
                f"ip -n {here.name} neigh replace {there.address} "
                "lladdr 02:00:00:00:00:77 dev ve0 nud permanent"
            )
            client.sendall(b"hello")
            with pytest.raises(TimeoutError):
                client.recv(1)
        (event,) = (e for e in running.events() if e["lport"] == lport)
    assert (event["reason"], event["rport"], event["pid"]) == ("timeout", port, os.getpid())
    assert event["retransmits"] > 0 and event["tx_bytes"] == 5 and event["rx_bytes"] == 0


@pytest.mark.parametrize("everything", [False, True])
def test_older_than_the_trace(attach: str, everything: bool) -> None:
    """With --all: the bytes of its whole life, and who has it: here a child that inherited it."""
    option = ["--all"] if everything else []

    def serve() -> None:
        client.close()
        while accepted.recv(100):
            pass

    with harness.pair() as (client, accepted):
        lport, port = harness.ports(client)
        exchange(client, accepted, 1000, 2000)
        child = harness.fork(serve)
        accepted.close()
        with tracer("life", "--json", "--attach", attach, *option) as running:
            client.sendall(b"x" * 10)
            client.close()
            assert harness.reap(child) == 0
            events = [e for e in running.events() if {e["lport"], e["rport"]} == {lport, port}]
    if not everything:
        assert events == []
        return
    one, two = sides(events, lport, port)
    assert (one["pid"], two["pid"]) == (os.getpid(), child)
    assert (one["duration_ns"], two["duration_ns"]) == (None, None)
    assert (one["tx_bytes"], one["rx_bytes"]) == (1010, 2000)
    assert (two["tx_bytes"], two["rx_bytes"]) == (2000, 1010)


def test_older_sessions_of_others_are_filtered(attach: str) -> None:
    """--all knows the owners of older sessions before they do anything."""
    with harness.pair() as (client, accepted):
        arguments = ("--json", "--all", "--open", "--attach", attach, "-p")
        with (
            tracer("life", *arguments, str(os.getpid())) as ours,
            tracer("life", *arguments, "1") as others,
        ):
            found = [running.events() for running in (ours, others)]
        expected = {harness.ports(client), harness.ports(accepted)}
    assert {(e["lport"], e["rport"]) for e in found[0]} == expected
    assert not expected & {(e["lport"], e["rport"]) for e in found[1]}


@pytest.mark.parametrize("everything", [False, True])
def test_open_at_the_end(attach: str, everything: bool) -> None:
    options = ["--attach", attach, "--open", *(["--all"] if everything else [])]
    with (
        harness.pair() as (older, _),
        tracer("life", "--json", *options) as running,
        harness.pair() as (client, accepted),
    ):
        exchange(client, accepted, 3, 4)
        events = running.events()
        new, before = harness.ports(client), harness.ports(older)
    one, two = sides(events, *new)
    assert (one["reason"], two["reason"]) == ("open", "open")
    assert (one["tx_bytes"], one["rx_bytes"]) == (3, 4)
    assert (two["tx_bytes"], two["rx_bytes"]) == (4, 3)
    assert one["duration_ns"] > 0 and two["duration_ns"] > 0
    assert (one["pid"], two["pid"]) == (os.getpid(), os.getpid())
    assert (one["role"], two["role"]) == ("active", "passive")
    if not everything:
        assert not [e for e in events if {e["lport"], e["rport"]} == {*before}]
        return
    for event in sides(events, *before):
        assert (event["reason"], event["duration_ns"]) == ("open", None)
        assert event["pid"] == os.getpid()


def test_round_trip_time(attach: str) -> None:
    """That of TCP_INFO, while nothing moves."""
    with (
        tracer("life", "--json", "--open", "--attach", attach) as running,
        harness.pair() as (client, accepted),
    ):
        exchange(client, accepted, 1000, 2000)
        harness.until(lambda: len({round_trip(client) for _ in range(10)}) == 1)
        expected = round_trip(client)
        one, _ = sides(running.events(), *harness.ports(client))
    assert expected and one["srtt_us"] == expected


def round_trip(client: socket.socket) -> int:
    """tcpi_rtt, struct tcp_info, include/uapi/linux/tcp.h; in microseconds."""
    rtt: int = struct.unpack_from(
        "=I", client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 68
    )[0]
    return rtt


def test_a_hanging_connect_is_no_open_session(attach: str, net: Net) -> None:
    here = net[0]
    arguments = ("--json", "--all", "--open", "--attach", attach, "--netns", here.name)
    with (
        tracer("life", *arguments) as running,
        here.entered(),
        harness.start_hanging(here.nobody, 1007),
        harness.pair(),
    ):
        events = running.events()
    assert [e["reason"] for e in events] == ["open", "open"]
    assert 1007 not in {e["rport"] for e in events}


def test_a_listener_is_no_session(attach: str) -> None:
    with (
        harness.listener() as older,
        tracer("life", "--json", "--all", "--open", "--attach", attach) as running,
        harness.listener() as newer,
    ):
        lports = {server.getsockname()[1] for server in (older, newer)}
        older.close()
        newer.close()
        assert not [e for e in running.events() if e["lport"] in lports]


def test_cgroup_of_an_older_session(attach: str) -> None:
    """That of the process that has it."""

    def hold() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        ready.send(b"x")
        ready.recv(1)

    with harness.cgroup() as group, harness.pair() as (client, _):
        told, ready = socket.socketpair()
        with told, ready:
            lport, port = harness.ports(client)
            child = harness.fork(hold)
            assert told.recv(1)
            client.close()
            with tracer("life", "--json", "--all", "--open", "--attach", attach) as running:
                one, two = sides(running.events(), lport, port)
            told.send(b"x")
            assert harness.reap(child) == 0
        found = {(e["pid"], e["cgroup_id"]) for e in (one, two)}
        mine = harness.cgroup_of(Path("/proc/self")).stat().st_ino
        assert (child, group.stat().st_ino) in found
        assert found <= {(child, group.stat().st_ino), (os.getpid(), mine)}


def test_closed_sessions_are_not_open(attach: str) -> None:
    with tracer("life", "--json", "--open", "--attach", attach) as running:
        lport, port = harness.session()
        found = sides(running.events(), lport, port)
    assert [e["reason"] for e in found] == ["fin", "fin"]


def test_refused(attach: str) -> None:
    closed = harness.refused_port()
    with tracer("life", "--json", "--all", "--open", "--attach", attach) as running:
        for host in ("127.0.0.1", "::1"):
            harness.refuse(host, closed)
            with harness.start_connect(host, closed):
                pass
        assert [e for e in running.events() if e["rport"] == closed] == []


def test_never_accepted(attach: str) -> None:
    """A session that nobody had."""
    with tracer("life", "--json", "--attach", attach) as running:
        with harness.listener() as server:
            client = harness.connect("127.0.0.1", server.getsockname()[1])
            lport, port = harness.ports(client)
        client.close()
        one, two = sides(running.events(), lport, port)
    assert (one["pid"], one["reason"]) == (os.getpid(), "reset received")
    assert (two["pid"], two["comm"], two["reason"]) == (None, None, "reset sent")


def test_filters() -> None:
    """Of one session over each family, what each filter leaves; with -p as its owner, both ends."""
    with harness.listener("::") as server:
        port = server.getsockname()[1]
        options = {
            ("-p", str(os.getpid())): {4: 2, 6: 2},
            ("-p", "1"): {4: 0, 6: 0},
            ("-L", str(port)): {4: 1, 6: 1},
            ("-D", str(port)): {4: 1, 6: 1},
            ("-D", f"{port}", "-4"): {4: 1, 6: 0},
            ("-6",): {4: 0, 6: 2},
        }
        for arguments, expected in options.items():
            with tracer("life", "--json", *arguments) as running:
                for host in ("::ffff:127.0.0.1", "::1"):
                    client = harness.connect(host, port)
                    close_in_order(client, server.accept()[0])
                events = [e for e in running.events() if port in (e["lport"], e["rport"])]
            found = {v: len([e for e in events if e["family"] == f"ipv{v}"]) for v in (4, 6)}
            assert (arguments, found) == (arguments, expected)


NARROW = ["PID", "COMM", "LADDR", "LPORT", "RADDR", "RPORT", "TX_KB", "RX_KB", "MS"]
MORE = [
    "REASON",
    "RETRANS",
    "MINRTT(us)",
    "SRTT(us)",
    "CWND(ms)",
    "RWND(ms)",
    "SNDBUF(ms)",
    "UID",
    "NETNS",
]


@pytest.mark.any_kernel
@pytest.mark.parametrize(
    ("options", "titles"),
    [
        ([], NARROW),
        (["-T"], ["TIME", *NARROW]),
        (["--wide"], [*NARROW[:2], "IP", *NARROW[2:], *MORE]),
    ],
)
def test_columns(options: list[str], titles: list[str]) -> None:
    with tracer("life", *options) as running:
        with harness.pair() as (client, accepted):
            lport, port = harness.ports(client)
            exchange(client, accepted, 1024, 1536)
            close_in_order(client, accepted)
        assert running.stop() == 0
    header, *rows = map(str.split, running.out.lines)
    assert header == titles
    (row,) = (r for r in rows if r[titles.index("LPORT")] == str(lport))
    cells = dict(zip(titles, row, strict=True))
    assert (cells["PID"], cells["LADDR"]) == (str(os.getpid()), "127.0.0.1")
    assert (cells["RADDR"], cells["RPORT"]) == ("127.0.0.1", str(port))
    assert (cells["TX_KB"], cells["RX_KB"]) == ("1.00", "1.50")
    assert re.fullmatch(r"\d+\.\d\d", cells["MS"])
    assert re.fullmatch(r"\d\d:\d\d:\d\d", cells.get("TIME", "00:00:00"))
    assert cells.get("REASON", "fin") == "fin"


@pytest.mark.any_kernel
def test_csv() -> None:
    with tracer("life", "--csv") as running:
        lport, port = harness.session()
        assert running.stop() == 0
    (row,) = (r for r in csv.DictReader(running.out.lines) if r["lport"] == str(lport))
    assert (row["rport"], row["pid"], row["role"]) == (str(port), str(os.getpid()), "active")
    assert (row["tx_bytes"], row["rx_bytes"], row["reason"]) == ("0", "0", "fin")


def test_what_held_the_sender_back() -> None:
    """A reader that sleeps: its window. One that reads at once: at most the network."""
    with tracer("life", "--json", "-p", str(os.getpid())) as running:
        with harness.pair() as (slow, _):
            slow.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    slow.send(bytes(MIB))
            sleeping = slow.getsockname()[1]
            time.sleep(1)
        idle, _ = harness.session(act=lambda client, accepted: time.sleep(0.5))
        by_port = {e["lport"]: e for e in running.events()}
    assert by_port[sleeping]["rwnd_limited_ns"] > 0.5e9
    waits = ("cwnd_limited_ns", "rwnd_limited_ns", "sndbuf_limited_ns")
    assert sum(by_port[idle][wait] for wait in waits) < 0.4e9
