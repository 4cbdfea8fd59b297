"""Which stages are of one packet: what the kernel's events of a packet have in common.

The address of its sk_buff is the same across veth devices, bridges and namespaces, but not where
the kernel clones, copies, splits or merges buffers, and it is used again soon. What TCP says of a
packet stays: its ends, its sequence numbers. So a stage belongs to the packet that was last seen at
its address, if that is what TCP says too; else to one of the same connection that has these bytes.
No packet comes twice by the same place: what does is a retransmission, and another packet.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from operator import itemgetter
from typing import NamedTuple

from tcpcore.loader.perf import Record
from tcpcore.model import clock
from tcpcore.tools.path.stages import COPIED, DRIVER, DROPPED, FREED, RX, TCP_SEND

MOST_PACKETS = 4096
"""That are under way at once: beyond them, the one that was quiet longest is shown as it is."""
MOST_STAGES = 1024
"""Of a packet that is split into many segments."""
_GRACE_NS = 10_000_000
"""After the end of a packet, as a buffer is freed when its segments are made."""
_DELIVERED_NS = 100_000_000
"""For a packet without data that came to its host: it is freed where no tracepoint is."""

_NEAR = 64
"""Packets of a connection, the newest, that a new buffer may have come of: GRO merges 64 KiB."""

_Flow = tuple[bytes, bytes, int, int]
_WORD = 1 << 32


def _distance(begin: int, end: int) -> int:
    """From one sequence number to another, negative backwards: RFC 9293, 3.4."""
    return (end - begin + _WORD // 2) % _WORD - _WORD // 2


class Seen(NamedTuple):
    """One event: a packet, or a part of it, at a stage. raw: the record."""

    raw: Record
    ts_ns: int
    stage: int
    skb: int
    flow: _Flow
    place: tuple[int, int, int]
    seq: int
    len: int

    @property
    def end(self) -> int:
        return (self.seq + self.len) % _WORD


class Packet:
    """The stages of one packet so far. first: the first one, which tells what the packet is."""

    def __init__(self, first: Seen) -> None:
        self.first, self.last = first, first
        self.ended = False
        self.rows: list[tuple[Seen, int, int]] = []  # with the time since the stage before, depth
        self._at: set[int] = set()  # buffers that have a part of it
        self._passed: dict[tuple[int, int, int], list[Seen]] = {}
        self._times: dict[int, int] = {}  # of the last stage of each buffer

    def has(self, seen: Seen) -> bool:
        """These bytes are of the packet."""
        if not seen.len or not self.first.len:
            return seen.seq == self.first.seq and seen.len == self.first.len
        return _distance(self.first.seq, seen.seq) >= 0 <= _distance(seen.end, self.first.end)

    def is_in(self, seen: Seen) -> bool:
        """All of the packet is in these bytes."""
        is_begun = _distance(seen.seq, self.first.seq) >= 0
        return bool(self.first.len) and is_begun and _distance(self.first.end, seen.end) >= 0

    def may_come_to(self, seen: Seen) -> bool:
        """It was not at this place before. Each of its buffers comes to an end."""
        return seen.stage in (DROPPED, FREED) or not any(
            _overlap(one, seen) for one in self._passed.get(seen.place, ())
        )

    def is_copied(self, seen: Seen) -> bool:
        """Its last byte is among those that were copied to a reader."""
        left = _distance(self.first.end, seen.end)
        is_read = bool(self.first.len) and 0 <= left < seen.len
        return is_read and self.last.stage >= RX and self.last.place[1] == seen.place[1]

    def add(self, seen: Seen) -> None:
        before = self._times.get(seen.skb) or self._before(seen)
        is_part = seen.len < self.first.len and seen.stage != COPIED
        self.rows.append((seen, seen.ts_ns - before, int(is_part)))
        self._passed.setdefault(seen.place, []).append(seen)
        self._times[seen.skb] = seen.ts_ns
        self.last = seen
        self._note_end(seen)

    def _before(self, seen: Seen) -> int:
        """When the bytes of a new buffer were seen last, in another one."""
        for other, _, _ in reversed(self.rows):
            if _overlap(other, seen):
                return other.ts_ns
        return self.last.ts_ns

    def _note_end(self, seen: Seen) -> None:
        if seen.stage in (DROPPED, FREED):
            self._at.discard(seen.skb)
        elif seen.stage != TCP_SEND:  # there it is the original, of which a clone is sent
            self._at.add(seen.skb)
        has_left = seen.stage in (DROPPED, FREED) and not self._at
        self.ended = has_left or len(self.rows) >= MOST_STAGES

    def lasts(self, quiet_ns: int) -> int:
        """How long to wait for its next stage."""
        if self.ended:
            return _GRACE_NS
        is_delivered = self.last.stage > DRIVER and not self.first.len
        return min(quiet_ns, _DELIVERED_NS) if is_delivered else quiet_ns


def _overlap(one: Seen, other: Seen) -> bool:
    if not one.len or not other.len:
        return one.seq == other.seq and one.len == other.len
    return _distance(one.seq, other.end) > 0 < _distance(other.seq, one.end)


class Packets:
    """A Derive: the rows of whole packets, each with all its stages, in place of the events.

    names: the fields of the events, in their order. quiet_ns: a packet of which nothing is seen for
    so long is shown as it is. min_ns: only packets that took so long. capture: takes each packet
    that is shown.
    """

    def __init__(
        self,
        names: Sequence[str],
        quiet_ns: int,
        min_ns: int,
        capture: Callable[[Packet], None] | None = None,
    ) -> None:
        self._quiet_ns, self._min_ns, self._capture = quiet_ns, min_ns, capture
        self._told = itemgetter(*map(names.index, ("ts_ns", "stage", "skb", "seq", "len")))
        self._flow = itemgetter(*map(names.index, ("laddr", "raddr", "lport", "rport")))
        self._place = itemgetter(*map(names.index, ("stage", "netns", "ifindex")))
        self._shown = itemgetter(*map(names.index, ("cpu", "ifname", "flags", "reason")))
        self._read: list[Packet] = []  # to the end, and so complete
        self._open: OrderedDict[int, Packet] = OrderedDict()  # by id, the longest quiet first
        self._by_skb: dict[int, Packet] = {}
        self._by_flow: dict[_Flow, dict[int, Packet]] = {}
        self._number = 0

    def __call__(self, records: list[Record], last: bool) -> list[Record]:
        for record in records:
            self._add(self._seen(record))
        over = list(self._open.values() if last else self._over(clock.monotonic_ns()))
        for packet in over:
            self._forget(packet)
        shown = sorted(self._read + over, key=lambda packet: packet.first.ts_ns)
        self._read.clear()
        return [row for packet in shown for row in self._rows(packet)]

    def lost(self) -> int:
        """It has no source of its own."""
        return 0

    def _seen(self, raw: Record) -> Seen:
        ts_ns, stage, skb, seq, length = self._told(raw)
        return Seen(raw, ts_ns, stage, skb, self._flow(raw), self._place(raw), seq, length)

    def _add(self, seen: Seen) -> None:
        for packet in self._of(seen):
            packet.add(seen)
            self._open[id(packet)] = packet
            self._open.move_to_end(id(packet))
            if seen.stage == COPIED:
                self._forget(packet)
                self._read.append(packet)
            elif seen.stage != TCP_SEND:
                self._by_skb[seen.skb] = packet

    def _of(self, seen: Seen) -> list[Packet]:
        """The packets that a stage is of: several where the kernel has merged them."""
        same = self._by_flow.get(seen.flow, {}).values()
        if seen.stage == COPIED:
            return [packet for packet in same if packet.is_copied(seen)]
        if seen.stage == TCP_SEND:
            return [self._begin(seen)]
        here = self._by_skb.get(seen.skb)
        if here and here.first.flow == seen.flow and here.has(seen) and here.may_come_to(seen):
            return [here]
        if seen.stage == FREED:
            return []  # a clone that somebody else had, as tcpdump
        near = list(islice(reversed(same), _NEAR))
        for packet in near:
            if packet.has(seen) and packet.may_come_to(seen):
                return [packet]
        return self._merged(near, seen) if seen.stage >= RX else [self._begin(seen)]

    def _merged(self, near: list[Packet], seen: Seen) -> list[Packet]:
        """Received packets that are one buffer now."""
        found = [x for x in near if x.last.stage >= RX and x.is_in(seen) and x.may_come_to(seen)]
        return found[::-1] or [self._begin(seen)]

    def _begin(self, seen: Seen) -> Packet:
        packet = Packet(seen)
        self._by_flow.setdefault(seen.flow, {})[id(packet)] = packet
        return packet

    def _over(self, now: int) -> Iterator[Packet]:
        """Those that have ended, or were quiet long enough, or are too many."""
        too_many = len(self._open) - MOST_PACKETS
        for place, packet in enumerate(self._open.values()):
            quiet = now - packet.last.ts_ns
            if quiet < _GRACE_NS and place >= too_many:
                return
            if quiet >= packet.lasts(self._quiet_ns) or place < too_many:
                yield packet

    def _forget(self, packet: Packet) -> None:
        del self._open[id(packet)]
        for skb in {seen.skb for seen, _, _ in packet.rows}:
            if self._by_skb.get(skb) is packet:
                del self._by_skb[skb]
        same = self._by_flow[packet.first.flow]
        del same[id(packet)]
        if not same:
            del self._by_flow[packet.first.flow]

    def _rows(self, packet: Packet) -> Iterator[Record]:
        """As Step has its fields: those of every event, then the tool's."""
        begin, whole = packet.first.ts_ns, self._shown(packet.first.raw)[2]
        if packet.last.ts_ns - begin < self._min_ns:
            return
        self._number += 1
        if self._capture:
            self._capture(packet)
        for seen, delta, depth in packet.rows:
            cpu, ifname, flags, reason = self._shown(seen.raw)
            times = delta, seen.ts_ns - begin
            what = seen.seq, seen.len, flags or whole, reason  # a copy has no flags of its own
            yield *seen.raw[:10], self._number, (seen.stage, depth), *times, cpu, ifname, *what
