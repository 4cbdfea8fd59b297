"""pktlat on real connections."""

from __future__ import annotations

import array
import contextlib
import csv
import fcntl
import os
import socket
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.facts import Facts
from tests.live import harness
from tests.live.harness import Event, Net, Tracer, tracer
from tests.live.test_mptcp import mptcp_pair


def _read_a_byte(client: socket.socket, accepted: socket.socket) -> None:
    client.sendall(b"x")
    accepted.recv(1)


FACTS = Facts(
    header="PID     TID     COMM             LADDR           LPORT RADDR           RPORT MS",
    fields=frozenset({"tid", "latency_ns"}),
    reset=1,
    closed=1,
    queued=1,  # of the server, which has something to read
    kept=1,
    provoke=_read_a_byte,
)

MS = 1_000_000
ARRIVALS = {"fentry": "fentry", "kprobe": "kprobe", "tracepoint": "tp_btf"}


class Span(NamedTuple):
    """Something happened within; CLOCK_MONOTONIC."""

    begin: int
    end: int


def unread(receiver: socket.socket) -> int:
    """Bytes that can be read (SIOCINQ, tcp(7))."""
    number = array.array("i", [0])
    fcntl.ioctl(receiver, termios.FIONREAD, number)
    return number[0]


def send(sender: socket.socket, receiver: socket.socket, data: bytes) -> Span:
    """Returns when all of it can be read. Not after other data was acknowledged (Nagle)."""
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    expected = unread(receiver) + len(data)
    begin = time.monotonic_ns()
    sender.sendall(data)
    harness.until(lambda: unread(receiver) == expected)
    return Span(begin, time.monotonic_ns())


def timed(act: Callable[[], object]) -> Span:
    begin = time.monotonic_ns()
    act()
    return Span(begin, time.monotonic_ns())


def check_wait(event: Event, sent: Span, read: Span) -> None:
    assert read.begin - sent.end <= event["latency_ns"] <= read.end - sent.begin


def of(running: Tracer, receiver: socket.socket) -> list[Event]:
    """Ends the tracer; its rows of this socket."""
    lport, rport = harness.ports(receiver)
    return [e for e in running.events() if (e["lport"], e["rport"]) == (lport, rport)]


def of_read(rows: list[Event], read: Span) -> Event:
    """The first row of a read. There are more where its data is in several of the kernel's buffers,
    as when a busy host puts the acknowledgement off."""
    return next(e for e in rows if read.begin <= e["ts_ns"] <= read.end)


def three_sends(sender: socket.socket, receiver: socket.socket, seconds: float) -> list[Span]:
    """100 bytes each."""
    spans = []
    for _ in range(3):
        spans.append(send(sender, receiver, b"x" * 100))
        time.sleep(seconds)
    return spans


@pytest.mark.parametrize("host", [pytest.param("127.0.0.1", marks=pytest.mark.each_variant), "::1"])
def test_from_the_first_unread_byte(attach: str, host: str) -> None:
    """Three sends, 100 ms apart, and one read: 300 ms. And everything that a row has."""
    with (
        tracer("pktlat", "--json", "--attach", attach) as running,
        harness.pair(host) as (client, accepted),
    ):
        sent = three_sends(client, accepted, 0.1)
        read = timed(lambda: accepted.recv(1000))
        rows = of(running, accepted)
    event = of_read(rows, read)
    assert running.ways["data comes"] == ARRIVALS[attach]
    check_wait(event, sent[0], read)
    assert event["latency_ns"] >= 300 * MS
    assert all(read.begin <= e["ts_ns"] <= read.end for e in rows)
    assert (event["pid"], event["tid"], event["uid"]) == (os.getpid(), threading.get_native_id(), 0)
    assert event["comm"] == Path("/proc/self/comm").read_text().strip()
    assert (event["laddr"], event["raddr"]) == (host, host)
    assert event["netns"] == Path("/proc/self/ns/net").stat().st_ino


def test_an_ipv6_address_is_whole(net: Net) -> None:
    """All of its 16 bytes."""
    here = net[0]
    address = "2001:db8:1:2:3:4:5:6"
    harness.sh(f"ip -n {here.name} addr replace {address}/128 dev lo nodad")
    with (
        tracer("pktlat", "--json", "--netns", here.name) as running,
        here.entered(),
        harness.pair(address) as (client, accepted),
    ):
        send(client, accepted, b"x")
        accepted.recv(1)
        (event,) = of(running, accepted)
    assert (event["laddr"], event["raddr"], event["family"]) == (address, address, "ipv6")


@pytest.mark.each_variant
def test_a_partial_read_ends_what_it_read(attach: str) -> None:
    """Each read counts from its own first byte."""
    with tracer("pktlat", "--json", "--attach", attach) as running, harness.pair() as pair:
        client, accepted = pair
        sent = three_sends(client, accepted, 0.05)
        reads = []
        for size in (120, 79, 2, 50, 100):
            reads.append(timed(lambda size=size: accepted.recv(size)))  # type: ignore[misc]
            time.sleep(0.02)
        rows = of(running, accepted)
    # At 0, 120, 199, 201 and 251 of 300.
    for first, read in zip((0, 1, 1, 2, 2), reads, strict=True):
        check_wait(of_read(rows, read), sent[first], read)


def test_a_look_ends_nothing(attach: str) -> None:
    with tracer("pktlat", "--json", "--attach", attach) as running, harness.pair() as pair:
        client, accepted = pair
        sent = send(client, accepted, b"x" * 100)
        for _ in range(3):
            time.sleep(0.02)
            assert len(accepted.recv(1000, socket.MSG_PEEK)) == 100
        read = timed(lambda: accepted.recv(1000))
        (event,) = of(running, accepted)
    check_wait(event, sent, read)


def test_what_is_read_at_once_has_hardly_waited(attach: str) -> None:
    """By a reader that was there first; the wait for data is not the data's wait."""
    with tracer("pktlat", "--json", "--attach", attach) as running, harness.pair() as pair:
        client, accepted = pair
        reading = threading.Thread(target=accepted.recv, args=(100,))
        reading.start()
        time.sleep(0.2)
        begin = time.monotonic_ns()
        client.sendall(b"x")
        reading.join()
        read = Span(begin, time.monotonic_ns())
        (event,) = of(running, accepted)
    assert event["latency_ns"] <= read.end - read.begin


def test_the_last_byte_of_a_connection(attach: str) -> None:
    """One with the FIN, one after a reset: both can still be read, once each."""
    with tracer("pktlat", "--json", "--attach", attach) as running:
        ends = {}
        for close in (socket.socket.close, harness.reset):
            with harness.pair() as (client, accepted):
                sent = send(client, accepted, b"x")
                lport, rport = harness.ports(accepted)
                close(client)
                time.sleep(0.05)
                read = timed(lambda accepted=accepted: accepted.recv(100))  # type: ignore[misc]
                with contextlib.suppress(ConnectionResetError):
                    assert accepted.recv(100) == b""
                ends[lport, rport] = sent, read
        events = running.events()
    for ports, (sent, read) in ends.items():
        (event,) = (e for e in events if (e["lport"], e["rport"]) == ports)
        check_wait(event, sent, read)


def through_a_pipe(receiver: socket.socket, size: int = 100) -> None:
    out, into = os.pipe()
    try:
        assert os.splice(receiver.fileno(), into, size) == size
    finally:
        os.close(out)
        os.close(into)


def by_readv(receiver: socket.socket) -> None:
    os.readv(receiver.fileno(), [bytearray(50), bytearray(50)])


MSG_TRUNC = 0x20  # tcp(7): the data is thrown away

READERS: dict[str, Callable[[socket.socket], object]] = {
    "recv": lambda receiver: receiver.recv(100),
    "recvmsg": lambda receiver: receiver.recvmsg(100),
    "read": lambda receiver: os.read(receiver.fileno(), 100),
    "readv": by_readv,
    "all": lambda receiver: receiver.recv(100, socket.MSG_WAITALL),
    "thrown away": lambda receiver: receiver.recv(100, MSG_TRUNC),
    "splice": through_a_pipe,
}


@pytest.mark.parametrize("how", READERS)
def test_ways_to_read(attach: str, how: str) -> None:
    with tracer("pktlat", "--json", "--attach", attach) as running, harness.pair() as pair:
        client, accepted = pair
        sent = send(client, accepted, b"x" * 100)
        time.sleep(0.02)
        read = timed(lambda: READERS[how](accepted))
        assert unread(accepted) == 0
        (event,) = of(running, accepted)
    check_wait(event, sent, read)
    assert event["pid"] == os.getpid()


@pytest.mark.each_variant
@pytest.mark.parametrize("way", ["tp_btf", "raw_tp"])
def test_tracepoints_alone(way: str) -> None:
    with tracer("pktlat", "--json", "--attach", way) as running, harness.pair() as pair:
        client, accepted = pair
        sent = three_sends(client, accepted, 0.02)
        client.shutdown(socket.SHUT_WR)  # a FIN alone is no data
        time.sleep(0.02)
        reads = [timed(lambda: accepted.recv(250)), timed(lambda: accepted.recv(250))]
        assert accepted.recv(250) == b""
        rows = of(running, accepted)
    assert set(running.ways.values()) == {way}
    check_wait(of_read(rows, reads[0]), sent[0], reads[0])
    check_wait(of_read(rows, reads[1]), sent[2], reads[1])


def test_the_thread_that_reads(attach: str) -> None:
    """Another one than that which accepted it; and --tid shows its reads alone."""
    names: dict[str, int] = {}

    def read(name: str) -> None:
        with harness.task_name(name.encode()):
            names[name] = threading.get_native_id()
            accepted.recv(1)

    mine = threading.get_native_id()
    with (
        tracer("pktlat", "--json", "--attach", attach) as running,
        tracer("pktlat", "--json", "--tid", str(mine)) as by_thread,
        harness.pair() as (client, accepted),
    ):
        send(client, accepted, b"xyz")
        for name in ("one", "two"):
            thread = threading.Thread(target=read, args=(name,))
            thread.start()
            thread.join()
        accepted.recv(1)
        rows, of_mine = of(running, accepted), of(by_thread, accepted)
    comm = Path("/proc/self/comm").read_text().strip()
    expected = [*((name, names[name]) for name in ("one", "two")), (comm, mine)]
    assert [(e["comm"], e["tid"]) for e in rows] == expected
    assert {e["pid"] for e in rows} == {os.getpid()}
    assert [(e["comm"], e["tid"]) for e in of_mine] == [(comm, mine)]


def test_the_process_that_reads(attach: str) -> None:
    """A child has the connection from its parent; filters by owner go by who reads."""
    filters = [(), ("--comm", "child"), ("-p", str(os.getpid()))]
    with contextlib.ExitStack() as stack:
        options = ("--json", "--attach", attach)
        tracers = [stack.enter_context(tracer("pktlat", *options, *f)) for f in filters]
        client, accepted = stack.enter_context(harness.pair())
        send(client, accepted, b"xyz")

        def read() -> None:
            with harness.task_name(b"child"):
                accepted.recv(1)

        accepted.recv(1)
        child = harness.fork(read)
        assert harness.reap(child) == 0
        accepted.recv(1)
        every, of_child, of_mine = ([e["pid"] for e in of(r, accepted)] for r in tracers)
    me = os.getpid()
    assert (every, of_child, of_mine) == ([me, child, me], [child], [me, me])


def test_the_minimum_is_in_microseconds(attach: str) -> None:
    waits = []
    with (
        tracer("pktlat", "60000", "--json", "--attach", attach) as running,
        tracer("pktlat", "0.5", "--json") as all_of_them,
        harness.pair() as (client, accepted),
    ):
        for seconds in (0, 0.1, 0, 0.02, 0):
            sent = send(client, accepted, b"x")
            time.sleep(seconds)
            waits.append((sent, timed(lambda: accepted.recv(1))))
        rows = of(running, accepted)
        assert len(of(all_of_them, accepted)) == len(waits)
    shown = [[e for e in rows if r.begin <= e["ts_ns"] <= r.end] for _, r in waits]
    assert sum(map(len, shown)) == len(rows) < len(waits)
    for found, (sent, read) in zip(shown, waits, strict=True):
        if read.begin - sent.end >= 60 * MS:
            check_wait(found[0], sent, read)
        elif read.end - sent.begin < 60 * MS:
            assert not found


def test_data_older_than_the_trace(attach: str) -> None:
    """How long it waited is not known; what comes later is, once the older data is read."""
    with harness.pair() as (client, accepted):
        send(client, accepted, b"x" * 100)
        with tracer("pktlat", "--json", "--attach", attach) as running:
            time.sleep(0.02)
            later = send(client, accepted, b"y" * 100)
            accepted.recv(50)
            accepted.recv(100)  # the first of these is old as well
            read = timed(lambda: accepted.recv(100))
            (event,) = of(running, accepted)
    check_wait(event, later, read)


def test_what_came_too_early(attach: str, net: Net) -> None:
    """The last of three segments comes before the second. It waits since it can be read."""
    here, there = net
    with (
        tracer("pktlat", "--json", "--attach", attach) as running,
        there.entered(),
        harness.listener(there.address) as server,
    ):
        with here.entered():
            client = harness.connect(*server.getsockname())
        with client, server.accept()[0] as accepted:
            first = send(client, accepted, b"x" * 250)
            with harness.lossy("numgen inc mod 2 == 0"):  # the second, twice
                client.sendall(b"x" * 500)
                client.sendall(b"x" * 500)
                looks = [time.monotonic_ns()]
                while unread(accepted) < 1250:
                    looks.append(time.monotonic_ns())
            complete = Span(looks[-2], time.monotonic_ns())
            time.sleep(0.02)
            reads = [timed(lambda: accepted.recv(250)) for _ in range(5)]
            rows = of(running, accepted)
    assert len(looks) > 10  # it was sent again
    for event, sent, read in zip(rows, [first, *[complete] * 4], reads, strict=True):
        check_wait(event, sent, read)


def staggered(sender: socket.socket, receiver: socket.socket, count: int) -> list[Span]:
    """One byte each, some time apart."""
    spans = []
    for _ in range(count):
        spans.append(send(sender, receiver, b"x"))
        time.sleep(0.001)
    return spans


MANY = 160


def test_many_arrivals_that_nobody_reads(attach: str) -> None:
    """Beyond 16, neighbours share a place: never does a byte seem to have come later than it did,
    nor earlier than an eighth of the queue before."""
    with tracer("pktlat", "--json", "--attach", attach) as running, harness.pair() as pair:
        client, accepted = pair
        sent = staggered(client, accepted, MANY)
        reads = [timed(lambda: accepted.recv(1)) for _ in range(MANY)]
        again = staggered(client, accepted, 10)
        reads_again = [timed(lambda: accepted.recv(1)) for _ in range(10)]
        rows = of(running, accepted)
    check_wait(rows[0], sent[0], reads[0])
    for i, (event, read) in enumerate(zip(rows[:MANY], reads, strict=True)):
        earliest = sent[max(0, i - MANY // 8)]
        assert read.begin - sent[i].end <= event["latency_ns"] <= read.end - earliest.begin
    for event, span, read in zip(rows[MANY:], again, reads_again, strict=True):
        check_wait(event, span, read)


def test_a_reader_that_catches_up_is_told_exactly_again(attach: str) -> None:
    """Though it never empties the queue."""
    with tracer("pktlat", "--json", "--attach", attach) as running, harness.pair() as pair:
        client, accepted = pair
        staggered(client, accepted, MANY)
        accepted.recv(MANY - 1)
        sent, reads = staggered(client, accepted, 2), []
        for _ in range(60):
            reads.append(timed(lambda: accepted.recv(1)))
            sent += staggered(client, accepted, 1)
        rows = of(running, accepted)
    # The first read took several of the kernel's buffers. sent[0] is read by reads[1].
    for event, span, read in zip(rows[-20:], sent[39:59], reads[-20:], strict=True):
        check_wait(event, span, read)


def test_after_this_end_was_shut_down(attach: str) -> None:
    """What comes then is not seen at the tracepoint. No other time is shown for it."""
    with tracer("pktlat", "--json", "--attach", attach) as running, harness.pair() as pair:
        client, accepted = pair
        spans = [(send(accepted, client, b"x"), timed(lambda: client.recv(1)))]
        before = send(accepted, client, b"x" * 10)
        client.shutdown(socket.SHUT_WR)
        assert accepted.recv(1) == b""
        time.sleep(0.02)
        after = send(accepted, client, b"x" * 10)
        spans.append((before, timed(lambda: client.recv(15))))
        time.sleep(0.02)
        spans.append((after, timed(lambda: client.recv(15))))
        spans.append((send(accepted, client, b"x"), timed(lambda: client.recv(15))))
        rows = of(running, client)
    if attach == "tracepoint":
        del spans[2:]
    for event, (sent, read) in zip(rows, spans, strict=True):
        check_wait(event, sent, read)


def test_a_socket_that_connects_twice(attach: str) -> None:
    """The numbers of its first connection mean nothing in the second one."""
    spans = []
    with (
        tracer("pktlat", "--json", "--attach", attach) as running,
        harness.listener() as server,
        socket.socket() as client,
    ):
        port = server.getsockname()[1]
        for _ in range(3):
            client.connect(("127.0.0.1", port))
            with server.accept()[0] as accepted:
                sent = send(accepted, client, b"x" * 100)
                time.sleep(0.02)
                spans.append((sent, timed(lambda: client.recv(90))))
                harness.disconnect(client)
        rows = [e for e in running.events() if e["rport"] == port]
    for event, (sent, read) in zip(rows, spans, strict=True):
        check_wait(event, sent, read)


def test_mptcp_is_left_out(attach: str, net: Net) -> None:
    """Its subflows take no place; who reads takes the data from elsewhere."""
    here = net[0]
    with (
        tracer("pktlat", "--json", "--attach", attach, "--netns", here.name) as running,
        here.entered(),
        mptcp_pair() as (client, accepted),
    ):
        client.sendall(b"x")
        assert accepted.recv(1) == b"x"
        assert not running.entries()
        assert running.events() == []


TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21  # include/uapi/linux/tcp.h
RECEIVE_QUEUE, SEND_QUEUE = 1, 2


@contextlib.contextmanager
def connected_at(seq: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A sender whose first byte has this sequence number, and its receiver (TCP_REPAIR, as CRIU
    does it)."""
    with socket.socket() as sender, socket.socket() as receiver:
        ends = ((sender, SEND_QUEUE, RECEIVE_QUEUE), (receiver, RECEIVE_QUEUE, SEND_QUEUE))
        for end, data, other in ends:
            end.bind(("127.0.0.1", 0))
            end.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
            for queue, number in ((data, seq), (other, 1000)):
                end.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
                end.setsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ, number.to_bytes(4, "little"))
        addresses = sender.getsockname(), receiver.getsockname()
        sender.connect(addresses[1])
        receiver.connect(addresses[0])
        for end in (sender, receiver):
            end.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
        yield sender, receiver


def test_sequence_numbers_wrap_around(attach: str) -> None:
    with tracer("pktlat", "--json", "--attach", attach) as running:
        with connected_at((1 << 32) - 150) as (sender, receiver):
            sent = three_sends(sender, receiver, 0.02)
            reads = [timed(lambda: receiver.recv(100)) for _ in range(3)]
            lport, rport = harness.ports(receiver)
        rows = [e for e in running.events() if (e["lport"], e["rport"]) == (lport, rport)]
    for span, read in zip(sent, reads, strict=True):
        check_wait(of_read(rows, read), span, read)


def hist(running: Tracer) -> dict[tuple[int, str], Event]:
    assert running.stop() == 0, running.errors()
    return {(r["key"]["pid"], r["key"]["comm"]): r for r in running.records()}


def test_histograms_by_process(attach: str) -> None:
    """Of each the waits in microseconds, and no rows."""

    def read() -> None:
        with harness.task_name(b"child"):
            accepted.recv(1)

    with (
        tracer("pktlat", "--hist", "--json", "--attach", attach) as running,
        tracer("pktlat", "200000", "--hist", "--json") as longer,
        harness.pair() as (client, accepted),
    ):
        for seconds in (0.3, 0.3, 0):
            send(client, accepted, b"x")
            time.sleep(seconds)
            accepted.recv(1)
        send(client, accepted, b"x")
        time.sleep(0.3)
        child = harness.fork(read)
        assert harness.reap(child) == 0
        found, found_longer = hist(running), hist(longer)
    me = os.getpid(), Path("/proc/self/comm").read_text().strip()
    mine, childs = found[me], found[child, "child"]
    assert {(r["type"], r["measure"], r["unit"]) for r in found.values()} == {
        ("histogram", "latency", "us")
    }
    assert mine["count"] == 3 and mine["sum"] >= 600_000
    assert childs["count"] == 1 and childs["sum"] >= 300_000
    ((lower, upper, number),) = childs["buckets"]
    assert number == 1 and lower <= childs["sum"] <= upper
    assert (found_longer[me]["count"], found_longer[child, "child"]["count"]) == (2, 1)


@pytest.mark.any_kernel
def test_histograms_for_each_interval() -> None:
    """What is read between two reports is in one of them."""
    with tracer("pktlat", "--hist", "--json", "-i", "0.1", "--comm", "steady") as running:
        with harness.pair() as (client, accepted), harness.task_name(b"steady"):
            for _ in range(400):
                client.sendall(b"x")
                accepted.recv(1)
                time.sleep(0.001)
        assert running.stop() == 0, running.errors()
    found = [r for r in running.records() if r["type"] == "histogram"]
    assert len(found) > 3 and sum(r["count"] for r in found) == 400


def test_processes_that_find_no_room_are_in_the_rest() -> None:
    def read(i: int) -> None:
        with harness.task_name(b"full%d" % i):
            accepted.recv(1)

    with (
        tracer("pktlat", "--hist", "--json", "--map-size", "2", "--cgroup", "/") as running,
        harness.pair() as (client, accepted),
    ):
        for i in range(5):
            client.sendall(b"x")
            assert harness.reap(harness.fork(lambda i=i: read(i))) == 0  # type: ignore[misc]
        found = hist(running)
    assert found[None, None]["count"] >= 3  # type: ignore[index]


WHO = ["PID", "TID", "COMM"]
ENDS = ["LADDR", "LPORT", "RADDR", "RPORT", "MS"]


@pytest.mark.any_kernel
@pytest.mark.parametrize(
    ("options", "titles"),
    [
        ([], [*WHO, *ENDS]),
        (["-T"], ["TIME", *WHO, *ENDS]),
        (["--wide"], [*WHO, "IP", *ENDS, "UID", "NETNS"]),
    ],
)
def test_columns(options: list[str], titles: list[str]) -> None:
    with tracer("pktlat", *options, "--comm", "shown") as running:
        with harness.pair() as (client, accepted), harness.task_name(b"shown"):
            lport, rport = harness.ports(accepted)
            send(client, accepted, b"x")
            time.sleep(0.02)
            accepted.recv(1)
        assert running.stop() == 0
    header, row = map(str.split, running.out.lines)
    assert header == titles
    cells = dict(zip(titles, row, strict=True))
    assert (cells["PID"], cells["TID"]) == (str(os.getpid()), str(threading.get_native_id()))
    assert (cells["COMM"], cells["LADDR"], cells["LPORT"]) == ("shown", "127.0.0.1", str(lport))
    assert cells["RPORT"] == str(rport)
    assert 20 <= float(cells["MS"]) < 1000 * harness.PATIENCE and cells["MS"][-3] == "."


@pytest.mark.any_kernel
def test_csv() -> None:
    with tracer("pktlat", "--csv") as running, harness.pair() as (client, accepted):
        send(client, accepted, b"x")
        time.sleep(0.02)
        accepted.recv(1)
        lport, _ = harness.ports(accepted)
        assert running.stop() == 0
    (row,) = (r for r in csv.DictReader(running.out.lines) if r["lport"] == str(lport))
    assert (row["pid"], row["tid"]) == (str(os.getpid()), str(threading.get_native_id()))
    assert int(row["latency_ns"]) >= 20 * MS


@pytest.mark.any_kernel
@pytest.mark.parametrize("short", ["-l", "-L"])
def test_ports_as_in_the_original(short: str) -> None:
    """-l and -r; -t is the time here as in all tools."""
    with harness.pair() as (client, accepted):
        lport, rport = harness.ports(accepted)
        remote = {"-l": "-r", "-L": "-D"}[short]
        with tracer("pktlat", "-t", "--json", short, str(lport), remote, str(rport)) as running:
            for end, other in ((client, accepted), (accepted, client)):
                send(end, other, b"x")
                other.recv(1)
            rows = running.events()
    assert [(e["lport"], e["rport"]) for e in rows] == [(lport, rport)]


@pytest.mark.any_kernel
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["x"], "MIN_US: 'x' is not a number of microseconds"),
        (["-1"], ""),
        (["--tid", "1.5"], "--tid: '1.5' is not a thread id"),
        (["--tid", "-1"], "--tid: '-1' is not a thread id"),
        (["--hist", "-n", "1"], ""),
    ],
)
def test_what_makes_no_sense(arguments: list[str], problem: str) -> None:
    done = harness.run("pktlat", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr and "Traceback" not in done.stderr


def test_api() -> None:
    import tcpcore
    from tcpcore.tools import pktlat

    mine = threading.get_native_id()
    with (
        harness.pair() as (client, accepted),
        tcpcore.trace("pktlat", min_us=10.0, tid=mine, count=1, duration=30) as events,
    ):
        send(client, accepted, b"x")
        time.sleep(0.001)
        accepted.recv(1)
        (event,) = list(events)
    assert isinstance(event, pktlat.Event)
    assert (event.pid, event.tid) == (os.getpid(), threading.get_native_id())
    assert event.latency_ns >= 10_000
