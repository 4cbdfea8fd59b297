"""tracer on real connections: what begins ends, once."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.facts import Facts
from tests.live import harness
from tests.live.harness import Event, Net, Tracer, tracer

FACTS = Facts(
    header="T PID    COMM        IP SADDR           DADDR           SPORT DPORT",
    fields=frozenset({"cgroup_id", "tid", "action"}),
    reset=4,
    closed=4,
    queued=2,
    kept=2,
)
Seen = list[tuple[str, int | None]]
Tuple = tuple[int, str, int, str, int]

MIXED = 400 if harness.EMULATED else 10_000


def ends(events: list[Event], client: int, server: int) -> tuple[Seen, Seen]:
    """What was seen of a connection and by whom, at its client's end and at its server's."""
    sides = ((client, server), (server, client))
    one, two = (
        [(e["action"], e["pid"]) for e in events if (e["lport"], e["rport"]) == side]
        for side in sides
    )
    return one, two


def ours(*actions: str) -> Seen:
    return [(action, os.getpid()) for action in actions]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("server_first", [False, True])
def test_a_session(attach: str, host: str, server_first: bool) -> None:
    with tracer("tracer", "--json", "--attach", attach) as running:
        lport, port = harness.session(host, server_first)
        events = running.events()
    assert attach in running.ways.values()
    client, server = ends(events, lport, port)
    assert (client, server) == (ours("connect", "close"), ours("accept", "close"))
    mine = [e for e in events if {e["lport"], e["rport"]} == {lport, port}]
    assert {(e["laddr"], e["raddr"]) for e in mine} == {(host, host)}
    assert {e["comm"] for e in mine} == {Path("/proc/self/comm").read_text().strip()}
    assert {e["netns"] for e in mine} == {Path("/proc/self/ns/net").stat().st_ino}
    assert {(e["uid"], e["tid"]) for e in mine} == {(0, threading.get_native_id())}


def test_v4mapped_is_ipv4(attach: str) -> None:
    with tracer("tracer", "--json", "--attach", attach, "-4") as running:
        with harness.pair("::ffff:127.0.0.1", "::") as (client, _):
            lport, port = harness.ports(client)
        with harness.pair("::1"):
            pass
        events = running.events()
    assert ends(events, lport, port) == (ours("connect", "close"), ours("accept", "close"))
    mine = [e for e in events if e["pid"] == os.getpid()]
    assert {(e["family"], e["laddr"], e["raddr"]) for e in mine} == {
        ("ipv4", "127.0.0.1", "127.0.0.1")
    }


def test_refused(attach: str) -> None:
    closed = harness.refused_port()
    with tracer("tracer", "--json", "--attach", attach) as running:
        for host in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
            harness.refuse(host, closed)
            refuse_nonblocking(host, closed)
        assert [e for e in running.events() if e["pid"] == os.getpid()] == []


def refuse_nonblocking(host: str, port: int) -> None:
    with harness.start_connect(host, port) as client:
        select.select([], [client], [], harness.PATIENCE)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


Act = Callable[[socket.socket, socket.socket], None]


def client_resets(client: socket.socket, accepted: socket.socket) -> None:
    harness.reset(client)
    accepted.close()


def server_resets(client: socket.socket, accepted: socket.socket) -> None:
    client.sendall(b"unread")
    accepted.recv(1, socket.MSG_PEEK)
    accepted.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    client.close()


def shut_down(client: socket.socket, accepted: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)
    assert accepted.recv(1) == b""
    accepted.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    client.close()
    accepted.close()


def both_shut_down(client: socket.socket, accepted: socket.socket) -> None:
    client.shutdown(socket.SHUT_RDWR)
    accepted.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("act", [client_resets, server_resets, shut_down, both_shut_down])
def test_one_end(attach: str, act: Act) -> None:
    with tracer("tracer", "--json", "--attach", attach) as running:
        with harness.pair() as (client, accepted):
            lport, port = harness.ports(client)
            act(client, accepted)
        events = running.events()
    assert ends(events, lport, port) == (ours("connect", "close"), ours("accept", "close"))


def test_broken_off_by_its_peer(attach: str) -> None:
    """It ends then, not when its owner notices."""
    with tracer("tracer", "--json", "--attach", attach) as running:
        with harness.pair() as (client, accepted):
            lport, port = harness.ports(client)
            harness.reset(client)
            wait_closed(running, port, lport)
            assert accepted.fileno() >= 0  # open still
        events = running.events()
    assert ends(events, lport, port) == (ours("connect", "close"), ours("accept", "close"))


def wait_closed(running: Tracer, lport: int, rport: int) -> Event:
    key = ("close", lport, rport)
    return running.wait_for(lambda e: (e["action"], e["lport"], e["rport"]) == key)


def test_reset_after_a_fin(attach: str) -> None:
    """The peer's FIN ends nothing on this side; its reset does."""
    with tracer("tracer", "--json", "--attach", attach) as running:
        with harness.pair() as (client, accepted):
            lport, port = harness.ports(client)
            client.shutdown(socket.SHUT_WR)
            assert accepted.recv(1) == b""
            harness.reset(client)
            wait_closed(running, port, lport)
        events = running.events()
    assert ends(events, lport, port) == (ours("connect", "close"), ours("accept", "close"))


def test_closed_by_the_kernel(attach: str) -> None:
    """Sockets whose last user was the queue of a unix socket that nobody can reach any more, since
    it is in there itself: the kernel collects them; newer ones do so in a thread of the kernel."""
    with tracer("tracer", "--json", "--attach", attach) as running:
        with harness.pair() as (client, _):
            lport, port = harness.ports(client)
            one, two = socket.socketpair()
            socket.send_fds(one, [b"x"], [client.fileno(), two.fileno()])
            client.close()
            two.close()
            one.close()
            event = wait_closed(running, lport, port)
        events = running.events()
    assert event["pid"] == os.getpid()
    assert ends(events, lport, port) == (ours("connect", "close"), ours("accept", "close"))


@pytest.mark.parametrize("uid", [0, 65534])
def test_never_accepted_by_any_user(attach: str, uid: int) -> None:
    """A queued connection has its listener's user. Nobody opened it, so nobody closes it, whether
    its end is a reset by its peer, with a FIN before it or not, or the listener's."""
    with (
        tracer("tracer", "--json", "--attach", attach, "-u", str(uid)) as running,
        harness.listener() as server,
    ):
        kept, shut, gone = [harness.connect(*server.getsockname()) for _ in range(3)]
        found = [harness.ports(client) for client in (kept, shut, gone)]
        shut.shutdown(socket.SHUT_WR)
        harness.reset(shut)
        harness.reset(gone)
        server.close()
        kept.close()
        events = running.events()
    expected = ours("connect", "close") if uid == 0 else []
    for lport, port in found:
        assert ends(events, lport, port) == (expected, [])


def test_never_accepted_and_older_than_the_trace(attach: str) -> None:
    with harness.listener() as server:
        client = harness.connect(*server.getsockname())
        lport, port = harness.ports(client)
        with tracer("tracer", "--json", "--attach", attach) as running:
            harness.reset(client)
            events = running.events()
    _, server_end = ends(events, lport, port)
    assert server_end == []


def test_a_child_closes_last(attach: str) -> None:
    """The parent's close() ends nothing; the child's does, and so it is the child's."""

    def close() -> None:
        go.recv(1)
        client.close()

    go, let_go = socket.socketpair()
    with tracer("tracer", "--json", "--attach", attach) as running, go, let_go:
        with harness.pair() as (client, _):
            lport, port = harness.ports(client)
            child = harness.fork(close)
            client.close()
            let_go.send(b"x")
            assert harness.reap(child) == 0
        events = running.events()
    client_end, _ = ends(events, lport, port)
    assert client_end == [("connect", os.getpid()), ("close", child)]


def test_a_child_ends_without_a_close(attach: str) -> None:
    """It leaves, or is killed."""

    def leave() -> None:
        made.append(harness.connect("127.0.0.1", port))
        say.send(b"%d" % made[0].getsockname()[1])

    def stay() -> None:
        leave()
        signal.pause()

    made: list[socket.socket] = []
    with tracer("tracer", "--json", "--attach", attach) as running, harness.listener() as server:
        port = server.getsockname()[1]
        heard, say = socket.socketpair()
        found = []
        for act in (leave, stay):
            child = harness.fork(act)
            lport = int(heard.recv(10))
            if act is stay:
                os.kill(child, signal.SIGKILL)
            assert harness.reap(child) == (-signal.SIGKILL if act is stay else 0)
            found.append((child, lport))
        heard.close()
        say.close()
        events = running.events()
    for child, lport in found:
        client_end, server_end = ends(events, lport, port)
        assert client_end == [("connect", child), ("close", child)]
        assert server_end == []


def test_a_socket_that_is_passed_on(attach: str) -> None:
    """Who closes it last has it closed; to the filter it stays the first one's as well."""

    def close() -> None:
        _, passed, _, _ = socket.recv_fds(theirs, 1, 1)
        theirs.recv(1)
        os.close(passed[0])

    mine, theirs = socket.socketpair()
    with mine, theirs:
        child = harness.fork(close)  # before there is a connection that it could inherit
        arguments = ("--attach", attach, "-p", str(os.getpid()))
        with tracer("tracer", "--json", *arguments) as running:
            with harness.pair() as (client, _):
                lport, port = harness.ports(client)
                socket.send_fds(mine, [b"x"], [client.fileno()])
                client.close()
                mine.send(b"x")
                assert harness.reap(child) == 0
            events = running.events()
    client_end, server_end = ends(events, lport, port)
    assert client_end == [("connect", os.getpid()), ("close", child)]
    assert server_end == ours("accept", "close")


def test_never_accepted(attach: str) -> None:
    with tracer("tracer", "--json", "--attach", attach) as running:
        with harness.listener() as server:
            port = server.getsockname()[1]
            client = harness.connect("127.0.0.1", port)
        lport = client.getsockname()[1]
        client.close()
        events = running.events()
    assert ends(events, lport, port) == (ours("connect", "close"), [])


def test_reset_before_it_is_accepted(attach: str) -> None:
    with tracer("tracer", "--json", "--attach", attach) as running, harness.listener() as server:
        client = harness.connect("127.0.0.1", server.getsockname()[1])
        lport, port = harness.ports(client)
        harness.reset(client)
        server.accept()[0].close()
        events = running.events()
    assert ends(events, lport, port) == (ours("connect", "close"), ours("accept", "close"))


def test_a_socket_that_connects_twice(attach: str) -> None:
    with tracer("tracer", "--json", "--attach", attach) as running, harness.listener() as server:
        port = server.getsockname()[1]
        lports = []
        with socket.socket() as client:
            for _ in range(2):
                client.connect(("127.0.0.1", port))
                lports.append(client.getsockname()[1])
                harness.disconnect(client)
                server.accept()[0].close()
        events = running.events()
    whole = ["connect", "close"], ["accept", "close"]
    times = 2 if len({*lports}) == 1 else 1  # it may get the same port again
    for lport in lports:
        assert ends(events, lport, port) == tuple(ours(*side * times) for side in whole)


def test_uid_is_that_of_the_accepting_task(attach: str) -> None:
    """A queued connection still has the user of its listener, who does not accept it here."""

    def serve() -> None:
        os.setuid(65534)
        server.accept()[0].close()

    arguments = ("--json", "--attach", attach, "-u", "0")
    with harness.listener() as server, tracer("tracer", *arguments) as running:
        child = harness.fork(serve)
        client = harness.connect(*server.getsockname())
        lport, port = harness.ports(client)
        assert client.recv(1) == b"" and harness.reap(child) == 0
        client.close()
        events = running.events()
    assert ends(events, lport, port) == (ours("connect", "close"), [])


def test_older_than_the_trace(attach: str) -> None:
    with harness.pair() as (client, accepted):
        lport, port = harness.ports(client)
        with tracer("tracer", "--json", "--attach", attach) as running:
            client.close()
            accepted.close()
            events = running.events()
    for end in ends(events, lport, port):
        assert end in ([], ours("close"))


def key(event: Event) -> Tuple:
    fields = (event[x] for x in ("netns", "laddr", "lport", "raddr", "rport"))
    netns, laddr, lport, raddr, rport = fields
    return netns, laddr, lport, raddr, rport


def in_order(client: socket.socket, accepted: socket.socket) -> None:
    client.close()
    accepted.recv(1)
    accepted.close()


def server_first(client: socket.socket, accepted: socket.socket) -> None:
    in_order(accepted, client)


ENDINGS: list[Act] = [in_order, server_first, client_resets]


@pytest.mark.each_variant
def test_everything_that_begins_ends_once(attach: str) -> None:
    """Ports are used again: so per tuple, as many ends as beginnings."""
    closed = harness.refused_port()
    begun = 0
    with tracer("tracer", "--json", "--attach", attach, "--fail-on-loss") as running:
        with harness.listener("::") as server:
            port = server.getsockname()[1]
            for i in range(MIXED):
                host = ("127.0.0.1", "::1", "::ffff:127.0.0.1")[i % 3]
                begun += one_of_many(i // 3 % 8, host, server, closed)
        events = [e for e in running.events() if {port, closed} & {e["lport"], e["rport"]}]
    assert running.errors()[-1].startswith("attached: ")
    actions = Counter(e["action"] for e in events)
    assert actions == {"connect": begun, "accept": begun, "close": 2 * begun}
    opened = Counter(key(e) for e in events if e["action"] != "close")
    assert opened == Counter(key(e) for e in events if e["action"] == "close")
    assert {e["pid"] for e in events} == {os.getpid()}


def one_of_many(what: int, host: str, server: socket.socket, closed: int) -> bool:
    """A connection of one of the kinds that there are; whether it came to one."""
    port = server.getsockname()[1]
    if what == 0:
        harness.refuse(host, closed)
        return False
    if what == 1:
        refuse_nonblocking(host, closed)
        return False
    client = harness.start_connect(host, port) if what % 2 else harness.connect(host, port)
    if what == 2:  # before it is accepted
        harness.reset(client)
        server.accept()[0].close()
        return True
    with client, server.accept()[0] as accepted:
        client.setblocking(True)
        ENDINGS[what % 3](client, accepted)
    return True


PLAIN = ["T", "PID", "COMM", "IP", "SADDR", "DADDR", "SPORT", "DPORT"]


@pytest.mark.any_kernel
@pytest.mark.parametrize(
    ("option", "titles"),
    [
        ("-4", PLAIN),
        ("--show-netns", [*PLAIN, "NETNS"]),
        ("-U", ["T", "UID", *PLAIN[1:]]),
        ("-t", ["TIME(s)", *PLAIN]),
        ("--wide", [*PLAIN, "UID", "NETNS"]),
    ],
)
def test_columns(option: str, titles: list[str]) -> None:
    with tracer("tracer", option) as running:
        lport, port = map(str, harness.session())
        assert running.stop() == 0
    header, *rows = map(str.split, running.out.lines)
    assert header == titles
    cells = [dict(zip(titles, row, strict=True)) for row in rows if {lport, port} <= {*row}]
    here, there = (lport, port), (port, lport)
    assert [(c["T"], (c["SPORT"], c["DPORT"])) for c in cells] == [
        *(("C", here), ("A", there)),
        *(("X", here), ("X", there)),
    ]
    for c in cells:
        assert (c["PID"], c["IP"], c["SADDR"]) == (str(os.getpid()), "4", "127.0.0.1")
        assert c.get("UID", "0") == "0"
        netns = str(Path("/proc/self/ns/net").stat().st_ino)
        assert c.get("NETNS", netns) == netns


def test_namespace(net: Net) -> None:
    here, there = net
    with tracer("tracer", "--json", "-N", here.name) as running:
        for one in (here, there):
            with one.entered():
                harness.session()
        events = running.events()
    assert {e["netns"] for e in events} == {here.inode}
    assert Counter(e["action"] for e in events) == {"connect": 1, "accept": 1, "close": 2}
