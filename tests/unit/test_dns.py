"""DNS answers out of made-up packets; real ones are a live test's."""

from __future__ import annotations

import importlib
import json
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("dnslib")
from dnslib import AAAA, CNAME, EDNS0, QTYPE, RR, A, DNSHeader, DNSQuestion, DNSRecord

from tcpcore.enrich import dns
from tcpcore.enrich.dns import Names, Packets
from tcpcore.errors import PrivilegeError, TcpcoreError, UsageError
from tcpcore.model import clock
from tcpcore.sinks.output import Csv, Json, Table
from tcpcore.tools import connect
from tests.unit.samples import address, event

MS, SECOND = 1_000_000, 1_000_000_000
DAY = 86_400 * SECOND
V4, V6 = "192.0.2.1", "2001:db8::1"
UDP, TCP = 17, 6
SYN, ACK, FIN = 2, 16, 1

Record = tuple[str, str, str]  # owner, type, data
DATA = {"A": A, "AAAA": AAAA, "CNAME": CNAME}


def message(question: str, *records: Record, **header: int) -> bytes:
    """A response, whose names dnslib compresses."""
    kind = next((kind for _, kind, _ in records if kind != "CNAME"), "A")
    whole = DNSRecord(
        DNSHeader(**{"id": 7, "qr": 1, "rd": 1, "ra": 1, **header}),
        q=DNSQuestion(question, getattr(QTYPE, kind)),
        rr=[RR(owner, getattr(QTYPE, t), rdata=DATA[t](data)) for owner, t, data in records],
    )
    return bytes(whole.pack())


def answer(name: str, *addresses: str, **header: int) -> bytes:
    kinds = {4: "A", 6: "AAAA"}
    records = [(name, kinds[ip_address(text).version], text) for text in addresses]
    return message(name, *records, **header)


def raw(
    question: bytes, *records: bytes, flags: int = 0x8180, questions: int = 1, answers: int = -1
) -> bytes:
    """A message from bytes: question and records as they are on the wire."""
    count = len(records) if answers < 0 else answers
    counts = struct.pack("!HHHHHH", 7, flags, questions, count, 0, 0)
    return counts + question + b"".join(records)


def resource(owner: bytes, kind: int, data: bytes, family: int = 1) -> bytes:
    return owner + struct.pack("!HHIH", kind, family, 60, len(data)) + data


EXAMPLE = b"\x07example\x03com\0"
QUESTION = EXAMPLE + b"\0\1\0\1"
POINTER = b"\xc0\x0c"  # to the question's name
ADDRESS = resource(POINTER, 1, bytes([192, 0, 2, 1]))


def learned(*messages: bytes) -> Names:
    """A second apart, from 1 s on."""
    names = Names()
    for second, each in enumerate(messages, 1):
        names.learn(each, second * SECOND)
    return names


def name_of(names: Names, text: str, at_ns: int = 20 * SECOND) -> str | None:
    found = names.name(address(text), at_ns)
    return found[0] if found else None


# What a message says.


def test_an_address_has_the_name_that_was_asked() -> None:
    names = learned(answer("www.example.com", V4), answer("six.example.com", V6))
    assert names.name(address(V4), 3 * SECOND) == ("www.example.com", 2 * SECOND)
    assert names.name(address(V6), 3 * SECOND) == ("six.example.com", 1 * SECOND)
    assert names.name(address("192.0.2.2"), 3 * SECOND) is None
    assert names.name(address("::"), 3 * SECOND) is None


def test_all_addresses_of_an_answer() -> None:
    names = learned(answer("example.com", V4, "192.0.2.2", V6))
    assert {name_of(names, text) for text in (V4, "192.0.2.2", V6)} == {"example.com"}


def test_a_chain_of_aliases_leads_back_to_the_question() -> None:
    names = learned(
        message(
            "www.example.com",
            ("www.example.com", "CNAME", "cdn.example.net"),
            ("cdn.example.net", "CNAME", "edge.example.org"),
            ("edge.example.org", "A", V4),
        )
    )
    assert name_of(names, V4) == "www.example.com"


def test_an_alias_that_the_resolver_asks_for_by_itself() -> None:
    names = learned(
        message("www.Example.com", ("www.example.com", "CNAME", "Cdn.example.net")),
        message("cdn.example.NET", ("cdn.example.net", "CNAME", "edge.example.org")),
        answer("edge.example.org", V4),
        answer("edge.example.org", V6),
    )
    assert name_of(names, V4) == name_of(names, V6) == "www.Example.com"


def test_an_alias_is_soon_forgotten() -> None:
    names = learned(message("www.example.com", ("www.example.com", "CNAME", "cdn.example.net")))
    names.learn(answer("cdn.example.net", V4), 60 * SECOND)
    assert name_of(names, V4, 61 * SECOND) == "cdn.example.net"


def test_an_alias_that_came_with_its_address_is_none() -> None:
    names = learned(
        message("a.example", ("a.example", "CNAME", "b.example"), ("b.example", "A", V4)),
        answer("b.example", V6),
    )
    assert name_of(names, V6) == "b.example"


def test_aliases_in_a_circle() -> None:
    names = learned(
        message("a.example", ("a.example", "CNAME", "b.example")),
        message("b.example", ("b.example", "CNAME", "a.example")),
        answer("a.example", V4),
    )
    assert name_of(names, V4) == "a.example"


def test_more_aliases_than_a_resolver_follows() -> None:
    chain = [(f"{i}.example", "CNAME", f"{i + 1}.example") for i in range(100)]
    names = learned(message("0.example", *chain, ("100.example", "A", V4)))
    assert name_of(names, V4) == "0.example"


@pytest.mark.parametrize("number", [1, 40, 4000])
def test_answers_of_any_size(number: int) -> None:
    texts = [f"10.0.{i >> 8}.{i & 255}" for i in range(number)]
    large = answer("large.example.com", *texts)
    assert len(large) > 512 or number == 1
    names = learned(large)
    assert {name_of(names, text) for text in texts} == {"large.example.com"}


def test_the_other_sections_do_not_matter() -> None:
    whole = DNSRecord.parse(answer("example.com", V4))
    whole.add_auth(RR("example.com", QTYPE.A, rdata=A("192.0.2.66")))
    whole.add_ar(EDNS0(flags="do", udp_len=4096))
    names = learned(whole.pack() + b"\xff\xff")
    assert name_of(names, V4) == "example.com"
    assert name_of(names, "192.0.2.66") is None


def test_other_records_are_passed_over() -> None:
    records = (
        resource(POINTER, 46, b"\0\1\xff\xff"),  # RRSIG, as nobody writes it
        resource(b"\xc1\xff", 15, b"\xff"),  # MX; its owner points nowhere
        resource(POINTER, 16, b""),
        resource(POINTER, 1, bytes(4), family=3),  # CHAOS
        resource(POINTER, 1, bytes(5)),
        resource(POINTER, 28, bytes(4)),
        ADDRESS,
    )
    names = learned(raw(QUESTION, *records))
    assert name_of(names, V4) == "example.com"
    assert name_of(names, "0.0.0.0") is None


@pytest.mark.parametrize("owner", [POINTER, EXAMPLE, b"\x03www\xc0\x0c", b"\x03www\xc0\x14", b"\0"])
def test_owners_compressed_and_not(owner: bytes) -> None:
    names = learned(raw(QUESTION, resource(owner, 1, bytes([192, 0, 2, 1]))))
    assert name_of(names, V4) == "example.com"


def test_a_v4_mapped_answer_is_ipv4() -> None:
    mapped = resource(POINTER, 28, address(V4))
    assert name_of(learned(raw(QUESTION, mapped)), V4) == "example.com"


def test_what_came_before_a_cut_holds() -> None:
    """As in the first fragment of a datagram."""
    other = resource(POINTER, 1, bytes([192, 0, 2, 2]))
    for cut in range(len(other)):
        names = learned(raw(QUESTION, ADDRESS, other[:cut]))
        assert name_of(names, V4) == "example.com"
        assert name_of(names, "192.0.2.2") is None


@pytest.mark.parametrize(
    "useless",
    [
        answer("example.com", V4, qr=0),
        answer("example.com", V4, rcode=3),  # NXDOMAIN
        answer("example.com", V4, rcode=2),  # SERVFAIL
        answer("example.com", V4, opcode=5),  # UPDATE
        DNSRecord.question("example.com").pack(),
        DNSRecord(DNSHeader(qr=1), rr=[RR("example.com", rdata=A(V4))]).pack(),
        raw(QUESTION + QUESTION, ADDRESS, questions=2),
        raw(QUESTION, resource(POINTER, 15, b"\0\x0a\4mail\xc0\x0c")),  # MX
        raw(QUESTION, ADDRESS, answers=0),
        raw(b"\xc0\x0c\0\1\0\1", ADDRESS),  # points at itself
        raw(b"\x04aaaa\xc0\x0e\0\1\0\1", ADDRESS),  # into its own label
        raw(b"\xc0\x20\0\1\0\1", ADDRESS),  # forwards
        raw(b"\1a" * 128 + b"\0\0\1\0\1", ADDRESS),  # 257 bytes
        raw(b"\1a" * 32_000 + b"\0\0\1\0\1", ADDRESS),
        raw(b"\2\xff\xfe\0\0\1\0\1", ADDRESS),  # not UTF-8
        b"",
        bytes(12),
        b"\xff" * 600,
    ],
)
def test_what_is_no_use(useless: bytes) -> None:
    assert name_of(learned(useless), V4) is None


def test_the_longest_name() -> None:
    names = learned(raw(b"\1a" * 127 + b"\0\0\1\0\1", ADDRESS))  # 255 bytes
    assert name_of(names, V4) == ".".join("a" * 127)


@pytest.mark.parametrize("depth", [10, 5000])
def test_pointers_to_pointers(depth: int) -> None:
    """Each to the one before: deeper than Python's stack, and no alias comes of it."""
    base = 12 + len(QUESTION + ADDRESS) + 11
    links = b"\0\0" + b"".join(struct.pack("!H", 0xC000 | base + 2 * i) for i in range(depth))
    end = struct.pack("!H", 0xC000 | base + 2 * depth)
    hostile = raw(QUESTION, ADDRESS, resource(b"\0", 99, links), resource(POINTER, 5, end))
    parsed = dns.parse(hostile)
    assert parsed is not None
    assert parsed.addresses == [address(V4)]
    assert parsed.aliases == (["."] if depth == 10 else [])


def test_the_root_has_a_name() -> None:
    assert name_of(learned(raw(b"\0\0\1\0\1", ADDRESS)), V4) == "."


@given(st.binary(max_size=300))
def test_any_bytes_are_no_harm(garbage: bytes) -> None:
    names = learned(garbage, b"\0\7\x81\x80\0\1\0\1" + garbage, raw(QUESTION, garbage, answers=9))
    names.name(garbage, 0)


@given(st.binary(max_size=200), st.data())
def test_broken_messages_are_no_harm(noise: bytes, data: st.DataObject) -> None:
    whole = message("www.example.com", ("www.example.com", "CNAME", "b.c"), ("b.c", "AAAA", V6))
    at = data.draw(st.integers(0, len(whole)))
    learned(whole[:at] + noise + whole[at + len(noise) :])


# Which of several answers.


def test_the_newest_answer_before_the_moment() -> None:
    names = learned(answer("one.example", V4), answer("two.example", V4))
    for moment, expected in (
        (1 * SECOND - 2 * MS, None),
        (1 * SECOND, ("one.example", 0)),
        (2 * SECOND - 2 * MS, ("one.example", SECOND - 2 * MS)),
        (2 * SECOND, ("two.example", 0)),
        (3 * SECOND, ("two.example", SECOND)),
    ):
        assert names.name(address(V4), moment) == expected


def test_time_stamps_may_be_a_bit_off() -> None:
    names = learned(answer("one.example", V4))
    assert names.name(address(V4), SECOND - MS) == ("one.example", 0)
    assert names.name(address(V4), SECOND - MS - 1) is None


def test_answers_that_come_in_another_order() -> None:
    names = Names()
    for second in (3, 1, 2):
        names.learn(answer(f"{second}.example", V4), second * SECOND)
    assert [name_of(names, V4, s * SECOND) for s in (1, 2, 3)] == [
        "1.example", "2.example", "3.example",
    ]  # fmt: skip


def test_of_answers_at_one_time_the_last() -> None:
    names = Names()
    for name in ("b.example", "c.example", "a.example"):
        names.learn(answer(name, V4), SECOND)
    assert name_of(names, V4) == "a.example"


def test_a_packet_seen_on_several_interfaces_counts_once() -> None:
    names = learned(*(answer(f"{i}.example", V4) for i in range(3)))
    for copy in range(10):
        names.learn(answer("last.example", V4), 9 * SECOND + copy * 100_000)
    assert names.name(address(V4), 9 * SECOND) == ("last.example", 0)
    assert names.name(address(V4), 10 * SECOND) == ("last.example", SECOND)
    assert name_of(names, V4, 8 * SECOND) == "2.example"
    assert name_of(names, V4, 1 * SECOND) == "0.example"


def test_the_last_four_answers_are_kept() -> None:
    names = learned(*(answer(f"{i}.example", V4) for i in range(1, 7)))
    found = [name_of(names, V4, s * SECOND) for s in range(1, 7)]
    assert found == [None, None, "3.example", "4.example", "5.example", "6.example"]


def test_an_answer_of_yesterday_is_unknown() -> None:
    names = learned(answer("example.com", V4))
    assert name_of(names, V4, SECOND + DAY) == "example.com"
    assert name_of(names, V4, SECOND + DAY + 1) is None


def test_the_oldest_addresses_are_forgotten() -> None:
    names, limit = Names(), 65_536
    kept = answer("kept.example", V4)
    names.learn(answer("old.example", "192.0.2.2"), 0)
    names.learn(kept, 0)
    for block in range(limit // 1024):
        names.learn(kept, block * SECOND)
        texts = [f"10.{block}.{i >> 8}.{i & 255}" for i in range(1024)]
        names.learn(answer("many.example", *texts), block * SECOND)
    now = limit // 1024 * SECOND
    assert name_of(names, "192.0.2.2", now) is None
    assert name_of(names, "10.0.0.0", now) is None
    assert name_of(names, V4, now) == "kept.example"
    assert name_of(names, "10.0.0.1", now) == "many.example"


# Packets.


def udp(data: bytes, sport: int = 53, dport: int = 40_000) -> bytes:
    return struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data


def tcp(
    data: bytes, sequence: int = 1, flags: int = ACK, sport: int = 53, options: bytes = b""
) -> bytes:
    offset = 20 + len(options) << 10
    header = struct.pack("!HHIIHHHH", sport, 40_000, sequence % 2**32, 9, offset | flags, 0, 0, 0)
    return header + options + data


def ipv4(
    protocol: int, data: bytes, options: bytes = b"", fragment: int = 0, source: str = V4
) -> bytes:
    first, total = 0x45 + len(options) // 4, 20 + len(options) + len(data)
    head = struct.pack("!BBHHHBBH", first, 0, total, 1, fragment, 64, protocol, 0)
    return head + ip_address(source).packed + bytes([10, 0, 0, 1]) + options + data


def ipv6(protocol: int, data: bytes, source: str = V6) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(data), protocol, 64)
    return head + ip_address(source).packed + bytes(16) + data


def framed(*messages: bytes) -> bytes:
    return b"".join(struct.pack("!H", len(each)) + each for each in messages)


HELLO, WORLD = answer("hello.example", V4), answer("world.example", V6, "2001:db8::2")


def test_udp_over_both_families() -> None:
    packets = Packets()
    assert packets.messages(ipv4(UDP, udp(HELLO))) == [HELLO]
    assert packets.messages(ipv4(UDP, udp(HELLO), options=b"\1" * 40)) == [HELLO]
    assert packets.messages(ipv6(UDP, udp(WORLD))) == [WORLD]


@pytest.mark.parametrize("ip", [ipv4, ipv6])
def test_padding_is_no_part_of_a_packet(ip: Callable[..., bytes]) -> None:
    packets = Packets()
    assert packets.messages(ip(UDP, udp(HELLO)) + bytes(20)) == [HELLO]
    assert packets.messages(ip(TCP, tcp(framed(HELLO))) + bytes(20)) == [HELLO]


def test_the_first_of_several_fragments() -> None:
    packets, whole = Packets(), udp(HELLO)
    assert packets.messages(ipv4(UDP, whole[:32], fragment=0x2000)) == [HELLO[:24]]
    assert packets.messages(ipv4(UDP, whole[32:], fragment=4)) == []
    assert packets.messages(ipv4(UDP, whole, fragment=0x2001)) == []


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
def test_other_packets(packet: bytes) -> None:
    assert Packets().messages(packet) == []


def test_larger_than_64_kib() -> None:
    """What GRO put together has 0 for its length."""
    many = framed(*[HELLO] * 2000)
    v4, v6 = bytearray(ipv4(TCP, tcp(b""))), bytearray(ipv6(TCP, tcp(b"")))
    v4[2:4] = v6[4:6] = bytes(2)
    for packet in (v4, v6):
        assert Packets().messages(bytes(packet) + many) == [HELLO] * 2000


@given(st.binary(max_size=120))
def test_any_bytes_are_no_packet(garbage: bytes) -> None:
    packets = Packets()
    for begin in (b"", b"\x45", ipv4(UDP, b""), ipv4(TCP, b""), ipv6(TCP, b""), b"\x45\0\0\0"):
        packets.messages(begin + garbage)
    for inner in (udp(garbage), tcp(garbage), b"\0\x35" + garbage):
        for protocol in (TCP, UDP):
            packets.messages(ipv4(protocol, inner))
            packets.messages(ipv6(protocol, inner))


@given(st.data())
def test_any_packet_may_be_cut_short(data: st.DataObject) -> None:
    packet = data.draw(st.sampled_from(PASSING))
    Packets().messages(packet[: data.draw(st.integers(0, len(packet)))])


# TCP streams.


def streamed(*segments: tuple[int, bytes], packets: Packets | None = None) -> list[bytes]:
    """The messages in segments, given with their sequence numbers."""
    packets = packets or Packets()
    return [m for at, data in segments for m in packets.messages(ipv4(TCP, tcp(data, at)))]


def opened(initial: int) -> Packets:
    packets = Packets()
    packets.messages(ipv4(TCP, tcp(b"", initial, SYN | ACK, options=b"\2\4\5\xb4")))
    return packets


STREAM = framed(HELLO, WORLD)


@pytest.mark.parametrize("initial", [0, 1000, 2**32 - 1, 2**32 - 20])
def test_split_at_every_position(initial: int) -> None:
    for cut in range(len(STREAM) + 1):
        parts = (initial + 1, STREAM[:cut]), (initial + 1 + cut, STREAM[cut:])
        assert streamed(*parts, packets=opened(initial)) == [HELLO, WORLD]
        assert streamed(*parts) == [HELLO, WORLD]  # its SYN was before our time


def test_byte_by_byte_and_each_twice() -> None:
    parts = [(1 + i, STREAM[i : i + 1]) for i in range(len(STREAM)) for _ in range(2)]
    assert streamed(*parts, packets=opened(0)) == [HELLO, WORLD]


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
    packets = opened(10**9)
    assert streamed((10**9 + 1, STREAM[:50]), packets=packets) == [HELLO]
    packets.messages(ipv4(TCP, tcp(b"", 999_999_990, SYN | ACK)))
    assert streamed((999_999_991, framed(WORLD)), packets=packets) == [WORLD]


def test_data_in_the_first_and_in_the_last_segment() -> None:
    first, second = framed(HELLO), framed(WORLD)
    packets = Packets()
    assert packets.messages(ipv6(TCP, tcp(first, 5, SYN | ACK))) == [HELLO]
    assert packets.messages(ipv6(TCP, tcp(second, 6 + len(first), FIN | ACK))) == [WORLD]


def test_streams_do_not_mix() -> None:
    packets, whole = Packets(), framed(HELLO)
    ends = [(ipv4, f"192.0.2.{i}") for i in range(9)] + [(ipv6, f"2001:db8::{i}") for i in range(9)]
    for ip, source in ends:
        assert packets.messages(ip(TCP, tcp(whole[:20], 1), source=source)) == []
    for ip, source in ends:
        assert packets.messages(ip(TCP, tcp(whole[20:], 21), source=source)) == [HELLO]


def test_the_streams_are_bounded() -> None:
    packets, whole = Packets(), framed(HELLO)
    sources = [f"10.0.{i >> 8}.{i & 255}" for i in range(1000)]
    for source in sources:
        packets.messages(ipv4(TCP, tcp(whole[:40], 1), source=source))
    ends = [packets.messages(ipv4(TCP, tcp(whole[40:], 41), source=s)) for s in sources[-256:]]
    assert ends == [[HELLO]] * 256
    assert len(packets._streams) == 256


@given(st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=99), st.integers(0, 63))))
def test_any_segments_are_no_harm(segments: Sequence[tuple[int, bytes, int]]) -> None:
    packets = Packets()
    for at, data, flags in segments:
        packets.messages(ipv4(TCP, tcp(data, at, flags)))
        assert all(len(stream.waiting) < 65_538 for stream in packets._streams.values())


@given(st.lists(st.integers(0, len(STREAM)), max_size=9), st.integers(0, 2**32 - 1))
def test_however_it_is_cut(cuts: list[int], initial: int) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    parts = [(initial + 1 + a, STREAM[a:b]) for a, b in pairwise(edges)]
    assert streamed(*parts, packets=opened(initial)) == [HELLO, WORLD]


# The kernel's filter.


def run(program: bytes, packet: bytes) -> int:
    """What classic BPF returns (Documentation/networking/filter.rst); the bytes that pass."""
    operations = list(struct.iter_unpack("=HBBI", program))
    a = x = at = 0
    while True:
        code, true, false, k = operations[at]
        at += 1
        match code:
            case 0x30 | 0x28 | 0x48:  # ldb [k], ldh [k], ldh [x + k]
                begin, size = k + x * (code == 0x48), 1 if code == 0x30 else 2
                if begin + size > len(packet):
                    return 0
                a = int.from_bytes(packet[begin : begin + size], "big")
            case 0xB1:  # ldx 4 * ([k] & 15)
                x = 4 * (packet[k] & 15)
            case 0x54:  # and
                a &= k
            case 0x15:  # jeq
                at += true if a == k else false
            case 0x45:  # jset
                at += true if a & k else false
            case 0x06:  # ret
                return int(k)
            case _:
                raise AssertionError(f"no such operation: {code:#x}")


PASSING = (
    ipv4(UDP, udp(HELLO)),
    ipv4(TCP, tcp(framed(HELLO))),
    ipv4(TCP, tcp(b"", flags=SYN)),
    ipv4(UDP, udp(HELLO), options=b"\1" * 4),
    ipv4(UDP, udp(HELLO), options=b"\1" * 40),
    ipv4(UDP, udp(HELLO), fragment=0x2000),
    ipv4(UDP, udp(HELLO), fragment=0x4000),
    ipv6(UDP, udp(HELLO)),
    ipv6(TCP, tcp(framed(HELLO))),
)


@pytest.mark.parametrize("packet", PASSING)
def test_the_filter_passes_answers(packet: bytes) -> None:
    assert run(dns.filter_program(), packet) > 1 << 16


@pytest.mark.parametrize(
    "packet",
    [
        ipv4(UDP, udp(HELLO, sport=54)),
        ipv4(UDP, udp(HELLO, sport=40_000, dport=53)),
        ipv4(UDP, udp(HELLO, sport=40_000), options=b"\0\x35\0\x35"),
        ipv4(UDP, udp(HELLO), fragment=1),
        ipv4(UDP, udp(HELLO), fragment=0x3000),
        ipv4(UDP, b""),
        ipv4(1, udp(HELLO)),
        ipv4(132, udp(HELLO)),
        ipv6(UDP, udp(HELLO, sport=53 << 8)),
        ipv6(TCP, tcp(framed(HELLO), sport=80)),
        ipv6(58, udp(HELLO)),
        ipv6(0, udp(HELLO)),
        ipv6(UDP, b"\0"),
        b"\x50" + ipv4(UDP, udp(HELLO))[1:],
        b"\0\1\x08\0\6\4\0\1" + bytes(40),
        b"\x45",
        b"",
    ],
)
def test_the_filter_drops_all_else(packet: bytes) -> None:
    assert run(dns.filter_program(), packet) == 0


@given(st.sampled_from(PASSING), st.integers(0, 63), st.integers(0, 255))
def test_the_filter_drops_nothing_of_use(packet: bytes, at: int, byte: int) -> None:
    changed = bytearray(packet)
    changed[at % len(packet)] = byte
    if Packets().messages(bytes(changed)):
        assert run(dns.filter_program(), bytes(changed))


def test_every_operation_of_the_filter_is_reached() -> None:
    """Each jump lands in the program, forwards: the kernel would refuse it otherwise."""
    operations = list(struct.iter_unpack("=HBBI", dns.filter_program()))
    reached = {0}
    for at, (code, true, false, _) in enumerate(operations):
        assert at in reached
        if code != 0x06:
            reached |= {at + 1 + true, at + 1 + false}
    assert reached == set(range(len(operations)))


# What the user sees.


def shown(style: type[Table] | type[Json] | type[Csv], name: str | None, age: int | None) -> str:
    """A connect with this query, as the writer shows it."""
    whole = connect.tool(dns=True)
    record = event(whole, query=name, query_age_ns=age, result=0)
    out = Table(whole, *[False] * 3) if style is Table else style(whole)  # type: ignore[call-arg]
    return out.rows([record]).rstrip("\n")


@pytest.mark.parametrize(
    ("age", "text"),
    [
        (0, "example.com"),
        (100 * MS, "example.com"),
        (100 * MS + 1, "example.com (100.000ms)"),
        (123_456_000, "example.com (123.456ms)"),
        (DAY, "example.com (86400000.000ms)"),
        (None, "example.com"),
    ],
)
def test_an_old_answer_shows_its_age(age: int | None, text: str) -> None:
    """In the table behind the name, elsewhere in a field of its own."""
    query = "example.com", age
    assert shown(Table, *query).endswith(f" ok           {text}")
    found = json.loads(shown(Json, *query))
    assert (found["query"], found["query_age_ns"]) == query
    assert shown(Csv, *query).endswith(f",example.com,{'' if age is None else age}")


def test_an_unknown_name() -> None:
    assert shown(Table, None, None).endswith(" ok           -")
    found = json.loads(shown(Json, None, None))
    assert (found["query"], found["query_age_ns"]) == (None, None)
    assert shown(Csv, None, None).endswith(",,")


def named(names: object, raddr: str = V4) -> list[Any]:
    """What is put behind a connect that began at 3 s."""
    sniffer = SimpleNamespace(names=names, read=lambda: None)
    namer = dns.Namer(cast(dns.Sniffer, sniffer), ("ts_ns", "duration_ns", "raddr"))
    (record,) = namer([(4 * SECOND, SECOND, address(raddr))])
    return list(record[3:])


def test_the_age_counts_from_the_begin_of_the_connect() -> None:
    names = learned(answer("www", V4))
    assert named(names) == ["www", 2 * SECOND]
    assert named(names, "127.0.0.1") == ["localhost", None]
    assert named(names, "192.0.2.77") == [None, None]


@pytest.mark.parametrize(
    "label", [b"\x1b[2J\x1b]0;x\x07", b"two\r\nlines", "\u202eevil\u200b".encode(), b"\x9b2J"[1:]]
)
def test_a_hostile_name_does_nothing_to_a_terminal(label: bytes) -> None:
    """Whether the parser escapes it or not."""
    names = learned(raw(bytes([len(label)]) + label + b"\0\0\1\0\1", ADDRESS))
    as_it_is = SimpleNamespace(name=lambda *_: (label.decode(), 0))
    for each in (names, as_it_is):
        name, _ = named(each)
        assert name.isascii()
        assert name.isprintable()


# Where it cannot be.


def test_without_dnslib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dnslib", None)
    monkeypatch.delitem(sys.modules, "tcpcore.enrich.dns")
    with pytest.raises(UsageError, match=r"^--dns: needs dnslib: pip install 'tcpcore\[dns\]'$"):
        importlib.import_module("tcpcore.enrich.dns")


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
        dns.Sniffer()
    assert str(e.value).startswith("--dns: ")
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
    monkeypatch.setattr(dns, "time", SimpleNamespace(time_ns=lambda: OFFSET + 50 * SECOND))


@contextmanager
def sniffing(
    monkeypatch: pytest.MonkeyPatch, ipv4: FakeSocket, ipv6: FakeSocket
) -> Iterator[dns.Sniffer]:
    monkeypatch.setattr(dns, "_open", {0x0800: ipv4, 0x86DD: ipv6}.__getitem__)
    with dns.Sniffer() as sniffer:
        yield sniffer
    assert ipv4.closed and ipv6.closed


def test_reading_packets(monkeypatch: pytest.MonkeyPatch, clocks: None) -> None:
    """Of both families, each drained to its end."""
    four = FakeSocket(
        (ipv4(UDP, udp(HELLO)), OFFSET + 40 * SECOND),
        (ipv4(UDP, udp(HELLO)), OFFSET + 40 * SECOND + 20_000),
    )
    six = FakeSocket((ipv6(TCP, tcp(framed(WORLD))), OFFSET + 49 * SECOND))
    with sniffing(monkeypatch, four, six) as sniffer:
        sniffer.read()
        assert sniffer.names.name(address(V4), 41 * SECOND) == ("hello.example", SECOND)
        assert sniffer.names.name(address(V6), 50 * SECOND) == ("world.example", SECOND)
        sniffer.read()


def test_a_flood_does_not_keep_us(monkeypatch: pytest.MonkeyPatch, clocks: None) -> None:
    """Packets that came after the call are for the next one."""
    packet = ipv4(UDP, udp(HELLO))
    four = FakeSocket(*((packet, OFFSET + (45 + i) * SECOND) for i in range(20)))
    with sniffing(monkeypatch, four, FakeSocket()) as sniffer:
        sniffer.read()
        assert len(four.waiting) == 13


@pytest.mark.parametrize(("size", "read"), [(100, 512), (60_000, 5)])
def test_a_full_queue_does_not_keep_us(
    monkeypatch: pytest.MonkeyPatch, clocks: None, size: int, read: int
) -> None:
    """The rings have their turn; and one family's flood is not the other's."""
    packet = ipv4(UDP, udp(HELLO)).ljust(size, b"\0")
    flood = [(packet, OFFSET + 40 * SECOND)] * 1000
    four, six = FakeSocket(*flood), FakeSocket(*flood)
    with sniffing(monkeypatch, four, six) as sniffer:
        sniffer.read()
        assert len(six.waiting) == len(four.waiting) == 1000 - read
        sniffer.read()
        assert len(six.waiting) == len(four.waiting) == max(0, 1000 - 2 * read)


def test_what_the_sockets_drop_adds_up(monkeypatch: pytest.MonkeyPatch, clocks: None) -> None:
    four, six = FakeSocket(drops=(3, 0, 2)), FakeSocket(drops=(0, 40, 0))
    with sniffing(monkeypatch, four, six) as sniffer:
        namer = dns.Namer(sniffer, ("ts_ns", "duration_ns", "raddr"))
        assert [namer.lost() for _ in range(3)] == [3, 43, 45]


def test_a_second_socket_that_fails_leaves_none_open(monkeypatch: pytest.MonkeyPatch) -> None:
    first = FakeSocket()

    def open_(protocol: int) -> FakeSocket:
        if protocol != 0x0800:
            raise TcpcoreError("no packet socket")
        return first

    monkeypatch.setattr(dns, "_open", open_)
    with pytest.raises(TcpcoreError):
        dns.Sniffer()
    assert first.closed
