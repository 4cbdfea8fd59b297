"""path --summary: how long packets took to each stage from the one before."""

from __future__ import annotations

from collections.abc import Sequence

from tcpcore.loader.perf import Record
from tcpcore.model import fields
from tcpcore.model.distribution import Distribution
from tcpcore.model.tool import Column, Lines, Records, Table
from tcpcore.tools.path.stages import STAGES
from tcpcore.value import Value


class Row(Value):
    """The times to one stage from the one before, in ns."""

    stage: fields.Word
    count: fields.Count
    p50_ns: fields.Time
    p90_ns: fields.Time
    p99_ns: fields.Time
    max_ns: fields.Time


_COLUMNS = (
    Column("STAGE", "stage", 15),
    Column("COUNT", "count", 9),
    *(
        Column(f"{title}(us)", field, 12, cells=fields.scaled(12, 1, 1e3))
        for title, field in (("P50", "p50_ns"), ("P90", "p90_ns"), ("P99", "p99_ns"))
    ),
    Column("MAX(us)", "max_ns", 12, cells=fields.scaled(12, 1, 1e3)),
)
LINES = Lines(Row, columns=_COLUMNS, wide=_COLUMNS)


class Stages:
    """The Counts of the table. names: the fields of a packet's stages, in their order. A packet's
    first stage has no time."""

    def __init__(self, names: Sequence[str]) -> None:
        wanted = ("stage", "delta_ns", "elapsed_ns")
        self._stage, self._delta, self._elapsed = map(names.index, wanted)
        self._found: dict[int, Distribution] = {}

    def add(self, records: Records) -> None:
        for record in records:
            if record[self._elapsed]:
                stage, _ = record[self._stage]
                found = self._found.setdefault(stage, Distribution())
                found.add(record[self._delta])

    def take(self) -> list[Record]:
        """In the order in which packets come by."""
        found, self._found = sorted(self._found.items()), {}
        return [(STAGES[stage], *times.numbers()) for stage, times in found]


def table(names: Sequence[str]) -> Table:
    """names: as in Stages."""
    return Table(LINES, lambda _: Stages(names))
