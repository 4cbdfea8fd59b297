"""What BPF counted in an aggregate, as rows and as histograms. tests/unit/test_flows.py has more of
rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from tcpcore.loader import Attached
from tcpcore.loader.aggregate import Counters
from tcpcore.model import fields
from tcpcore.model.counted import Counted, Measured
from tcpcore.model.histogram import Histogram
from tcpcore.model.report import MOST_ROWS
from tcpcore.value import Value
from tests.unit.samples import address

THERE = "198.51.100.7"


class Key(Value):
    raddr: fields.KeyAddress
    rport: fields.Port


class Row(Key):
    number: fields.Count
    bytes: fields.Count


LAYOUT = fields.layout(Key)
NO_ROOM = bytes(24)  # the key, and what fills it up


def key(port: int) -> bytes:
    return LAYOUT.event.pack(address(THERE), port)


def program(*reports: Counters) -> Attached:
    """Counts these in the aggregate `sizes`."""
    left = list(reports)
    of = SimpleNamespace(take=lambda: left.pop(0) if left else {})
    return cast(Attached, SimpleNamespace(aggregates={"sizes": of}))


def rows(counters: Counters) -> list[tuple[Any, ...]]:
    found = Counted("sizes", Key, struct="size")(program(counters)).take()
    return [(row.rport, row.number, row.bytes) for row in fields.values(Row, found)]


def test_most_come_first_equals_by_key() -> None:
    counters: Counters = {key(443): (1, 9), key(81): (2, 0), key(80): (2, 0), NO_ROOM: (7, 7)}
    assert rows(counters) == [(80, 2, 0), (81, 2, 0), (443, 1, 9), (None, 7, 7)]


def test_the_rest_adds_up_all_that_is_not_shown() -> None:
    counters: Counters = {key(port): (1, 2) for port in range(1, MOST_ROWS + 4)}
    assert rows(counters)[MOST_ROWS:] == [(None, 3, 6)]
    assert rows({**counters, NO_ROOM: (1, 1)})[MOST_ROWS:] == [(None, 4, 7)]


def values(*counts: int, total: int) -> tuple[int, ...]:
    """struct histogram: the first slots, and the sum."""
    return (*counts, *([0] * (64 - len(counts))), total)


def histograms(of: Measured, *reports: Counters) -> list[list[Histogram]]:
    source = of(program(*reports))
    return [source.take() for _ in reports]


SIZES = Measured("sizes", "size", "bytes", key=Key, struct="size")


def test_a_histogram_has_the_slots_and_the_sum() -> None:
    ((found,),) = histograms(SIZES, {key(443): values(0, 3, 0, 1, total=17)})
    whole = {"raddr": THERE, "rport": 443}
    assert found == Histogram("size", "bytes", whole, {1: 3, 3: 1}, 17)
    assert (found.count, next(found.buckets()).lower) == (4, 2)


def test_the_most_values_come_first_and_the_rest_last() -> None:
    one, two, rest = values(1, total=1), values(0, 2, total=4), values(9, total=0)
    ((first, second, last),) = histograms(SIZES, {NO_ROOM: rest, key(1): one, key(2): two})
    assert [each.key and each.key["rport"] for each in (first, second)] == [2, 1]
    assert last.key == {"raddr": "other", "rport": None} and last.count == 9


def test_without_a_key_there_is_one() -> None:
    sizes = Measured("sizes", "size")
    first, second = histograms(sizes, {bytes(4): values(5, total=3)}, {})
    assert first == [Histogram("size", "", None, {0: 5}, 3)] and second == []


def test_a_key_is_shown_as_the_tool_wants_it() -> None:
    ports = SIZES._replace(show=lambda key: {"port": key["rport"] or "none"})
    ((one, rest),) = histograms(ports, {key(443): values(1, total=1), NO_ROOM: values(2, total=0)})
    assert (one.key, rest.key) == ({"port": 443}, {"port": "none"})
