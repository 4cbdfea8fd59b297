"""connlat --summary: a row per destination."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tcpcore.model import fields
from tcpcore.model.report import MOST_ROWS
from tcpcore.sinks.csv import Cells
from tcpcore.sinks.form import Form
from tcpcore.sinks.ndjson import Objects
from tcpcore.sinks.table import Table
from tcpcore.tools.connlat.destinations import LINES, Destinations, Distribution
from tests.unit.samples import address, event, tool

CONNLAT = tool("connlat")
HERE, THERE = address("192.0.2.1"), address("2001:db8::1")
RECORDS = [
    event(CONNLAT, raddr=HERE, rport=80, latency_ns=1_000_000, result=0),
    event(CONNLAT, raddr=HERE, rport=80, latency_ns=3_000_000, result=111),
    event(CONNLAT, raddr=HERE, rport=443, latency_ns=2_000_000, result=0),
    event(CONNLAT, raddr=THERE, rport=80, family=10, latency_ns=9_000_000, result=0),
    event(CONNLAT, raddr=HERE, rport=80, latency_ns=2_000_000, result=0),
]


class Summary:
    """The table in one form."""

    def __init__(self, style: str, records: list[tuple[Any, ...]] = RECORDS) -> None:
        forms: dict[str, Form] = {
            "table": Table(LINES),
            "json": Objects("connlat", LINES),
            "csv": Cells(LINES),
        }
        self._form = forms[style]
        self._found = Destinations(list(fields.kinds(CONNLAT.event)))
        self.rows(records)

    def rows(self, records: list[tuple[Any, ...]]) -> None:
        self._found.add(records)

    def finish(self) -> str:
        return self._form.block(self._found.take())


summary = Summary


@given(st.lists(st.integers(0, 1 << 62), min_size=1), st.integers(1, 100))
def test_percentiles_are_right_to_half_a_percent(latencies: list[int], percent: int) -> None:
    distribution = Distribution()
    for latency in latencies:
        distribution.add(latency, False)
    exact = sorted(latencies)[-(-len(latencies) * percent // 100) - 1]
    assert abs(distribution.percentile(percent) - exact) <= exact * 0.005
    assert distribution.percentile(percent) <= distribution.max == max(latencies)


def test_text() -> None:
    lines = [line.split() for line in summary("table").finish().splitlines()]
    assert lines == [
        ["DADDR", "DPORT", "COUNT", "FAILED", "P50(ms)", "P90(ms)", "P99(ms)", "MAX(ms)"],
        ["192.0.2.1", "80", "3", "1", "2.00", "3.00", "3.00", "3.00"],
        ["192.0.2.1", "443", "1", "0", "2.00", "2.00", "2.00", "2.00"],
        ["2001:db8::1", "80", "1", "0", "9.00", "9.00", "9.00", "9.00"],
    ]


def test_json_has_a_flow_a_line() -> None:
    flows = [json.loads(line) for line in summary("json").finish().splitlines()]
    assert [flow["count"] for flow in flows] == [3, 1, 1]
    assert [flow["family"] for flow in flows] == ["ipv4", "ipv4", "ipv6"]
    flow = flows[0]
    assert (flow.pop("type"), flow.pop("tool")) == ("flow", "connlat")
    assert flow.pop("time").endswith("Z")
    assert flow == {
        "family": "ipv4", "raddr": "192.0.2.1", "rport": 80, "count": 3, "failed": 1,
        "p50_ns": 2_000_000, "p90_ns": 3_000_000, "p99_ns": 3_000_000, "max_ns": 3_000_000,
    }  # fmt: skip


def test_csv_has_one_header_however_many_reports() -> None:
    writer = summary("csv")
    text = writer.finish()
    writer.rows(RECORDS)
    rows = list(csv.DictReader(io.StringIO(text + writer.finish())))
    assert [row["count"] for row in rows] == ["3", "1", "1"] * 2


def test_each_report_begins_anew() -> None:
    writer = summary("json")
    writer.finish()
    assert writer.finish() == ""
    writer.rows(RECORDS[:1])
    assert json.loads(writer.finish())["count"] == 1


def scan(destinations: int) -> list[tuple[Any, ...]]:
    """A connect each, to ports and addresses in turn."""
    return [
        event(CONNLAT, raddr=address(f"10.0.{i >> 8}.{i & 255}"), latency_ns=i + 1, result=i & 1)
        for i in range(destinations)
    ]


def test_more_destinations_than_anybody_reads_share_a_row() -> None:
    writer = summary("json", scan(MOST_ROWS))
    writer.rows(scan(MOST_ROWS + 3) + scan(1))
    *flows, other = [json.loads(line) for line in writer.finish().splitlines()]
    assert len(flows) == MOST_ROWS and {flow["count"] for flow in flows} == {2, 3}
    del other["type"], other["tool"], other["time"]
    assert other == {
        "family": None, "raddr": "other", "rport": None, "count": 3, "failed": 1,
        "p50_ns": 4099, "p90_ns": 4099, "p99_ns": 4099, "max_ns": 4099,
    }  # fmt: skip
    writer.rows(scan(3))
    assert len(writer.finish().splitlines()) == 3


def test_the_row_of_the_others_in_text_and_csv() -> None:
    for style, row in (("table", "other           -     2"), ("csv", "Z,,other,,2,")):
        text = summary(style, scan(MOST_ROWS + 2)).finish()
        assert row in text.splitlines()[-1]
        assert len(text.splitlines()) == 1 + MOST_ROWS + 1
