"""Reports: rows and histograms out of what the kernel counted, and how long they may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tcpcore.loader.aggregate import Counters
from tcpcore.loader.perf import Record
from tcpcore.model import clock, fields
from tcpcore.model.histogram import Histogram

if TYPE_CHECKING:
    from tcpcore.model.counted import Measured
    from tcpcore.value import Value

MOST_ROWS = 4096
"""Of a report, whose length the traced host decides: the rest is one row, named `other`."""


class Rows:
    """A table's Counts: the rows since the last call, those with the highest first counter on top.

    One row at the end has what found no room, and what would make the report too long. timed: rows
    end with the nanoseconds since the last call. finish: makes other rows of these.
    """

    def __init__(
        self,
        key: type[Value],
        take: Callable[[], Counters],
        timed: bool = False,
        finish: Callable[[list[Record]], list[Record]] | None = None,
    ) -> None:
        self._take, self._finish = take, finish
        self._layout, self._blank = fields.layout(key), _blank(key)
        self._timed, self._before = timed, clock.monotonic_ns()

    def add(self, records: Sequence[Record]) -> None:
        """The kernel counts."""

    def take(self) -> list[Record]:
        new = self._take()
        no_room = new.pop(bytes(self._layout.size), None)
        rows = [(self._layout.event.unpack(key), counters) for key, counters in new.items()]
        rows.sort(key=lambda row: (-row[1][0], row[0]))
        shown = [(*key, *counters) for key, counters in rows[:MOST_ROWS]]
        rest = [counters for _, counters in rows[MOST_ROWS:]] + ([no_room] if no_room else [])
        if rest:
            shown.append((*self._blank, *map(sum, zip(*rest, strict=True))))
        if self._timed:
            shown = self._with_interval(shown)
        return self._finish(shown) if self._finish else shown

    def _with_interval(self, rows: list[Record]) -> list[Record]:
        before, self._before = self._before, clock.monotonic_ns()
        return [(*row, self._before - before) for row in rows]


class Distributions:
    """A tool's Measures: the histograms since the last call, those with the most values first.

    The last one has what found no room.
    """

    def __init__(self, of: Measured, take: Callable[[], Counters]) -> None:
        self._of, self._take = of, take

    def add(self, records: Sequence[Record]) -> None:
        """The kernel counts."""

    def take(self) -> list[Histogram]:
        found = [(any(key), self._histogram(key, *of)) for key, of in self._take().items()]
        found.sort(key=lambda each: (not each[0], -each[1].count))
        return [histogram for _, histogram in found]

    def _histogram(self, key: bytes, *counters: int) -> Histogram:
        """counters: those of struct histogram, the sum behind the slots."""
        *slots, total = counters
        counts = {slot: count for slot, count in enumerate(slots) if count}
        return Histogram(self._of.measure, self._of.unit, self._key(key), counts, total)

    def _key(self, data: bytes) -> dict[str, Any] | None:
        key = self._of.key
        if key is None:
            return None
        raw = fields.layout(key).event.unpack(data) if any(data) else _blank(key)
        kinds = fields.kinds(key).items()
        whole = {name: kind.value(one) for (name, kind), one in zip(kinds, raw, strict=True)}
        return self._of.show(whole) if self._of.show else whole


def _blank(key: type[Value]) -> Record:
    return tuple(b"" if kind.code.endswith("s") else 0 for kind in fields.kinds(key).values())
