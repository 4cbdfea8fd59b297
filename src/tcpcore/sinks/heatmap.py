"""--heatmap: histograms as a picture, time downwards, values to the right.

A line for each histogram of a report. A cell is a bucket, and its density the bucket's share of the
values in the line: nine steps, so that a line looks the same however many values it has. What was
counted at all is seen. The scale is as wide as the values so far; where it has to grow, a new
header begins, and what stands below a header is in its columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tcpcore.model.tool import Lines
from tcpcore.sinks import form, histogram
from tcpcore.sinks.table import Text, stamp, stamps

if TYPE_CHECKING:
    from tcpcore.model.histogram import Histogram

_MARKS = " .:-=+*#%@"
# The same in the terminal's 256 colours, as backgrounds: from dark blue over red to light yellow.
_COLOURS = (None, 19, 55, 91, 127, 163, 199, 209, 221, 230)
_RESET = "\x1b[0m"

_WIDEST = 5  # characters of a cell: the longest label and a blank
_STEP = 4  # buckets by which the scale grows
_COUNT = 8
_AGAIN = 24  # lines until a terminal's header has gone


class Heatmap:
    """A Style. text: of what is no histogram. columns: how wide the terminal is. colours: it can
    show 256; else densities are characters."""

    def __init__(
        self,
        text: Text,
        timestamp: bool = False,
        wall: bool = False,
        columns: int = 80,
        colours: bool = False,
    ) -> None:
        self._text, self._columns, self._colours = text, columns, colours
        self._stamps = stamps(timestamp, wall or not timestamp)
        self._slots, self._width = range(0), 0
        self._longest_key = 0
        self._lines = 0  # since the header

    def form(self, lines: Lines) -> form.Form:
        return self._text.form(lines)

    def record(self, kind: str, content: dict[str, Any]) -> str:
        return ""

    def histograms(self, found: Sequence[Histogram]) -> str:
        """Nothing until the first value: before it there is no scale."""
        header = self._fit(found)
        if not self._slots:
            return ""
        self._lines += 1
        lines = [self._line(x.counts, x.count, histogram.key_line(x)) for x in found]
        lines = lines or [self._line({}, 0)]
        return header + "".join(f"{line.rstrip()}\n" for line in lines)

    def _fit(self, found: Sequence[Histogram]) -> str:
        """Makes room for these. A header, where there is another scale or the last one is far."""
        before = self._slots, self._width
        self._slots = _grown(self._slots, [slot for each in found for slot in each.counts])
        keys = [len(histogram.key_line(each)) for each in found]
        self._longest_key = max([self._longest_key, *keys])
        taken = sum(column.width + 1 for column in self._stamps) + 1 + _COUNT
        room = self._columns - taken - bool(self._longest_key) - self._longest_key
        self._width = max(1, min(_WIDEST, room // max(1, len(self._slots))))
        if before == (self._slots, self._width) and (not self._colours or self._lines < _AGAIN):
            return ""
        self._lines = 0
        return self._header(next((histogram.title(each) for each in found), ""))

    def _header(self, measure: str) -> str:
        times = " ".join(column.pad(column.title) for column in self._stamps)
        labelled = -(-_WIDEST // self._width)  # so many cells share a label
        labels = [_label(slot).ljust(self._width * labelled) for slot in self._slots[::labelled]]
        scale = "".join(labels)[: self._width * len(self._slots)]
        title = f"{'':{len(times)}} {measure}\n" if measure else ""
        return f"{title}{times} {scale} COUNT\n"

    def _line(self, counts: Mapping[int, int], count: int, key: str = "") -> str:
        drawn = "".join(self._cell(counts.get(slot, 0), count) for slot in self._slots)
        end = _RESET if self._colours else ""
        return f"{stamp(self._stamps)} {drawn}{end} {count:<{_COUNT}} {key}"

    def _cell(self, number: int, count: int) -> str:
        density = -(-number * (len(_MARKS) - 1) // count) if number else 0
        if not self._colours:
            return _MARKS[density] * self._width
        colour = _COLOURS[density]
        paint = _RESET if colour is None else f"\x1b[48;5;{colour}m"
        return paint + " " * self._width


def _grown(slots: range, used: Sequence[int]) -> range:
    """The scale with room for these as well."""
    if not used:
        return slots
    low, high = min(used) // _STEP * _STEP, (max(used) // _STEP + 1) * _STEP
    return range(min(low, slots.start), max(high, slots.stop)) if slots else range(low, high)


def _label(slot: int) -> str:
    """The lower bound of a bucket: 512, 1K, 2K, in powers of 1024."""
    if slot == 0:
        return "0"
    return f"{1 << slot % 10}{' KMGTPE'[slot // 10]}".rstrip()
