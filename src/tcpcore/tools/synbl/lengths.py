"""synbl --hist: how long accept queues were when connections came."""

from __future__ import annotations

from collections.abc import Iterator

from tcpcore.model import fields
from tcpcore.model.histogram import Bucket, Histogram
from tcpcore.model.tool import Counts, Records
from tcpcore.tools.synbl.listeners import Listener, bounds

_KEY = ("pid", "comm", "netns", "laddr", "lport", "limit")


class Lengths(Histogram):
    """Of one listener. Its slots are finer than others: 0 and 1 have one each."""

    def buckets(self) -> Iterator[Bucket]:
        used = [slot for slot, count in self.counts.items() if count]
        if used:
            for slot in range(min(used), max(used) + 1):
                yield Bucket(*bounds(slot), self.counts.get(slot, 0))


class Distributions:
    """The Measures, made of the table's rows. A listener to which nothing came has none."""

    def __init__(self, listeners: Counts) -> None:
        self._listeners = listeners

    def add(self, records: Records) -> None:
        self._listeners.add(records)

    def take(self) -> list[Histogram]:
        """Those of which most was dropped or waits first."""
        rows = self._listeners.take()
        kinds = fields.kinds(Listener)
        found = []
        for row in rows:
            raw = dict(zip(kinds, row, strict=True))
            key = {name: kinds[name].value(raw[name]) for name in _KEY}
            counts = {slot: count for slot, count in enumerate(raw["buckets"]) if count}
            found.append(Lengths("backlog", "", key, counts, raw["length_sum"]))
        return [each for each in found if each.count]
