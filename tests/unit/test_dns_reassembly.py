"""DNS messages out of made-up packets and TCP streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpcore.enrich.dns.reassembly import Reassembly
from tests.unit.dns_samples import (
    ACK,
    FIN,
    HELLO,
    PASSING,
    SYN,
    TCP,
    UDP,
    WORLD,
    framed,
    ipv4,
    ipv6,
    tcp,
    udp,
)


def test_udp_over_both_families() -> None:
    reassembly = Reassembly()
    assert reassembly.messages(ipv4(UDP, udp(HELLO))) == [HELLO]
    assert reassembly.messages(ipv4(UDP, udp(HELLO), options=b"\1" * 40)) == [HELLO]
    assert reassembly.messages(ipv6(UDP, udp(WORLD))) == [WORLD]


@pytest.mark.parametrize("ip", [ipv4, ipv6])
def test_padding_is_no_part_of_a_packet(ip: Callable[..., bytes]) -> None:
    reassembly = Reassembly()
    assert reassembly.messages(ip(UDP, udp(HELLO)) + bytes(20)) == [HELLO]
    assert reassembly.messages(ip(TCP, tcp(framed(HELLO))) + bytes(20)) == [HELLO]


def test_the_first_of_several_fragments() -> None:
    reassembly, whole = Reassembly(), udp(HELLO)
    assert reassembly.messages(ipv4(UDP, whole[:32], fragment=0x2000)) == [HELLO[:24]]
    assert reassembly.messages(ipv4(UDP, whole[32:], fragment=4)) == []
    assert reassembly.messages(ipv4(UDP, whole, fragment=0x2001)) == []


@pytest.mark.parametrize(
    "packet",
    [
        ipv4(UDP, udp(HELLO, sport=5353)),
        ipv4(UDP, udp(HELLO, sport=40_000, dport=53)),
        ipv4(TCP, tcp(framed(HELLO), sport=443)),
        ipv4(1, udp(HELLO)),
        ipv6(58, udp(HELLO)),
        ipv6(0, bytes(8) + udp(HELLO)),
        b"\x50" + ipv4(UDP, udp(HELLO))[1:],
        b"\0\1\x08\0\6\4\0\1" + bytes(20),  # ARP
        b"",
    ],
)
def test_other_reassembly(packet: bytes) -> None:
    assert Reassembly().messages(packet) == []


def test_larger_than_64_kib() -> None:
    """What GRO put together has 0 for its length."""
    many = framed(*[HELLO] * 2000)
    v4, v6 = bytearray(ipv4(TCP, tcp(b""))), bytearray(ipv6(TCP, tcp(b"")))
    v4[2:4] = v6[4:6] = bytes(2)
    for packet in (v4, v6):
        assert Reassembly().messages(bytes(packet) + many) == [HELLO] * 2000


@given(st.binary(max_size=120))
def test_any_bytes_are_no_packet(garbage: bytes) -> None:
    reassembly = Reassembly()
    for begin in (b"", b"\x45", ipv4(UDP, b""), ipv4(TCP, b""), ipv6(TCP, b""), b"\x45\0\0\0"):
        reassembly.messages(begin + garbage)
    for inner in (udp(garbage), tcp(garbage), b"\0\x35" + garbage):
        for protocol in (TCP, UDP):
            reassembly.messages(ipv4(protocol, inner))
            reassembly.messages(ipv6(protocol, inner))


@given(st.data())
def test_any_packet_may_be_cut_short(data: st.DataObject) -> None:
    packet = data.draw(st.sampled_from(PASSING))
    Reassembly().messages(packet[: data.draw(st.integers(0, len(packet)))])


# TCP streams.


def streamed(*segments: tuple[int, bytes], reassembly: Reassembly | None = None) -> list[bytes]:
    """The messages in segments, given with their sequence numbers."""
    reassembly = reassembly or Reassembly()
    return [m for at, data in segments for m in reassembly.messages(ipv4(TCP, tcp(data, at)))]


def opened(initial: int) -> Reassembly:
    reassembly = Reassembly()
    reassembly.messages(ipv4(TCP, tcp(b"", initial, SYN | ACK, options=b"\2\4\5\xb4")))
    return reassembly


STREAM = framed(HELLO, WORLD)


@pytest.mark.parametrize("initial", [0, 1000, 2**32 - 1, 2**32 - 20])
def test_split_at_every_position(initial: int) -> None:
    for cut in range(len(STREAM) + 1):
        parts = (initial + 1, STREAM[:cut]), (initial + 1 + cut, STREAM[cut:])
        assert streamed(*parts, reassembly=opened(initial)) == [HELLO, WORLD]
        assert streamed(*parts) == [HELLO, WORLD]  # its SYN was before our time


def test_byte_by_byte_and_each_twice() -> None:
    parts = [(1 + i, STREAM[i : i + 1]) for i in range(len(STREAM)) for _ in range(2)]
    assert streamed(*parts, reassembly=opened(0)) == [HELLO, WORLD]


def test_all_of_it_twice() -> None:
    """As on the loopback interface, or when a segment is retransmitted."""
    assert streamed((1, STREAM), (1, STREAM), (1, STREAM[:9])) == [HELLO, WORLD]


def test_overlapping_segments() -> None:
    end = 1 + len(STREAM)
    parts = (1, STREAM[:30]), (11, STREAM[10:50]), (1, STREAM), (end - 1, b"\0"), (end, b"")
    assert streamed(*parts) == [HELLO, WORLD]


def test_a_gap_loses_no_later_message() -> None:
    first, second = framed(HELLO), framed(WORLD)
    assert streamed((1, first[:20]), (1 + len(first), second)) == [WORLD]
    assert streamed((1, first[:20]), (1_000_000, first[20:]), (5_000_000, second)) == [WORLD]


def test_in_the_middle_of_a_stream() -> None:
    """Whatever the cut looks like, the stream is read again once segments begin with messages."""
    at, parts = 1, [framed(HELLO)[9:]]
    for _ in range(3):
        parts.append(framed(WORLD))
    segments = []
    for part in parts:
        segments.append((at, part))
        at += len(part)
    assert streamed(*segments)[-1:] == [WORLD]


@pytest.mark.parametrize("nonsense", [bytes(40), b"\0\5hello", framed(HELLO[:2] + bytes(20))])
def test_nonsense_is_thrown_away(nonsense: bytes) -> None:
    parts = (1, nonsense), (1 + len(nonsense), framed(HELLO))
    assert streamed(*parts) == [HELLO]


def test_a_port_that_is_used_again() -> None:
    reassembly = opened(10**9)
    assert streamed((10**9 + 1, STREAM[:50]), reassembly=reassembly) == [HELLO]
    reassembly.messages(ipv4(TCP, tcp(b"", 999_999_990, SYN | ACK)))
    assert streamed((999_999_991, framed(WORLD)), reassembly=reassembly) == [WORLD]


def test_data_in_the_first_and_in_the_last_segment() -> None:
    first, second = framed(HELLO), framed(WORLD)
    reassembly = Reassembly()
    assert reassembly.messages(ipv6(TCP, tcp(first, 5, SYN | ACK))) == [HELLO]
    assert reassembly.messages(ipv6(TCP, tcp(second, 6 + len(first), FIN | ACK))) == [WORLD]


def test_streams_do_not_mix() -> None:
    reassembly, whole = Reassembly(), framed(HELLO)
    ends = [(ipv4, f"192.0.2.{i}") for i in range(9)] + [(ipv6, f"2001:db8::{i}") for i in range(9)]
    for ip, source in ends:
        assert reassembly.messages(ip(TCP, tcp(whole[:20], 1), source=source)) == []
    for ip, source in ends:
        assert reassembly.messages(ip(TCP, tcp(whole[20:], 21), source=source)) == [HELLO]


def test_the_streams_are_bounded() -> None:
    reassembly, whole = Reassembly(), framed(HELLO)
    sources = [f"10.0.{i >> 8}.{i & 255}" for i in range(1000)]
    for source in sources:
        reassembly.messages(ipv4(TCP, tcp(whole[:40], 1), source=source))
    ends = [reassembly.messages(ipv4(TCP, tcp(whole[40:], 41), source=s)) for s in sources[-256:]]
    assert ends == [[HELLO]] * 256
    assert len(reassembly._streams) == 256


@given(st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=99), st.integers(0, 63))))
def test_any_segments_are_no_harm(segments: Sequence[tuple[int, bytes, int]]) -> None:
    reassembly = Reassembly()
    for at, data, flags in segments:
        reassembly.messages(ipv4(TCP, tcp(data, at, flags)))
        assert all(len(stream.waiting) < 65_538 for stream in reassembly._streams.values())


@given(st.lists(st.integers(0, len(STREAM)), max_size=9), st.integers(0, 2**32 - 1))
def test_however_it_is_cut(cuts: list[int], initial: int) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    parts = [(initial + 1 + a, STREAM[a:b]) for a, b in pairwise(edges)]
    assert streamed(*parts, reassembly=opened(initial)) == [HELLO, WORLD]
