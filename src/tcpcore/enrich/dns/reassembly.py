"""DNS messages out of packets: one in a UDP datagram, any number in a TCP stream."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from tcpcore.enrich.dns.packet import LARGEST, PORT, TCP, UDP, Datagram, dissect
from tcpcore.enrich.dns.recent import Recent

_MAX_STREAMS = 256
_HEADER = 12  # bytes that every DNS message begins with: RFC 1035, 4.1.1
_RESPONSE = 0x80  # a bit of the header's third byte


class Reassembly:
    """Takes packets one by one and gives the DNS messages that they complete.

    The streams are bounded: the one that was silent longest is forgotten first.
    """

    def __init__(self) -> None:
        self._streams: Recent[bytes, Stream] = Recent(_MAX_STREAMS)

    def messages(self, packet: bytes) -> list[bytes]:
        """The messages that end in this packet. packet: any bytes, from the network header on."""
        try:
            datagram = dissect(packet)
            if struct.unpack_from("!H", datagram.data) != (PORT,):
                return []
            if datagram.protocol == UDP:
                return [_udp_payload(datagram.data)]
            return self._in_stream(datagram) if datagram.protocol == TCP else []
        except (IndexError, ValueError, struct.error):  # cut short, or not IP
            return []

    def _in_stream(self, segment: Datagram) -> list[bytes]:
        """RFC 9293, 3.1. A stream older than we are begins with the first segment that we see."""
        _, port, sequence, _, flags = struct.unpack_from("!HHIIH", segment.data)
        payload = segment.data[(flags >> 12) * 4 :]
        syn = bool(flags & 2)
        key = segment.ends + port.to_bytes(2, "big")
        stream = None if syn else self._streams.get(key)  # a SYN: the port is used again
        if stream is None:
            stream = Stream(sequence + syn)  # the SYN itself takes a sequence number
        self._streams.put(key, stream)
        stream.add(sequence + syn, payload)
        return list(stream.messages())


def _udp_payload(data: bytes) -> bytes:
    """RFC 768. Of a fragmented datagram, as much as the first fragment has."""
    return data[8 : int.from_bytes(data[4:6], "big")]


@dataclass
class Stream:
    """One direction of a TCP connection.

    expected: the sequence number of the next byte. waiting: the bytes of a message whose end has
    not come yet.
    """

    expected: int
    waiting: bytearray = field(default_factory=bytearray)

    def add(self, sequence: int, data: bytes) -> None:
        """Append the bytes of a segment that were not seen before (RFC 9293, 3.4).

        Segments come twice when they are sent again, or cross several interfaces. After a gap the
        message that it tore apart is given up.
        """
        seen = (self.expected - sequence) % (1 << 32)
        if seen > LARGEST:  # "so much was seen already" is a negative number: there is a gap
            self.waiting.clear()
            self.expected, seen = sequence, 0
        new = data[seen:]
        self.expected += len(new)
        self.waiting += new

    def messages(self) -> Iterator[bytes]:
        """Take out the whole messages. Each follows its length in two bytes (RFC 7766, 8)."""
        while len(self.waiting) >= 2:
            end = 2 + int.from_bytes(self.waiting[:2], "big")
            if self._is_no_response(end):
                self.waiting.clear()
            elif len(self.waiting) >= end:
                yield bytes(self.waiting[2:end])
                del self.waiting[:end]
            else:
                return

    def _is_no_response(self, end: int) -> bool:
        """Whether the waiting bytes cannot begin with a response, as when the first segment that
        we saw began in the middle of a message. end: where the message would end."""
        if end < 2 + _HEADER:
            return True
        return len(self.waiting) > 4 and not self.waiting[4] & _RESPONSE
