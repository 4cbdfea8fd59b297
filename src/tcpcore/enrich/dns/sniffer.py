"""Packet sockets that receive DNS answers."""

from __future__ import annotations

import ctypes
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack

from tcpcore.enrich.dns.packet import LARGEST
from tcpcore.enrich.dns.reassembly import Reassembly
from tcpcore.enrich.dns.socket_filter import filter_program
from tcpcore.errors import PrivilegeError, TcpcoreError
from tcpcore.model import clock

# include/uapi/asm-generic/socket.h, linux/if_packet.h, linux/if_ether.h
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 26, 33, 35
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_RECEIVE_BUFFER = 4 << 20
_TIMESPEC = struct.Struct("@ll")
_TPACKET_STATS = struct.Struct("=II")  # packets, drops

# The most that is read of a socket at a time, so that the rings have their turn. Not a time, which
# would be over too soon on a busy host.
_MOST_PACKETS, _MOST_BYTES = 512, 256 << 10

Sighting = tuple[bytes, int]
"""A DNS message, and when it came: ns of CLOCK_MONOTONIC."""


class Sniffer:
    """The DNS messages that reach this network namespace, on all its interfaces, loopback too.

    Two packet(7) sockets, one for IPv4 and one for IPv6. They can be read after the process has
    dropped its privileges. They see what is received and not what is sent: for the latter it takes
    a socket for all protocols (ETH_P_ALL), for which the kernel would copy every packet that this
    host sends, before any filter.

    Raises PrivilegeError without CAP_NET_RAW, and TcpcoreError where there are no packet sockets.
    """

    def __init__(self) -> None:
        self._reassembly = Reassembly()
        self._buffer = memoryview(bytearray(LARGEST))
        self._dropped = 0
        with ExitStack() as stack:
            protocols = _ETH_P_IP, _ETH_P_IPV6
            self._sockets = [stack.enter_context(_open(protocol)) for protocol in protocols]
            self._close = stack.pop_all().close

    def __enter__(self) -> Sniffer:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def read(self) -> list[Sighting]:
        """The messages in the packets that wait. It never blocks.

        A flood must not keep us here: what comes after the call, and what exceeds a number of
        packets, waits for the next call.
        """
        # In this order: if we are interrupted in between, the offset is too large, and answers look
        # older than they are. A younger one could be taken to have come after its connect.
        now = clock.monotonic_ns()
        offset = time.time_ns() - now
        return [seen for source in self._sockets for seen in self._drain(source, now, offset)]

    def _drain(self, source: socket.socket, until: int, offset: int) -> Iterator[Sighting]:
        """offset: what CLOCK_REALTIME has more than CLOCK_MONOTONIC."""
        seen = packets = size = 0
        while seen <= until and packets < _MOST_PACKETS and size < _MOST_BYTES:
            try:
                packet, stamp = self._receive(source)
            except BlockingIOError:
                return
            seen = stamp - offset
            packets, size = packets + 1, size + len(packet)
            for message in self._reassembly.messages(packet):
                yield message, seen

    def _receive(self, source: socket.socket) -> tuple[bytes, int]:
        """A packet from its network header on, and when the kernel got it, in CLOCK_REALTIME."""
        room = socket.CMSG_SPACE(_TIMESPEC.size)
        size, ancillary, _, _ = source.recvmsg_into([self._buffer], room)
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                seconds, ns = _TIMESPEC.unpack(data)
                return bytes(self._buffer[:size]), seconds * clock.SECOND + ns
        return bytes(self._buffer[:size]), time.time_ns()

    def dropped(self) -> int:
        """Packets so far that found a socket's receive buffer full."""
        for source in self._sockets:
            # The kernel counts from 0 again whenever it is asked: packet(7).
            stats = source.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _TPACKET_STATS.size)
            self._dropped += _TPACKET_STATS.unpack(stats)[1]
        return self._dropped


def _open(protocol: int) -> socket.socket:
    """A packet socket for one protocol, with its filter and time stamps."""
    try:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(protocol))
    except PermissionError:
        raise PrivilegeError("`dns`: needs CAP_NET_RAW to see packets; run it as root") from None
    except OSError as e:
        raise TcpcoreError(f"`dns`: no packet socket: {e.strerror}; leave `dns` out") from None
    try:
        _set_up(opened)
    except OSError as e:
        opened.close()
        raise TcpcoreError(f"`dns`: no filter for packets: {e.strerror}; leave `dns` out") from None
    return opened


def _set_up(opened: socket.socket) -> None:
    """socket(7). Other packets may have come before the filter: Reassembly passes them over."""
    program = filter_program()
    array = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, 8 bytes each, and where they are.
    prog = struct.pack("@HP", len(program) // 8, ctypes.addressof(array))
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, prog)
    opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    except PermissionError:  # without CAP_NET_ADMIN, as much as net.core.rmem_max allows
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    opened.setblocking(False)
