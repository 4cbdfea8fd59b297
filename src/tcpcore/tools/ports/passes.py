"""What ports reports: a pass over the sockets of each network namespace, and what changed since the
one before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from tcpcore.loader import Attached
from tcpcore.loader.aggregate import Counters as Counted
from tcpcore.loader.perf import Record
from tcpcore.model import clock
from tcpcore.model.tool import Records
from tcpcore.tools.ports import rows
from tcpcore.tools.ports.places import Place, Ports, allowed_and_bound
from tcpcore.tools.ports.rows import Counters, Row

FILES, SOCKETS = "iter/task_file", "iter/tcp"
_Sets = Mapping[int, tuple[Ports, Ports]]  # by namespace: those allowed, and those bound
_Numbers = dict[bytes, int]  # by destination


class Given:
    """Ports that were given back: what was in use before or was taken since, and is not in use.

    A port that is taken during a pass may be in this report's pass, and taken in the next one's
    count, or the other way round. What is too many in one report is left out of the next.
    """

    def __init__(self) -> None:
        self._before: _Numbers | None = None
        self._owed: _Numbers = {}

    def back(self, now: _Numbers, taken: _Numbers) -> _Numbers:
        """By destination, where there are any."""
        gone = Counter(now if self._before is None else self._before)
        gone.update(taken)
        gone.subtract(now)
        gone.subtract(self._owed)
        self._before, self._owed = now, dict(-gone)
        return dict(+gone)


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
        self._given = Given()
        self._bound: Mapping[int, Ports] = {place.inode: 0 for place in places}
        self._time = clock.monotonic_ns()
        self.worst: Record | None = None
        if rates:
            self.take()

    def add(self, records: Records) -> None:
        """The kernel counts."""

    def take(self) -> list[Record]:
        """What is to warn of on top, then those with the highest share."""
        sets = self._pass()
        counted = self._program.aggregates["destinations"].take()
        no_room = counted.pop(bytes(rows.LAYOUT.size), None)
        found = [*self._of_destinations(counted), *self._of_bound(sets)]
        self._judge(found, sets)
        found.sort(key=rows.urgency)
        self.worst = next((rows.record(row) for row in found if row["warn"]), None)
        shown, others = found[: self._most], found[self._most :]
        if no_room:
            others.append(rows.of_destination(bytes(rows.LAYOUT.size), no_room, 0))
        if others:
            shown.append(rows.rest(others))
        interval = self._interval()
        return [rows.record({**row, "interval_ns": interval}) for row in shown]

    def _pass(self) -> _Sets:
        """Over all sockets."""
        known = self._program.map("namespaces")
        for place in self._places:
            known.set(place.key, place.sets())
        self._program.iterate(FILES)
        for place in self._places:
            place.run(partial(self._program.iterate, SOCKETS))
        return {p.inode: allowed_and_bound(known.get(p.key) or b"") for p in self._places}

    def _of_destinations(self, counted: Counted) -> list[Row]:
        back = self._given.back(_column(counted, "shared"), _column(counted, "taken"))
        return [
            rows.of_destination(key, counted.get(key, rows.NOTHING), back.get(key, 0))
            for key in {**counted, **back}
        ]

    def _of_bound(self, sets: _Sets) -> list[Row]:
        before = self._bound
        self._bound = {netns: bound for netns, (_, bound) in sets.items()}
        return [rows.of_bound(netns, now, before[netns]) for netns, now in self._bound.items()]

    def _judge(self, found: Sequence[Row], sets: _Sets) -> None:
        """Of a destination all of its owners' ports count."""
        sizes = {netns: (x.bit_count(), y.bit_count()) for netns, (x, y) in sets.items()}
        shared: Counter[Record] = Counter()
        for row in found:
            shared[rows.destination_of(row)] += row["shared"]
        for row in found:
            allowed, bound = sizes[row["netns"]]
            share = (shared[rows.destination_of(row)] + bound) / allowed if allowed else 1.0
            warn = share * 100 >= self._warn or bool(row["failed"])
            row.update(bound=bound, range=allowed, share=round(share, 4), warn=warn)
            if not self._rates:
                row.update(taken=None, given_back=None, failed=None)

    def _interval(self) -> int | None:
        before, self._time = self._time, clock.monotonic_ns()
        return self._time - before if self._rates else None


def _column(counted: Counted, name: str) -> _Numbers:
    place = Counters._fields.index(name)
    return {key: counters[place] for key, counters in counted.items()}
