"""connlat --summary: connects per destination, how many failed, and how long they took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tcpcore.loader.perf import Record
from tcpcore.model import columns as col
from tcpcore.model import fields
from tcpcore.model.report import MOST_ROWS
from tcpcore.model.tool import Column, Lines, Records
from tcpcore.value import Value

_Key = tuple[int, bytes, int]  # family, address and port, as in the record


class Destination(Value):
    """Connects to one address and port; times in ns. raddr: `other` in the row of the rest."""

    family: fields.KeyFamily
    raddr: fields.KeyAddress
    rport: fields.Port
    count: fields.Count
    failed: fields.Count
    p50_ns: fields.Time
    p90_ns: fields.Time
    p99_ns: fields.Time
    max_ns: fields.Time


_COLUMNS = (
    col.address("DADDR", "raddr", 15),
    Column("DPORT", "rport", 5, text=fields.text),
    Column("COUNT", "count", 7),
    Column("FAILED", "failed", 7),
    *(col.millis(f"P{n}(ms)", f"p{n}_ns", 8, digits=2) for n in (50, 90, 99)),
    col.millis("MAX(ms)", "max_ns", 8, digits=2),
)
LINES = Lines(Destination, columns=_COLUMNS, wide=_COLUMNS)


class Distribution:
    """Latencies in ns, rounded to three digits: a percentile is right to 0.5 %, in bounded room."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = self.failed = self.max = 0

    def add(self, latency_ns: int, failed: bool) -> None:
        self._buckets[_three_digits(latency_ns)] += 1
        self.count += 1
        self.failed += failed
        self.max = max(self.max, latency_ns)

    def percentile(self, percent: int) -> int:
        """The smallest latency that `percent` of all do not exceed (nearest rank)."""
        left = -(-self.count * percent // 100)
        for latency, number in sorted(self._buckets.items()):
            left -= number
            if left <= 0:
                return min(latency, self.max)
        return self.max

    def numbers(self) -> tuple[int, ...]:
        """The fields of a Destination behind its key."""
        return (self.count, self.failed, *map(self.percentile, (50, 90, 99)), self.max)


def _three_digits(number: int) -> int:
    step: int = 10 ** max(0, len(str(number)) - 3)
    return (number + step // 2) // step * step


class Destinations:
    """The Counts of the table. names: the fields of the events, in their order.

    Destinations that come when there are MOST_ROWS already share one row, so that a scan of the
    whole Internet fills neither memory nor screen.
    """

    def __init__(self, names: Sequence[str]) -> None:
        wanted = ("family", "raddr", "rport", "latency_ns", "result")
        self._sources = [names.index(name) for name in wanted]
        self._found: dict[_Key, Distribution] = {}
        self._others = Distribution()

    def add(self, records: Records) -> None:
        family, raddr, rport, latency, result = self._sources
        for record in records:
            key = (record[family], record[raddr], record[rport])
            self._distribution(key).add(record[latency], record[result] != 0)

    def _distribution(self, key: _Key) -> Distribution:
        found = self._found.get(key)
        if found is None:
            if len(self._found) >= MOST_ROWS:
                return self._others
            found = self._found[key] = Distribution()
        return found

    def take(self) -> list[Record]:
        """The busiest destination first, all others last."""
        ordered = sorted(self._found.items(), key=lambda item: (-item[1].count, item[0]))
        rows: list[Record] = [(*key, *found.numbers()) for key, found in ordered]
        if self._others.count:
            rows.append((0, b"", 0, *self._others.numbers()))
        self._found.clear()
        self._others = Distribution()
        return rows
