"""Packet sockets, replaced by ones that never fail or always do; real ones are a live test's."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from tcpcore.enrich.dns import sniffer
from tcpcore.enrich.dns.sniffer import Sniffer
from tcpcore.errors import PrivilegeError, TcpcoreError
from tcpcore.model import clock
from tests.unit.dns_samples import HELLO, TCP, UDP, WORLD, framed, ipv4, ipv6, tcp, udp

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (PermissionError(1, "Operation not permitted"), PrivilegeError, "CAP_NET_RAW"),
        (OSError(97, "Address family not supported"), TcpcoreError, "Address family not supported"),
    ],
)
def test_no_packet_socket(
    monkeypatch: pytest.MonkeyPatch, error: OSError, kind: type[TcpcoreError], says: str
) -> None:
    def refuse(*_: Any) -> socket.socket:
        raise error

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(kind, match=says) as e:
        Sniffer()
    assert str(e.value).startswith("`dns`: ")
    assert "\n" not in str(e.value)


class FakeSocket:
    """A packet socket with these packets in it, each with its time in ns of CLOCK_REALTIME.

    drops: what PACKET_STATISTICS tells, packet(7), each time that it is asked.
    """

    def __init__(self, *waiting: tuple[bytes, int], drops: Sequence[int] = ()) -> None:
        self.waiting = list(waiting)
        self._drops = list(drops)
        self.closed = False

    def recvmsg_into(self, buffers: Sequence[memoryview], _: int) -> tuple[int, Any, int, None]:
        if not self.waiting:
            raise BlockingIOError
        packet, stamp = self.waiting.pop(0)
        buffers[0][: len(packet)] = packet
        control = struct.pack("@ll", *divmod(stamp, SECOND))
        return len(packet), [(socket.SOL_SOCKET, 35, control)], 0, None

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option, size) == (263, 6, 8)
        drops = self._drops.pop(0)
        return struct.pack("=II", 1000 + drops, drops)

    def __enter__(self) -> FakeSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


OFFSET = 1_700_000_000 * SECOND  # what CLOCK_REALTIME has more than CLOCK_MONOTONIC


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """CLOCK_MONOTONIC stands at 50 s."""
    monkeypatch.setattr(clock, "monotonic_ns", lambda: 50 * SECOND)
    monkeypatch.setattr(sniffer, "time", SimpleNamespace(time_ns=lambda: OFFSET + 50 * SECOND))


@contextmanager
def sniffing(
    monkeypatch: pytest.MonkeyPatch, ipv4: FakeSocket, ipv6: FakeSocket
) -> Iterator[Sniffer]:
    monkeypatch.setattr(sniffer, "_open", {0x0800: ipv4, 0x86DD: ipv6}.__getitem__)
    with Sniffer() as opened:
        yield opened
    assert ipv4.closed and ipv6.closed


def test_reading_packets(monkeypatch: pytest.MonkeyPatch, clocks: None) -> None:
    """Of both families, each drained to its end."""
    four = FakeSocket(
        (ipv4(UDP, udp(HELLO)), OFFSET + 40 * SECOND),
        (ipv4(UDP, udp(HELLO)), OFFSET + 40 * SECOND + 20_000),
    )
    six = FakeSocket((ipv6(TCP, tcp(framed(WORLD))), OFFSET + 49 * SECOND))
    with sniffing(monkeypatch, four, six) as opened:
        assert opened.read() == [
            (HELLO, 40 * SECOND), (HELLO, 40 * SECOND + 20_000), (WORLD, 49 * SECOND),
        ]  # fmt: skip
        assert opened.read() == []


def test_a_flood_does_not_keep_us(monkeypatch: pytest.MonkeyPatch, clocks: None) -> None:
    """Packets that came after the call are for the next one."""
    packet = ipv4(UDP, udp(HELLO))
    four = FakeSocket(*((packet, OFFSET + (45 + i) * SECOND) for i in range(20)))
    with sniffing(monkeypatch, four, FakeSocket()) as opened:
        opened.read()
        assert len(four.waiting) == 13


@pytest.mark.parametrize(("size", "read"), [(100, 512), (60_000, 5)])
def test_a_full_queue_does_not_keep_us(
    monkeypatch: pytest.MonkeyPatch, clocks: None, size: int, read: int
) -> None:
    """The rings have their turn; and one family's flood is not the other's."""
    packet = ipv4(UDP, udp(HELLO)).ljust(size, b"\0")
    flood = [(packet, OFFSET + 40 * SECOND)] * 1000
    four, six = FakeSocket(*flood), FakeSocket(*flood)
    with sniffing(monkeypatch, four, six) as opened:
        opened.read()
        assert len(six.waiting) == len(four.waiting) == 1000 - read
        opened.read()
        assert len(six.waiting) == len(four.waiting) == max(0, 1000 - 2 * read)


def test_what_the_sockets_drop_adds_up(monkeypatch: pytest.MonkeyPatch, clocks: None) -> None:
    four, six = FakeSocket(drops=(3, 0, 2)), FakeSocket(drops=(0, 40, 0))
    with sniffing(monkeypatch, four, six) as opened:
        assert [opened.dropped() for _ in range(3)] == [3, 43, 45]


def test_a_second_socket_that_fails_leaves_none_open(monkeypatch: pytest.MonkeyPatch) -> None:
    first = FakeSocket()

    def open_(protocol: int) -> FakeSocket:
        if protocol != 0x0800:
            raise TcpcoreError("no packet socket")
        return first

    monkeypatch.setattr(sniffer, "_open", open_)
    with pytest.raises(TcpcoreError):
        Sniffer()
    assert first.closed
