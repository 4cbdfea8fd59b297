"""--heatmap: histograms as lines of a picture."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpcore.model.histogram import Histogram
from tcpcore.sinks.heatmap import Heatmap
from tcpcore.sinks.table import Text
from tests.unit.samples import lines, tool

TIME = r"\d\d:\d\d:\d\d "
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
COUNTS = st.dictionaries(st.integers(0, 63), st.integers(1, 2**40), min_size=1)


def histogram(counts: dict[int, int], **key: Any) -> Histogram:
    return Histogram("srtt", "us", key or None, counts, 0)


def heatmap(columns: int = 80, colours: bool = False, **more: bool) -> Heatmap:
    return Heatmap(Text(), columns=columns, colours=colours, **more)


def drawn(of: Heatmap, *found: Histogram) -> list[str]:
    return of.histograms(found).splitlines()


def bare(line: str) -> str:
    """Without the time and the colours."""
    return re.sub("^" + TIME, "", ESCAPE.sub("", line))


def test_a_scale_and_a_line() -> None:
    title, header, line = drawn(heatmap(), histogram({4: 90, 5: 10, 10: 1}))
    assert title == "         srtt(us)"
    assert header == "TIME     16   32   64   128  256  512  1K   2K    COUNT"
    assert re.match(TIME, line)
    # 1 of 101 is seen as well, in the least of nine steps.
    assert bare(line) == "@@@@@" + "....." + " " * 20 + "....." + " " * 5 + " 101"


def test_density_is_a_share_of_the_line() -> None:
    picture = heatmap()
    few, many = (drawn(picture, histogram({0: n, 1: 2 * n}))[-1] for n in (1, 10**12))
    assert bare(few).split()[0] == bare(many).split()[0] == "-----*****"
    shares = [drawn(picture, histogram({0: n, 1: 9 - n}))[-1] for n in range(1, 10)]
    assert [bare(line)[0] for line in shares] == list(".:-=+*#%@")


def test_the_scale_grows_under_a_header_of_its_own() -> None:
    picture = heatmap()
    drawn(picture, histogram({4: 1}))
    assert len(drawn(picture, histogram({7: 1}))) == 1
    _, header, line = drawn(picture, histogram({8: 1}))
    assert header.split()[1:-1] == ["16", "32", "64", "128", "256", "512", "1K", "2K"]
    assert bare(line).index("@") == 4 * 5
    assert len(drawn(picture, histogram({5: 1}))) == 1, "it does not shrink"


def test_an_interval_without_values_is_a_line_once_there_is_a_scale() -> None:
    picture = heatmap()
    assert picture.histograms([]) == picture.histograms([histogram({})]) == ""
    drawn(picture, histogram({4: 1}))
    (line,) = drawn(picture)
    assert re.fullmatch(TIME + " {21}0", line)


def test_a_line_for_each_key() -> None:
    found = histogram({4: 3}, raddr="192.0.2.1"), histogram({5: 2}, raddr="ev\x1b[2Jil")
    *_, one, two = drawn(heatmap(), *found)
    assert bare(one).split() == ["@@@@@", "3", "raddr", "=", "192.0.2.1"]
    assert bare(two).split() == ["@@@@@", "2", "raddr", "=", r"ev\x1b[2Jil"]


@pytest.mark.parametrize(("timestamp", "wall", "title"), [
    (False, False, "TIME     0"), (False, True, "TIME     0"), (True, False, "TIME(s)   0"),
    (True, True, "TIME     TIME(s)   0"),
])  # fmt: skip
def test_there_is_always_a_time(timestamp: bool, wall: bool, title: str) -> None:
    picture = heatmap(timestamp=timestamp, wall=wall)
    _, header, line = drawn(picture, histogram({0: 1}))
    assert header.startswith(title)
    assert line.index("@") == len(title) - 1


def test_labels_where_cells_are_narrow() -> None:
    _, header, line = drawn(heatmap(), histogram({0: 1, 63: 1}))
    assert header.split()[1:-1] == [
        "0", "32", "1K", "32K", "1M", "32M", "1G", "32G", "1T", "32T", "1P", "32P", "1E",
    ]  # fmt: skip
    assert bare(line) == "+" + " " * 62 + "+ 2"


@given(COUNTS, st.integers(40, 300), st.booleans())
def test_it_fits_and_lines_up(counts: dict[int, int], columns: int, colours: bool) -> None:
    _, header, line = drawn(heatmap(columns, colours), histogram(counts))
    plain = ESCAPE.sub("", line)
    assert header.index("COUNT") == plain.rindex(str(sum(counts.values())))
    if columns >= 9 + 64 + 1 + 8:
        assert len(header) <= columns


def test_colours_are_backgrounds_and_end_with_the_cells() -> None:
    _, header, line = drawn(heatmap(colours=True), histogram({4: 9, 5: 1}))
    assert not ESCAPE.search(header)
    cells = re.findall(r"\x1b\[(?:48;5;(\d+)|0)m( *)", line)
    colours = [colour for colour, _ in cells]
    assert len(colours) == 5 and all(colours[:2]) and colours[0] != colours[1]
    assert colours[2:] == ["", "", ""] and line.endswith("\x1b[0m 10")
    assert not re.search(r"[.:=+*#%@-]", re.sub("^" + TIME, "", ESCAPE.sub("", line)))


def test_a_terminal_sees_the_header_again() -> None:
    for colours, headers in ((True, 3), (False, 1)):
        picture = heatmap(colours=colours)
        shown = [line for _ in range(60) for line in drawn(picture, histogram({4: 1}))]
        assert sum("COUNT" in line for line in shown) == headers


def test_what_is_no_histogram_is_a_table() -> None:
    rows = lines(tool("connlat"))
    assert heatmap().form(rows).header() == Text().form(rows).header()
    assert heatmap().record("lost", {"ring": 1}) == ""


def test_keys_have_room() -> None:
    """To the last column; a longer one makes cells narrower, under a header of their own."""
    picture = heatmap()
    for length, width in ((1, 4), (7, 4), (8, 3), (3, 3), (30, 2)):
        *header, line = drawn(picture, histogram({0: 1, 11: 1}, key="x" * length))
        assert line.index("+", 9 + width) == 9 + 11 * width
        assert len(line) <= 80
        assert len(header) == (0 if length in (7, 3) else 2)
    (fits,) = drawn(heatmap(), histogram({0: 1, 11: 1}, key="x" * 7))[2:]
    assert len(fits) == 80
