"""accept on real connections."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.facts import Facts
from tests.live import harness
from tests.live.harness import Event, Net, tracer

FACTS = Facts(
    header="PID    COMM        IP RADDR           RPORT LADDR           LPORT WAIT(ms)",
    fields=frozenset({"wait_ns", "cgroup_id", "tid"}),
    reset=1,
    closed=1,
    queued=1,
)
Accept = Callable[[socket.socket], socket.socket]

MANY = 40 if harness.EMULATED else 200


def accept4(server: socket.socket) -> socket.socket:
    """What Python calls."""
    return server.accept()[0]


def accept(server: socket.socket) -> socket.socket:
    """The older system call."""
    number = ctypes.CDLL(None, use_errno=True).accept(server.fileno(), None, None)
    assert number >= 0, os.strerror(ctypes.get_errno())
    return socket.socket(fileno=number)


def at_port(events: list[Event], port: int) -> list[Event]:
    return [e for e in events if e["lport"] == port]


@pytest.mark.parametrize("call", [accept, accept4])
def test_the_accepting_task(attach: str, call: Accept) -> None:
    with tracer("accept", "--json", "--attach", attach) as running, harness.listener() as server:
        port = server.getsockname()[1]
        with harness.connect("127.0.0.1", port) as client, call(server):
            lport = client.getsockname()[1]
        (event,) = at_port(running.events(), port)
    assert attach in running.ways.values()
    assert (event["pid"], event["tid"], event["uid"]) == (os.getpid(), threading.get_native_id(), 0)
    assert event["comm"] == Path("/proc/self/comm").read_text().strip()
    assert event["netns"] == Path("/proc/self/ns/net").stat().st_ino
    assert (event["family"], event["rport"]) == ("ipv4", lport)
    assert event["wait_ns"] > 0


@pytest.mark.parametrize("call", [accept, accept4])
def test_ipv6_and_v4mapped(attach: str, call: Accept) -> None:
    with tracer("accept", "--json", "--attach", attach) as running:
        with harness.listener("::") as server:
            port = server.getsockname()[1]
            for host in ("::1", "::ffff:127.0.0.1"):
                with harness.connect(host, port), call(server):
                    pass
        events = at_port(running.events(), port)
    seen = [(e["family"], e["laddr"], e["raddr"]) for e in events]
    assert seen == [("ipv6", "::1", "::1"), ("ipv4", "127.0.0.1", "127.0.0.1")]


def test_a_child_of_another_user_and_its_namespace(attach: str, net: Net) -> None:
    """The task that accepts counts, not the one that listens or connects."""
    here, there = net

    def serve() -> None:
        os.setuid(65534)
        with harness.task_name(b"child"):
            server.accept()[0].close()

    with tracer("accept", "--json", "--attach", attach) as running:
        with here.entered(), harness.listener(here.address) as server:
            port = server.getsockname()[1]
            child = harness.fork(serve)
            with there.entered(), harness.connect(here.address, port):
                assert harness.reap(child) == 0
        (event,) = at_port(running.events(), port)
    assert (event["pid"], event["uid"], event["comm"]) == (child, 65534, "child")
    assert event["netns"] == here.inode
    assert (event["laddr"], event["raddr"]) == (here.address, there.address)


def test_wait(attach: str) -> None:
    """Of a connection that nobody took for 50 ms, and of those that a thread waited for."""
    with tracer("accept", "--json", "--attach", attach) as running, harness.listener() as server:
        port = server.getsockname()[1]
        with harness.connect("127.0.0.1", port):
            time.sleep(0.05)
            server.accept()[0].close()
        for _ in range(5):
            thread = waiting(server)
            with harness.connect("127.0.0.1", port):
                thread.join()
        delayed, *prompt = [e["wait_ns"] for e in at_port(running.events(), port)]
    assert delayed >= 45_000_000
    assert len(prompt) == 5 and 0 < min(prompt) < delayed


def test_wait_is_unknown_for_older_connections(attach: str) -> None:
    with harness.listener() as server:
        port = server.getsockname()[1]
        with (
            harness.connect("127.0.0.1", port),
            tracer("accept", "--json", "--attach", attach) as running,
        ):
            server.accept()[0].close()
            (event,) = at_port(running.events(), port)
    assert event["wait_ns"] is None and event["pid"] == os.getpid()


def waiting(server: socket.socket, act: Callable[[], object] | None = None) -> threading.Thread:
    """A thread that sleeps in accept() by now."""
    server.setblocking(True)
    thread = threading.Thread(target=act or (lambda: server.accept()[0].close()))
    thread.start()
    deadline = time.monotonic() + harness.PATIENCE
    while not is_accepting(thread):
        assert thread.is_alive() and time.monotonic() < deadline
        time.sleep(0.001)
    return thread


def is_accepting(thread: threading.Thread) -> bool:
    """Where the kernel does not tell where a thread sleeps, it tells the number of the call."""
    task = Path(f"/proc/self/task/{thread.native_id}")
    channel = (task / "wchan").read_text()
    if channel not in ("", "0"):
        return "accept" in channel
    return (task / "syscall").read_text().split()[0] in ("43", "288")


@pytest.mark.parametrize("call", [accept, pytest.param(accept4, marks=pytest.mark.each_variant)])
def test_a_thread_that_waited_already(attach: str, call: Accept) -> None:
    with harness.listener() as server:
        port = server.getsockname()[1]
        thread = waiting(server, lambda: call(server).close())
        with tracer("accept", "--json", "--attach", attach) as running:
            with harness.connect("127.0.0.1", port) as client:
                lport = client.getsockname()[1]
                thread.join()
            (event,) = at_port(running.events(), port)
    assert (event["pid"], event["tid"]) == (os.getpid(), thread.native_id)
    assert event["rport"] == lport and event["wait_ns"] > 0


@pytest.mark.parametrize("before", [True, False])
def test_many_threads_that_wait(attach: str, before: bool) -> None:
    accepted: list[tuple[int, int]] = []

    def serve() -> None:
        connection, peer = server.accept()
        accepted.append((threading.get_native_id(), peer[1]))
        connection.close()

    with harness.listener() as server:
        port = server.getsockname()[1]
        threads = [waiting(server, serve) for _ in range(40)] if before else []
        with tracer("accept", "--json", "--attach", attach) as running:
            threads = threads or [waiting(server, serve) for _ in range(40)]
            for _ in threads:
                harness.connect("127.0.0.1", port).close()
            for thread in threads:
                thread.join()
            events = at_port(running.events(), port)
    assert len(accepted) == 40
    assert Counter((e["tid"], e["rport"]) for e in events) == Counter(accepted)


def test_reset_before_it_is_accepted(attach: str) -> None:
    """accept() still returns it: with its ports, and to the filters as well."""
    with harness.listener() as server:
        port = server.getsockname()[1]
        arguments = ("--json", "--attach", attach, "-L", str(port))
        with tracer("accept", *arguments) as running:
            client = harness.connect("127.0.0.1", port)
            lport = client.getsockname()[1]
            harness.reset(client)
            server.accept()[0].close()
            (event,) = running.events()
    assert (event["lport"], event["rport"], event["pid"]) == (port, lport, os.getpid())


def test_what_is_no_accept_of_tcp(attach: str, tmp_path: Path) -> None:
    with (
        tracer("accept", "--json", "--attach", attach) as running,
        socket.socket(socket.AF_UNIX) as local,
        socket.socket(socket.AF_UNIX) as peer,
        harness.listener() as server,
    ):
        local.bind(str(tmp_path / "socket"))
        local.listen()
        peer.connect(str(tmp_path / "socket"))
        local.accept()[0].close()
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
        assert [e for e in running.events() if e["pid"] == os.getpid()] == []


@pytest.mark.parametrize("option", ["-P", "--port", "-L"])
def test_port(option: str) -> None:
    with harness.listener() as one, harness.listener() as two:
        port = one.getsockname()[1]
        with tracer("accept", "--json", option, str(port)) as running:
            for server in (one, two):
                with harness.connect("127.0.0.1", server.getsockname()[1]):
                    server.accept()[0].close()
            events = running.events()
    assert [e["lport"] for e in events] == [port]


@pytest.mark.any_kernel
@pytest.mark.parametrize("style", [[], ["--wide"]])
def test_columns(style: list[str]) -> None:
    with harness.listener() as server:
        port = server.getsockname()[1]
        with tracer("accept", "-P", str(port), *style) as running:
            with harness.connect("127.0.0.1", port) as client:
                lport = client.getsockname()[1]
                server.accept()[0].close()
            assert running.stop() == 0
    header, row = map(str.split, running.out.lines)
    wide = ["TID", "UID", "NETNS"] if style else []
    titles = ["PID", "COMM", "IP", "RADDR", "RPORT", "LADDR", "LPORT", "WAIT(ms)", *wide]
    assert header == titles
    cells = dict(zip(titles, row, strict=True))
    assert (cells["PID"], cells["IP"]) == (str(os.getpid()), "4")
    assert (cells["RPORT"], cells["LPORT"]) == (str(lport), str(port))
    assert float(cells["WAIT(ms)"]) > 0


@pytest.mark.each_variant
def test_all_that_the_server_got(attach: str) -> None:
    """Every peer that accept() returned, by either call, once."""
    peers: Counter[tuple[str, int]] = Counter()
    with tracer("accept", "--json", "--attach", attach) as running:
        with harness.listener("::") as server:
            port = server.getsockname()[1]
            for i in range(MANY):
                host = ("127.0.0.1", "::1", "::ffff:127.0.0.1")[i % 3]
                with (
                    harness.connect(host, port) as client,
                    (accept, accept4)[i % 2](server) as connection,
                ):
                    peer, number = connection.getpeername()[:2]
                    peers[peer.removeprefix("::ffff:"), number] += 1
                    (client, connection)[i % 5 == 0].close()
        events = at_port(running.events(), port)
    assert Counter((e["raddr"], e["rport"]) for e in events) == peers
