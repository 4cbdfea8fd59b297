"""A form turns raw records into text; there is one for each of text tables, JSON and CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tcpcore.model import clock, fields
from tcpcore.model.tool import Lines, Records

if TYPE_CHECKING:
    from tcpcore.model.histogram import Histogram

HEAD = ("ts_ns", "pid", "comm", "uid", "netns", "family", "laddr", "lport", "raddr", "rport")
"""The fields that come first in JSON and CSV, in their order, behind `time`; events have all."""


class Form(Protocol):
    """header: of a stream, before its first row. rows: of a stream. block: of a report. histograms:
    a block of them. record: something beside the rows; only JSON shows it."""

    def header(self) -> str: ...
    def rows(self, records: Records) -> str: ...
    def block(self, records: Records) -> str: ...


class Style(Protocol):
    """How everything is shown: as a text table, JSON or CSV."""

    def form(self, lines: Lines) -> Form: ...
    def histograms(self, found: Sequence[Histogram]) -> str: ...
    def record(self, kind: str, content: dict[str, Any]) -> str: ...


def cells(
    columns: Sequence[fields.Column], converts: Sequence[fields.Convert], sources: Sequence[int]
) -> list[Iterable[Any]]:
    """The raw columns that are printed, converted."""
    return [convert(columns[i]) for convert, i in zip(converts, sources, strict=True)]


def order(lines: Lines) -> list[str]:
    """The fields of JSON and CSV: those that other rows have, too, come first."""
    names = list(fields.kinds(lines.row))
    return [*(name for name in HEAD if name in names), *(x for x in names if x not in HEAD)]


class Times:
    """The time of each row: that of the event, or of the report that it is in."""

    def __init__(self, lines: Lines) -> None:
        names = list(fields.kinds(lines.row))
        self._stamp = names.index("ts_ns") if is_event(lines) else None

    def of(self, columns: Sequence[fields.Column], number: int) -> list[str]:
        """Of so many rows, by their raw columns."""
        if self._stamp is None:
            return [now()] * number
        return clock.rfc3339(columns[self._stamp])


def now() -> str:
    """The time of a report."""
    return clock.rfc3339([clock.monotonic_ns()])[0]


def is_event(lines: Lines) -> bool:
    """Events have a time of their own."""
    return "ts_ns" in fields.kinds(lines.row)
