"""The result: groups of rows, one column per tracer."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Values = Sequence[float]
"""What the rounds gave."""
Pick = Callable[[Values], float]


@dataclass(frozen=True)
class Row:
    """One measure of several tracers, by column title. pick: from the rounds to the one number.

    target: what the tcpcore column should be: ("at least" or "at most", bound).
    """

    label: str
    values: Mapping[str, Values]
    digits: int = 0
    target: tuple[str, float] | None = None
    pick: Pick = statistics.median


@dataclass
class Group:
    """The rows of one part."""

    title: str
    rows: list[Row] = field(default_factory=list)


COLUMNS = ("untraced", "tcpcore", "tcpstates")
_TITLES = ("", *COLUMNS, "tcpcore from - to", "per tcpstates", "target", "")
_WIDTHS = (38, 9, 9, 9, 19, 13, 16, 6)


def render(groups: Sequence[Group]) -> str:
    """The whole table as text."""
    lines = [_line(_TITLES)]
    for group in groups:
        lines += ["", group.title, *(_line(_cells(row)) for row in group.rows)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    first, *rest = zip(cells, _WIDTHS, strict=True)
    aligned = [f"{first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in rest)]
    return " ".join(aligned).rstrip()


def _cells(row: Row) -> list[str]:
    numbers = [_number(row, row.values[c]) if c in row.values else "" for c in COLUMNS]
    return [f"  {row.label}", *numbers, _range(row), _ratio(row), *_target(row)]


def _number(row: Row, values: Values) -> str:
    return _text(row, row.pick(values))


def _text(row: Row, value: float) -> str:
    return f"{value:,.{row.digits}f}"


def _range(row: Row) -> str:
    values = row.values.get("tcpcore", ())
    if len(set(values)) < 2:
        return ""
    return f"{_text(row, min(values))} - {_text(row, max(values))}"


def _ratio(row: Row) -> str:
    if "tcpcore" not in row.values or "tcpstates" not in row.values:
        return ""
    ours, theirs = row.pick(row.values["tcpcore"]), row.pick(row.values["tcpstates"])
    return f"{ours / theirs:.2f}" if theirs else ""


def _target(row: Row) -> tuple[str, str]:
    if row.target is None:
        return "", ""
    relation, bound = row.target
    value = row.pick(row.values["tcpcore"])
    met = value >= bound if relation == "at least" else value <= bound
    return f"{relation} {_text(row, bound)}", "met" if met else "MISSED"
