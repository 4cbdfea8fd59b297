"""Made-up DNS messages, and packets that carry them."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from dnslib import AAAA, CNAME, QTYPE, RR, A, DNSHeader, DNSQuestion, DNSRecord

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


# Packets that DNS servers send.
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
