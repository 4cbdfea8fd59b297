"""Text: aligned columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from tcpcore.loader.perf import Record
from tcpcore.model import clock, fields
from tcpcore.model.tool import Column, Lines, Records
from tcpcore.sinks import form, histogram

if TYPE_CHECKING:
    from tcpcore.model.histogram import Histogram


class Table:
    """Rows as an aligned table. stamps: columns before all others, for events only."""

    def __init__(self, lines: Lines, wide: bool = False, stamps: Sequence[Column] = ()) -> None:
        before = stamps if form.is_event(lines) else ()
        self._columns = (*before, *(lines.wide if wide else lines.columns))
        self._title = lines.title
        kinds = fields.kinds(lines.row)
        names = list(kinds)
        self._sources = [names.index(column.field) for column in self._columns]
        self._converts = [c.cells or _padded(c, kinds[c.field]) for c in self._columns]
        self._heading: tuple[int, Callable[[Record], str]] | None = None
        if lines.heading:
            field, heading = lines.heading
            self._heading = names.index(field), heading

    def header(self) -> str:
        return " ".join(column.pad(column.title) for column in self._columns).rstrip() + "\n"

    def rows(self, records: Records) -> str:
        if not self._heading:
            return self._lines(records)
        source, heading = self._heading
        groups = (list(rows) for _, rows in groupby(records, itemgetter(source)))
        return "".join(f"\n{heading(rows[0])}\n{self._lines(rows)}" for rows in groups)

    def _lines(self, records: Records) -> str:
        if not records:
            return ""
        cells = form.cells(list(zip(*records, strict=True)), self._converts, self._sources)
        return "\n".join(map(str.rstrip, map(" ".join, zip(*cells, strict=True)))) + "\n"

    @property
    def titles(self) -> list[str]:
        return [column.title for column in self._columns]

    def cells(self, records: Records) -> list[tuple[str, ...]]:
        """Row by row, for a table that is laid out otherwise."""
        if not records:
            return []
        columns = form.cells(list(zip(*records, strict=True)), self._converts, self._sources)
        return list(zip(*(map(str.rstrip, column) for column in columns), strict=True))

    def block(self, records: Records) -> str:
        title = f"{self._title()}\n" if self._title else ""
        return title + self.header() + self.rows(records)


def stamps(timestamp: bool, wall: bool) -> list[Column]:
    """timestamp: seconds since now; wall: time of day."""
    start = clock.monotonic_ns()
    found = []
    if wall:
        found.append(Column("TIME", "ts_ns", 8, cells=clock.time_of_day))
    if timestamp:
        found.append(Column("TIME(s)", "ts_ns", 9, cells=lambda ns: clock.since(start, ns, 9)))
    return found


def stamp(columns: Sequence[Column]) -> str:
    """Now, in columns of stamps()."""
    now = [clock.monotonic_ns()]
    return " ".join(cell for column in columns if column.cells for cell in column.cells(now))


def _padded(column: Column, kind: fields.Kind) -> fields.Convert:
    text = column.text or kind.text
    return kind.convert(lambda raw: column.pad(text(kind.value(raw))))


class Text:
    """A Style. columns: how wide the terminal is. blocks: it can draw more than ASCII. summary:
    histograms have a line with their average and percentiles."""

    def __init__(
        self,
        wide: bool = False,
        timestamp: bool = False,
        wall: bool = False,
        columns: int = 80,
        blocks: bool = False,
        summary: bool = False,
    ) -> None:
        self._wide, self._stamps = wide, stamps(timestamp, wall)
        self._columns, self._blocks, self._summary = columns, blocks, summary

    def form(self, lines: Lines) -> Table:
        return Table(lines, self._wide, self._stamps)

    def histograms(self, found: Sequence[Histogram]) -> str:
        """They have no time of their own: where one is asked for, it stands before the block."""
        texts = [histogram.text(x, self._columns, self._blocks, self._summary) for x in found]
        time = f"{stamp(self._stamps).rstrip()}\n" if self._stamps else ""
        return time + "\n".join(texts)

    def record(self, kind: str, content: dict[str, Any]) -> str:
        return ""
