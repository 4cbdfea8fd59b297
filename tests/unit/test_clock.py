"""From CLOCK_MONOTONIC to the time of day."""

from __future__ import annotations

import time

import pytest

from tcpcore.model import clock, fields

MONOTONIC, REALTIME = 50_000_000_000, 1_700_000_000_250_000_000  # 2023-11-14T22:13:20.25Z


@pytest.fixture(autouse=True)
def clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "monotonic_ns", lambda: MONOTONIC)
    monkeypatch.setattr(time, "time_ns", lambda: REALTIME)
    monkeypatch.setenv("TZ", "XXX-2:30")  # east of Greenwich, tzset(3)
    time.tzset()
    clock._LOCAL.clear()


def test_a_batch_of_one_second() -> None:
    assert clock.rfc3339([MONOTONIC, MONOTONIC + 749_999_999]) == [
        "2023-11-14T22:13:20.250000000Z",
        "2023-11-14T22:13:20.999999999Z",
    ]


def test_a_batch_across_seconds() -> None:
    assert clock.rfc3339([MONOTONIC - 250_000_001, MONOTONIC, MONOTONIC + 750_000_000]) == [
        "2023-11-14T22:13:19.999999999Z",
        "2023-11-14T22:13:20.250000000Z",
        "2023-11-14T22:13:21.000000000Z",
    ]


def test_the_local_time_of_day() -> None:
    assert clock.time_of_day([MONOTONIC, MONOTONIC + 3600 * clock.SECOND]) == [
        "00:43:20",
        "01:43:20",
    ]


def test_seconds_since_the_start() -> None:
    assert clock.since(MONOTONIC, [MONOTONIC, MONOTONIC + 1_234_567_890], 9) == [
        "0.000    ",
        "1.235    ",
    ]


def test_a_cache_remembers_until_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    cache = fields.Cache(lambda key: made.append(key) or -key)  # type: ignore[func-returns-value]
    assert cache.LIMIT == 1 << 16
    monkeypatch.setattr(fields.Cache, "LIMIT", 3)
    assert [cache[key] for key in (1, 2, 3, 1, 2, 3)] == [-1, -2, -3, -1, -2, -3]
    assert made == [1, 2, 3]
    assert cache[4] == -4
    assert len(cache) == 1
