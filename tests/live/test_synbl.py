"""synbl on real listeners."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import tcpcore
from tcpcore.tools.synbl.listeners import Listeners
from tests.facts import Facts
from tests.live import harness
from tests.live.harness import Event, Namespace, Net, Tracer, tracer
from tests.live.test_mptcp import mptcp_socket

FACTS = Facts(
    header="PID     COMM         LADDR           LPORT CONNS   QUEUE LIMIT OVERFLOWS DROPS   SYNQ  "
    "SYNOVER COOKIES LENGTHS",
    fields=frozenset(
        {
            *("connections", "queue", "limit", "overflows", "drops", "syn_queue", "syn_overflows"),
            *("cookies", "length_sum", "buckets"),
        }
    ),
)
COOKIES = Path("/proc/sys/net/ipv4/tcp_syncookies")
MANY = 60 if harness.EMULATED else 300


@contextmanager
def serving(
    host: str, backlog: int, v6only: bool | None = None, port: int = 0
) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        if v6only is not None:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, port != 0)
        server.bind((host, port))
        server.listen(backlog)
        server.settimeout(harness.PATIENCE)
        yield server


def counters() -> dict[str, int]:
    """The kernel's own, of the namespace that the thread is in (TcpExt, netstat(8))."""
    names, numbers, *_ = Path("/proc/thread-self/net/netstat").read_text().splitlines()
    return dict(zip(names.split()[1:], map(int, numbers.split()[1:]), strict=True))


@contextmanager
def counted() -> Iterator[Callable[[str], int]]:
    """By how much a counter has grown."""
    before = counters()
    yield lambda name: counters()[name] - before[name]


@contextmanager
def flood(server: socket.socket, count: int) -> Iterator[None]:
    """Connects of which the listener cannot take all, until the block's end."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(harness.start_connect(*server.getsockname()[:2]))
        yield


@contextmanager
def cookies(how: int) -> Iterator[None]:
    before = COOKIES.read_text()
    COOKIES.write_text(str(how))
    try:
        yield
    finally:
        COOKIES.write_text(before)


def rows(running: Tracer, server: socket.socket) -> list[Event]:
    """Those of a listener, by its port; the tracer has ended."""
    assert running.stop() == 0, running.errors()
    port = server.getsockname()[1]
    return [r for r in running.records() if r["type"] == "flow" and r["lport"] == port]


def sees_overflows(running: Tracer) -> bool:
    return running.ways["overflows"] != "no way"


def exact(lengths: dict[int, int]) -> list[list[int]]:
    """The buckets of lengths of 0, 1, 2 and more."""
    bounds = [(0, 0), (1, 1), (2, 3), (4, 7), (8, 15), (16, 31)]
    sums = [(*each, sum(lengths.get(x, 0) for x in range(each[0], each[1] + 1))) for each in bounds]
    return [list(each) for each in sums if each[2]]


@pytest.mark.parametrize(
    "family", ["ipv4", "ipv6", pytest.param("dual", marks=pytest.mark.each_variant)]
)
def test_overflows_are_the_kernels_own(attach: str, family: str, net: Net) -> None:
    """A backlog of 1: two connections wait, and all others are dropped, again and again."""
    here = net[0]
    bound, host = {
        "ipv4": ("127.0.0.1", "127.0.0.1"),
        "ipv6": ("::1", "::1"),
        "dual": ("::", "127.0.0.1"),
    }[family]
    arguments = ("--json", "--attach", attach, "--netns", here.name)
    with tracer("synbl", *arguments) as running, here.entered(), counted() as grown:
        with serving(bound, 1) as server:
            port = server.getsockname()[1]
            clients = [harness.start_connect(host, port) for _ in range(30)]
            harness.until(lambda: grown("ListenOverflows") >= 30)  # some come again
            for client in clients:  # none comes again while the listener ends
                harness.reset(client)
        overflows, drops = grown("ListenOverflows"), grown("ListenDrops")
        (row,) = rows_at(running, here)
    assert (row["connections"], row["limit"]) == (2, 1)
    # A last ACK that finds the accept queue full is dropped by the listener, and as a packet, too.
    assert drops <= row["drops"] <= drops + overflows
    assert row["overflows"] == (overflows if sees_overflows(running) else None)
    assert row["buckets"] == [[0, 0, 1], [1, 1, 1]]
    assert row["pid"] == os.getpid()


def rows_at(running: Tracer, namespace: Namespace) -> list[Event]:
    assert running.stop() == 0, running.errors()
    return [r for r in running.records() if r["type"] == "flow" and r["netns"] == namespace.inode]


@pytest.mark.each_variant
@pytest.mark.parametrize("way", ["tp_btf", "raw_tp"])
def test_lengths(way: str) -> None:
    """Of the queue before each connection came; accept() makes it shorter."""
    with tracer("synbl", "--json", "--attach", way) as running, ExitStack() as stack:
        server = stack.enter_context(serving("127.0.0.1", 100))
        for _ in range(20):
            stack.enter_context(harness.connect(*server.getsockname()))
        for _ in range(18):
            server.accept()[0].close()
        for _ in range(3):
            stack.enter_context(harness.connect(*server.getsockname()))
        (row,) = rows(running, server)
    lengths = dict.fromkeys(range(20), 1) | dict.fromkeys((2, 3, 4), 2)
    assert row["buckets"] == exact(lengths)
    assert row["length_sum"] == sum(length * count for length, count in lengths.items())
    assert (row["connections"], row["queue"], row["limit"], row["syn_queue"]) == (23, 5, 100, 0)
    assert (row["pid"], row["uid"], row["laddr"], row["family"]) == (
        *(os.getpid(), 0),
        *("127.0.0.1", "ipv4"),
    )
    assert row["drops"] == 0


def test_a_dual_stack_listener_counts_each_once(attach: str) -> None:
    with (
        tracer("synbl", "--json", "--attach", attach) as running,
        serving("::", 50, v6only=False) as server,
    ):
        port = server.getsockname()[1]
        for host in ("127.0.0.1", "::1", "::ffff:127.0.0.1") * 4:
            harness.connect(host, port).close()
        for _ in range(12):
            server.accept()[0].close()
        (row,) = rows(running, server)
    assert (row["connections"], row["family"], row["laddr"]) == (12, "ipv6", "::")
    assert sum(count for *_, count in row["buckets"]) == 12


def test_listeners_that_share_a_port(attach: str) -> None:
    """Each has the connections that it was given, whatever address they share (SO_REUSEPORT)."""
    with tracer("synbl", "--json", "--attach", attach) as running, ExitStack() as stack:
        first = stack.enter_context(socket.socket())
        first.bind(("127.0.0.1", 0))
        port = first.getsockname()[1]
        first.close()
        servers = [stack.enter_context(serving("127.0.0.1", 100 + i, port=port)) for i in range(3)]
        clients = [stack.enter_context(harness.connect("127.0.0.1", port)) for _ in range(30)]
        found = rows(running, servers[0])
        waiting = {}
        for server in servers:
            server.setblocking(False)
            waiting[server] = 0
            while waiting[server] < len(clients):
                try:
                    server.accept()[0].close()
                except BlockingIOError:
                    break
                waiting[server] += 1
    shown = {row["limit"]: row["connections"] for row in found}
    assert shown == {100 + i: waiting[x] for i, x in enumerate(servers) if waiting[x]}
    assert sum(shown.values()) == 30


@pytest.mark.each_variant
@pytest.mark.parametrize("way", ["tp_btf", "raw_tp"])
def test_nothing_is_lost_between_reports(way: str) -> None:
    """Of a listener that stays, and of those that come and go between two reports."""
    arguments = ("--json", "--attach", way, "-p", str(os.getpid()), "-i", "0.1")
    with tracer("synbl", *arguments) as running, serving("127.0.0.1", 50) as server:
        for i in range(MANY):
            with harness.connect(*server.getsockname()), server.accept()[0]:
                time.sleep(0.002)
            if i % 10 == 0:
                harness.session("127.0.0.2")
        assert running.stop() == 0, running.errors()
    found = [r for r in running.records() if r["type"] == "flow"]
    stays = [r["connections"] for r in found if r["laddr"] == "127.0.0.1"]
    goes = [r["connections"] for r in found if r["laddr"] == "127.0.0.2"]
    assert sum(stays) == MANY and len(stays) > 1
    assert sum(goes) == MANY // 10 and max(goes) == 1
    assert [r for r in running.records() if r["type"] == "lost"] == []


@pytest.mark.each_variant
def test_cookies(attach: str, net: Net) -> None:
    """Sent for each SYN, where the namespace says so: then no SYN queue is full."""
    here = net[0]
    arguments = ("--json", "--attach", attach, "--netns", here.name)
    with tracer("synbl", *arguments) as running, here.entered(), cookies(2), counted() as grown:
        for host in ("127.0.0.1", "::1"):
            with serving(host, 50) as server:
                for _ in range(5):
                    harness.connect(*server.getsockname()[:2]).close()
        sent = grown("SyncookiesSent")
        found = rows_at(running, here)
    assert sent == 10 and [r["connections"] for r in found] == [5, 5]
    expected = (5, 0) if sees_overflows(running) else (None, None)
    assert {(r["cookies"], r["syn_overflows"]) for r in found} == {expected}


def unanswered(here: Namespace, there: Namespace, how: int, attach: str) -> tuple[Event, Event]:
    """SYNs whose sender never hears the answer, to a listener with a backlog of 4: its row, and the
    kernel's own counters."""
    arguments = ("--json", "--attach", attach, "--netns", here.name)
    answers = "tcp flags & (syn|ack) == syn|ack"
    names = ("TCPReqQFullDoCookies", "TCPReqQFullDrop", "SyncookiesSent", "ListenDrops")
    with (
        tracer("synbl", *arguments) as running,
        here.entered(),
        cookies(how),
        counted() as grown,
        serving(here.address, 4) as server,
    ):
        with there.entered(), harness.firewall(answers, "drop"), flood(server, 12), here.entered():
            harness.until(lambda: grown("TCPReqQFullDoCookies") + grown("ListenDrops") >= 6)
        (row,) = rows_at(running, here)  # nobody sends a SYN again
        return row, {name: grown(name) for name in names}


def test_a_full_syn_queue(attach: str, net: Net) -> None:
    row, kernel = unanswered(*net, how=1, attach=attach)
    assert (row["connections"], row["limit"], row["queue"]) == (0, 4, 0)
    assert row["syn_queue"] in (4, 5) and row["drops"] == kernel["ListenDrops"] == 0
    full, sent = kernel["TCPReqQFullDoCookies"], kernel["SyncookiesSent"]
    assert full == sent >= 6
    assert (row["syn_overflows"], row["cookies"], row["overflows"]) == (
        (full, sent, 0) if row["cookies"] is not None else (None, None, None)
    )


def test_a_full_syn_queue_without_cookies(attach: str, net: Net) -> None:
    row, kernel = unanswered(*net, how=0, attach=attach)
    assert row["drops"] == kernel["ListenDrops"] >= 6
    assert kernel["TCPReqQFullDoCookies"] == kernel["SyncookiesSent"] == 0
    if row["syn_overflows"] is not None:
        # One SYN more where a queue with `limit` requests is not full yet.
        assert row["syn_overflows"] - kernel["TCPReqQFullDrop"] in (0, 1)
        assert (row["cookies"], row["overflows"]) == (0, 0)


def test_now(net: Net) -> None:
    """All listeners, in all namespaces, with their owners: also those to which nothing came."""
    here = net[0]
    with here.entered(), ExitStack() as stack:
        idle = stack.enter_context(serving("::", 7))
        busy = stack.enter_context(serving(here.address, 2))
        stack.enter_context(flood(busy, 10))
        harness.until(lambda: queue(busy) == 3)
        with harness.listener() as home:
            done = harness.run("synbl", "--now", "--json", "--netns", here.name)
            assert done.returncode == 0, done.stderr
            ports = {x: x.getsockname()[1] for x in (idle, busy, home)}
    found = {r["lport"]: r for r in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == set(ports.values())
    row = found[ports[busy]]
    assert (row["queue"], row["limit"], row["overflows"], row["buckets"]) == (3, 2, None, [])
    assert row["drops"] >= 7 and row["pid"] == os.getpid()
    row = found[ports[idle]]
    assert (row["queue"], row["limit"], row["drops"], row["laddr"]) == (0, 7, 0, "::")


def queue(server: socket.socket) -> int:
    """The length of its accept queue: tcpi_unacked of a listener (tcp_get_info)."""
    info = server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int.from_bytes(info[24:28], "little")


def test_now_of_another_process(net: Net) -> None:
    here = net[0]
    reader, writer = os.pipe()

    def serve() -> None:
        with here.entered(), harness.task_name(b"serving"), serving(here.address, 9):
            os.write(writer, b"x")
            time.sleep(harness.PATIENCE)

    child = harness.fork(serve)
    try:
        assert os.read(reader, 1)
        with tcpcore.trace("synbl", now=True, netns=here.name) as listeners:
            (row,) = listeners
            assert listeners.is_over
    finally:
        os.kill(child, 9)
        assert harness.reap(child) == -9
    assert (row.pid, row.comm, row.netns, row.limit) == (child, "serving", here.inode, 9)
    assert row.overflows is None and row.buckets == []


def test_now_looks_through_the_files_that_processes_have_open() -> None:
    """So it finds MPTCP's listener, which is not the socket of the file itself, but none that is on
    its way to another process (SCM_RIGHTS, unix(7)) and has left the sender's table of files."""
    one, other = socket.socketpair()
    with one, other, mptcp_socket() as mptcp:
        mptcp.bind(("127.0.0.1", 0))
        mptcp.listen(17)
        with harness.listener() as server:
            port = server.getsockname()[1]
            socket.send_fds(one, [b"x"], [server.fileno()])
        assert limits_now(mptcp.getsockname()[1], port) == [17]
        _, received, _, _ = socket.recv_fds(other, 1, 1)
        assert limits_now(port) == [1024]
        os.close(*received)


def limits_now(*ports: int) -> list[int | None]:
    with tcpcore.trace("synbl", now=True, lport=ports, pid=os.getpid()) as listeners:
        return [row.limit for row in listeners]


def test_older_listeners(attach: str) -> None:
    """They are followed with their owner. What was dropped before is not counted."""
    with serving("127.0.0.1", 1) as server, flood(server, 6):
        harness.until(lambda: queue(server) == 2 and drops(server) >= 4)
        before = drops(server)
        with tracer("synbl", "--json", "--attach", attach) as running:
            for _ in range(2):
                server.accept()[0].close()
            with harness.connect(*server.getsockname()):
                (row,) = rows(running, server)
        # On a slow machine those who were dropped come again before the tracer has started.
        since = drops(server) - before
    assert row["pid"] == os.getpid() and row["connections"] >= 1
    assert row["drops"] <= since


def drops(server: socket.socket) -> int:
    """As ss(8) shows them for a socket."""
    shown = harness.sh(f"ss -Hltnm sport = :{server.getsockname()[1]}")
    return int(shown.rpartition(",d")[2].rpartition(")")[0])


def test_filters(net: Net) -> None:
    """Of the listener: its owner, its address. It has no peer."""
    here, there = net

    def serve() -> None:
        harness.join_cgroup(group)
        os.setuid(65534)
        with harness.task_name(b"serving"), serving(here.address, 5, port=2000) as server:
            harness.connect(*server.getsockname()).close()

    with harness.cgroup() as group, here.entered(), ExitStack() as stack:
        wanted = [
            ("--comm", "serving"),
            ("--cgroup", str(group)),
            ("-L", "2000"),
            ("--laddr", f"{here.address}/32", "-u", "65534"),
            ("-4",),
        ]
        others = [("-6",), ("-D", "1-65535"), ("--raddr", "10.0.0.0/8"), ("--netns", there.name)]
        others += [("-p", "1"), ("-u", "1"), ("--laddr", "127.0.0.1")]
        tracers = [
            stack.enter_context(tracer("synbl", "--json", *each)) for each in (*wanted, *others)
        ]
        child = harness.fork(serve)
        assert harness.reap(child) == 0
        harness.session("::1")
        found = [rows_at(each, here) for each in tracers]
    assert [[r["pid"] for r in each] for each in found[: len(wanted)]] == [[child]] * len(wanted)
    assert [r["laddr"] for r in found[len(wanted)]] == ["::1"]
    assert found[len(wanted) + 1 :] == [[]] * (len(others) - 1)
    assert (found[0][0]["comm"], found[0][0]["uid"]) == ("serving", 65534)


def test_a_port_that_the_kernel_chooses(net: Net) -> None:
    """It does so after the change to LISTEN: a filter has to ask again."""
    here = net[0]
    shown = {("-L", "1-1000"): 0, ("-L", "1024-65535"): 1}
    with here.entered(), ExitStack() as stack:
        tracers = {
            each: stack.enter_context(tracer("synbl", "--json", "-p", str(os.getpid()), *each))
            for each in shown
        }
        with socket.socket() as server:
            server.listen()
            harness.connect("127.0.0.1", server.getsockname()[1]).close()
        assert {each: len(rows_at(x, here)) for each, x in tracers.items()} == shown


def test_mptcp(attach: str) -> None:
    """The subflow listens, and is the process's."""
    with tracer("synbl", "--json", "--attach", attach) as running, mptcp_socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(9)
        clients = [mptcp_socket() for _ in range(3)]
        for client in clients:
            client.connect(server.getsockname())
        (row,) = rows(running, server)
        for client in clients:
            client.close()
    assert (row["connections"], row["limit"], row["pid"]) == (3, 9, os.getpid())


def test_it_listens_again(attach: str) -> None:
    """shutdown() ends a listener, and listen() makes it another one."""
    host = ("127.0.0.1", 5)
    with (
        tracer("synbl", "--json", "--attach", attach) as running,
        serving(*host, port=harness.refused_port()) as one,  # else each gets a port of its own
    ):
        for backlog in (5, 6):
            one.listen(backlog)
            harness.connect(*one.getsockname()).close()
            if backlog == 5:
                one.shutdown(socket.SHUT_RDWR)
        found = rows(running, one)
    assert sorted((r["limit"], r["connections"]) for r in found) == [(5, 1), (6, 1)]


def test_no_entry_outlives_its_listener(attach: str, net: Net) -> None:
    here = net[0]
    with tracer("synbl", "--attach", attach, "--netns", here.name) as running, here.entered():
        with serving("127.0.0.1", 5) as server:
            assert running.entries()
            harness.connect(*server.getsockname()).close()
        harness.until(lambda: not running.entries())


def test_an_unwanted_listener_takes_no_place(net: Net) -> None:
    here, there = net
    with tracer("synbl", "--netns", there.name) as running:
        with here.entered(), serving("127.0.0.1", 5):
            assert not running.entries()
        with there.entered(), serving("127.0.0.1", 5):
            assert running.entries()


def test_what_ended_is_forgotten_here_too(net: Net) -> None:
    here = net[0]
    with here.entered(), tcpcore.trace("synbl", netns=here.name, interval=0.05) as listeners:
        with serving("127.0.0.1", 5) as server:
            harness.connect(*server.getsockname()).close()
            assert next(iter(listeners)).connections == 1
            ((_, kept),) = listeners._session._tables
            assert isinstance(kept, Listeners) and kept._before
        harness.until(lambda: (listeners.read(), not kept._before)[1])


def test_a_full_map_is_counted(net: Net) -> None:
    here = net[0]
    arguments = ("--json", "--netns", here.name, "-p", str(os.getpid()), "--map-size", "4")
    with tracer("synbl", *arguments) as running, here.entered(), ExitStack() as stack:
        for _ in range(9):
            stack.enter_context(serving("127.0.0.1", 5))
        assert running.stop() == 0
    lost = [r["map"] for r in running.records() if r["type"] == "lost"]
    assert lost[-1:] == [5]
    assert any("a larger --map-size" in line for line in running.errors())


def test_more_listeners_than_a_ring_has_room_for(net: Net) -> None:
    """They are asked in parts."""
    here = net[0]
    with here.entered(), ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(serving("127.0.0.1", 5))
        with tcpcore.trace("synbl", now=True, netns=here.name, buffer=64 << 10) as listeners:
            assert len(list(listeners)) == 400
            assert not listeners.losses()


def test_histograms(attach: str) -> None:
    """One for each listener to which something came, with buckets for 0 and for 1."""
    with tracer("synbl", "--json", "--hist", "--attach", attach) as running, ExitStack() as stack:
        servers = [stack.enter_context(serving(host, 100)) for host in ("127.0.0.1", "::1")]
        stack.enter_context(serving("127.0.0.1", 7))
        for count, server in zip((4, 10), servers, strict=True):
            for _ in range(count):
                stack.enter_context(harness.connect(*server.getsockname()[:2]))
        assert running.stop() == 0, running.errors()
        ports = [server.getsockname()[1] for server in servers]
    found = {r["key"]["lport"]: r for r in running.records() if r["key"]["pid"] == os.getpid()}
    four, ten = (found.pop(port) for port in ports)
    assert not found
    assert four["buckets"] == [[0, 0, 1], [1, 1, 1], [2, 3, 2]]
    assert ten["buckets"] == [[0, 0, 1], [1, 1, 1], [2, 3, 2], [4, 7, 4], [8, 15, 2]]
    assert (four["measure"], four["count"], four["sum"]) == ("backlog", 4, 0 + 1 + 2 + 3)
    assert (ten["key"]["laddr"], ten["key"]["limit"]) == ("::1", 100)
    assert (four["p50"], four["p99"]) == (1, 2)


@pytest.mark.any_kernel
@pytest.mark.parametrize("wide", [[], ["--wide"]])
def test_columns(wide: list[str]) -> None:
    with serving("127.0.0.1", 5) as server, ExitStack() as stack:
        port = str(server.getsockname()[1])
        with tracer("synbl", "-L", port, *wide) as running:
            for _ in range(4):
                stack.enter_context(harness.connect(*server.getsockname()))
            assert running.stop() == 0
    header, row = running.out.lines
    cells = dict(zip(header.split(), row.split(maxsplit=len(header.split()) - 1), strict=True))
    assert (cells["PID"], cells["LADDR"], cells["LPORT"]) == (str(os.getpid()), "127.0.0.1", port)
    assert (cells["CONNS"], cells["QUEUE"], cells["LIMIT"], cells["DROPS"]) == ("4", "4", "5", "0")
    assert cells["LENGTHS"] == "0:1 1:1 2-3:2"
    assert {"UID", "NETNS", "IP"} <= cells.keys() or not wide


@pytest.mark.any_kernel
def test_there_are_no_lengths_now() -> None:
    done = harness.run("synbl", "--now", "--hist")
    assert done.returncode == 2 and done.stderr.startswith("tcpcore: --hist: there are no lengths")


@pytest.mark.any_kernel
@pytest.mark.parametrize("option", [["-n", "3"], ["--now", "-n", "1"]])
def test_no_number_ends_it(option: list[str]) -> None:
    done = harness.run("synbl", *option)
    assert done.returncode == 2 and done.stderr.startswith("tcpcore: --count: ")
