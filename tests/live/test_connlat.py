"""connlat on real connects."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tcpcore.model import fields
from tcpcore.request.filters import Filters
from tcpcore.request.machinery import Machinery
from tcpcore.request.request import Request
from tcpcore.session.session import opened
from tcpcore.tools import connlat
from tests.facts import Facts
from tests.live import harness
from tests.live.harness import Event, Net, tracer

FACTS = Facts(
    header="PID    COMM        IP SADDR           DADDR           DPORT LAT(ms) RESULT",
    fields=frozenset({"latency_ns", "result"}),
    reset=1,
    closed=1,
)


def by_port(events: list[Event], port: int) -> list[Event]:
    return [e for e in events if e["rport"] == port]


@pytest.mark.each_variant
def test_ok_and_refused(attach: str) -> None:
    closed = harness.refused_port()
    with tracer("connlat", "--json", "--attach", attach) as running, harness.listener() as server:
        port = server.getsockname()[1]
        client = harness.connect("127.0.0.1", port)
        lport = client.getsockname()[1]
        harness.refuse("127.0.0.1", closed)
        client.close()
        events = running.events()
    (ok,) = by_port(events, port)
    assert attach in running.ways.values()
    assert (ok["result"], ok["family"], ok["laddr"], ok["raddr"]) == (
        *("ok", "ipv4"),
        *("127.0.0.1", "127.0.0.1"),
    )
    assert (ok["lport"], ok["pid"], ok["uid"]) == (lport, os.getpid(), 0)
    assert ok["comm"] == Path("/proc/self/comm").read_text().strip()
    assert ok["netns"] == Path("/proc/self/ns/net").stat().st_ino
    assert ok["latency_ns"] > 0
    (refused,) = by_port(events, closed)
    assert refused["result"] == "ECONNREFUSED" and refused["pid"] == os.getpid()


def test_ipv6_and_v4mapped(attach: str) -> None:
    with (
        tracer("connlat", "--json", "--attach", attach) as running,
        harness.listener("::") as server,
    ):
        port = server.getsockname()[1]
        harness.connect("::1", port).close()
        harness.connect("::ffff:127.0.0.1", port).close()
        events = by_port(running.events(), port)
    seen = [(e["family"], e["laddr"], e["raddr"], e["result"]) for e in events]
    assert seen == [("ipv6", "::1", "::1", "ok"), ("ipv4", "127.0.0.1", "127.0.0.1", "ok")]


@pytest.mark.parametrize(("flag", "families"), [("-4", {"ipv4"}), ("-6", {"ipv6"})])
def test_family_counts_v4mapped_as_ipv4(flag: str, families: set[str]) -> None:
    with tracer("connlat", "--json", flag) as running, harness.listener("::") as server:
        port = server.getsockname()[1]
        for host in ("::1", "::ffff:127.0.0.1", "::1"):
            harness.connect(host, port).close()
        events = by_port(running.events(), port)
    assert {e["family"] for e in events} == families


def test_nonblocking_refused(attach: str) -> None:
    closed = harness.refused_port()
    with tracer("connlat", "--json", "--attach", attach) as running:
        harness.start_hanging("127.0.0.1", closed).close()
        (event,) = by_port(running.events(), closed)
    assert event["result"] == "ECONNREFUSED" and event["pid"] == os.getpid()


def test_timed_out_unreachable_and_aborted(attach: str, net: Net) -> None:
    here = net[0]
    with tracer("connlat", "--json", "--attach", attach, "--netns", here.name) as running:
        with here.entered():
            harness.connect_unanswered(here)
        results = {e["rport"]: e["result"] for e in running.events()}
    assert results == harness.UNANSWERED


def test_fails_at_once(attach: str, net: Net) -> None:
    """No free port, and no route: the latter ends before the first state change."""
    here, there = net
    with there.entered(), harness.listener(there.address) as server:
        port = server.getsockname()[1]
        with (
            tracer("connlat", "--json", "--attach", attach, "--netns", here.name) as running,
            here.entered(),
        ):
            harness.connect_without_a_port(there.address, port)
            with pytest.raises(OSError, match="Network is unreachable"):
                harness.connect("198.51.100.1", 1)
            events = running.events()
    seen = [(e["raddr"], e["rport"], e["result"]) for e in events]
    assert seen == [
        (there.address, port, "ok"),
        (there.address, port, "EADDRNOTAVAIL"),
        ("198.51.100.1", 1, "ENETUNREACH"),
    ]


def test_failed_and_minimum_are_filtered_in_the_kernel(net: Net) -> None:
    """The minimum is in milliseconds: some wait 5 of them, one more than 500."""
    here = net[0]
    arguments = ("connlat", "--json", "--netns", here.name)
    with tracer(*arguments, "--failed") as failed, tracer(*arguments, "500") as slow:
        with here.entered():
            harness.session()
            harness.refuse("127.0.0.1", harness.refused_port())
            waiting = [harness.start_hanging(here.nobody, 1010 + i) for i in range(4)]
        time.sleep(0.005)
        for client in waiting[1:]:
            client.close()
        time.sleep(0.6)
        waiting[0].close()
        results = [e["result"] for e in failed.events()]
        assert results == ["ECONNREFUSED"] + ["ECONNABORTED"] * 4
        (event,) = slow.events()
    assert event["rport"] == 1010 and event["latency_ns"] >= 600_000_000


def test_owner_is_the_connecting_task() -> None:
    code = "import socket,sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])))"
    with tracer("connlat", "--json") as running, harness.listener() as server:
        port = server.getsockname()[1]
        child = subprocess.Popen([sys.executable, "-c", code, str(port)])
        child.wait()
        (event,) = by_port(running.events(), port)
    assert event["pid"] == child.pid


def test_no_entry_outlives_its_socket(attach: str) -> None:
    """20,000 refused and 5,000 aborted connects; an emulated machine gets a tenth."""
    scale = 10 if harness.EMULATED else 1
    closed, mine = harness.refused_port(), Filters(pid=[os.getpid()])
    with (
        opened(connlat.TOOL, Request(mine, machinery=Machinery(attach=(attach,)))) as trace,
        harness.listener() as server,
    ):
        for _ in range(20_000 // scale):
            harness.refuse("127.0.0.1", closed)
        port = server.getsockname()[1]
        server.setblocking(False)  # the abort may come before there is anything to accept
        for _ in range(5_000 // scale):
            client = harness.start_hanging("127.0.0.1", port)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
            with contextlib.suppress(BlockingIOError):
                server.accept()[0].close()
            trace.read()
        assert list(trace.program.map("sockets").keys()) == []
        trace.read(last=True)
        harness.session()
        names = list(fields.kinds(connlat.Event))
        last = trace.read(last=True)[-1]
        assert last[names.index("pid")] == os.getpid() and last[names.index("result")] == 0


@pytest.mark.parametrize("delay", [20, 100])
def test_a_known_delay(attach: str, delay: int) -> None:
    """netem delays what the client sends: no connect is shorter, and none is longer than its caller
    saw it."""
    if subprocess.run(["modprobe", "-q", "sch_netem"], check=False).returncode:
        pytest.skip("this kernel has no netem")
    with harness.namespaces() as (here, there):
        harness.sh(f"tc -n {here.name} qdisc add dev ve0 root netem delay {delay}ms")
        with (
            there.entered(),
            harness.listener(there.address) as server,
            tracer("connlat", "--json", "--attach", attach, "--netns", here.name) as running,
            here.entered(),
        ):
            port = server.getsockname()[1]
            seen = [timed_connect(there.address, port) for _ in range(5)]
            latencies = [e["latency_ns"] for e in running.events()]
    for ns, longest in zip(latencies, seen, strict=True):
        assert delay * 1_000_000 <= ns <= longest


def timed_connect(host: str, port: int) -> int:
    """How long connect() took, in ns."""
    with socket.socket() as client:
        begin = time.monotonic_ns()
        client.connect((host, port))
        return time.monotonic_ns() - begin


def test_summary() -> None:
    closed = harness.refused_port()
    with tracer("connlat", "--json", "--summary") as running, harness.listener() as server:
        port = server.getsockname()[1]
        for _ in range(20):
            harness.connect("127.0.0.1", port).close()
        for _ in range(3):
            harness.refuse("127.0.0.1", closed)
        assert running.stop() == 0
        flows = {r["rport"]: r for r in running.records() if r["type"] == "flow"}
    assert (flows[port]["count"], flows[port]["failed"]) == (20, 0)
    assert (flows[closed]["count"], flows[closed]["failed"]) == (3, 3)
    p = [flows[port][name] for name in ("p50_ns", "p90_ns", "p99_ns", "max_ns")]
    assert p[0] > 0 and p == sorted(p)


def test_api() -> None:
    import tcpcore

    with tcpcore.trace("connlat", count=1, pid=os.getpid(), duration=30) as events:
        lport, port = harness.session()
        (event,) = list(events)
    assert (event.lport, event.rport, event.result) == (lport, port, "ok")
    assert isinstance(event, connlat.Event) and event.comm and event.latency_ns > 0
