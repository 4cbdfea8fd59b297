"""A histogram as text, as the content of a JSON record, and as rows of CSV.

All three have the same buckets: from the lowest to the highest that counted something.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tcpcore.model import fields, net

if TYPE_CHECKING:
    from tcpcore.model.histogram import Histogram

PERCENTS = (50, 90, 99)

_EIGHTHS = " ▏▎▍▌▋▊▉█"  # by how much of a character's width they fill
# The columns of bcc's histograms, so that eyes and scripts carry over; wide ones where a bound has
# more digits than a narrow column.
_NARROW, _WIDE = 10, 20
_COUNT = 8


def can_draw_blocks(encoding: str) -> bool:
    """Whether a terminal with this encoding has the characters for smooth bars."""
    try:
        _EIGHTHS.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def text(histogram: Histogram, width: int, blocks: bool, summary: bool = False) -> str:
    """The key, a header, and a line per bucket with a bar.

    width: of the terminal; where the numbers leave no room, there are no bars. blocks: draw bars
    with block characters, exact to an eighth of a character; else with `*`, as for a pipe.
    summary: a line with the average and the percentiles.
    """
    buckets = list(histogram.buckets())
    digits = max((len(str(bucket.upper)) for bucket in buckets), default=0)
    bound = _NARROW if digits <= _NARROW else _WIDE
    most = max((bucket.number for bucket in buckets), default=0)
    numbers = max(_COUNT, len(str(most)))
    room = width - len(f"{'':{bound}} -> {'':{bound}} : {'':{numbers}} ||")
    lines = [key_line(histogram), _summary(histogram) if summary else ""]
    lines.append(_header(histogram, bound, numbers, room))
    for lower, upper, count in buckets:
        line = f"{lower:>{bound}} -> {upper:<{bound}} : {count:<{numbers}}"
        lines.append(f"{line} |{bar(count, most, room, blocks)}|" if room > 0 else line.rstrip())
    return "".join(f"{line}\n" for line in lines if line)


def key_line(histogram: Histogram) -> str:
    """The key, as `raddr = 192.0.2.1, rport = 443`."""
    return ", ".join(f"{name} = {fields.text(value)}" for name, value in _key(histogram).items())


def _summary(histogram: Histogram) -> str:
    average = "-" if histogram.average is None else f"{histogram.average:.1f}"
    values = [f"p{percent} = {fields.text(histogram.percentile(percent))}" for percent in PERCENTS]
    return ", ".join([f"average = {average}", *values])


def title(histogram: Histogram) -> str:
    """The measure and its unit."""
    return f"{histogram.measure}({histogram.unit})" if histogram.unit else histogram.measure


def _header(histogram: Histogram, bound: int, numbers: int, room: int) -> str:
    begin = f"{'':{bound // 2}}{title(histogram)}"
    columns = f"{begin:{2 * bound + 4}} : {'count':{numbers}}"
    return f"{columns} distribution" if room > 0 else columns.rstrip()


def bar(count: int, most: int, room: int, blocks: bool) -> str:
    """A bar `room` characters long, blanks included; `most` fills it.

    Lengths are rounded up, so that what was counted at all is seen.
    """
    if not blocks:
        return ("*" * _length(count, most, room)).ljust(room)
    whole, eighths = divmod(_length(count, most, 8 * room), 8)
    return (_EIGHTHS[8] * whole + _EIGHTHS[eighths]).ljust(room)[:room]


def _length(count: int, most: int, full: int) -> int:
    return -(-count * full // most)


def content(histogram: Histogram) -> dict[str, Any]:
    """The JSON record of type `histogram`, without type, tool and time."""
    return {
        "measure": histogram.measure,
        "key": _key(histogram),
        "unit": histogram.unit,
        "count": histogram.count,
        "sum": histogram.sum,
        **{f"p{percent}": histogram.percentile(percent) for percent in PERCENTS},
        "buckets": [list(bucket) for bucket in histogram.buckets()],
    }


def csv_header(histogram: Histogram) -> tuple[str, ...]:
    """The names of the columns of csv_rows(), which depend on the key's fields."""
    return ("measure", *_key(histogram), "unit", "lower", "upper", "count")


def csv_rows(histogram: Histogram) -> Iterator[tuple[Any, ...]]:
    """A row per bucket."""
    before = histogram.measure, *_key(histogram).values(), histogram.unit
    return ((*before, *bucket) for bucket in histogram.buckets())


def _key(histogram: Histogram) -> dict[str, Any]:
    """The fields of the key. A task's name may be anything, and goes to a terminal."""
    return {name: _safe(value) for name, value in (histogram.key or {}).items()}


def _safe(value: Any) -> Any:
    if isinstance(value, bytes):
        return net.escape(value)
    return net.printable(value) if isinstance(value, str) else value
