"""CSV (RFC 4180): a header and a line a row, with the names and units of JSON; unknown is empty."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tcpcore.model import fields
from tcpcore.model.tool import Lines, Records
from tcpcore.sinks import form, histogram

if TYPE_CHECKING:
    from tcpcore.model.histogram import Histogram

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Cells:
    """Rows as lines of CSV."""

    def __init__(self, lines: Lines) -> None:
        kinds = fields.kinds(lines.row)
        names, self._names = list(kinds), form.order(lines)
        self._sources = [names.index(name) for name in self._names]
        self._converts = [kinds[name].convert(_quoted(kinds[name])) for name in self._names]
        self._times = form.Times(lines)
        self._has_header = False

    def header(self) -> str:
        self._has_header = True
        return ",".join(("time", *self._names)) + "\n"

    def rows(self, records: Records) -> str:
        if not records:
            return ""
        columns = list(zip(*records, strict=True))
        cells = form.cells(columns, self._converts, self._sources)
        times = self._times.of(columns, len(records))
        return "\n".join(map(",".join, zip(times, *cells, strict=True))) + "\n"

    def block(self, records: Records) -> str:
        """The header stands before the first one only."""
        return ("" if self._has_header else self.header()) + self.rows(records)


def _quoted(kind: fields.Kind) -> Callable[[Any], str]:
    """A value as one cell, quoted where RFC 4180 wants it. The csv module is slow: its results are
    cached where values repeat, and numbers do without it."""
    value = kind.value
    if kind.few:
        return lambda raw: csv_lines([(value(raw), "")]).removesuffix(",\n")
    return lambda raw: "" if (known := value(raw)) is None else str(known)


def csv_lines(rows: Iterable[Sequence[Any]]) -> str:
    """RFC 4180 lines, but for the line end, which is the host's."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(map(_inert, row) for row in rows)
    return buffer.getvalue()


def _inert(cell: Any) -> Any:
    """An apostrophe before a text that a spreadsheet would take for a formula. Numbers stay.

    Else whoever names a task or a host could run something where the file is opened: CWE-1236.
    """
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


class Csv:
    """A Style."""

    def __init__(self) -> None:
        self._has_header = False

    def form(self, lines: Lines) -> Cells:
        return Cells(lines)

    def histograms(self, found: Sequence[Histogram]) -> str:
        """A row a bucket."""
        time = form.now()
        rows = [(time, *row) for each in found for row in histogram.csv_rows(each)]
        names = histogram.csv_header(found[0]) if found else ()
        header = [] if self._has_header or not found else [("time", *names)]
        self._has_header = self._has_header or bool(found)
        return csv_lines([*header, *rows])

    def record(self, kind: str, content: dict[str, Any]) -> str:
        return ""
