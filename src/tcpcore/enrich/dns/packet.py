"""IP packets, from their network header on: what is in them, and which come from a DNS server."""

from __future__ import annotations

import struct
from typing import NamedTuple

PORT = 53
TCP, UDP = 6, 17
LARGEST = 256 << 10
"""Bytes. The kernel merges received TCP segments (GRO), so a packet may exceed 64 KiB."""


class Datagram(NamedTuple):
    """The payload of an IP packet. ends: the source address, then the destination's."""

    protocol: int
    ends: bytes
    data: bytes


def dissect(packet: bytes) -> Datagram:
    """Raises IndexError, ValueError or struct.error for what is no IP packet, or begins without the
    ports: a later fragment."""
    match packet[0] >> 4:
        case 4:
            return _dissect_ipv4(packet)
        case 6:
            return _dissect_ipv6(packet)
    raise ValueError("neither IPv4 nor IPv6")


def _dissect_ipv4(packet: bytes) -> Datagram:
    """RFC 791, 3.1. Padding may follow after the total length, which is 0 beyond 64 KiB (GRO)."""
    total, _, fragment, _, protocol = struct.unpack_from("!HHHBB", packet, 2)
    if fragment & 0x1FFF:
        raise ValueError("not the first fragment")
    header = (packet[0] & 15) * 4
    return Datagram(protocol, packet[12:20], packet[header : total or None])


def _dissect_ipv6(packet: bytes) -> Datagram:
    """RFC 8200, 3. Padding may follow after the payload, whose length is 0 beyond 64 KiB (GRO).

    Packets with extension headers are left out, as by the socket filter.
    """
    length, protocol = struct.unpack_from("!HB", packet, 4)
    return Datagram(protocol, packet[8:40], packet[40 : 40 + length if length else None])
