"""path --pcapng: packets as Wireshark reads them, with their stages as comments.

Block types, options and their codes: draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tcpcore.model import clock, fields
from tcpcore.sinks.destination import private_file
from tcpcore.tools.path.event import SNAP, WithBytes
from tcpcore.tools.path.packets import Packet
from tcpcore.tools.path.stages import RX, STAGES

_SECTION_HEADER, _INTERFACE_DESCRIPTION, _ENHANCED_PACKET = 0x0A0D0D0A, 1, 6
_BYTE_ORDER, _VERSION, _UNKNOWN_LENGTH = 0x1A2B3C4D, (1, 0), -1
_LINKTYPE_RAW = 101  # begins with an IPv4 or IPv6 header; https://www.tcpdump.org/linktypes.html
_END, _COMMENT = 0, 1
_SHB_USERAPPL = 4
_IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL = 2, 3, 9
_EPB_FLAGS = 2
_NANOSECONDS = 9  # 10 to the minus
_INBOUND, _OUTBOUND = 1, 2


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", code, len(value)) + _padded(value)


def _block(kind: int, body: bytes, options: Iterable[tuple[int, bytes]]) -> bytes:
    content = _padded(body) + b"".join(_option(*each) for each in (*options, (_END, b"")))
    size = 12 + len(content)
    return struct.pack("=II", kind, size) + content + struct.pack("=I", size)


class Capture:
    """Writes a file with what was seen of each packet. write: takes bytes; they are whole blocks,
    so that the file can be read wherever it ends."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._interfaces: dict[tuple[int, str | None], int] = {}
        body = struct.pack("=IHHq", _BYTE_ORDER, *_VERSION, _UNKNOWN_LENGTH)
        write(_block(_SECTION_HEADER, body, [(_SHB_USERAPPL, b"tcpcore path")]))

    def __call__(self, packet: Packet) -> None:
        seen = list(fields.values(WithBytes, [seen.raw for seen, _, _ in packet.rows]))
        shown = _where_it_has_bytes(seen)
        data = shown.bytes[: shown.captured]
        time = clock.since_1970(packet.first.ts_ns)
        place = self._interface(shown.netns, shown.ifname), time >> 32, time & 0xFFFFFFFF
        body = struct.pack("=5I", *place, len(data), max(len(data), _length(data))) + data
        direction = _INBOUND if STAGES.index(shown.stage) >= RX else _OUTBOUND
        comments = ((_COMMENT, text.encode()) for text in _comments(packet, seen))
        flags = (_EPB_FLAGS, struct.pack("=I", direction))
        self._write(_block(_ENHANCED_PACKET, body, [flags, *comments]))

    def _interface(self, netns: int, ifname: str | None) -> int:
        """Its number, under which the file knows it."""
        known = self._interfaces
        if (netns, ifname) not in known:
            known[netns, ifname] = len(known)
            options = [
                (_IF_NAME, (ifname or "-").encode()),
                (_IF_DESCRIPTION, f"netns {netns or '-'}".encode()),
                (_IF_TSRESOL, bytes([_NANOSECONDS])),
            ]
            body = struct.pack("=HHI", _LINKTYPE_RAW, 0, SNAP)
            self._write(_block(_INTERFACE_DESCRIPTION, body, options))
        return known[netns, ifname]


def _where_it_has_bytes(seen: Sequence[WithBytes]) -> WithBytes:
    """The first stage that has the packet's bytes, at an interface if there is one."""
    found = [event for event in seen if event.captured] or seen
    return next((event for event in found if event.ifname), found[0])


def _length(ip: bytes) -> int:
    """Of a packet that begins so: RFC 791, RFC 8200. 0: longer than the header can tell."""
    if not ip:
        return 0
    if ip[0] >> 4 == 4:
        return int.from_bytes(ip[2:4], "big")
    payload = int.from_bytes(ip[4:6], "big")
    return 40 + payload if payload else 0


def _comments(packet: Packet, seen: Sequence[WithBytes]) -> Iterator[str]:
    begin = packet.first.ts_ns
    for event, (_, delta, is_part) in zip(seen, packet.rows, strict=True):
        elapsed = event.ts_ns - begin
        times = f"{event.stage} +{delta / 1e3:.1f} us, at {elapsed / 1e3:.1f} us, cpu {event.cpu}"
        more = [
            event.ifname,
            event.netns and f"netns {event.netns}",
            event.pid and f"pid {event.pid} ({event.comm})",
            is_part and f"seq {event.seq} len {event.len}",
            event.reason,
        ]
        yield ", ".join([times, *(str(each) for each in more if each)])


@contextmanager
def capture(path: str) -> Iterator[Capture]:
    """A file of packets. Raises TcpcoreError."""
    with private_file(Path(path), f"`pcapng`: {path}") as write:
        yield Capture(write)
