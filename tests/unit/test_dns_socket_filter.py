"""Which packets the kernel lets through to the packet sockets."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpcore.enrich.dns.reassembly import Reassembly
from tcpcore.enrich.dns.socket_filter import filter_program
from tests.unit.dns_samples import HELLO, PASSING, TCP, UDP, framed, ipv4, ipv6, tcp, udp


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


@pytest.mark.parametrize("packet", PASSING)
def test_the_filter_passes_answers(packet: bytes) -> None:
    assert run(filter_program(), packet) > 1 << 16


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
    assert run(filter_program(), packet) == 0


@given(st.sampled_from(PASSING), st.integers(0, 63), st.integers(0, 255))
def test_the_filter_drops_nothing_of_use(packet: bytes, at: int, byte: int) -> None:
    changed = bytearray(packet)
    changed[at % len(packet)] = byte
    if Reassembly().messages(bytes(changed)):
        assert run(filter_program(), bytes(changed))


def test_every_operation_of_the_filter_is_reached() -> None:
    """Each jump lands in the program, forwards: the kernel would refuse it otherwise."""
    operations = list(struct.iter_unpack("=HBBI", filter_program()))
    reached = {0}
    for at, (code, true, false, _) in enumerate(operations):
        assert at in reached
        if code != 0x06:
            reached |= {at + 1 + true, at + 1 + false}
    assert reached == set(range(len(operations)))
