"""Which name an address was asked by, from the DNS answers that this host sees.

A hint, not a proof: answers from a cache, over TLS or HTTPS, or in another network namespace are
not seen, and whoever can send packets from port 53 can make one up.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple, TypeVar

from tcpcore.errors import PrivilegeError, TcpcoreError, UsageError
from tcpcore.loader.perf import Record
from tcpcore.model import clock, net

try:
    from dnslib import CLASS, QR, QTYPE, RCODE, DNSHeader, DNSQuestion
    from dnslib.label import DNSBuffer, DNSLabel
except ImportError:
    raise UsageError("--dns: needs dnslib: pip install 'tcpcore[dns]'") from None

_K = TypeVar("_K")
_V = TypeVar("_V")

_PORT = 53
_TCP, _UDP = 6, 17
_V4MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291, 2.5.5.2

_SECOND = 1_000_000_000
_SLACK_NS = _SECOND // 1000  # of the time stamps
_COPY_NS = _SECOND // 100  # one packet is seen on every interface that it crosses
_ALIAS_NS = 5 * _SECOND  # resolv.conf(5): a resolver's timeout
_DAY_NS = 86_400 * _SECOND

_MAX_ADDRESSES, _MAX_ALIASES, _MAX_STREAMS = 65_536, 4_096, 256
_MAX_ANSWERS = 4  # of one address
_MAX_CHAIN = 16  # CNAMEs in a message: resolvers follow fewer
_MAX_NAME = 253  # RFC 1035, 2.3.4: 255 bytes, of which two are not text
_HEADER = 12  # bytes of a DNS message that are always there

# include/uapi/asm-generic/socket.h, linux/if_packet.h, linux/if_ether.h
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 26, 33, 35
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_RECEIVE_BUFFER = 4 << 20

# Of one socket in a drain, as the rings have to be read as well: not a time, which would be over
# too soon on a busy host.
_MOST_PACKETS, _MOST_BYTES = 512, 256 << 10
_LARGEST = 256 << 10  # a packet that GRO put together may exceed 64 KiB


class _Recent(OrderedDict[_K, _V]):
    """The `limit` keys that were put last."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def put(self, key: _K, value: _V) -> None:
        self[key] = value
        self.move_to_end(key)
        if len(self) > self._limit:
            self.popitem(last=False)


@dataclass
class Answer:
    """What a message answers. addresses: 16 bytes each. aliases: the targets of its CNAMEs."""

    question: str
    addresses: list[bytes] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)


def parse(message: bytes) -> Answer | None:
    """A DNS response without error to one question (RFC 1035, 4), or None.

    Of a message that is cut short, as in a first fragment, what came before the cut.
    """
    buffer, answer = DNSBuffer(message), None
    try:
        header = DNSHeader.parse(buffer)
        kind = header.get_opcode(), header.get_rcode(), header.q
        if header.qr == QR.RESPONSE and kind == (0, RCODE.NOERROR, 1):
            answer = Answer(_text(DNSQuestion.parse(buffer).qname))
            for _ in range(header.a):
                _read_record(buffer, answer)
    except Exception:  # hostile bytes: dnslib runs into more than its own errors, as RecursionError
        pass
    return answer


def _read_record(buffer: DNSBuffer, answer: Answer) -> None:
    """A resource record of the answer section (RFC 1035, 4.1.3; AAAA: RFC 3596)."""
    _skip_name(buffer)
    kind, family, _, length = buffer.unpack("!HHIH")
    end = buffer.offset + length
    match family, kind, length:
        case CLASS.IN, QTYPE.A, 4:
            answer.addresses.append(_V4MAPPED + buffer.get(length))
        case CLASS.IN, QTYPE.AAAA, 16:
            answer.addresses.append(buffer.get(length))
        case CLASS.IN, QTYPE.CNAME, _ if len(answer.aliases) < _MAX_CHAIN:
            answer.aliases.append(_text(buffer.decode_name()))
    buffer.offset = end


def _skip_name(buffer: DNSBuffer) -> None:
    """Past an owner's name. All belong to the question's chain, and following the pointers of
    thousands of records would let a packet keep us busy for seconds."""
    while length := buffer.get(1)[0]:
        if length >= 0xC0:  # a pointer of two bytes: RFC 1035, 4.1.4
            buffer.get(1)
            return
        buffer.get(length)


def _text(name: DNSLabel) -> str:
    """A name as asked, without the dot at the end."""
    if len(name) > _MAX_NAME:
        raise ValueError("no name is that long")
    return str(name).removesuffix(".") or "."


class Names:
    """Which name an address was asked by: the newest answer before a moment wins.

    Bounded: the addresses that were answered longest ago are forgotten first.
    """

    def __init__(self) -> None:
        self._answers: _Recent[bytes, tuple[tuple[int, str], ...]] = _Recent(_MAX_ADDRESSES)
        self._aliases: _Recent[str, tuple[int, str]] = _Recent(_MAX_ALIASES)

    def learn(self, message: bytes, at_ns: int) -> None:
        """Take in a DNS message, seen at at_ns (CLOCK_MONOTONIC); one of no use is passed over."""
        answer = parse(message)
        if answer is None:
            return
        name = self._asked(answer.question, at_ns)
        for address in answer.addresses:
            self._remember(address, at_ns, name)
        if not answer.addresses:  # then the resolver asks for the alias by itself
            for alias in answer.aliases:
                self._aliases.put(alias.lower(), (at_ns, name))

    def name(self, address: bytes, at_ns: int) -> tuple[str, int] | None:
        """The name that led to an address, and the answer's age in ns; None if not known.

        address: 16 bytes, IPv4 as v4-mapped. at_ns: the moment of the connect, CLOCK_MONOTONIC.
        """
        known = self._answers.get(address, ())
        before = [answer for answer in known if answer[0] <= at_ns + _SLACK_NS]
        if not before:
            return None
        seen, name = max(before, key=lambda answer: answer[0])
        age = max(0, at_ns - seen)
        return (name, age) if age <= _DAY_NS else None

    def _asked(self, question: str, at_ns: int) -> str:
        """What the process asked for, if this question only follows an alias."""
        seen, name = self._aliases.get(question.lower(), (at_ns, question))
        return name if at_ns - seen <= _ALIAS_NS else question

    def _remember(self, address: bytes, at_ns: int, name: str) -> None:
        known = self._answers.get(address, ())
        if any(name == other and abs(at_ns - seen) < _COPY_NS for seen, other in known):
            return  # a copy of a packet: the first one tells best when the answer came
        self._answers.put(address, ((at_ns, name), *known[: _MAX_ANSWERS - 1]))


@dataclass
class _Stream:
    """expected: the sequence number of the next byte. waiting: the begin of a message."""

    expected: int
    waiting: bytearray = field(default_factory=bytearray)

    def add(self, sequence: int, data: bytes) -> None:
        """Append what is new in a segment; after a gap, begin anew with it (RFC 9293, 3.4)."""
        seen = (self.expected - sequence) % (1 << 32)
        if seen > _LARGEST:
            self.waiting.clear()
            self.expected, seen = sequence, 0
        new = data[seen:]
        self.expected += len(new)
        self.waiting += new

    def messages(self) -> Iterator[bytes]:
        """The whole messages, each behind its length in two bytes (RFC 1035, 4.2.2; RFC 7766)."""
        while len(self.waiting) >= 2:
            end = 2 + int.from_bytes(self.waiting[:2], "big")
            if self._is_nonsense(end):
                self.waiting.clear()
            elif len(self.waiting) >= end:
                yield bytes(self.waiting[2:end])
                del self.waiting[:end]
            else:
                return

    def _is_nonsense(self, end: int) -> bool:
        """Whether no response begins here: we may have come in the middle of the stream."""
        return end < 2 + _HEADER or (len(self.waiting) > 4 and not self.waiting[4] & 0x80)


class _Datagram(NamedTuple):
    """What is in an IP packet. ends: both addresses."""

    protocol: int
    ends: bytes
    data: bytes


class Packets:
    """The DNS messages in IP packets, their TCP streams put together. Bounded."""

    def __init__(self) -> None:
        self._streams: _Recent[bytes, _Stream] = _Recent(_MAX_STREAMS)

    def messages(self, packet: bytes) -> list[bytes]:
        """The messages that a packet completes. packet: from its network header; any bytes."""
        try:
            datagram = _datagram(packet)
            if struct.unpack_from("!H", datagram.data) != (_PORT,):
                return []
            if datagram.protocol == _UDP:
                return [_udp(datagram.data)]
            return self._tcp(datagram) if datagram.protocol == _TCP else []
        except (IndexError, ValueError, struct.error):  # cut short, or not IP
            return []

    def _tcp(self, datagram: _Datagram) -> list[bytes]:
        """RFC 9293, 3.1. A stream that was there before us begins with the first segment seen."""
        _, port, sequence, _, flags = struct.unpack_from("!HHIIH", datagram.data)
        payload = datagram.data[(flags >> 12) * 4 :]
        syn = bool(flags & 2)
        key = datagram.ends + port.to_bytes(2, "big")
        stream = None if syn else self._streams.get(key)
        if stream is None:
            stream = _Stream(sequence + syn)
        self._streams.put(key, stream)
        stream.add(sequence + syn, payload)
        return list(stream.messages())


def _udp(data: bytes) -> bytes:
    """RFC 768. Of a fragmented datagram, what the first fragment has."""
    return data[8 : int.from_bytes(data[4:6], "big")]


def _datagram(packet: bytes) -> _Datagram:
    """Raises IndexError, ValueError, struct.error if this is no IP packet with ports in it."""
    match packet[0] >> 4:
        case 4:
            return _ipv4(packet)
        case 6:
            return _ipv6(packet)
    raise ValueError("neither IPv4 nor IPv6")


def _ipv4(packet: bytes) -> _Datagram:
    """RFC 791, 3.1. The total length cuts the padding off; it is 0 beyond 64 KiB (GRO)."""
    total, _, fragment, _, protocol = struct.unpack_from("!HHHBB", packet, 2)
    if fragment & 0x1FFF:
        raise ValueError("not the first fragment")
    header = (packet[0] & 15) * 4
    return _Datagram(protocol, packet[12:20], packet[header : total or None])


def _ipv6(packet: bytes) -> _Datagram:
    """RFC 8200, 3. The payload length is 0 beyond 64 KiB (GRO)."""
    length, protocol = struct.unpack_from("!HB", packet, 4)
    return _Datagram(protocol, packet[8:40], packet[40 : 40 + length if length else None])


# Classic BPF, include/uapi/linux/bpf_common.h: the accumulator A, the index X, an operand k.
_LOAD_BYTE, _LOAD_HALF = 0x30, 0x28  # A = packet[k], in 1 or 2 bytes
_LOAD_HALF_X = 0x48  # A = packet[X + k]
_X_IPV4_HEADER = 0xB1  # X = 4 * (packet[k] & 15)
_AND, _EQUAL, _ANY_BIT, _RETURN = 0x54, 0x15, 0x45, 0x06


class _Op(NamedTuple):
    """true, false: the block to jump to; "" is the next operation."""

    code: int
    operand: int = 0
    true: str = ""
    false: str = ""


# Packets, from their network header, that a DNS server sent.
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
        _Op(_EQUAL, _UDP, "ipv4 port"),
        _Op(_EQUAL, _TCP, "ipv4 port", "drop"),
    ),
    "ipv4 port": (
        _Op(_X_IPV4_HEADER, 0),
        _Op(_LOAD_HALF_X, 0),
        _Op(_EQUAL, _PORT, "take", "drop"),
    ),
    "ipv6": (
        _Op(_LOAD_BYTE, 6),
        _Op(_EQUAL, _UDP, "ipv6 port"),
        _Op(_EQUAL, _TCP, "ipv6 port", "drop"),
    ),
    "ipv6 port": (
        _Op(_LOAD_HALF, 40),
        _Op(_EQUAL, _PORT, "take", "drop"),
    ),
    "take": (_Op(_RETURN, _LARGEST),),
    "drop": (_Op(_RETURN, 0),),
}


def filter_program() -> bytes:
    """The filter as an array of struct sock_filter (include/uapi/linux/filter.h)."""
    starts, size = {}, 0
    for label, block in _BLOCKS.items():
        starts[label] = size
        size += len(block)

    def encode(at: int, op: _Op) -> bytes:
        true, false = (starts[label] - at - 1 if label else 0 for label in (op.true, op.false))
        return struct.pack("=HBBI", op.code, true, false, op.operand)

    return b"".join(encode(at, op) for at, op in enumerate(chain(*_BLOCKS.values())))


class Sniffer:
    """The DNS answers that reach the interfaces of this network namespace, loopback too.

    Two packet(7) sockets, for IPv4 and IPv6, which stay readable when the process has given up its
    privileges. They see what is received: one for all protocols (ETH_P_ALL) would have the kernel
    copy every packet that the host sends. Raises PrivilegeError without CAP_NET_RAW, and
    TcpcoreError where there are no packet sockets.
    """

    def __init__(self) -> None:
        self.names = Names()
        self._packets = Packets()
        self._buffer = memoryview(bytearray(_LARGEST))
        self._dropped = 0
        with ExitStack() as stack:
            protocols = _ETH_P_IP, _ETH_P_IPV6
            self._sockets = [stack.enter_context(_open(protocol)) for protocol in protocols]
            self._close = stack.pop_all().close

    def __enter__(self) -> Sniffer:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def read(self) -> None:
        """Take in the packets that wait, into `names`; it never blocks.

        Beyond a number of them, or with one that came meanwhile, the rest may wait: else a flood
        would keep us here.
        """
        # In this order: an interruption in between makes answers older, not younger than a connect.
        now = clock.monotonic_ns()
        offset = time.time_ns() - now
        for one in self._sockets:
            self._drain(one, now, offset)

    def _drain(self, source: socket.socket, until: int, offset: int) -> None:
        """offset: of CLOCK_REALTIME to CLOCK_MONOTONIC."""
        seen = packets = size = 0
        while seen <= until and packets < _MOST_PACKETS and size < _MOST_BYTES:
            try:
                packet, stamp = self._receive(source)
            except BlockingIOError:
                return
            seen = stamp - offset
            packets, size = packets + 1, size + len(packet)
            for message in self._packets.messages(packet):
                self.names.learn(message, seen)

    def _receive(self, source: socket.socket) -> tuple[bytes, int]:
        """A packet from its network header, and when it passed, in ns of CLOCK_REALTIME."""
        room = socket.CMSG_SPACE(struct.calcsize("@ll"))
        size, ancillary, _, _ = source.recvmsg_into([self._buffer], room)
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                seconds, ns = struct.unpack("@ll", data)
                return bytes(self._buffer[:size]), seconds * _SECOND + ns
        return bytes(self._buffer[:size]), time.time_ns()

    def dropped(self) -> int:
        """How many packets came too fast for us so far."""
        for one in self._sockets:
            # struct tpacket_stats; asking sets both to 0.
            _, drops = struct.unpack("=II", one.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
            self._dropped += drops
        return self._dropped


class Namer:
    """Adds `query` and `query_age_ns` to connects; None where they are not known.

    names: of the records' fields; raddr, ts_ns and duration_ns are among them.
    """

    def __init__(self, sniffer: Sniffer, names: Sequence[str]) -> None:
        self._sniffer = sniffer
        self._raddr, self._ts_ns, self._duration_ns = map(
            names.index, ("raddr", "ts_ns", "duration_ns")
        )

    def __call__(self, records: list[Record]) -> list[Record]:
        self._sniffer.read()  # in any case: its queue is short
        return [(*record, *self._query(record)) for record in records]

    def lost(self) -> int:
        """How many packets nobody looked at."""
        return self._sniffer.dropped()

    def _query(self, record: Record) -> tuple[str | None, int | None]:
        if _is_loopback(record[self._raddr]):
            return "localhost", None
        begin = record[self._ts_ns] - record[self._duration_ns]
        name, age = self._sniffer.names.name(record[self._raddr], begin) or (None, None)
        return name and net.printable(name), age


def _is_loopback(address: bytes) -> bool:
    return address.startswith(_V4MAPPED + b"\x7f") or address == bytes(15) + b"\1"


def _open(protocol: int) -> socket.socket:
    """A packet socket for one protocol, with its filter and time stamps."""
    try:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(protocol))
    except PermissionError:
        raise PrivilegeError("--dns: needs CAP_NET_RAW to see packets; run it as root") from None
    except OSError as e:
        raise TcpcoreError(f"--dns: no packet socket: {e.strerror}; leave --dns out") from None
    try:
        _set_up(opened)
    except OSError as e:
        opened.close()
        raise TcpcoreError(f"--dns: no filter for packets: {e.strerror}; leave --dns out") from None
    return opened


def _set_up(opened: socket.socket) -> None:
    """socket(7). What came in before the filter was there is looked at by Packets as well."""
    program = filter_program()
    array = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog
    prog = struct.pack("@HP", len(program) // 8, ctypes.addressof(array))
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, prog)
    opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    except PermissionError:  # without CAP_NET_ADMIN, as much as net.core.rmem_max allows
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    opened.setblocking(False)
