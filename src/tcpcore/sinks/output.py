"""The three writers: an aligned table, NDJSON, CSV (RFC 4180). Each takes a batch of records."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from tcpcore.model import clock, fields
from tcpcore.model.tool import Column, Tool

Records = Sequence[tuple[Any, ...]]

MOST_ROWS = 4096
"""Of a report, whose length the traced host decides: the rest is one row, named OTHER."""
OTHER = "other"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

COMMON = ("ts_ns", "pid", "comm", "uid", "netns", "family", "laddr", "lport", "raddr", "rport")
"""The fields of every event in JSON and CSV, in their order, behind `time`."""


class Writer(Protocol):
    """header: once, before all else. rows: a batch. finish: at the end and after each --interval.

    record: something beside the events; only JSON shows it.
    """

    def header(self) -> str: ...
    def rows(self, records: Records) -> str: ...
    def finish(self) -> str: ...
    def record(self, kind: str, content: dict[str, Any]) -> str: ...


class Table:
    """Aligned columns. timestamp: seconds since start; wall: time of day."""

    def __init__(self, tool: Tool, wide: bool, timestamp: bool, wall: bool) -> None:
        start = clock.monotonic_ns()
        stamps: list[Column] = []
        if wall:
            stamps.append(Column("TIME", "ts_ns", 8, cells=clock.time_of_day))
        if timestamp:
            stamps.append(Column("TIME(s)", "ts_ns", 9, cells=lambda ns: clock.since(start, ns, 9)))
        self._columns = (*stamps, *(tool.wide if wide else tool.columns))
        kinds = fields.kinds(tool.event)
        names = list(kinds)
        self._sources = [names.index(column.field) for column in self._columns]
        self._converts = [c.cells or _padded(c, kinds[c.field]) for c in self._columns]

    def header(self) -> str:
        return " ".join(column.pad(column.title) for column in self._columns).rstrip() + "\n"

    def rows(self, records: Records) -> str:
        cells = _cells(list(zip(*records, strict=True)), self._converts, self._sources)
        return "\n".join(map(str.rstrip, map(" ".join, zip(*cells, strict=True)))) + "\n"

    def finish(self) -> str:
        return ""

    def record(self, kind: str, content: dict[str, Any]) -> str:
        return ""


def _padded(column: Column, kind: fields.Kind) -> fields.Convert:
    text = column.text or kind.text
    return kind.convert(lambda raw: column.pad(text(kind.value(raw))))


def _cells(
    columns: Sequence[fields.Column], converts: Sequence[fields.Convert], sources: Sequence[int]
) -> list[Iterable[Any]]:
    """The raw columns that are printed, converted."""
    return [convert(columns[i]) for convert, i in zip(converts, sources, strict=True)]


def _order(tool: Tool) -> list[str]:
    """The fields of JSON and CSV: the common ones, then the tool's own."""
    names = fields.kinds(tool.event)
    return [*COMMON, *(name for name in names if name not in COMMON)]


class Json:
    """One object a line."""

    def __init__(self, tool: Tool) -> None:
        self._tool = tool.name
        kinds = fields.kinds(tool.event)
        names, order = list(kinds), _order(tool)
        self._sources = [names.index(name) for name in order]
        self._converts = [_member(name, kinds[name]) for name in order]
        self._begin = f'{{"type":"event","tool":"{tool.name}","time":"'
        self._stamp = names.index("ts_ns")

    def header(self) -> str:
        return ""

    def rows(self, records: Records) -> str:
        columns = list(zip(*records, strict=True))
        cells = _cells(columns, self._converts, self._sources)
        times = clock.rfc3339(columns[self._stamp])
        lines = map(",".join, zip((f'{self._begin}{t}"' for t in times), *cells, strict=True))
        return "}\n".join(lines) + "}\n"

    def finish(self) -> str:
        return ""

    def record(self, kind: str, content: dict[str, Any]) -> str:
        return json_line(self._tool, kind, content)


def _member(name: str, kind: fields.Kind) -> fields.Convert:
    """A field as `"name":value`."""
    begin = f'"{name}":'
    if kind.few:
        return kind.convert(lambda raw: begin + as_json(kind, raw))
    # Numbers that hardly repeat: a call for each would cost as much as all the rest of the line.
    number, null, value = begin + "%d", begin + "null", kind.value
    return lambda column: [null if (n := value(x)) is None else number % n for x in column]


def as_json(kind: fields.Kind, raw: Any) -> str:
    """A raw value as JSON."""
    return json.dumps(kind.value(raw))


def json_line(tool: str, kind: str, content: dict[str, Any]) -> str:
    """A JSON object beside the events, stamped now."""
    now = clock.rfc3339([clock.monotonic_ns()])[0]
    whole = {"type": kind, "tool": tool, "time": now, **content}
    return json.dumps(whole, separators=(",", ":")) + "\n"


class Csv:
    """A header and a line an event, with the names and units of JSON; unknown is empty."""

    def __init__(self, tool: Tool) -> None:
        kinds = fields.kinds(tool.event)
        names, self._names = list(kinds), _order(tool)
        self._sources = [names.index(name) for name in self._names]
        self._converts = [kinds[name].convert(_quoted(kinds[name])) for name in self._names]
        self._stamp = names.index("ts_ns")

    def header(self) -> str:
        return ",".join(("time", *self._names)) + "\n"

    def rows(self, records: Records) -> str:
        columns = list(zip(*records, strict=True))
        cells = _cells(columns, self._converts, self._sources)
        times = clock.rfc3339(columns[self._stamp])
        return "\n".join(map(",".join, zip(times, *cells, strict=True))) + "\n"

    def finish(self) -> str:
        return ""

    def record(self, kind: str, content: dict[str, Any]) -> str:
        return ""


def _quoted(kind: fields.Kind) -> Callable[[Any], str]:
    """A value as one cell, quoted where RFC 4180 wants it; the csv module is slow, so not twice."""
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
    """A text that spreadsheets would take for a formula, with an apostrophe before it.

    Whoever may name a task or a host must not run something where the file is opened:
    CWE-1236. Numbers stay.
    """
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def table_lines(columns: Sequence[tuple[str, int]], rows: Iterable[Sequence[str]]) -> str:
    """A small table that is printed once: (title, width) columns, the last one unpadded."""
    template = " ".join(f"%-{width}s" for _, width in columns)
    lines = [tuple(title for title, _ in columns), *map(tuple, rows)]
    return "".join((template % line).rstrip() + "\n" for line in lines)
