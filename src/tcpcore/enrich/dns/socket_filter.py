"""The socket filter: the kernel shows a packet socket only what a DNS server sent.

Classic BPF, which socket(7) takes without any capability to load BPF programs. See
Documentation/networking/filter.rst.
"""

from __future__ import annotations

import struct
from itertools import chain
from typing import NamedTuple

from tcpcore.enrich.dns.packet import LARGEST, PORT, TCP, UDP

# include/uapi/linux/bpf_common.h: A is the accumulator, X the index register, k the operand.
_LOAD_BYTE, _LOAD_HALF = 0x30, 0x28  # A = packet[k], in 1 or 2 bytes
_LOAD_HALF_X = 0x48  # A = packet[X + k]
_X_IPV4_HEADER = 0xB1  # X = 4 * (packet[k] & 15)
_AND, _EQUAL, _ANY_BIT, _RETURN = 0x54, 0x15, 0x45, 0x06


class _Op(NamedTuple):
    """true, false: the block to jump to; "" goes on with the next operation."""

    code: int
    operand: int = 0
    true: str = ""
    false: str = ""


# Offsets count from the network header. Jumps lead forwards only, so the order matters.
_BLOCKS = {
    "version": (
        _Op(_LOAD_BYTE, 0),
        _Op(_AND, 0xF0),
        _Op(_EQUAL, 0x40, "ipv4"),
        _Op(_EQUAL, 0x60, "ipv6", "drop"),
    ),
    "ipv4": (
        _Op(_LOAD_HALF, 6),
        _Op(_ANY_BIT, 0x1FFF, "drop"),  # only the first fragment has ports
        _Op(_LOAD_BYTE, 9),
        _Op(_EQUAL, UDP, "ipv4 port"),
        _Op(_EQUAL, TCP, "ipv4 port", "drop"),
    ),
    "ipv4 port": (
        _Op(_X_IPV4_HEADER, 0),
        _Op(_LOAD_HALF_X, 0),
        _Op(_EQUAL, PORT, "take", "drop"),
    ),
    "ipv6": (
        _Op(_LOAD_BYTE, 6),
        _Op(_EQUAL, UDP, "ipv6 port"),
        _Op(_EQUAL, TCP, "ipv6 port", "drop"),
    ),
    "ipv6 port": (
        _Op(_LOAD_HALF, 40),
        _Op(_EQUAL, PORT, "take", "drop"),
    ),
    "take": (_Op(_RETURN, LARGEST),),  # as many bytes of the packet
    "drop": (_Op(_RETURN, 0),),
}


def filter_program() -> bytes:
    """The filter as an array of struct sock_filter (include/uapi/linux/filter.h)."""
    starts, size = {}, 0
    for label, block in _BLOCKS.items():
        starts[label] = size
        size += len(block)

    def instruction(at: int, op: _Op) -> bytes:
        true, false = (starts[label] - at - 1 if label else 0 for label in (op.true, op.false))
        return struct.pack("=HBBI", op.code, true, false, op.operand)

    return b"".join(instruction(at, op) for at, op in enumerate(chain(*_BLOCKS.values())))
