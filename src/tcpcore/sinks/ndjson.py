"""JSON: one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tcpcore.model import fields
from tcpcore.model.tool import Lines, Records
from tcpcore.sinks import form, histogram

if TYPE_CHECKING:
    from tcpcore.model.histogram import Histogram


class Objects:
    """Rows as JSON objects. tool: its name."""

    def __init__(self, tool: str, lines: Lines) -> None:
        kinds = fields.kinds(lines.row)
        names, order = list(kinds), form.order(lines)
        self._sources = [names.index(name) for name in order]
        self._converts = [_member(name, kinds[name]) for name in order]
        self._begin = f'{{"type":"{lines.record}","tool":"{tool}","time":"'
        self._times = form.Times(lines)

    def header(self) -> str:
        return ""

    def rows(self, records: Records) -> str:
        if not records:
            return ""
        columns = list(zip(*records, strict=True))
        cells = form.cells(columns, self._converts, self._sources)
        lines = map(",".join, zip(self._heads(columns, len(records)), *cells, strict=True))
        return "}\n".join(lines) + "}\n"

    def _heads(self, columns: Sequence[fields.Column], number: int) -> Iterable[str]:
        """What each object begins with."""
        return (f'{self._begin}{time}"' for time in self._times.of(columns, number))

    def block(self, records: Records) -> str:
        return self.rows(records)


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


class Json:
    """A Style. tool: its name."""

    def __init__(self, tool: str) -> None:
        self._tool = tool

    def form(self, lines: Lines) -> Objects:
        return Objects(self._tool, lines)

    def histograms(self, found: Sequence[Histogram]) -> str:
        return "".join(self.record("histogram", histogram.content(each)) for each in found)

    def record(self, kind: str, content: dict[str, Any]) -> str:
        """An object beside the rows, stamped now."""
        whole = {"type": kind, "tool": self._tool, "time": form.now(), **content}
        return json.dumps(whole, separators=(",", ":")) + "\n"
