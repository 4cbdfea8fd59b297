"""Odd sockets and odd moments, in every tool that has to do with them."""

from __future__ import annotations

import csv
import ctypes
import ipaddress
import mmap
import os
import platform
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest

from bench import storm
from tcpcore.loader import ObjectFile
from tcpcore.loader.map import Map
from tcpcore.model import fields
from tcpcore.request.filters import Filters
from tcpcore.request.machinery import Machinery
from tcpcore.session.tracing import Trace, object_path, opened
from tcpcore.tools import states
from tcpcore.tools import tracer as tracer_tool
from tests.live import faults, harness
from tests.live.harness import Event, Namespace, tracer

Net = tuple[Namespace, Namespace]
FEW = bool(os.environ.get("TCPCORE_TEST_ATTACH"))  # in an emulated machine
IPPROTO_MPTCP = 262
TCP_FASTOPEN, MSG_FASTOPEN = 23, 0x20000000
IP_RECVERR = 11
ACTIVE = 1  # enum role, bpf/lib/owner.bpf.h


def between(events: list[Event], one: int, two: int) -> list[Event]:
    return [e for e in events if {e["lport"], e["rport"]} == {one, two}]


@contextmanager
def kept_empty(tool: str, *maps: str) -> Iterator[None]:
    """What happens inside leaves nothing behind in the tool's maps."""
    module = __import__(f"tcpcore.tools.{tool}", fromlist=["TOOL"])
    with opened(module.tool(), Filters(), Machinery()) as trace:
        yield
        deadline = time.monotonic() + harness.PATIENCE
        while left := [key for name in maps for key in [*trace.program.map(name).keys()]]:
            assert time.monotonic() < deadline, f"{len(left)} left in {maps}"
            trace.read()
            time.sleep(0.05)


# --- changes that interrupt each other, and changes that were missed


@pytest.fixture
def steered(net: Net) -> Namespace:
    """A namespace whose loopback packets are handled by CPU 1, whoever sends them."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU")
    queue = "/sys/class/net/lo/queues/rx-0/rps_cpus"
    harness.sh(f"ip netns exec {net[0].name} sh -c 'echo 2 >{queue}'")
    return net[0]


def connect_much(seconds: float) -> None:
    """System calls that change states, on CPU 1."""
    os.sched_setaffinity(0, {1})
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        harness.refuse("127.0.0.1", 9)


def talk_much(namespace: Namespace, seconds: float) -> None:
    """Packets that change states, sent on CPU 0 and handled on CPU 1."""
    os.sched_setaffinity(0, {0})
    stop = time.monotonic() + seconds
    with namespace.entered(), harness.listener() as server:
        while time.monotonic() < stop:
            client = harness.connect("127.0.0.1", server.getsockname()[1])
            with server.accept()[0]:
                harness.reset(client)


def test_nothing_is_skipped_in_an_interrupt(steered: Namespace) -> None:
    """The kernel skipped a program, and another did its work: that is, one alone misses some."""
    with opened(states.TOOL, Filters(), Machinery(buffer=32 << 20)) as trace:
        for _ in range(10):
            children = [
                harness.fork(lambda: connect_much(1)),
                harness.fork(lambda: talk_much(steered, 1)),
            ]
            stop = time.monotonic() + 1
            while time.monotonic() < stop:
                trace.wait()
                trace.read()
            assert [harness.reap(child) for child in children] == [0, 0]
            if trace.program.missed():
                break
        skipped, losses = trace.program.missed(), trace.losses()
    assert losses.missed == 0
    if not skipped:
        pytest.skip("no program was skipped in 10 s: before Linux 6.1 none is")


def patch(kept: Map, key: bytes, at: int, code: str, value: int) -> None:
    """Change a field of an entry, as if something had been missed."""
    entry = bytearray(kept.get(key) or b"")
    struct.pack_into(code, entry, at, value)
    kept.set(key, bytes(entry))


def read_all(trace: Trace) -> list[states.Event]:
    return list(fields.values(states.Event, trace.read(last=True)))


def test_no_duration_after_a_missed_change() -> None:
    """The entry has an older state than the one the socket leaves."""
    with opened(states.TOOL, Filters(), Machinery()) as trace, harness.pair() as (client, end):
        read_all(trace)
        kept, lport = trace.program.map("sockets"), client.getsockname()[1]
        state_at = kept.value_size - 8  # struct part, bpf/states.bpf.c
        for key in list(kept.keys()):
            patch(kept, key, state_at, "B", 2)  # SYN_SENT
        client.close()
        end.close()
        rows = [e for e in read_all(trace) if e.lport == lport]
    assert rows[0].oldstate == "ESTABLISHED"
    assert rows[0].duration_ns is None
    assert rows[1].duration_ns is not None


@cache
def owner_field(name: str) -> int:
    """Where an entry has it: struct owner, with which struct entry begins."""
    return ObjectFile(object_path("tracer")).struct("owner").members[name][0]


def stale(kept: Map, keys: set[bytes]) -> None:
    """Entries that a missed end left behind, of an active connection of pid 1."""
    entry = bytearray(kept.value_size)
    struct.pack_into("I", entry, owner_field("pid"), 1)
    entry[owner_field("role")], entry[owner_field("wanted")] = ACTIVE, True
    for key in keys:
        kept.set(key, bytes(entry))


def pid_of(kept: Map, key: bytes) -> int | None:
    entry = kept.get(key)
    return None if entry is None else struct.unpack_from("I", entry, owner_field("pid"))[0]


def test_a_child_inherits_nothing() -> None:
    """An entry of an older socket at the same address: neither its owner nor its role is taken."""
    with opened(tracer_tool.TOOL, Filters(), Machinery()) as trace:
        kept = trace.program.map("sockets")
        keys: set[bytes] = set()
        for _ in range(40):  # the addresses that will be in use again
            with harness.pair():
                keys.update(kept.keys())
        trace.read(last=True)
        stale(kept, keys)
        reused = 0
        for _ in range(40):
            with harness.pair():
                reused += sum(pid_of(kept, key) not in (None, 1) for key in keys)
        rows = list(fields.values(tracer_tool.Event, trace.read(last=True)))
    assert reused
    mine = [e for e in rows if e.pid in (1, os.getpid())]
    assert {e.pid for e in mine} == {os.getpid()}
    assert [e.action for e in mine].count("connect") == 40
    assert [e.action for e in mine].count("accept") == 40


@pytest.mark.parametrize("tool", ["connlat", "connect"])
def test_started_in_the_middle_of_a_storm(tool: str) -> None:
    """No row is longer than its connect, or of anybody else than who made it."""
    if FEW:  # seen with 7.2: "Oops: int3" in inet_sk_state_store, where the tracepoint is switched
        pytest.skip("emulated processors fall over code that is patched while they run it")
    closed = harness.refused_port()
    (outcome, results), (stopping, stop) = os.pipe(), os.pipe()
    os.set_blocking(stopping, False)

    def storm() -> None:
        """Tells how long its longest connect took."""
        longest = 0
        while True:
            with suppress(BlockingIOError):
                os.read(stopping, 1)
                break
            before = time.monotonic_ns()
            harness.refuse("127.0.0.1", closed)
            longest = max(longest, time.monotonic_ns() - before)
        os.write(results, longest.to_bytes(8, "little"))

    child = harness.fork(storm)
    rows: list[Event] = []
    try:
        for _ in range(20):
            with tracer(tool, "--json", "-D", str(closed), "-n", "2000") as running:
                time.sleep(0.05)
                rows += running.events()
    finally:
        os.write(stop, b"x")
    longest = int.from_bytes(os.read(outcome, 8), "little")
    assert harness.reap(child) == 0
    took = "latency_ns" if tool == "connlat" else "duration_ns"
    assert rows
    assert {e["pid"] for e in rows} == {child}
    assert max(e[took] for e in rows) <= longest


# --- MPTCP (RFC 8684): a row is a subflow


def mptcp_socket() -> socket.socket:
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
    except OSError as e:
        pytest.skip(f"no MPTCP here: {e}")


@contextmanager
def mptcp_pair(host: str = "127.0.0.1") -> Iterator[tuple[socket.socket, socket.socket]]:
    with mptcp_socket() as server, mptcp_socket() as client:
        server.bind((host, 0))
        server.listen()
        server.settimeout(harness.PATIENCE)
        client.connect(server.getsockname())
        with server.accept()[0] as accepted:
            yield client, accepted


@pytest.mark.parametrize("tool", ["connect", "accept", "tracer", "life", "states"])
def test_mptcp(attach: str, tool: str) -> None:
    """Both ends are shown, and are ours."""
    mptcp_socket().close()
    with tracer(tool, "--json", "--attach", attach) as running:
        with mptcp_pair() as (client, accepted):
            lport, port = client.getsockname()[1], client.getpeername()[1]
            client.sendall(b"x" * 1000)
            assert accepted.recv(1000, socket.MSG_WAITALL)
        time.sleep(0.2)  # the subflows are closed by a worker, a little later
        rows = between(running.events(), lport, port)
    ours = [e for e in rows if e["pid"] == os.getpid()]
    assert {e["pid"] for e in rows} <= {os.getpid(), None}
    match tool:
        case "connect":
            assert [e["result"] for e in ours] == ["ok"]
        case "accept":
            assert [(e["lport"], e["wait_ns"] is None) for e in ours] == [(port, False)]
        case "tracer":
            assert sorted(e["action"] for e in rows) == ["accept", "close", "close", "connect"]
            assert sorted(e["action"] for e in ours)[::3] == ["accept", "connect"]
        case "life":
            assert sorted((e["lport"], e["rx_bytes"] >= 1000) for e in ours) == sorted(
                [(lport, False), (port, True)]
            )
        case _:
            assert {e["lport"] for e in ours} == {lport, port}


@pytest.mark.parametrize("tool", ["connect", "accept", "tracer", "life"])
def test_a_subflow_that_the_kernel_adds(attach: str, tool: str) -> None:
    """It connects and ends like any other; nobody accepts it. Its owner is no kernel thread."""
    mptcp_socket().close()
    second = "10.78.0.2"  # the kernel uses it for a subflow of its own (ip-mptcp(8))
    with harness.namespaces() as (here, _):
        harness.sh(f"ip -n {here.name} addr add {second}/32 dev lo")
        harness.sh(f"ip -n {here.name} mptcp limits set subflows 2 add_addr_accepted 2")
        harness.sh(f"ip -n {here.name} mptcp endpoint add {second} dev lo subflow")
        arguments = ("--json", "--attach", attach, "--netns", here.name)
        with tracer(tool, *arguments) as running, here.entered():
            with mptcp_pair(here.address) as (client, accepted):
                lport, port = client.getsockname()[1], client.getpeername()[1]
                client.sendall(b"x")
                assert accepted.recv(1)
                harness.until(lambda: second in established(port))
            harness.until(lambda: not established(port))
            rows = running.events()
    # The accepted end tries to add one, too, where nobody listens.
    added = [e for e in rows if second in (e["laddr"], e["raddr"]) and e["rport"] != lport]
    assert len(rows) > len(added)
    assert {e["pid"] for e in added} <= {os.getpid(), None}
    match tool:
        case "connect":
            assert [(e["laddr"], e["result"]) for e in added] == [(second, "ok")]
        case "accept":
            assert added == []
        case "tracer":
            assert [(e["laddr"], e["action"]) for e in added] == [
                (second, "connect"),
                (second, "close"),
            ]
        case _:
            assert sorted(e["laddr"] for e in added) == [here.address, second]


def established(port: int) -> str:
    """The connections to a port, as ss(8) shows them."""
    return harness.sh(f"ss -Htn state established '( dport = :{port} )'")


# --- whose a socket is


@pytest.mark.parametrize("tool", ["states", "life"])
def test_who_looks_at_a_socket_is_no_owner(tool: str) -> None:
    """`ss -i` holds each socket's lock for a moment, and works off what comes meanwhile."""
    # Another process from the start: one that we fork meanwhile has our sockets, until its exec.
    look = ["sh", "-c", "while :; do ss -tinem >/dev/null; done"]
    with (
        subprocess.Popen(look) as looking,
        tracer(tool, "--json") as running,
        harness.listener() as server,
    ):
        port = server.getsockname()[1]
        try:
            for _ in range(30 if FEW else 300):
                client = harness.connect("127.0.0.1", port)
                accepted, _ = server.accept()
                with accepted, client:
                    client.sendall(b"x")
                    client.shutdown(socket.SHUT_WR)
                    accepted.recv(2)
                    accepted.recv(2)
        finally:
            looking.kill()
        rows = [e for e in running.events() if port in (e["lport"], e["rport"])]
    assert {e["pid"] for e in rows} <= {os.getpid(), None}
    if tool == "life":
        assert {e["pid"] for e in rows} == {os.getpid()}


def test_who_has_the_lock_is_no_owner() -> None:
    """A process that peeks at what came holds the lock for as long as its memory makes it wait; the
    FIN that comes meanwhile is worked off in its context."""
    (waiting, say), (told, go) = socket.socketpair(), socket.socketpair()
    with harness.pair() as (client, accepted), tracer("states", "--json") as running:
        lport = client.getsockname()[1]
        accepted.send(b"x")

        def peek() -> None:
            accepted.close()  # the parent has it, and closes it last
            page = faults.Page()
            arguments = client.fileno(), ctypes.c_void_p(page.address), 1, socket.MSG_PEEK
            thread = threading.Thread(target=ctypes.CDLL(None).recv, args=arguments)
            thread.start()
            assert page.wait(harness.PATIENCE)
            say.send(b"x")
            told.recv(1)
            page.release()
            thread.join()

        child = harness.fork(peek)
        waiting.settimeout(harness.PATIENCE)
        assert waiting.recv(1)
        accepted.close()
        time.sleep(0.1)  # for the FIN to come into the backlog
        go.send(b"x")
        assert harness.reap(child) == 0
        rows = [e for e in running.events() if e["lport"] == lport]
    for end in (waiting, say, told, go):
        end.close()
    assert [e["newstate"] for e in rows] == ["CLOSE_WAIT"]
    assert rows[0]["pid"] is None


@pytest.mark.parametrize("tool", ["life", "states", "tracer"])
def test_owner_filters_are_subsets(tool: str) -> None:
    """What -p shows of a connection that one process opened and another closed are rows of the
    unfiltered run: those since one that passes has had it."""
    with harness.listener() as server, tracer(tool, "--json") as whole:
        client = socket.socket()
        # The child has to exist, and to be filtered for, before the connection is made.
        reading, writing = socket.socketpair()

        def inherit() -> None:
            writing.close()
            _, (fd, *_), _, _ = socket.recv_fds(reading, 1, 1)
            reading.recv(1)  # not before it is the only one who has it
            os.close(fd)

        child = harness.fork(inherit)
        with (
            tracer(tool, "--json", "-p", str(child)) as of_child,
            tracer(tool, "--json", "-p", str(os.getpid())) as of_parent,
        ):
            client.connect(server.getsockname())
            ends = client.getsockname()[1], client.getpeername()[1]
            accepted, _ = server.accept()
            socket.send_fds(writing, [b"x"], [client.fileno()])
            client.close()
            writing.send(b"x")
            assert harness.reap(child) == 0
            accepted.close()
            time.sleep(0.1)
            parts = [between(one.events(), *ends) for one in (of_child, of_parent)]
        rows = between(whole.events(), *ends)
        reading.close()
        writing.close()
    keys = [[identity(e) for e in part] for part in (rows, *parts)]
    assert set(keys[1]) < set(keys[0]) and set(keys[2]) <= set(keys[0])
    assert {e["pid"] for e in parts[0]} == {child}
    assert child in {e["pid"] for e in parts[1]}


def identity(row: Event) -> tuple[object, ...]:
    """What a row says, but for what differs from one tracer to the next."""
    own = {"time", "ts_ns", "duration_ns", "skaddr"}
    return (*sorted((k, str(v)) for k, v in row.items() if k not in own),)


@pytest.mark.parametrize("uid", [0, 65534])
def test_owned_and_unowned_rows_agree_about_the_user(uid: int) -> None:
    """The effective one, whatever the real one is."""
    with tracer("states", "--json", "-u", str(uid)) as running:
        os.setresuid(65534 - uid, uid, 0)
        try:
            lport, port = harness.session()
        finally:
            os.setresuid(0, 0, 0)
        rows = between(running.events(), lport, port)
    assert {e["uid"] for e in rows} == {uid}
    assert len(rows) == 10
    assert {e["pid"] for e in rows} == {None, os.getpid()}


# --- life: sessions older than the trace, Fast Open, errors that are no end


def pin(path: Path, key: int) -> Path:
    """A pinned map with one key."""
    numbers = " ".join(map(str, key.to_bytes(8, "little")))
    harness.sh(f"bpftool map create '{path}' type hash key 8 value 8 entries 9 name x")
    harness.sh(f"bpftool map update pinned '{path}' key {numbers} value 0 0 0 0 0 0 0 0")
    return path


def join(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


@contextmanager
def held_by(prepare: Callable[[], object]) -> Iterator[tuple[int, int]]:
    """A connection of a process that is so prepared and does nothing; the process and its port.
    The process ends with the block, and closes nothing before."""
    # Sockets: tracers close those that they inherit, so that the end is ours alone.
    (told, tell), (waiting, end) = os.pipe(), socket.socketpair()

    def hold(port: int) -> None:
        end.close()
        prepare()
        client = harness.connect("127.0.0.1", port)
        os.write(tell, client.getsockname()[1].to_bytes(2, "little"))
        waiting.recv(1)
        os._exit(0)

    with harness.listener() as server, waiting:
        child = harness.fork(lambda: hold(server.getsockname()[1]))
        try:
            yield child, int.from_bytes(os.read(told, 2), "little")
        finally:
            end.close()
            assert harness.reap(child) == 0


@pytest.mark.parametrize("option", ["--cgroup", "--cgroupmap", "--mntnsmap"])
def test_older_sessions_of_a_group(option: str, pins: Path) -> None:
    with harness.cgroup() as group, harness.cgroup() as other:
        inner = group / "inner"
        inner.mkdir()
        mounts = Path("/proc/self/ns/mnt").stat().st_ino
        values = {
            "--cgroup": (group, other),
            "--cgroupmap": (
                pin(pins / "a", inner.stat().st_ino),
                pin(pins / "b", group.stat().st_ino),
            ),
            "--mntnsmap": (pin(pins / "c", mounts), pin(pins / "d", mounts + 1)),
        }
        try:
            with held_by(lambda: join(inner)) as (pid, port):
                found = []
                for value in values[option]:
                    arguments = ("--all", "--open", option, str(value))
                    with tracer("life", "--json", *arguments) as running:
                        found.append([e for e in running.events() if e["lport"] == port])
        finally:
            inner.rmdir()
    assert [[e["pid"] for e in rows] for rows in found] == [[pid], []]


def test_an_older_session_of_two_processes() -> None:
    """Either of them passes the filter, whichever has the row."""
    waiting, end = socket.socketpair()
    with harness.pair() as (client, _), waiting:
        lport = client.getsockname()[1]

        def hold() -> None:
            end.close()
            waiting.recv(1)

        child = harness.fork(hold)
        try:
            shown = []
            for pid in (os.getpid(), child, 1):
                with tracer("life", "--json", "--all", "--open", "-p", str(pid)) as running:
                    rows = running.events()
                shown.append([e["pid"] for e in rows if e["lport"] == lport])
        finally:
            end.close()
            assert harness.reap(child) == 0
    assert shown[0] == shown[1] and shown[0] in ([os.getpid()], [child])
    assert shown[2] == []


def test_a_mount_namespace_that_is_left_at_the_exit(pins: Path) -> None:
    """A process that exits has no namespaces any more when its sockets are closed."""

    def unshare() -> None:
        assert ctypes.CDLL(None).unshare(harness.CLONE_NEWNS) == 0

    with ExitStack() as stack:
        pid, port = stack.enter_context(held_by(unshare))
        inode = Path(f"/proc/{pid}/ns/mnt").stat().st_ino
        path = str(pin(pins / "map", inode))
        with tracer("states", "--json", "--mntnsmap", path) as running:
            stack.pop_all().close()
            rows = [e for e in running.events() if e["lport"] == port]
    assert rows[0]["newstate"] == "FIN_WAIT1"
    assert {e["pid"] for e in rows} == {pid}


def nft(namespace: Namespace, rule: str) -> None:
    """A rule for what comes in."""
    chain = "add table ip t; add chain ip t c { type filter hook input priority 0; }"
    harness.sh(f"ip netns exec {namespace.name} nft '{chain}; {rule}'")


def nft_clear(namespace: Namespace) -> None:
    harness.sh(f"ip netns exec {namespace.name} nft delete table ip t")


@pytest.mark.parametrize("tool", ["life", "tracer"])
def test_fast_open_closed_before_the_handshake_ends(tool: str, net: Net) -> None:
    """The server takes the data of the SYN, answers and closes; then the client's ACK comes."""
    here, there = net
    for namespace in net:
        harness.sh(f"ip netns exec {namespace.name} sysctl -q net.ipv4.tcp_fastopen=0x607")
    address = (there.address, 7000)
    with tracer(tool, "--json") as running:
        with there.entered():
            server = harness.listener(*address)
        server.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 5)
        with here.entered():
            client = socket.socket()
        with server, client:
            # The client's SYN comes through, nothing after it until the server has closed.
            nft(here, "add rule ip t c tcp flags & syn == syn drop")
            client.setblocking(False)
            with suppress(BlockingIOError):
                client.sendto(b"question", MSG_FASTOPEN, address)
            accepted, _ = server.accept()
            assert accepted.recv(100) == b"question"
            accepted.sendall(b"answer")
            accepted.close()
            nft_clear(here)
            client.setblocking(True)
            client.settimeout(harness.PATIENCE)
            assert client.recv(100) == b"answer"
            lport = client.getsockname()[1]
        time.sleep(0.3)
        rows = [e for e in running.events() if (e["lport"], e["rport"]) == (7000, lport)]
    assert {e["pid"] for e in rows} == {os.getpid()}
    if tool == "life":
        assert [(e["rx_bytes"], e["tx_bytes"]) for e in rows] == [(8, 6)]
    else:
        assert [e["action"] for e in rows] == ["accept", "close"]


def test_an_icmp_error_is_no_end(net: Net) -> None:
    """With IP_RECVERR it stays in the socket until somebody asks; the session ends by FIN."""
    here, there = net
    with tracer("life", "--json") as running:
        with there.entered():
            server = harness.listener(there.address, 7001)
        with here.entered():
            client = harness.connect(there.address, 7001)
        with server, client, server.accept()[0] as accepted:
            client.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            nft(there, "add rule ip t c tcp dport 7001 reject with icmp type host-unreachable")
            client.sendall(b"x")
            # The first error comes while sendall has the lock, and is only noted (sk_err_soft);
            # that of the segment sent again stays.
            time.sleep(0.6)
            nft_clear(there)
            assert accepted.recv(1) == b"x"  # sent again
            lport = client.getsockname()[1]
            client.close()
            assert accepted.recv(1) == b""
        time.sleep(0.2)
        rows = between(running.events(), lport, 7001)
    assert {e["reason"] for e in rows} == {"fin"}
    assert len(rows) == 2


# --- sockets that are odd, or used again


@pytest.mark.parametrize(("tool", "rows"), [("states", 4), ("tracer", 2), ("life", 1)])
def test_a_socket_that_connects_to_itself(tool: str, rows: int, attach: str) -> None:
    """A simultaneous open: from SYN_SENT to SYN_RECV, and still the same connection and owner."""
    with tracer(tool, "--json", "--attach", attach) as running:
        with socket.socket() as client:
            client.bind(("127.0.0.1", 0))
            port = client.getsockname()[1]
            client.connect(("127.0.0.1", port))
            harness.reset(client)
        events = [e for e in running.events() if e["lport"] == e["rport"] == port]
    assert {e["pid"] for e in events} == {os.getpid()}
    assert len(events) == rows
    if tool == "states":
        states = [e["newstate"] for e in events]
        assert states == ["SYN_SENT", "SYN_RECV", "ESTABLISHED", "CLOSE"]
        assert [e["duration_ns"] is None for e in events] == [True, False, False, False]


def test_odd_sockets_leave_nothing(net: Net) -> None:
    """Raw ones with TCP's number, never connected, disconnected, refused, of MPTCP, abandoned."""
    here, _ = net
    with ExitStack() as stack, harness.listener() as server:
        for tool, maps in (
            *((tool, ("sockets", "calls")) for tool in ("connect", "connlat")),
            *((tool, ("sockets",)) for tool in ("accept", "tracer", "life", "states")),
        ):
            stack.enter_context(kept_empty(tool, *maps))
        port = server.getsockname()[1]
        for _ in range(50 if FEW else 500):
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
            raw.connect(("127.0.0.1", port))
            raw.close()
        for _ in range(20):
            socket.socket().close()
            harness.refuse("127.0.0.1", 9)
            client = harness.connect("127.0.0.1", port)
            harness.disconnect(client)
            client.close()
            with here.entered():
                harness.start_connect(here.nobody, 1004).close()
            with suppress(pytest.skip.Exception), mptcp_pair():
                pass
            server.accept()[0].close()
            harness.reset(harness.connect("127.0.0.1", port))  # and nobody accepts it
            server.accept()[0].close()


def test_raw_sockets_are_no_connects(attach: str) -> None:
    with tracer("connect", "--json", "--attach", attach) as running:
        for _ in range(10):
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
            raw.connect(("127.0.0.1", 5))
            raw.close()
        lport, port = harness.session()
        rows = running.events()
    assert [e["lport"] for e in rows if e["rport"] == port] == [lport]
    assert not [e for e in rows if e["pid"] == os.getpid() and e["rport"] != port]


@pytest.mark.parametrize("tool", ["connect", "connlat"])
@pytest.mark.parametrize("ask_first", [False, True])
def test_fetching_a_result_is_no_connect(tool: str, attach: str, ask_first: bool) -> None:
    """connect() again after a non-blocking one, also where SO_ERROR was read before."""
    closed = harness.refused_port()
    with tracer(tool, "--json", "--attach", attach) as running:
        client = harness.start_connect("127.0.0.1", closed)
        if ask_first:
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        with pytest.raises(OSError):
            client.connect(("127.0.0.1", closed))
        client.close()
        rows = [e for e in running.events() if e["rport"] == closed]
    assert [e["result"] for e in rows] == ["ECONNREFUSED"]


def test_the_local_port_of_a_socket_used_again() -> None:
    """Connect after a failed connect, listen after a disconnect: each with its new port."""
    closed = harness.refused_port()
    with tracer("states", "--json") as running, harness.listener() as server:
        port = server.getsockname()[1]
        client = socket.socket()
        with pytest.raises(ConnectionRefusedError):
            client.connect(("127.0.0.1", closed))
        client.connect(("127.0.0.1", port))
        first = client.getsockname()[1]
        server.accept()[0].close()
        harness.disconnect(client)
        client.listen()
        second = client.getsockname()[1]
        client.close()
        rows = running.events()
    connecting = [e for e in rows if e["rport"] == port and e["newstate"] == "SYN_SENT"]
    assert [e["lport"] for e in connecting] == [first]
    listening = [e for e in rows if e["newstate"] == "LISTEN" and e["lport"] in (first, second)]
    assert [e["lport"] for e in listening] == [second]


def test_a_connect_that_fails_before_it_has_a_port(net: Net) -> None:
    """Nor does it show the one of the socket's attempt before."""
    here = net[0]
    with here.entered(), tracer("connect", "--json") as running:
        client = socket.socket()
        with pytest.raises(ConnectionRefusedError):
            client.connect((here.peer, 9))
        with pytest.raises(OSError):
            client.connect(("198.51.100.1", 1005))  # RFC 5737: there is no route
        client.close()
        rows = [e for e in running.events() if e["rport"] == 1005]
    assert [(e["result"], e["lport"]) for e in rows] == [("ENETUNREACH", None)]


@pytest.mark.parametrize("tool", ["accept", "tracer"])
@pytest.mark.parametrize("is_reset", [False, True])
def test_a_32_bit_program(tool: str, attach: str, is_reset: bool, tmp_path: Path) -> None:
    """Its calls have no tracepoints of their own: it is seen when it closes, or not any more."""
    if platform.machine() != "x86_64":
        pytest.skip("int 0x80 is x86's")
    program, source = tmp_path / "compat", Path(__file__).with_name("compat.c")
    harness.sh(f"gcc -o '{program}' '{source}'")
    port = harness.refused_port()
    with tracer(tool, "--json", "--attach", attach) as running:
        with subprocess.Popen([program, str(port)], stdout=subprocess.PIPE) as server:
            assert server.stdout and server.stdout.readline()
            with harness.connect("127.0.0.1", port) as client:
                lport = client.getsockname()[1]
                accepted = client.recv(1)
                if is_reset:
                    harness.reset(client)
            code = server.wait(harness.PATIENCE)
        rows = [e for e in running.events() if (e["lport"], e["rport"]) == (port, lport)]
    if code == 77:
        pytest.skip("this kernel takes no 32-bit calls")
    assert accepted == b"x"
    unseen = is_reset and attach == "tracepoint"
    assert {e["pid"] for e in rows} == {None if unseen else server.pid}
    assert [e.get("action") for e in rows] == (["accept", "close"] if tool == "tracer" else [None])


def test_a_listener_on_a_mapped_address_is_ipv4() -> None:
    with tracer("states", "--json", "-4") as running, harness.listener("::ffff:127.0.0.1") as one:
        port = one.getsockname()[1]
        running.wait_for(lambda e: e["lport"] == port)
    rows = [e for e in running.records() if e.get("lport") == port]
    assert {(e["family"], e["laddr"], e["raddr"]) for e in rows} == {
        ("ipv4", "127.0.0.1", "0.0.0.0")
    }


def test_an_address_at_the_end_of_a_page(attach: str) -> None:
    """Behind an IPv4 address nothing is readable; the connect fails at once."""
    page = mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    start = libc.mmap(None, 2 * page, mmap.PROT_READ | mmap.PROT_WRITE, 0x22, -1, 0)
    assert libc.munmap(ctypes.c_void_p(start + page), page) == 0
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H", 1006)
    address += ipaddress.ip_address("255.255.255.255").packed + bytes(8)
    ctypes.memmove(start + page - len(address), address, len(address))
    with tracer("connect", "--json", "--attach", attach) as running:
        with socket.socket() as client:
            where = ctypes.c_void_p(start + page - len(address))
            assert libc.connect(client.fileno(), where, len(address)) == -1
        rows = [e for e in running.events() if e["rport"] == 1006]
    assert [e["raddr"] for e in rows] == ["255.255.255.255"]
    assert rows[0]["result"] not in ("ok", "EINPROGRESS")


@pytest.mark.parametrize(("tool", "rows"), [("accept", 1), ("tracer", 2)])
def test_each_accept_of_a_storm_is_told_once(tool: str, rows: int, tmp_path: Path) -> None:
    """Resets come on one CPU while accept() returns on another. The server's side alone."""
    many = 2_000 if FEW else 50_000
    storming = storm.build(tmp_path, many, 1)
    output = tmp_path / "rows.csv"
    options = ("--laddr", storm.ADDRESS, "--buffer", "16M", "-o", str(output))
    with tracer(tool, "--csv", *options) as running:
        storming.run()
        assert running.stop() == 0
        assert not [line for line in running.errors() if "lost" in line]
    with output.open(newline="") as file:
        told = Counter(
            (row["lport"], row["rport"], row.get("action")) for row in csv.DictReader(file)
        )
    assert told.total() == rows * many
    if tool == "tracer":  # a port may be in use twice
        for lport, rport, _ in list(told):
            assert told[lport, rport, "accept"] == told[lport, rport, "close"]
