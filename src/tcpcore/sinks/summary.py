"""connlat --summary: connects per destination, how many failed, and how long they took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from tcpcore.model import fields
from tcpcore.model.net import FAMILIES, address_text
from tcpcore.sinks.output import MOST_ROWS, OTHER, Records, csv_lines, json_line, table_lines

Destination = tuple[int, bytes, int]  # family, address, port as in the record

_COLUMNS = (
    ("DADDR", 15),
    ("DPORT", 5),
    ("COUNT", 7),
    ("FAILED", 7),
    ("P50(ms)", 8),
    ("P90(ms)", 8),
    ("P99(ms)", 8),
    ("MAX(ms)", 8),
)
_FIELDS = ("family", "raddr", "rport", "count", "failed", "p50_ns", "p90_ns", "p99_ns", "max_ns")


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


def _three_digits(number: int) -> int:
    step: int = 10 ** max(0, len(str(number)) - 3)
    return (number + step // 2) // step * step


class Summary:
    """A writer that collects, and prints a line per destination when it is asked to finish.

    Destinations that come when there are MOST_ROWS already share one line, so that a scan of the
    whole Internet fills neither memory nor screen.

    style: "table", "json" or "csv".
    """

    def __init__(self, tool: str, names: Sequence[str], style: str) -> None:
        wanted = ("family", "raddr", "rport", "latency_ns", "result")
        self._tool, self._style = tool, style
        self._sources = [names.index(name) for name in wanted]
        self._destinations: dict[Destination, Distribution] = {}
        self._others = Distribution()
        self._header = True

    def header(self) -> str:
        return ""

    def rows(self, records: Records) -> str:
        family, raddr, rport, latency, result = self._sources
        for record in records:
            key = (record[family], record[raddr], record[rport])
            self._distribution(key).add(record[latency], record[result] != 0)
        return ""

    def _distribution(self, key: Destination) -> Distribution:
        found = self._destinations.get(key)
        if found is None:
            if len(self._destinations) >= MOST_ROWS:
                return self._others
            found = self._destinations[key] = Distribution()
        return found

    def finish(self) -> str:
        rows = list(self._flows())
        self._destinations.clear()
        self._others = Distribution()
        if self._style == "json":
            return "".join(self.record("flow", dict(zip(_FIELDS, r, strict=True))) for r in rows)
        if self._style == "csv":
            header, self._header = [_FIELDS] * self._header, False
            return csv_lines([*header, *rows])
        return table_lines(_COLUMNS, map(_cells, rows))

    def _flows(self) -> Iterator[tuple[Any, ...]]:
        """The busiest destination first, all others last."""
        ordered = sorted(self._destinations.items(), key=lambda item: (-item[1].count, item[0]))
        for (family, raddr, rport), d in ordered:
            yield (FAMILIES.get(family, str(family)), address_text(raddr), rport, *_numbers(d))
        if self._others.count:
            yield (None, OTHER, None, *_numbers(self._others))

    def record(self, kind: str, content: dict[str, Any]) -> str:
        if self._style != "json":
            return ""
        return json_line(self._tool, kind, content)


def _numbers(d: Distribution) -> tuple[int, ...]:
    return (d.count, d.failed, *map(d.percentile, (50, 90, 99)), d.max)


def _cells(row: tuple[Any, ...]) -> list[str]:
    return [*map(fields.text, row[1:5]), *(f"{ns / 1e6:.2f}" for ns in row[5:])]
