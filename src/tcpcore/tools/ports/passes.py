"""The rows of ports: what a pass over the sockets of each network namespace finds."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Annotated, Any

from tcpcore.loader import Attached
from tcpcore.loader.perf import Record
from tcpcore.model import clock, fields, net
from tcpcore.model.tool import Records
from tcpcore.session import namespaces
from tcpcore.session.namespaces import Namespace
from tcpcore.value import Value

FILES, SOCKETS = "iter/task_file", "iter/tcp"
_UNKNOWN_UID = (1 << 32) - 1
_ANY = b"any"
_SET = (1 << 16) // 8  # bytes of one of struct port_sets


def _destination(raw: bytes) -> str:
    if raw == _ANY:
        return "any"
    return net.address_text(raw) if raw else fields.OTHER


Destination = Annotated[str, fields.Kind("16s", _destination)]
Uid = Annotated[int | None, fields.Kind("I", lambda raw: None if raw == _UNKNOWN_UID else raw)]


class Key(Value):
    """Where ports are in use to. Mirror of struct ports, bpf/ports.h.

    raddr: `any` for ports that are bound, which no connect() chooses; `other` for the rest of a
    report. The owner is there if it is asked for.
    """

    laddr: fields.KeyHost
    raddr: Destination
    netns: fields.KeyNetns
    pid: fields.Pid
    uid: Uid
    rport: fields.Port
    family: fields.KeyFamily
    comm: fields.Comm


class Counters(Value):
    """Mirror of struct ports_count."""

    in_use: fields.Count
    syn_sent: fields.Count
    established: fields.Count
    close_wait: fields.Count
    closing: fields.Count
    time_wait: fields.Count
    shared: fields.Count
    taken: fields.Count
    failed: fields.Count


class Use(Key):
    """Ports in use to a destination, and how many of them are in which state.

    bound: ports of the namespace that bind() has taken, for all destinations. range: those that
    connect() may choose from. share: of the range, what is not free for the destination, whoever
    has it. taken, given_back: since the last report; None: not known. failed: connects that found
    no port (EADDRNOTAVAIL). warn: the share is as large as that to warn of, or connects failed.
    """

    in_use: fields.Number
    syn_sent: fields.Number
    established: fields.Number
    close_wait: fields.Number
    closing: fields.Number
    time_wait: fields.Number
    bound: fields.Number
    range: fields.Number
    share: Annotated[float | None, fields.Kind("", lambda share: share)]
    taken: fields.Number
    given_back: fields.Number
    failed: fields.Number
    warn: Annotated[bool, fields.Kind("", bool)]
    interval_ns: fields.Number


_Row = dict[str, Any]  # by field, raw
_Sets = dict[int, int]  # of ports, as bits, by namespace
_NOTHING = (0,) * len(Counters._fields)
_SUMMED = ("in_use", "syn_sent", "established", "close_wait", "closing", "time_wait")
_RATES = ("taken", "given_back")


class Place:
    """A network namespace and its settings, which are read anew for each pass."""

    def __init__(self, namespace: Namespace, stack: ExitStack) -> None:
        self.run, self.inode = namespace.run, namespace.inode
        names = ("ip_local_port_range", "ip_local_reserved_ports")
        paths = [f"/proc/sys/net/ipv4/{name}" for name in names]
        # They stay those of the namespace in which they are opened.
        self._files = [self.run(partial(os.open, path, os.O_RDONLY)) for path in paths]
        for file in self._files:
            stack.callback(os.close, file)

    @property
    def key(self) -> bytes:
        """In the map of namespaces."""
        return self.inode.to_bytes(4, sys.byteorder)

    def sets(self) -> bytes:
        """What a pass begins with: a struct port_sets where nothing is bound so far."""
        return self.allowed().to_bytes(_SET, sys.byteorder).ljust(3 * _SET, b"\0")

    def allowed(self) -> int:
        """The ports that connect() may choose, as a set of bits."""
        between, reserved = (os.pread(file, 1 << 18, 0).decode() for file in self._files)
        low, high = map(int, between.split())
        return _bits(low, high) & ~_listed(reserved)


def _bits(low: int, high: int) -> int:
    return (1 << high + 1) - (1 << low)


def _listed(text: str) -> int:
    """The ports of a list as `8080,30000-30010`."""
    found = 0
    for part in filter(None, text.strip().split(",")):
        low, _, high = part.partition("-")
        found |= _bits(int(low), int(high or low))
    return found


@contextmanager
def places(inodes: Sequence[int]) -> Iterator[list[Place]]:
    """The network namespaces with these inodes, or our own."""
    with ExitStack() as stack:
        yield [Place(each, stack) for each in stack.enter_context(namespaces.opened(inodes))]


class Given:
    """Ports that were given back: what was in use before or was taken since, and is not in use.

    A port that is taken during a pass may be in this report's pass, and taken in the next one's
    count, or the other way round. What is too many in one report is left out of the next.
    """

    def __init__(self) -> None:
        self._before: Mapping[bytes, int] | None = None
        self._owed: dict[bytes, int] = {}

    def back(self, now: Mapping[bytes, int], taken: Mapping[bytes, int]) -> dict[bytes, int]:
        """By destination, for each that something is known of."""
        before = now if self._before is None else self._before
        gone = {
            key: before.get(key, 0) + taken.get(key, 0) - now.get(key, 0) - self._owed.get(key, 0)
            for key in {**before, **now, **taken, **self._owed}
        }
        self._before = now
        self._owed = {key: -number for key, number in gone.items() if number < 0}
        return {key: max(0, number) for key, number in gone.items()}


class Passes:
    """The Counts of the table: a pass for each report.

    rates: what is taken and given back is told as well. warn: the share to warn of. most: how many
    rows; the others are added up in one. worst: of the last report, where something is to warn of.
    """

    def __init__(
        self, program: Attached, places: Sequence[Place], rates: bool, warn: float, most: int
    ) -> None:
        self._program, self._places, self._rates = program, places, rates
        self._warn, self._most = warn, most
        self._layout, self._given = fields.layout(Key), Given()
        self._bound: _Sets = {}
        self._time = clock.monotonic_ns()
        self.worst: Record | None = None
        if rates:
            self.take()

    def add(self, records: Records) -> None:
        """The kernel counts."""

    def take(self) -> list[Record]:
        """What is to warn of on top, then those with the highest share."""
        ranges, bound = self._pass()
        counted = self._program.aggregates["destinations"].take()
        no_room = counted.pop(bytes(self._layout.size), None)
        rows = self._of_destinations(counted) + self._of_bound(bound)
        before, self._time = self._time, clock.monotonic_ns()
        for row in rows:
            self._judge(row, ranges[row["netns"]].bit_count(), bound[row["netns"]].bit_count())
        rows.sort(key=_urgency)
        self.worst = next((_record(row, 0) for row in rows if row["warn"]), None)
        self._bound = bound
        rest = rows[self._most :] + ([_named(Counters, no_room)] if no_room else [])
        shown = rows[: self._most] + ([_rest(rest)] if rest else [])
        interval = self._time - before if self._rates else None
        return [_record(row, interval) for row in shown]

    def _pass(self) -> tuple[_Sets, _Sets]:
        """Over all sockets: the ports that connect() may choose, and those that are bound."""
        known = self._program.map("namespaces")
        for place in self._places:
            known.set(place.key, place.sets())
        self._program.iterate(FILES)
        for place in self._places:
            place.run(partial(self._program.iterate, SOCKETS))
        sets = [(place.inode, known.get(place.key) or b"") for place in self._places]
        return {i: _set(x, 0) for i, x in sets}, {i: _set(x, 1) for i, x in sets}

    def _of_destinations(self, counted: Mapping[bytes, tuple[int, ...]]) -> list[_Row]:
        by_name = {key: _named(Counters, counters) for key, counters in counted.items()}
        now = {key: row["shared"] for key, row in by_name.items()}
        back = self._given.back(now, {key: row["taken"] for key, row in by_name.items()})
        shared: Counter[Record] = Counter()
        rows = []
        for key in {**by_name, **{key: number for key, number in back.items() if number}}:
            row = _named(Key, self._layout.event.unpack(key)) | _named(Counters, _NOTHING)
            row |= by_name.get(key, {}) | {"given_back": back.get(key, 0)}
            shared[_destination_of(row)] += row["shared"]
            rows.append(row)
        return [{**row, "shared": shared[_destination_of(row)]} for row in rows]

    def _of_bound(self, bound: _Sets) -> list[_Row]:
        """What is taken for any destination."""
        rows = []
        for inode, ports in bound.items():
            before = self._bound.get(inode, 0)
            rows.append(
                {
                    **_BLANK,
                    **dict.fromkeys(Counters._fields),
                    **{"raddr": _ANY, "netns": inode, "in_use": ports.bit_count(), "shared": 0},
                    "taken": (ports & ~before).bit_count(),
                    "given_back": (before & ~ports).bit_count(),
                }
            )
        return rows

    def _judge(self, row: _Row, ports: int, bound: int) -> None:
        """ports: how many connect() may choose from."""
        share = (row["shared"] + bound) / ports if ports else 1.0
        warn = share * 100 >= self._warn or bool(row["failed"])
        row.update(bound=bound, range=ports, share=round(share, 4), warn=warn)
        if not self._rates:
            row.update(dict.fromkeys((*_RATES, "failed")))


def _set(sets: bytes, which: int) -> int:
    """One of struct port_sets, as a number with a bit a port."""
    return int.from_bytes(sets[which * _SET : (which + 1) * _SET], sys.byteorder)


def _named(of: type[Value], values: Record) -> _Row:
    return dict(zip(of._fields, values, strict=True))


_BLANK = _named(Key, (b"", b"", 0, 0, _UNKNOWN_UID, 0, 0, b""))


def _destination_of(row: _Row) -> Record:
    """Without the owner."""
    return tuple(row[name] for name in ("laddr", "raddr", "netns", "rport", "family"))


def _urgency(row: _Row) -> tuple[Any, ...]:
    return not row["warn"], -row["share"], -row["in_use"], row["netns"], row["raddr"]


def _rest(rows: Sequence[_Row]) -> _Row:
    """Many in one: of shares there is no sum."""
    sums = {name: sum(row[name] or 0 for row in rows) for name in _SUMMED}
    return {**_BLANK, **dict.fromkeys(Use._fields[len(Key._fields) :]), **sums, "warn": False}


def _record(row: _Row, interval: int | None) -> Record:
    return tuple({**row, "interval_ns": interval}[name] for name in Use._fields)
