"""The result: groups of rows, one row per tool, one column per measure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """Where a number should be. None: no limit on that side."""

    least: float | None = None
    most: float | None = None

    def met(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (
            self.most is None or value <= self.most
        )


@dataclass(frozen=True)
class Cell:
    """One measure of one tool: what the rounds gave.

    pick: from the rounds to the one number. spread: show the lowest and the highest as well.
    """

    values: Sequence[float]
    digits: int = 0
    target: Target | None = None
    pick: Callable[[Sequence[float]], float] = statistics.median
    spread: bool = False

    @property
    def missed(self) -> bool:
        return self.target is not None and not self.target.met(self.pick(self.values))

    def text(self) -> str:
        """As `0.86 (0.84 - 0.90) >= 0.85`."""
        parts = [self._number(self.pick(self.values))]
        if self.spread:
            parts.append(f"({self._number(min(self.values))} - {self._number(max(self.values))})")
        return " ".join(parts) + self._bound()

    def _bound(self) -> str:
        least, most = (self.target.least, self.target.most) if self.target else (None, None)
        if least is not None:
            return f" {'=' if least == most else '>='} {self._number(least)}"
        return "" if most is None else f" <= {self._number(most)}"

    def _number(self, value: float) -> str:
        return f"{value:,.{self.digits}f}"


Row = Mapping[str, Cell]
"""By column title."""


@dataclass(frozen=True)
class Group:
    """The rows of one part, by the tool's name."""

    title: str
    rows: Mapping[str, Row]


def render(groups: Sequence[Group]) -> str:
    """All groups as text."""
    return "\n".join(f"{group.title}\n{_body(group)}" for group in groups)


def _body(group: Group) -> str:
    titles = list(dict.fromkeys(title for row in group.rows.values() for title in row))
    lines = [["", *titles, "targets"]]
    for name, row in group.rows.items():
        cells = [row[title].text() if title in row else "" for title in titles]
        lines.append([name, *cells, _verdict(row)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(f"  {_aligned(line, widths)}\n" for line in lines)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    (name, *cells, verdict), (first, *others, _) = line, widths
    right = (f"{cell:>{width}}" for cell, width in zip(cells, others, strict=True))
    return "  ".join((f"{name:<{first}}", *right, verdict)).rstrip()


def _verdict(row: Row) -> str:
    if not any(cell.target for cell in row.values()):
        return ""
    missed = [title for title, cell in row.items() if cell.missed]
    return f"MISSED: {', '.join(missed)}" if missed else "met"
