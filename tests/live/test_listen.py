"""listen on real sockets."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.facts import Facts
from tests.live import harness
from tests.live.harness import Event, Net, tracer
from tests.live.test_mptcp import mptcp_socket

FACTS = Facts(
    header="PID     COMM             RET        BACKLOG PROTO PORT  ADDR            GIVEN   V6ONLY",
    fields=frozenset({"protocol", "v6only", "tid", "backlog", "cgroup_id", "limit", "result"}),
    listener=1,
)
SOMAXCONN = Path("/proc/sys/net/core/somaxconn")


def bound(host: str, v6only: bool | None = None) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if v6only is not None:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    made.bind((host, 0))
    return made


def listen(server: socket.socket, backlog: int) -> int:
    """The system call, to which Python would not give a negative number; 0 or an errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.listen(server.fileno(), backlog) else 0


def at(events: list[Event], server: socket.socket) -> list[Event]:
    return [e for e in events if e["lport"] == server.getsockname()[1]]


@pytest.mark.each_variant
def test_what_was_asked_for_and_what_was_given(attach: str) -> None:
    most = int(SOMAXCONN.read_text())
    given = {0: 0, 1: 1, most - 1: most - 1, most: most, most + 1: most, -1: most, -(1 << 31): most}
    with tracer("listen", "--json", "--attach", attach) as running, bound("127.0.0.1") as server:
        for backlog in given:
            assert listen(server, backlog) == 0  # of a listener: it gets another backlog
        events = at(running.events(), server)
    assert attach in running.ways.values()
    assert [(e["backlog"], e["limit"]) for e in events] == list(given.items())
    whose = os.getpid(), threading.get_native_id(), 0
    assert {(e["pid"], e["tid"], e["uid"]) for e in events} == {whose}
    assert {(e["result"], e["protocol"]) for e in events} == {("ok", "tcp")}
    assert {e["comm"] for e in events} == {Path("/proc/self/comm").read_text().strip()}


def test_the_limit_of_the_namespace(attach: str, net: Net) -> None:
    """net.core.somaxconn is its own."""
    here = net[0]
    with here.entered(), bound(here.address) as server:
        before = SOMAXCONN.read_text()
        SOMAXCONN.write_text("16")
        try:
            with tracer("listen", "--json", "--attach", attach) as running:
                for backlog in (15, 16, 17, 100_000):
                    server.listen(backlog)
                events = at(running.events(), server)
        finally:
            SOMAXCONN.write_text(before)
    found = [(e["backlog"], e["limit"]) for e in events]
    assert found == [(15, 15), (16, 16), (17, 16), (100_000, 16)]
    assert {e["netns"] for e in events} == {here.inode}


def test_dual_stack_and_v6only(attach: str) -> None:
    address = "2001:db8:1234:5678:9abc:def0:1234:5678"
    harness.sh(f"ip addr replace {address}/128 dev lo nodad")
    wanted = [
        ("0.0.0.0", None, "ipv4", "0.0.0.0", None),
        ("::", False, "ipv6", "::", False),
        ("::", True, "ipv6", "::", True),
        ("::ffff:127.0.0.1", None, "ipv4", "127.0.0.1", None),
        (address, None, "ipv6", address, True),  # bind() sets it: no IPv4 can come there
    ]
    try:
        with tracer("listen", "--json", "--attach", attach) as running, ExitStack() as stack:
            servers = [stack.enter_context(bound(host, only)) for host, only, *_ in wanted]
            for server in servers:
                server.listen()
            events = running.events()
            found = [at(events, server) for server in servers]
    finally:
        harness.sh(f"ip addr del {address}/128 dev lo")
    shown = [[(e["family"], e["laddr"], e["v6only"]) for e in rows] for rows in found]
    assert shown == [[tuple(rest)] for _, _, *rest in wanted]


def test_what_fails(attach: str) -> None:
    """The address is another listener's; and the socket has a connection."""
    with (
        tracer("listen", "--json", "--attach", attach) as running,
        bound("127.0.0.1") as one,
        socket.socket() as other,
        harness.pair() as (client, _),
    ):
        for each in (one, other):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(one.getsockname())
        assert [listen(x, 7) for x in (one, other, client)] == [0, errno.EADDRINUSE, errno.EINVAL]
        events = running.events()
        found = [(e["result"], e["backlog"], e["limit"]) for e in at(events, one)]
        (failed,) = at(events, client)
        peer = client.getpeername()[1]
    assert found == [("ok", 7, 7), ("EADDRINUSE", 7, None)]
    assert (failed["result"], failed["limit"], failed["rport"]) == ("EINVAL", None, peer)


def test_mptcp(attach: str) -> None:
    """A row for the socket that the program has, and none for the subflow behind it."""
    with tracer("listen", "--json", "--attach", attach) as running, mptcp_socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(9)
        (event,) = at(running.events(), server)
    found = (event["protocol"], event["backlog"], event["limit"], event["result"])
    assert found == ("mptcp", 9, 9, "ok")
    assert (event["pid"], event["laddr"]) == (os.getpid(), "127.0.0.1")


def test_what_is_no_listen_of_tcp(attach: str, tmp_path: Path) -> None:
    """Nor is what fails before a socket is found."""
    mine = ("-p", str(os.getpid()))
    with (
        tracer("listen", "--json", "--attach", attach, *mine) as running,
        socket.socket(socket.AF_UNIX) as local,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw,
        (tmp_path / "file").open("w") as file,
        bound("127.0.0.1") as server,
    ):
        local.bind(str(tmp_path / "socket"))
        assert listen(local, 1) == 0
        assert listen(datagrams, 1) == listen(raw, 1) == errno.EOPNOTSUPP
        libc = ctypes.CDLL(None)
        assert libc.listen(file.fileno(), 1) == libc.listen(-1, 1) == libc.listen(1 << 20, 1) == -1
        server.listen(3)
        assert [e["lport"] for e in running.events()] == [server.getsockname()[1]]


def test_filters(attach: str, net: Net) -> None:
    """Of who calls and where. A listener has no peer, so that no filter on one keeps it."""
    here, there = net

    def serve() -> None:
        harness.join_cgroup(group)
        os.setuid(65534)
        with harness.task_name(b"serving"):
            wanted.listen(1)

    with (
        harness.cgroup() as group,
        here.entered(),
        bound(here.address) as wanted,
        bound("127.0.0.1") as local,
        bound("::1") as v6,
        ExitStack() as stack,
    ):
        port = wanted.getsockname()[1]
        filters = [
            ("--comm", "serving"),
            ("--cgroup", str(group)),
            ("-L", str(port)),
            ("--laddr", f"{here.address}/32"),
        ]
        others = [("-6",), ("-D", "1"), ("--raddr", "10.77.0.0/24"), ("--netns", there.name)]
        tracers = [
            stack.enter_context(tracer("listen", "--json", "--attach", attach, *each))
            for each in (*filters, *others)
        ]
        child = harness.fork(serve)
        assert harness.reap(child) == 0
        local.listen()
        v6.listen()
        shown = [[e for e in running.events() if e["netns"] == here.inode] for running in tracers]
        ports = [[e["lport"] for e in events] for events in shown]
        assert ports[: len(filters)] == [[port]] * len(filters)
        assert ports[len(filters) :] == [[v6.getsockname()[1]], [], [], []]
    (event,) = shown[0]
    assert (event["pid"], event["tid"], event["comm"]) == (child, child, "serving")
    assert event["cgroup_id"] is not None


def test_the_user_is_the_sockets(attach: str) -> None:
    """-u asks for who opened it, not for who calls."""
    with tracer("listen", "--json", "--attach", attach, "-u", "65534") as running:
        os.seteuid(65534)
        try:
            with bound("127.0.0.1") as one:
                one.listen()
                mine = one.getsockname()[1]
        finally:
            os.seteuid(0)
        with bound("127.0.0.1") as other:
            other.listen()
        assert [(e["lport"], e["uid"]) for e in running.events()] == [(mine, 65534)]


@pytest.mark.each_variant
def test_none_is_missing_where_many_listen_at_once(attach: str) -> None:
    seen: Counter[int] = Counter()

    def serve() -> None:
        for backlog in range(20):
            with bound("127.0.0.1") as server:
                server.listen(backlog)
                seen[backlog] += 1

    with tracer("listen", "--json", "--attach", attach, "-p", str(os.getpid())) as running:
        threads = [threading.Thread(target=serve) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        left = running.entries()
        events = running.events()
    lost = [r for r in running.records() if r["type"] == "lost"]
    assert {e["tid"] for e in events} == {thread.native_id for thread in threads}
    assert Counter(e["backlog"] for e in events) <= seen
    if lost:  # docs/limits.md, skipped programs: by preemption
        assert lost[-1]["missed"] >= max(seen.total() - len(events), len(left)) > 0
    else:
        assert len(events) == seen.total() == 160 and not left


@pytest.mark.any_kernel
@pytest.mark.parametrize("wide", [[], ["--wide"]])
def test_columns(wide: list[str]) -> None:
    with bound("::", v6only=False) as server:
        port = str(server.getsockname()[1])
        with tracer("listen", "-L", port, *wide) as running:
            server.listen(6)
            assert running.stop() == 0
    header, row = map(str.split, running.out.lines)
    cells = dict(zip(header, row, strict=True))
    assert (cells["PID"], cells["RET"], cells["PROTO"]) == (str(os.getpid()), "ok", "TCP")
    assert (cells["BACKLOG"], cells["GIVEN"], cells["V6ONLY"]) == ("6", "6", "no")
    assert (cells["ADDR"], cells["PORT"]) == ("::", port)
    assert {"TID", "UID", "NETNS", "IP"} <= set(header) or not wide
