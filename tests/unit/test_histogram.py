"""Histograms: what their buckets tell, and how they are drawn."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpcore.model.histogram import Bucket, Histogram
from tcpcore.sinks.csv import csv_lines
from tcpcore.sinks.histogram import bar, can_draw_blocks, content, csv_header, csv_rows, text


def histogram(
    counts: Mapping[int, int], total: int = 0, key: Mapping[str, Any] | None = None
) -> Histogram:
    return Histogram("srtt", "us", key, counts, total)


def counted(values: list[int]) -> Histogram:
    """As the kernel counts: slot 0 for 0 and 1, else the place of the highest bit."""
    slots = [max(0, value.bit_length() - 1) for value in values]
    return histogram({slot: slots.count(slot) for slot in slots}, sum(values))


U64 = st.integers(0, 2**64 - 1)
# Small ones too, which a plain draw of 64 bits never has.
VALUES = st.lists(st.one_of(U64, st.integers(0, 63).flatmap(lambda n: st.integers(0, 2**n))))
COUNTS = st.dictionaries(st.integers(0, 63), U64)
WIDTHS = st.integers(0, 300)
EMPTY = histogram({})
SOME = histogram({4: 20, 5: 160, 7: 3}, 9000)


# The buckets.


def test_the_buckets_from_the_lowest_to_the_highest_that_is_used() -> None:
    assert list(histogram({0: 0, 2: 5, 4: 1, 9: 0}).buckets()) == [
        Bucket(4, 7, 5), Bucket(8, 15, 0), Bucket(16, 31, 1),
    ]  # fmt: skip
    assert list(histogram({0: 1, 1: 2}).buckets()) == [Bucket(0, 1, 1), Bucket(2, 3, 2)]
    assert list(histogram({63: 7}).buckets()) == [Bucket(2**63, 2**64 - 1, 7)]
    assert [*EMPTY.buckets()] == [*histogram({5: 0}).buckets()] == []


@given(VALUES)
def test_each_value_is_in_its_bucket(values: list[int]) -> None:
    for lower, upper, count in counted(values).buckets():
        assert count == sum(lower <= value <= upper for value in values)


@given(COUNTS)
def test_buckets_leave_out_nothing(counts: dict[int, int]) -> None:
    whole = histogram(counts)
    buckets = list(whole.buckets())
    assert sum(bucket.number for bucket in buckets) == whole.count == sum(counts.values())
    assert all(one.upper + 1 == next.lower for one, next in pairwise(buckets))
    assert not buckets or (buckets[0].number and buckets[-1].number)


# Percentiles.


@given(VALUES.filter(bool), st.integers(0, 100))
def test_a_percentile_is_in_the_bucket_of_the_true_one(values: list[int], percent: int) -> None:
    true = sorted(values)[max(1, -(-len(values) * percent // 100)) - 1]
    estimate = counted(values).percentile(percent)
    assert estimate is not None
    assert max(1, estimate).bit_length() == max(1, true).bit_length()


@given(COUNTS)
def test_percentiles_do_not_fall(counts: dict[int, int]) -> None:
    found = [histogram(counts).percentile(percent) for percent in range(101)]
    if any(counts.values()):
        known = [value for value in found if value is not None]
        assert known == sorted(known) and len(known) == 101
    else:
        assert set(found) == {None}


def test_values_are_spread_evenly_in_their_bucket() -> None:
    four = histogram({10: 4})  # in the middles of 1024 to 2047's quarters
    assert [four.percentile(percent) for percent in (1, 25, 26, 75, 100)] == [
        1151, 1151, 1407, 1663, 1919,
    ]  # fmt: skip
    assert histogram({10: 1}).percentile(50) == 1535
    assert histogram({0: 9}).percentile(99) == 0
    assert histogram({10: 99, 20: 1}).percentile(99) == 2041
    assert histogram({10: 98, 20: 2}).percentile(99) == 2**20 + (2**20 - 1) // 4


# Text.


def test_bars_on_a_terminal() -> None:
    assert text(SOME, 56, blocks=True).splitlines() == [
        "     srtt(us)            : count    distribution",
        "        16 -> 31         : 20       |██▎               |",
        "        32 -> 63         : 160      |██████████████████|",
        "        64 -> 127        : 0        |                  |",
        "       128 -> 255        : 3        |▍                 |",
    ]


def test_bars_in_a_pipe() -> None:
    assert text(SOME, 56, blocks=False).splitlines() == [
        "     srtt(us)            : count    distribution",
        "        16 -> 31         : 20       |***               |",
        "        32 -> 63         : 160      |******************|",
        "        64 -> 127        : 0        |                  |",
        "       128 -> 255        : 3        |*                 |",
    ]


def test_numbers_of_twenty_digits() -> None:
    huge = histogram({33: 1, 62: 2**64 - 1, 63: 2**63 - 1})
    lines = text(huge, 90, blocks=False).splitlines()
    assert lines[1].startswith(
        "          8589934592 -> 17179869183          : 1                    |*"
    )
    assert lines[-1] == (
        " 9223372036854775808 -> 18446744073709551615 : 9223372036854775807  |**********          |"
    )
    narrow = text(histogram({32: 1}), 80, blocks=False).splitlines()
    assert narrow[1].startswith("4294967296 -> 8589934591 : 1        |***")


@pytest.mark.parametrize("width", [0, 20, 38])
def test_a_terminal_without_room_for_bars(width: int) -> None:
    assert text(SOME, width, blocks=True).splitlines()[:2] == [
        "     srtt(us)            : count",
        "        16 -> 31         : 20",
    ]


def test_the_key_stands_before_it() -> None:
    key = {"raddr": "192.0.2.1", "rport": 443, "pid": None}
    assert text(histogram({0: 1}, key=key), 40, blocks=False).splitlines() == [
        "raddr = 192.0.2.1, rport = 443, pid = -",
        "     srtt(us)            : count    distribution",
        "         0 -> 1          : 1        |**|",
    ]
    assert text(histogram({}, key={}), 40, blocks=False) == text(EMPTY, 40, blocks=False)


def test_a_measure_without_a_unit() -> None:
    backlog = Histogram("backlog", "", None, {0: 1}, 1)
    assert text(backlog, 80, blocks=False).startswith("     backlog             : count")


def test_an_empty_one_is_a_header() -> None:
    assert text(EMPTY, 80, blocks=True) == "     srtt(us)            : count    distribution\n"


@given(COUNTS, WIDTHS, st.booleans())
def test_lines_are_as_wide_as_the_terminal(
    counts: dict[int, int], width: int, blocks: bool
) -> None:
    _, *lines = text(histogram(counts), width, blocks).splitlines()
    assert len(lines) == len(list(histogram(counts).buckets()))
    if any("|" in line for line in lines):
        assert {len(line) for line in lines} == {width}
        assert (
            len({(line.index(" -> "), line.index(" : "), line.index("|")) for line in lines}) == 1
        )


@given(COUNTS, WIDTHS, st.booleans())
def test_a_line_tells_its_bucket(counts: dict[int, int], width: int, blocks: bool) -> None:
    _, *lines = text(histogram(counts), width, blocks).splitlines()
    numbers = [re.match(r" *(\d+) -> (\d+) *: (\d+)", line) for line in lines]
    told = [Bucket(*map(int, match.groups())) for match in numbers if match]
    assert told == list(histogram(counts).buckets())


@given(U64, st.integers(1, 2**64), st.integers(1, 300), st.booleans())
def test_a_bar_is_as_long_as_its_share(count: int, most: int, room: int, blocks: bool) -> None:
    count = min(count, most)
    drawn = bar(count, most, room, blocks)
    assert len(drawn) == room
    marks = drawn.rstrip()
    assert bool(marks) == bool(count)
    assert set(marks[:-1]) <= {"█" if blocks else "*"}
    assert set(marks[-1:]) <= set("▏▎▍▌▋▊▉█" if blocks else "*")
    assert len(marks) - 1 < count * room / most * (1 + 1e-9)
    assert len(marks) >= count * room / most * (1 - 1e-9)


def test_eighths_of_a_character() -> None:
    drawn = [bar(count, 8, 1, blocks=True) for count in range(9)]
    assert drawn == list(" ▏▎▍▌▋▊▉█")


@pytest.mark.parametrize(
    ("encoding", "can"),
    [("utf-8", True), ("gb18030", True), ("ascii", False), ("latin-1", False), ("cp437", False),
     ("no-such", False)],
)  # fmt: skip
def test_encodings(encoding: str, can: bool) -> None:
    assert can_draw_blocks(encoding) == can


def test_the_average_and_percentiles_where_they_are_asked_for() -> None:
    lines = text(SOME._replace(key={"rport": 443}), 80, blocks=False, summary=True).splitlines()
    assert lines[:2] == ["rport = 443", "average = 49.2, p50 = 45, p90 = 59, p99 = 191"]
    assert text(EMPTY, 80, blocks=False, summary=True).splitlines() == [
        "average = -, p50 = -, p90 = -, p99 = -",
        "     srtt(us)            : count    distribution",
    ]
    assert "average" not in text(SOME, 80, blocks=False)


@given(VALUES.filter(bool))
def test_the_average_is_that_of_the_values(values: list[int]) -> None:
    assert counted(values).average == sum(values) / len(values)


# Records and rows.


def test_the_content_of_a_record() -> None:
    key = {"raddr": "192.0.2.1", "rport": 443}
    assert content(histogram({4: 20, 6: 3}, 9000, key)) == {
        "measure": "srtt", "key": key, "unit": "us", "count": 23, "sum": 9000,
        "p50": 24, "p90": 74, "p99": 116, "buckets": [[16, 31, 20], [32, 63, 0], [64, 127, 3]],
    }  # fmt: skip
    assert content(EMPTY) == {
        "measure": "srtt", "key": {}, "unit": "us", "count": 0, "sum": 0,
        "p50": None, "p90": None, "p99": None, "buckets": [],
    }  # fmt: skip


@given(COUNTS, st.integers(0, 2**80))
def test_json_has_every_number_whole(counts: dict[int, int], total: int) -> None:
    found = json.loads(json.dumps(content(histogram(counts, total))))
    assert (found["count"], found["sum"]) == (sum(counts.values()), total)
    assert [Bucket(*row) for row in found["buckets"]] == list(histogram(counts).buckets())


def test_a_csv_row_per_bucket() -> None:
    whole = histogram({4: 20, 6: 3}, 9000, {"raddr": "192.0.2.1", "comm": None})
    lines = csv_lines([csv_header(whole), *csv_rows(whole)])
    assert list(csv.reader(io.StringIO(lines))) == [
        ["measure", "raddr", "comm", "unit", "lower", "upper", "count"],
        ["srtt", "192.0.2.1", "", "us", "16", "31", "20"],
        ["srtt", "192.0.2.1", "", "us", "32", "63", "0"],
        ["srtt", "192.0.2.1", "", "us", "64", "127", "3"],
    ]
    assert csv_header(EMPTY) == ("measure", "unit", "lower", "upper", "count")
    assert list(csv_rows(EMPTY)) == []


@pytest.mark.parametrize("comm", ["ev\x1b[2Jil\n\u202e", b"ev\x1b[2Jil\n\xe2\x80\xae\0rest"])
def test_a_hostile_name_in_the_key(comm: str | bytes) -> None:
    """What a task calls itself does nothing to a terminal."""
    whole = histogram({0: 1}, key={"comm": comm})
    escaped = r"ev\x1b[2Jil\n\u202e"
    assert text(whole, 80, blocks=False).splitlines()[0] == f"comm = {escaped}"
    assert content(whole)["key"] == {"comm": escaped}
    assert [row[1] for row in csv_rows(whole)] == [escaped]
