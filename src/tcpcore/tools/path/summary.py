"""path --summary: how long packets took to each stage from the one before."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from tcpcore.model.histogram import Histogram
from tcpcore.model.tool import Records
from tcpcore.tools.path.stages import STAGES


class _Times:
    """To one stage, in ns. slots: as in Histogram."""

    def __init__(self) -> None:
        self.slots: Counter[int] = Counter()
        self.sum = 0

    def add(self, time_ns: int) -> None:
        self.slots[max(0, time_ns.bit_length() - 1)] += 1
        self.sum += time_ns


class Stages:
    """The Measures of the histograms. names: the fields of a packet's stages, in their order. A
    packet's first stage has no time."""

    def __init__(self, names: Sequence[str]) -> None:
        wanted = ("stage", "delta_ns", "elapsed_ns")
        self._stage, self._delta, self._elapsed = map(names.index, wanted)
        self._found: defaultdict[int, _Times] = defaultdict(_Times)

    def add(self, records: Records) -> None:
        for record in records:
            if record[self._elapsed]:
                stage, _ = record[self._stage]
                self._found[stage].add(record[self._delta])

    def take(self) -> list[Histogram]:
        """In the order in which packets come by."""
        found = sorted(self._found.items())
        self._found.clear()
        return [
            Histogram("time", "ns", {"stage": STAGES[stage]}, times.slots, times.sum)
            for stage, times in found
        ]
