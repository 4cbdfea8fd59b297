"""How a measure is distributed: counts in buckets, each twice as wide as the one before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tcpcore.value import Value


class Bucket(NamedTuple):
    """number: how many values were from `lower` up to `upper`, both included."""

    lower: int
    upper: int
    number: int


class Histogram(Value):
    """What was counted for one key, or for everything (key None).

    measure: what was measured. unit: of its values, of `sum` and of the percentiles; "" for a mere
    number. key: fields by name. counts: by slot; slot n is for values from 2^n up to 2^(n+1) - 1,
    and slot 0 for 0 as well (log2_slot() in bpf/lib/histogram.bpf.h). sum: of all values.
    """

    measure: str
    unit: str
    key: Mapping[str, Any] | None
    counts: Mapping[int, int]
    sum: int

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    @property
    def average(self) -> float | None:
        """None where there are no values."""
        return self.sum / self.count if self.count else None

    def buckets(self) -> Iterator[Bucket]:
        """From the lowest to the highest that counted something; empty ones in between, too."""
        used = [slot for slot, count in self.counts.items() if count]
        if used:
            for slot in range(min(used), max(used) + 1):
                yield Bucket(1 << slot if slot else 0, (2 << slot) - 1, self.counts.get(slot, 0))

    def percentile(self, percent: int) -> int | None:
        """The value that `percent` of all values do not exceed (nearest rank), estimated.

        Its bucket is certain. Within the bucket, values are taken to be spread evenly: each of n
        values lies in the middle of an n-th of the width. So an estimate is more than half of the
        true value and less than twice as much; but 1, which shares a bucket with 0, reads as 0.
        None where there are no values.
        """
        rank = max(1, -(-self.count * percent // 100))
        for lower, upper, count in self.buckets():
            if rank <= count:
                return lower + (upper - lower) * (2 * rank - 1) // (2 * count)
            rank -= count
        return None
