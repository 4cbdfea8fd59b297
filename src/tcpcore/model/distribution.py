"""Percentiles of times, in bounded room."""

from __future__ import annotations

from collections import Counter


class Distribution:
    """Times in ns, rounded to three digits: a percentile is right to 0.5 %."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = self.max = 0

    def add(self, time_ns: int) -> None:
        self._buckets[_three_digits(time_ns)] += 1
        self.count += 1
        self.max = max(self.max, time_ns)

    def percentile(self, percent: int) -> int:
        """The smallest time that `percent` of all do not exceed (nearest rank)."""
        left = -(-self.count * percent // 100)
        for time_ns, number in sorted(self._buckets.items()):
            left -= number
            if left <= 0:
                return min(time_ns, self.max)
        return self.max

    def numbers(self) -> tuple[int, ...]:
        """How many there are, p50, p90, p99 and the largest one."""
        return (self.count, *map(self.percentile, (50, 90, 99)), self.max)


def _three_digits(number: int) -> int:
    step: int = 10 ** max(0, len(str(number)) - 3)
    return (number + step // 2) // step * step
