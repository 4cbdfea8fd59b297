"""ports: the local ports in use by destination, and what is left of their range."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import tcpcore
from tcpcore.errors import AlarmError, UsageError
from tests.facts import Facts
from tests.live import harness
from tests.live.harness import Event, Namespace, Net, Tracer, tracer

FACTS = Facts(
    header="LADDR           RADDR           RPORT IN_USE TIMEWAIT BOUND RANGE SHARE% TAKEN"
    "  GIVEN  FAILED !",
    fields=frozenset(
        {
            *("in_use", "syn_sent", "established", "close_wait", "closing", "time_wait"),
            *("bound", "range", "share", "taken", "given_back", "failed", "warn", "interval_ns"),
        }
    ),
)
WAYS = ("tp_btf", "raw_tp")
IP_BIND_ADDRESS_NO_PORT = 24  # include/uapi/linux/in.h
Destination = tuple[str, str, int]  # local address, peer's address and port


@contextlib.contextmanager
def setting(name: str, value: str, of: Namespace | None = None) -> Iterator[None]:
    """Of a namespace, by default the one that the thread is in, now and at the end."""
    path = Path("/proc/sys/net/ipv4", name)
    inside = of.entered if of else contextlib.nullcontext
    with inside():
        before = path.read_text()
        path.write_text(value)
    try:
        yield
    finally:
        with inside():
            path.write_text(before)


@pytest.fixture
def alone() -> Iterator[Namespace]:
    """The thread in a namespace that nobody else uses; servers listen below its range."""
    with (
        harness.namespaces() as (here, _),
        here.entered(),
        setting("ip_local_port_range", "40000 49999"),
    ):
        yield here


@contextlib.contextmanager
def looking(at: Namespace, *arguments: str) -> Iterator[Tracer]:
    options = ("--json", "--netns", at.name, "-i", "0.2", "-r", "4096", *arguments)
    with tracer("ports", *options) as running:
        yield running


def now(at: Namespace, uid: int | None = None, pid: int | None = None) -> list[Event]:
    with tcpcore.trace("ports", now=True, netns=at.name, uid=uid, pid=pid) as events:
        return [vars(row) for row in events]


def of(rows: list[Event], port: int) -> Event:
    (found,) = [row for row in rows if row["rport"] == port]
    return found


def bound(rows: list[Event]) -> Event:
    (found,) = [row for row in rows if row["raddr"] == "any"]
    return found


def flows(running: Tracer) -> list[Event]:
    found = running.events("flow")
    assert not [x for x in running.records() if x["type"] == "lost"]
    return found


# Of ss(8); the others are those of a connection that is closing.
STATES = {
    "SYN-SENT": "syn_sent",
    "ESTAB": "established",
    "CLOSE-WAIT": "close_wait",
    "TIME-WAIT": "time_wait",
}


def seen_by_ss() -> dict[Destination, Counter[str]]:
    """By destination, how many sockets are in each state; servers have ports below."""
    found: dict[Destination, Counter[str]] = {}
    for line in harness.sh("ss -Htan state connected 'sport >= :10000'").splitlines():
        state, _, _, local, peer = line.split()[:5]
        address, port = peer.rsplit(":", 1)
        where = local.rsplit(":", 1)[0].strip("[]"), address.strip("[]"), int(port)
        found.setdefault(where, Counter())[STATES.get(state, "closing")] += 1
    return found


def shown(rows: list[Event]) -> dict[Destination, Counter[str]]:
    """The same, of a report."""
    names = (*STATES.values(), "closing")
    found = {(row["laddr"], row["raddr"], row["rport"]): row for row in rows if row["rport"]}
    states = {at: Counter({name: row[name] for name in names}) for at, row in found.items()}
    assert {at: row["in_use"] for at, row in found.items()} == {
        at: counter.total() for at, counter in states.items()
    }
    return {at: +counter for at, counter in states.items()}


@contextlib.contextmanager
def server(port: int, host: str = "127.0.0.1") -> Iterator[socket.socket]:
    with harness.listener(host, port) as listening:
        yield listening


def opened(
    stack: contextlib.ExitStack, to: socket.socket, number: int
) -> list[tuple[socket.socket, socket.socket]]:
    """Clients and the servers' ends."""
    found = []
    for _ in range(number):
        client = stack.enter_context(harness.connect(*to.getsockname()[:2]))
        found.append((client, stack.enter_context(to.accept()[0])))
    return found


def last(rows: list[Event]) -> list[Event]:
    """Those of the last report."""
    return [row for row in rows if row["time"] == rows[-1]["time"]]


@pytest.mark.each_variant
@pytest.mark.parametrize("way", WAYS)
def test_what_is_in_use_is_what_ss_shows(way: str, alone: Namespace) -> None:
    number = 100 if harness.EMULATED else 5000
    with contextlib.ExitStack() as stack:
        one, other = (stack.enter_context(server(port)) for port in (2001, 2002))
        six = stack.enter_context(server(2003, "::1"))
        pairs = opened(stack, one, number)
        opened(stack, other, 7)
        opened(stack, six, 5)
        with looking(alone, "--attach", way) as running:
            for client, accepted in pairs[: number // 5]:
                client.close()
                accepted.close()
            pairs[-1][0].close()
            pairs[-2][1].close()
            running.wait_for(lambda row: row["closing"] == row["close_wait"] == 1)
            there = seen_by_ss()
            rows = last(flows(running))
    assert shown(rows) == there
    row = of(rows, 2001)
    assert (row["in_use"], row["range"], row["bound"]) == (number, 10000, 0)
    assert row["share"] == pytest.approx(number / 10000)
    assert [row[x] for x in ("established", "close_wait", "closing", "time_wait", "syn_sent")] == [
        *(number - number // 5 - 2, 1, 1, number // 5, 0)
    ]


@pytest.mark.any_kernel
def test_thirty_thousand_connections(alone: Namespace) -> None:
    """Most of them in TIME_WAIT, which has no file open."""
    with (
        setting("ip_local_port_range", "12000 59999"),
        setting("tcp_tw_reuse", "0"),
        contextlib.ExitStack() as stack,
    ):
        one, *others = (stack.enter_context(server(port)) for port in (2001, 2002, 2003))
        opened(stack, one, 6_000)
        for other in others * 12:
            with contextlib.ExitStack() as closed:
                for client, _ in opened(closed, other, 1_000):
                    client.close()
        harness.until(lambda: not any(states["closing"] for states in seen_by_ss().values()))
        there, rows = seen_by_ss(), now(alone)
    assert shown(rows) == there
    assert sum(states.total() for states in there.values()) > 29_000


@pytest.mark.each_variant
@pytest.mark.parametrize("way", WAYS)
def test_what_is_taken_and_given_back(way: str, alone: Namespace) -> None:
    """Connections that are there when the trace begins are not taken; short ones count, too."""
    with server(2001) as one, contextlib.ExitStack() as stack:
        old = opened(stack, one, 10)
        with looking(alone, "--attach", way) as running:
            new = opened(stack, one, 20)
            for client, _ in (*new[:15], *old[:3]):
                harness.reset(client)
            harness.refuse("127.0.0.1", 2002)
            with alone.entered(), harness.start_hanging(alone.nobody, 2003):
                hangs = running.wait_for(lambda row: row["rport"] == 2003 and row["syn_sent"] == 1)
                assert hangs["taken"] == 1
            running.wait_for(lambda row: row["rport"] == 2003 and row["given_back"] == 1)
            rows = flows(running)
    sums = {
        port: [sum(row[x] for row in rows if row["rport"] == port) for x in ("taken", "given_back")]
        for port in (2001, 2002, 2003)
    }
    assert sums == {2001: [20, 18], 2002: [1, 1], 2003: [1, 1]}
    assert of(last(rows), 2001)["in_use"] == 12


def fill(to: socket.socket, stack: contextlib.ExitStack) -> int:
    """Connects until there is no port left; how many there were."""
    for number in range(100):
        try:
            opened(stack, to, 1)
        except OSError as e:
            assert e.errno == errno.EADDRNOTAVAIL
            return number
    raise AssertionError("there is no end")


def fail_again(to: socket.socket) -> None:
    """A connect that finds no port, by a socket that had one before."""
    host, port = to.getsockname()[:2]
    with socket.socket(to.family) as client:
        with contextlib.suppress(ConnectionRefusedError):
            client.connect((host, 2999))
        with pytest.raises(OSError) as e:
            client.connect((host, port))
        assert e.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.each_variant
@pytest.mark.parametrize(("way", "host"), [("tp_btf", "127.0.0.1"), ("raw_tp", "::1")])
def test_the_destination_whose_ports_ran_out_is_named(
    way: str, host: str, alone: Namespace
) -> None:
    with (
        setting("ip_local_port_range", "45000 45005"),
        contextlib.ExitStack() as stack,
        server(2001, host) as one,
        server(2002, host) as other,
    ):
        with looking(alone, "--attach", way) as running:
            opened(stack, other, 2)
            assert fill(one, stack) == 6
            fail_again(one)
            rows = flows(running)
        assert sum(row["failed"] for row in rows if row["rport"] == 2001) == 2
        assert not any(row["failed"] for row in rows if row["rport"] != 2001)
        full, half = of(last(rows), 2001), of(last(rows), 2002)
        assert (full["laddr"], full["raddr"], full["share"], full["warn"]) == (host, host, 1, True)
        assert (half["in_use"], half["share"], half["warn"]) == (2, 0.3333, False)


def test_what_bind_and_the_reserved_ports_leave(alone: Namespace) -> None:
    """As connect() itself finds: what is left is what it takes."""
    with (
        setting("ip_local_port_range", "45000 45029"),
        setting("ip_local_reserved_ports", "45003,45010-45018,50000"),
        contextlib.ExitStack() as stack,
        server(2001) as one,
        server(2002) as other,
        server(45001),
    ):
        clients = []
        for port, late in ((0, False), (45002, False), (0, True), (0, False), (45020, False)):
            client = stack.enter_context(socket.socket())
            if late:
                client.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            client.bind(("127.0.0.1", port))
            clients.append(client)
        for client in clients[:3]:
            client.connect(other.getsockname())
        opened(stack, one, 4)
        before = now(alone)
        # 45001 listens, four sockets are bound, two of them without a connection.
        assert bound(before)["in_use"] == 5
        assert [of(before, port)["in_use"] for port in (2001, 2002)] == [4, 3]
        assert {row["range"] for row in before} == {20}
        shares = [of(before, port)["share"] for port in (2001, 2002)]
        assert shares == [(4 + 5) / 20, (1 + 5) / 20]
        assert fill(one, stack) == 20 - 9
        assert fill(other, stack) == 20 - 6
        after = now(alone)
        assert [of(after, port)["share"] for port in (2001, 2002)] == [1, 1]
        assert {row["taken"] for row in after} == {None}


def test_bound_ports_are_taken_and_given_back(alone: Namespace) -> None:
    with socket.socket() as old, socket.socket() as new:
        old.bind(("127.0.0.1", 0))
        with looking(alone) as running:
            new.bind(("127.0.0.1", 0))
            running.wait_for(lambda row: row["raddr"] == "any" and row["taken"] == 1)
            old.close()
            running.wait_for(lambda row: row["raddr"] == "any" and row["given_back"] == 1)
            rows = flows(running)
    assert bound(last(rows))["in_use"] == 1


@pytest.mark.parametrize("way", WAYS)
def test_which_connects_take_a_port(way: str, alone: Namespace) -> None:
    """Not of a socket that bind() has given one; of one that is used again each time."""
    with server(2001) as one, socket.socket() as early, socket.socket() as late:
        late.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        with looking(alone, "--attach", way) as running:
            for client in (early, late):
                client.bind(("127.0.0.1", 0))
                client.connect(one.getsockname())
            running.wait_for(lambda row: row["rport"] == 2001 and row["in_use"] == 2)
            harness.disconnect(late)
            late.connect(one.getsockname())
            rows = flows(running)
    of_one = [row for row in rows if row["rport"] == 2001]
    assert (sum(x["taken"] for x in of_one), sum(x["given_back"] for x in of_one)) == (2, 1)


def test_a_port_of_before_is_taken_again(alone: Namespace) -> None:
    """The only one that there is; its process gives the second connect up."""
    with (
        setting("ip_local_port_range", "45001 45001"),
        server(2001) as one,
        looking(alone) as running,
    ):
        with socket.socket() as client:
            client.connect(one.getsockname())
            harness.disconnect(client)
            client.setblocking(False)
            assert client.connect_ex((alone.nobody, 2002)) == errno.EINPROGRESS
        rows = flows(running)
    assert [sum(row[x] or 0 for row in rows) for x in ("taken", "given_back", "failed")] == [
        2,
        2,
        0,
    ]


def test_each_source_address_has_all_ports(alone: Namespace) -> None:
    """To the same destination."""
    sources = ("127.0.0.2", "127.0.0.3")

    def connect_from(source: str, to: socket.socket, stack: contextlib.ExitStack) -> None:
        client = stack.enter_context(socket.socket())
        client.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        client.bind((source, 0))
        client.connect(to.getsockname())

    with (
        setting("ip_local_port_range", "45000 45005"),
        server(2001) as one,
        contextlib.ExitStack() as stack,
        looking(alone) as running,
    ):
        for source in (sources[0],) * 6 + (sources[1],) * 3:
            connect_from(source, one, stack)
        with pytest.raises(OSError) as e:
            connect_from(sources[0], one, stack)
        assert e.value.errno == errno.EADDRNOTAVAIL
        rows = flows(running)
    failed = {row["laddr"] for row in rows if row["failed"]}
    shares = {row["laddr"]: row["share"] for row in last(rows) if row["rport"]}
    assert (failed, shares) == ({sources[0]}, {sources[0]: 1, sources[1]: 0.5})


def test_a_v4_mapped_destination_is_the_same(alone: Namespace) -> None:
    with (
        setting("ip_local_port_range", "45000 45005"),
        server(2001) as one,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(2):
            stack.enter_context(harness.connect("::ffff:127.0.0.1", 2001))
        assert fill(one, stack) == 6 - 2
        row = of(now(alone), 2001)
    assert (row["raddr"], row["family"], row["in_use"]) == ("127.0.0.1", "ipv4", 6)


def test_what_a_listener_accepts_takes_no_port(alone: Namespace) -> None:
    with server(45001) as listening, contextlib.ExitStack() as stack:
        with setting("ip_local_port_range", "30000 30009"):
            opened(stack, listening, 5)
        rows = now(alone)
    assert [(row["raddr"], row["in_use"]) for row in rows] == [("any", 1)]


def test_other_namespaces_have_ranges_of_their_own(net: Net) -> None:
    """One trace for both."""
    here, there = net
    ranges = {here.name: "41000 41009", there.name: "42000 42019"}
    with contextlib.ExitStack() as stack:
        for place in net:
            stack.enter_context(setting("ip_local_port_range", ranges[place.name], place))
            with place.entered():
                opened(stack, stack.enter_context(server(2001)), 3)
        with looking(here, "--netns", there.name) as running:
            running.wait_for(lambda row: row["rport"] == 2001)
            with there.entered(), server(2002) as more:
                opened(stack, more, 1)
                running.wait_for(lambda row: row["rport"] == 2002 and row["taken"] == 1)
            rows = last(flows(running))
    found = {(row["netns"], row["rport"]): (row["in_use"], row["range"]) for row in rows}
    assert found[here.inode, 2001] == (3, 10)
    assert found[there.inode, 2001] == (3, 20)


@pytest.mark.any_kernel
def test_nobody_can_enter_what_is_not_there() -> None:
    done = harness.run("ports", "--now", "--netns", str((1 << 32) - 1))
    assert done.returncode == UsageError.exit_code
    assert done.stderr.startswith("tcpcore: --netns: no process is in 4294967295")


def test_the_threads_in_other_namespaces_give_up_their_rights(net: Net) -> None:
    here, there = net
    names = ("Uid", "Gid", "CapInh", "CapPrm", "CapEff", "CapBnd", "NoNewPrivs")
    with looking(here, "--netns", there.name) as running:
        running.wait_for(lambda row: row["netns"] == there.inode)
        threads = list(Path(f"/proc/{running.pid}/task").iterdir())
        told = [(each / "status").read_text().splitlines() for each in threads]
        rights = [[x for x in lines if x.partition(":")[0] in names] for lines in told]
        assert len(rights) > 2 and all(each == rights[0] for each in rights)
        assert "Uid:\t0" not in rights[0][0] and "NoNewPrivs:\t1" in rights[0]
        assert flows(running)


def test_owners(alone: Namespace) -> None:
    """Also of connections older than the trace; TIME_WAIT has none."""
    with server(2001) as one, contextlib.ExitStack() as stack:
        old = opened(stack, one, 5)
        for each in old[0]:
            each.close()
        with looking(alone, "--owners") as running:
            opened(stack, one, 3)
            running.wait_for(lambda row: row["taken"] == 3)
            rows = [row for row in last(flows(running)) if row["rport"] == 2001]
        mine = [row for row in now(alone, uid=0) if row["rport"] == 2001]
        by_pid = now(alone, pid=os.getpid())
        nobody = now(alone, pid=1)
    name = Path("/proc/self/comm").read_text().strip()
    assert {(row["pid"], row["comm"], row["uid"], row["in_use"]) for row in rows} == {
        (os.getpid(), name, 0, 7),
        (None, None, None, 1),
    }
    assert {row["share"] for row in rows} == {8 / 10000}
    assert [row["in_use"] for row in mine] == [7]
    assert of(by_pid, 2001)["in_use"] == 7
    assert [row["raddr"] for row in nobody] == ["any"]


def test_owners_share_a_socket(alone: Namespace) -> None:
    """The filter lets it through whichever of its processes is asked for."""
    waiting, ends = os.pipe()
    with server(2001) as one, contextlib.ExitStack() as stack:
        opened(stack, one, 3)
        child = harness.fork(lambda: os.read(waiting, 1))
        rows = now(alone, pid=child)
        os.write(ends, b"x")
        assert harness.reap(child) == 0
    os.close(waiting)
    os.close(ends)
    assert of(rows, 2001)["in_use"] == 3


@pytest.mark.any_kernel
def test_fail_is_for_scripts(alone: Namespace) -> None:
    arguments = ("ports", "--netns", alone.name, "--now", "--fail", "--warn")
    with (
        setting("ip_local_port_range", "45000 45009"),
        server(2001) as one,
        contextlib.ExitStack() as stack,
    ):
        opened(stack, one, 6)
        quiet, told = harness.run(*arguments, "61"), harness.run(*arguments, "60")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert told.returncode == AlarmError.exit_code
    where = "127.0.0.1 port 2001 from 127.0.0.1"
    assert told.stderr == f"tcpcore: ports: 60.0 % are in use to {where}\n"
    assert re.search(r"^127.0.0.1 +127.0.0.1 +2001 +6 .* 60.0 .* !$", told.stdout, re.MULTILINE)


@pytest.mark.any_kernel
def test_fail_ends_a_trace_that_goes_on(alone: Namespace) -> None:
    with (
        setting("ip_local_port_range", "45000 45005"),
        server(2001) as one,
        contextlib.ExitStack() as stack,
        looking(alone, "--fail", "--warn", "100") as running,
    ):
        fill(one, stack)
        assert running.wait() == AlarmError.exit_code
        assert last(running.records())[0]["share"] == 1
        assert "100.0 % are in use to 127.0.0.1 port 2001" in running.errors()[-1]


@pytest.mark.any_kernel
def test_the_library(alone: Namespace) -> None:
    """Our own namespace, whichever that is; the thread comes back to it."""
    with server(2001) as one, contextlib.ExitStack() as stack:
        opened(stack, one, 3)
        with tcpcore.trace("ports", now=True) as events:
            (row,) = [row for row in events if row.rport == 2001]
        assert (row.in_use, row.netns, row.share) == (3, alone.inode, 0.0003)
        with (
            pytest.raises(AlarmError),
            tcpcore.trace("ports", now=True, fail=True, warn=0.03, netns=alone.name) as more,
        ):
            more.read()


@pytest.mark.any_kernel
@pytest.mark.parametrize("value", ["0", "101", "x", "-5"])
def test_a_share_that_makes_no_sense(value: str) -> None:
    done = harness.run("ports", f"--warn={value}")
    assert (done.returncode, "--warn" in done.stderr) == (UsageError.exit_code, True)
