"""connect on real connects."""

from __future__ import annotations

import csv
import ctypes
import os
import platform
import resource
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.facts import Facts
from tests.live import harness
from tests.live.harness import Event, Net, Tracer, tracer

FACTS = Facts(
    header="PID    COMM        IP SADDR           DADDR           DPORT RESULT",
    fields=frozenset({"duration_ns", "cgroup_id", "tid", "result", "query", "query_age_ns"}),
    reset=1,
    closed=1,
)
NOWHERE = "198.51.100.1"  # RFC 5737; only where there is no route


def to_ports(events: list[Event], *ports: int) -> list[Event]:
    return [e for e in events if e["rport"] in ports]


def attempt(host: str, port: int) -> None:
    """A connect that may fail."""
    with suppress(OSError):
        harness.connect(host, port).close()


def libc(function: str, *arguments: object) -> int:
    """A call of the C library; OSError if it returns -1."""
    result: int = getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


@pytest.mark.each_variant
def test_ok_and_refused(attach: str) -> None:
    closed = harness.refused_port()
    with tracer("connect", "--json", "--attach", attach) as running, harness.listener() as server:
        port = server.getsockname()[1]
        with harness.connect("127.0.0.1", port) as client:
            lport = client.getsockname()[1]
        harness.refuse("127.0.0.1", closed)
        events = running.events()
    (ok,) = to_ports(events, port)
    assert attach in running.ways.values()
    assert (ok["result"], ok["family"], ok["laddr"], ok["raddr"]) == (
        *("ok", "ipv4"),
        *("127.0.0.1", "127.0.0.1"),
    )
    assert (ok["lport"], ok["pid"], ok["tid"]) == (lport, os.getpid(), threading.get_native_id())
    assert ok["duration_ns"] > 0 and ok["query"] is None
    (refused,) = to_ports(events, closed)
    assert (refused["result"], refused["pid"]) == ("ECONNREFUSED", os.getpid())


def test_ipv6_and_v4mapped(attach: str) -> None:
    with (
        tracer("connect", "--json", "--attach", attach) as running,
        harness.listener("::") as server,
    ):
        port = server.getsockname()[1]
        harness.connect("::1", port).close()
        harness.connect("::ffff:127.0.0.1", port).close()
        server.close()
        attempt("::1", port)
        attempt("::ffff:127.0.0.1", port)
        events = to_ports(running.events(), port)
    both = [("ipv6", "::1"), ("ipv4", "127.0.0.1")]
    assert [(e["family"], e["laddr"], e["raddr"], e["result"]) for e in events] == [
        (family, host, host, result) for result in ("ok", "ECONNREFUSED") for family, host in both
    ]


def test_nonblocking_refused(attach: str) -> None:
    closed = harness.refused_port()
    with tracer("connect", "--json", "--attach", attach) as running:
        harness.start_hanging("127.0.0.1", closed).close()
        (event,) = to_ports(running.events(), closed)
    assert (event["result"], event["pid"]) == ("ECONNREFUSED", os.getpid())


def test_a_socket_that_connects_again(attach: str) -> None:
    closed = harness.refused_port()
    with (
        tracer("connect", "--json", "--attach", attach) as running,
        harness.listener() as server,
        socket.socket() as client,
    ):
        with pytest.raises(ConnectionRefusedError):
            client.connect(("127.0.0.1", closed))
        client.connect(server.getsockname())
        with pytest.raises(OSError, match="already connected"):
            client.connect(server.getsockname())
        port = server.getsockname()[1]
        events = to_ports(running.events(), closed, port)
    assert [(e["rport"], e["result"]) for e in events] == [(closed, "ECONNREFUSED"), (port, "ok")]


def test_timed_out_unreachable_and_aborted(attach: str, net: Net) -> None:
    here = net[0]
    with tracer("connect", "--json", "--attach", attach, "--netns", here.name) as running:
        with here.entered():
            harness.connect_unanswered(here)
        events = running.events()
    assert {e["rport"]: e["result"] for e in events} == harness.UNANSWERED
    assert len(events) == 3
    assert {(e["pid"], e["laddr"]) for e in events} == {(os.getpid(), here.address)}


def test_no_free_port(attach: str, net: Net) -> None:
    here, there = net
    with there.entered(), harness.listener(there.address) as server:
        port = server.getsockname()[1]
        with (
            tracer("connect", "--json", "--attach", attach, "--netns", here.name) as running,
            here.entered(),
        ):
            harness.connect_without_a_port(there.address, port)
            events = running.events()
    assert [(e["raddr"], e["rport"], e["result"], e["pid"]) for e in events] == [
        (there.address, port, result, os.getpid()) for result in ("ok", "EADDRNOTAVAIL")
    ]


def test_no_route(attach: str, net: Net) -> None:
    """It fails before the first state change, and leaves no peer in the socket."""
    here = net[0]
    hosts = {1: NOWHERE, 2: "2001:db8::1", 3: f"::ffff:{NOWHERE}"}
    with tracer("connect", "--json", "--attach", attach, "--netns", here.name) as running:
        with here.entered():
            for port, host in hosts.items():
                with pytest.raises(OSError, match="Network is unreachable"):
                    harness.connect(host, port)
        events = running.events()
    assert [(e["rport"], e["family"], e["raddr"], e["lport"]) for e in events] == [
        (1, "ipv4", NOWHERE, None),
        (2, "ipv6", "2001:db8::1", None),
        (3, "ipv4", NOWHERE, None),
    ]
    assert {(e["result"], e["pid"]) for e in events} == {("ENETUNREACH", os.getpid())}


# include/uapi/linux/bpf.h: r0 = 0; exit. A program of this type and place that returns 0 refuses.
_REFUSE = bytes.fromhex("b7000000000000009500000000000000")
_PROG_LOAD, _PROG_ATTACH = 5, 8
_CGROUP_SOCK_ADDR, _INET4_CONNECT, _INET6_CONNECT = 18, 10, 11
_BPF = {"x86_64": 321, "aarch64": 280}


def bpf(command: int, attributes: bytes) -> int:
    """bpf(2); a file descriptor."""
    return libc("syscall", _BPF[platform.machine()], command, attributes, len(attributes))


def refuse_connects(group: Path, place: int) -> None:
    """Until the cgroup is gone."""
    # Before Linux 5.11 programs count as locked memory; libbpf raises the limit for itself.
    with suppress(ValueError):  # later kernels need it not, and may not allow it
        unlimited = resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (unlimited, unlimited))
    code = ctypes.create_string_buffer(_REFUSE, len(_REFUSE))
    license = ctypes.create_string_buffer(b"GPL")
    where = [ctypes.addressof(x) for x in (code, license)]
    head = struct.pack("=IIQQ", _CGROUP_SOCK_ADDR, len(_REFUSE) // 8, *where)
    program = bpf(_PROG_LOAD, head + struct.pack("=44xI", place))
    folder = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    try:
        bpf(_PROG_ATTACH, struct.pack("=IIII", folder, program, place, 0))
    finally:
        os.close(folder)
        os.close(program)


def test_refused_by_a_bpf_program(attach: str) -> None:
    with harness.cgroup() as group, harness.listener("::") as server:
        for place in (_INET4_CONNECT, _INET6_CONNECT):
            refuse_connects(group, place)
        port = server.getsockname()[1]

        def act() -> None:
            harness.join_cgroup(group)
            for host in ("127.0.0.1", "::1"):
                with pytest.raises(PermissionError):
                    harness.connect(host, port)

        with tracer("connect", "--json", "--attach", attach) as running:
            child = harness.fork(act)
            assert harness.reap(child) == 0
            identity = group.stat().st_ino
            events = to_ports(running.events(), port)
    assert [(e["raddr"], e["result"]) for e in events] == [("127.0.0.1", "EPERM"), ("::1", "EPERM")]
    assert {(e["pid"], e["cgroup_id"], e["lport"]) for e in events} == {(child, identity, None)}


# include/uapi/linux/landlock.h
_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_ACCESS_NET_CONNECT_TCP = 2


def landlock() -> None:
    """This process may not connect any more; OSError if the kernel has no such rule (6.7)."""
    attributes = struct.pack("=QQ", 0, _ACCESS_NET_CONNECT_TCP)
    rules = libc("syscall", _CREATE_RULESET, attributes, len(attributes), 0)
    libc("syscall", _RESTRICT_SELF, rules, 0)


def test_refused_by_a_security_module(attach: str) -> None:
    if harness.reap(harness.fork(landlock)):
        pytest.skip("this kernel's landlock knows no network")

    def act() -> None:
        landlock()
        with pytest.raises(PermissionError):
            harness.connect("127.0.0.1", port)

    with tracer("connect", "--json", "--attach", attach) as running, harness.listener() as server:
        port = server.getsockname()[1]
        child = harness.fork(act)
        assert harness.reap(child) == 0
        (event,) = to_ports(running.events(), port)
    assert (event["result"], event["pid"], event["raddr"]) == ("EACCES", child, "127.0.0.1")


def test_no_connect_at_all(attach: str) -> None:
    """AF_UNSPEC ends a connection. The trace's end must not make a connect of it."""
    with (
        tracer("connect", "--json", "--attach", attach, "-p", str(os.getpid())) as running,
        harness.listener() as server,
        socket.socket() as fresh,
        socket.socket() as used,
    ):
        used.connect(server.getsockname())
        for client in (fresh, used, used):
            libc("connect", client.fileno(), bytes(16), 16)
        assert [e["rport"] for e in running.events()] == [server.getsockname()[1]]


def test_an_address_of_another_family(attach: str) -> None:
    """The kernel refuses it; it is no IPv4 address."""
    address = struct.pack("=H14s", socket.AF_UNIX, b"/nowhere")
    with (
        tracer("connect", "--json", "--attach", attach, "-p", str(os.getpid())) as running,
        socket.socket() as client,
    ):
        with pytest.raises(OSError, match="not supported"):
            libc("connect", client.fileno(), address, len(address))
        assert running.events() == []


def test_pending_when_the_trace_ends(attach: str, net: Net) -> None:
    """One that hangs in connect(), and one whose process does something else."""
    here = net[0]
    with (
        tracer("connect", "--json", "--attach", attach, "--netns", here.name) as running,
        here.entered(),
        socket.socket() as blocking,
        harness.start_hanging(here.nobody, 1005) as client,
    ):
        child = harness.fork(lambda: blocking.connect((here.nobody, 1006)))
        harness.until(lambda: blocking.getsockname()[1] != 0 and in_syn_sent(blocking))
        lports = client.getsockname()[1], blocking.getsockname()[1]
        events = running.events()
        os.kill(child, signal.SIGKILL)
        assert harness.reap(child) == -signal.SIGKILL
    seen = [(e["rport"], e["lport"], e["result"], e["pid"]) for e in events]
    assert sorted(seen) == [
        (1005, lports[0], "EINPROGRESS", os.getpid()),
        (1006, lports[1], "EINPROGRESS", child),
    ]


def in_syn_sent(client: socket.socket) -> bool:
    """struct tcp_info begins with the state; include/net/tcp_states.h."""
    return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\2"


@pytest.mark.parametrize("what", ["returns", "restarts", "has a timeout"])
def test_a_signal_during_connect_is_no_result(attach: str, what: str, net: Net) -> None:
    """The call returns, or begins again, and the connect goes on. With a timeout (SO_SNDTIMEO) the
    kernel, too, says EINTR, else ERESTARTSYS (include/net/sock.h, sock_intr_errno)."""
    here = net[0]
    heard, say = socket.socketpair()

    def act() -> None:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.siginterrupt(signal.SIGUSR1, what != "restarts")
        signal.set_wakeup_fd(say.fileno(), warn_on_full_buffer=False)
        address = struct.pack("=H", socket.AF_INET) + struct.pack("!H", 1008)
        address += socket.inet_aton(here.nobody) + bytes(8)
        with pytest.raises(InterruptedError):
            libc("connect", blocking.fileno(), address, len(address))
        signal.pause()

    with (
        tracer("connect", "--json", "--attach", attach, "--netns", here.name) as running,
        here.entered(),
        socket.socket() as blocking,
    ):
        say.setblocking(False)
        if what == "has a timeout":
            blocking.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 300, 0))
        child = harness.fork(act)
        harness.until(lambda: in_syn_sent(blocking))
        os.kill(child, signal.SIGUSR1)
        assert heard.recv(1)
        events = running.events()
        os.kill(child, signal.SIGKILL)
        assert harness.reap(child) == -signal.SIGKILL
    heard.close()
    say.close()
    assert [(e["rport"], e["result"], e["pid"]) for e in events] == [(1008, "EINPROGRESS", child)]


def test_owner_is_the_connecting_task(attach: str) -> None:
    def act() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        os.setgid(65534)
        os.setuid(65534)
        with harness.task_name(b"connector"):
            thread = threading.Thread(target=attempt, args=("127.0.0.1", closed))
            attempt("127.0.0.1", closed)
            thread.start()
            thread.join()

    closed = harness.refused_port()
    with harness.cgroup() as group, tracer("connect", "--json", "--attach", attach) as running:
        child = harness.fork(act)
        assert harness.reap(child) == 0
        main, thread = to_ports(running.events(), closed)
        assert {main["cgroup_id"], thread["cgroup_id"]} == {group.stat().st_ino}
    assert main["tid"] == child and thread["tid"] != child
    for event in (main, thread):
        assert (event["pid"], event["uid"], event["comm"]) == (child, 65534, "connector")
        assert event["netns"] == Path("/proc/self/ns/net").stat().st_ino


def flows(running: Tracer) -> list[Event]:
    """What was counted. The kernel skips a program now and then while the tracer looks into a map
    on that CPU; then another hook sees the connect."""
    assert running.stop() == 0, running.errors()
    lost = [r for r in running.records() if r["type"] == "lost"]
    assert not any(r["ring"] or r["map"] for r in lost)
    return [r for r in running.records() if r["type"] == "flow"]


def test_count(attach: str) -> None:
    """Exactly, also when several CPUs begin to count the same flow at once."""
    each, threads = (10, 4) if harness.EMULATED else (100, 4)
    arguments = ("--json", "--attach", attach, "-p", str(os.getpid()))
    with (
        tracer("connect", "-c", *arguments) as running,
        harness.listener("::") as one,
        harness.listener("::") as two,
    ):
        first, second = (server.getsockname()[1] for server in (one, two))
        closed = harness.refused_port()
        start = threading.Barrier(threads)

        def act() -> None:
            start.wait()
            for i in range(each):
                attempt("127.0.0.1", first)
                attempt("127.0.0.1", closed)
                if i % 2:
                    attempt("::1", first)
                if i % 5 == 0:
                    attempt("127.0.0.1", second)

        workers = [threading.Thread(target=act) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        rows = flows(running)
    expected = {
        (first, "127.0.0.1"): (each * threads, 0),
        (closed, "127.0.0.1"): (each * threads, each * threads),
        (first, "::1"): (each // 2 * threads, 0),
        (second, "127.0.0.1"): (each // 5 * threads, 0),
    }
    assert {(f["rport"], f["raddr"]): (f["connects"], f["failed"]) for f in rows} == expected
    counts = [f["connects"] for f in rows]
    assert len(rows) == len(expected) and counts == sorted(counts, reverse=True)
    assert {f["lport"] for f in rows} == {None} and all(f["laddr"] == f["raddr"] for f in rows)
    assert {f["netns"] for f in rows} == {Path("/proc/self/ns/net").stat().st_ino}


@pytest.mark.any_kernel
def test_count_in_every_format() -> None:
    """Side by side on the same connects, with the local port and without."""
    styles = {"table": (), "json": ("--json",), "csv": ("--csv",), "wide": ("--wide",)}
    common = ("connect", "-c", "-p", str(os.getpid()))
    with ExitStack() as stack:
        plain, split = (
            {
                name: stack.enter_context(tracer(*common, *style, *lport))
                for name, style in styles.items()
            }
            for lport in ((), ("--show-lport",))
        )
        with harness.listener() as server:
            port = server.getsockname()[1]
            lports = set()
            for _ in range(3):
                with harness.connect("127.0.0.1", port) as client:
                    lports.add(client.getsockname()[1])
        attempt("127.0.0.1", port)
        for running in (*plain.values(), *split.values()):
            assert running.stop() == 0, running.errors()

    (flow,) = (r for r in plain["json"].records() if r["type"] == "flow")
    assert flow["tool"] == "connect"
    assert (flow["connects"], flow["failed"], flow["rport"]) == (4, 1, port)
    several = [r for r in split["json"].records() if r["type"] == "flow"]
    assert len(several) == 4 and {(f["connects"], f["rport"]) for f in several} == {(1, port)}
    assert {f["lport"] for f in several if not f["failed"]} == lports

    (row,) = csv.DictReader(plain["csv"].out.lines)
    assert (row["connects"], row["failed"], row["lport"]) == ("4", "1", "")
    rows = list(csv.DictReader(split["csv"].out.lines))
    assert {int(row["lport"]) for row in rows if row["failed"] == "0"} == lports

    for style in ("table", "wide"):
        header, line = plain[style].out.lines
        assert header.split() == ["LADDR", "RADDR", "RPORT", "CONNECTS", "FAILED"]
        assert line.split() == ["127.0.0.1", "127.0.0.1", str(port), "4", "1"]
        assert len(line) == header.index("FAILED") + 1
        header, *lines = split[style].out.lines
        assert header.split() == ["LADDR", "RADDR", "LPORT", "RPORT", "CONNECTS", "FAILED"]
        assert {int(line.split()[2]) for line in lines if line.endswith(" 0")} == lports


def test_a_connect_without_an_answer_has_not_failed(attach: str, net: Net) -> None:
    here = net[0]
    arguments = ("--json", "--attach", attach, "--netns", here.name)
    with (
        tracer("connect", "-c", *arguments) as running,
        here.entered(),
        harness.start_hanging(here.nobody, 1009),
    ):
        (flow,) = flows(running)
    assert (flow["rport"], flow["connects"], flow["failed"]) == (1009, 1, 0)


def test_the_time_of_a_socket_that_connects_again(attach: str) -> None:
    """From its own connect(): not from one that failed, nor from one that was disconnected."""
    closed = harness.refused_port()
    with (
        tracer("connect", "--json", "--attach", attach) as running,
        harness.listener() as server,
        socket.socket() as client,
    ):
        port = server.getsockname()[1]
        begins = []
        for target in (closed, port, port):
            begins.append(time.monotonic_ns())
            with suppress(ConnectionRefusedError):
                client.connect(("127.0.0.1", target))
                harness.disconnect(client)
        events = to_ports(running.events(), closed, port)
    assert [e["rport"] for e in events] == [closed, port, port]
    for begin, event in zip(begins, events, strict=True):
        assert begin <= event["ts_ns"] - event["duration_ns"] <= event["ts_ns"]


def test_an_interval_shows_what_is_new(attach: str) -> None:
    first, second = harness.refused_port(), harness.refused_port()
    arguments = ("--json", "--attach", attach, "-p", str(os.getpid()), "-i", "0.1")
    with tracer("connect", "-c", *arguments) as running:
        for port in (first, second):
            attempt("127.0.0.1", port)
            running.wait_for(lambda row, port=port: row["rport"] == port)  # type: ignore[misc]
        attempt("127.0.0.1", first)
        rows = flows(running)
    assert [(f["rport"], f["connects"], f["failed"]) for f in rows] == [
        (port, 1, 1) for port in (first, second, first)
    ]


def test_more_flows_than_the_map_has_room_for() -> None:
    """They share a row; nothing is lost."""
    ports = [harness.refused_port() for _ in range(8)]
    pid = str(os.getpid())
    with tracer("connect", "-c", "--json", "-p", pid, "--map-size", "4") as running:
        for port in ports:
            attempt("127.0.0.1", port)
        assert running.stop() == 0
    *counted, other = [r for r in running.records() if r["type"] == "flow"]
    assert len(counted) == 4 and (other["raddr"], other["rport"]) == ("other", None)
    assert sum(f["connects"] for f in (*counted, other)) == len(ports)
    assert sum(f["failed"] for f in (*counted, other)) == len(ports)
    assert [r for r in running.records() if r["type"] == "lost"] == []


COLUMNS = "PID COMM IP SADDR DADDR DPORT RESULT"
WIDE = "PID COMM IP SADDR LPORT DADDR DPORT RESULT TID UID NETNS"


@pytest.mark.any_kernel
def test_tables() -> None:
    """Side by side on the same connects; cells stand below their titles."""
    tables = {
        (): COLUMNS,
        ("-U",): COLUMNS.replace("PID", "UID PID"),
        ("--show-lport",): COLUMNS.replace("DADDR", "LPORT DADDR"),
        ("--wide",): WIDE,
        ("-t",): f"TIME(s) {COLUMNS}",
        ("-T",): f"TIME {COLUMNS}",
        ("-T", "-t", "-U", "--show-lport"): "TIME TIME(s) "
        + COLUMNS.replace("PID", "UID PID").replace("DADDR", "LPORT DADDR"),
    }
    closed = harness.refused_port()
    with ExitStack() as stack:
        running = {
            options: stack.enter_context(tracer("connect", *options, "-P", str(closed)))
            for options in tables
        }
        attempt("127.0.0.1", closed)
        for each in running.values():
            assert each.stop() == 0
    for options, expected in tables.items():
        header, row = running[options].out.lines
        assert header.split() == expected.split()
        cells = dict(zip(header.split(), row.split(), strict=True))
        assert (cells["IP"], cells["DPORT"]) == ("4", str(closed))
        assert (cells["SADDR"], cells["DADDR"]) == ("127.0.0.1", "127.0.0.1")
        assert (cells["PID"], cells["RESULT"]) == (str(os.getpid()), "ECONNREFUSED")
        assert cells.get("UID", "0") == "0" and cells.get("LPORT") != "0"
        assert row.index("ECONNREFUSED") == header.index("RESULT")
    assert max(map(len, running[()].out.lines)) <= 80


def test_own_and_common_filters() -> None:
    """Side by side: -P is --rport, and adds to it; -u and -p ask for the owner."""
    ports = [harness.refused_port() for _ in range(3)]
    one, two, three = ports
    me = str(os.getpid())
    wanted: dict[Sequence[str], set[int]] = {
        ("-P", f"{one},{two}"): {one, two},
        ("-P", str(one), "-D", str(three)): {one, three},
        ("-D", f"{min(ports)}-{max(ports)}", "-p", me): {one, two, three},
        ("-p", me, "-u", "0"): {one, two, three},
        ("-p", me, "-u", "65534"): set(),
        ("-p", "1"): set(),
        ("-p", me, "--comm", "nobody"): set(),
        ("-p", me, "-6"): set(),
        ("-p", me, "-4", "--raddr", "127.0.0.0/8"): {one, two, three},
    }
    with ExitStack() as stack:
        running = {
            options: stack.enter_context(tracer("connect", "--json", *options))
            for options in wanted
        }
        for port in ports:
            attempt("127.0.0.1", port)
        seen = {options: each.events() for options, each in running.items()}
    for options, expected in wanted.items():
        assert Counter(e["rport"] for e in seen[options]) == Counter(expected), options


def test_failed_connects_leave_nothing_behind(attach: str) -> None:
    """More of each kind than the map has room for."""
    count = 20
    closed = harness.refused_port()
    arguments = ("--json", "--attach", attach, "--map-size", "8", "-p", str(os.getpid()))
    with tracer("connect", *arguments) as running:
        for _ in range(count):
            attempt("127.0.0.1", closed)
            attempt("::1", closed)
            harness.start_hanging("127.0.0.1", closed).close()
        events = running.events()
    assert Counter(e["result"] for e in events) == {"ECONNREFUSED": 3 * count}
    assert {r["type"] for r in running.records()} == {"event"}
