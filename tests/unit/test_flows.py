"""connect --count: a line per flow, from what was counted."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pytest

from tcpcore.loader.aggregate import Counters
from tcpcore.model import fields
from tcpcore.model.flow import Flow
from tcpcore.model.report import MOST_ROWS, Rows
from tcpcore.sinks.csv import Cells
from tcpcore.sinks.form import Form
from tcpcore.sinks.ndjson import Objects
from tcpcore.sinks.table import Table as Text
from tcpcore.tools.connect.flows import table
from tests.unit.samples import address

KEY = fields.layout(Flow)
REST = bytes(KEY.size)
HERE, THERE, LOOP = address("192.0.2.1"), address("198.51.100.7"), address("::1")


class Counted(Counters):
    """What BPF counted, until it is taken."""

    def count(self, laddr: bytes, raddr: bytes, port: int, times: int, **more: Any) -> None:
        family = more.get("family", 2)
        key = KEY.event.pack(laddr, raddr, 4026531840, more.get("lport", 0), port, family)
        connects, failed = self.get(key, (0, 0))
        self[key] = connects + times, failed + more.get("failed", 0)

    def take(self) -> Counters:
        taken = dict(self)
        self.clear()
        return taken


class Report:
    """The table in one form."""

    def __init__(
        self, counted: Counted, style: str, lports: bool = False, wide: bool = False
    ) -> None:
        self._flows = Rows(Flow, counted.take)
        rows = table(lports).lines
        forms: dict[str, Form] = {
            "table": Text(rows, wide),
            "json": Objects("connect", rows),
            "csv": Cells(rows),
        }
        self._form = forms[style]

    def finish(self) -> str:
        return self._form.block(self._flows.take())


flows = Report


@pytest.fixture
def counted() -> Counted:
    found = Counted()
    found.count(HERE, THERE, 80, 3, failed=1)
    found.count(HERE, THERE, 443, 7)
    found.count(LOOP, LOOP, 80, 1, family=10)
    return found


def test_the_most_come_first(counted: Counted) -> None:
    header, *lines = flows(counted, "table").finish().splitlines()
    assert header.split() == ["LADDR", "RADDR", "RPORT", "CONNECTS", "FAILED"]
    assert [line.split() for line in lines] == [
        ["192.0.2.1", "198.51.100.7", "443", "7", "0"],
        ["192.0.2.1", "198.51.100.7", "80", "3", "1"],
        ["::1", "::1", "80", "1", "0"],
    ]
    assert len({line.index(line.split()[2]) for line in lines}) == 1


def test_only_what_is_new_since_the_last_report(counted: Counted) -> None:
    writer = flows(counted, "json")
    assert len(writer.finish().splitlines()) == 3
    assert writer.finish() == ""
    counted.count(HERE, THERE, 80, 2, failed=2)
    counted.count(LOOP, LOOP, 81, 1, family=10)
    new = [json.loads(line) for line in writer.finish().splitlines()]
    assert [(r["rport"], r["connects"], r["failed"]) for r in new] == [(80, 2, 2), (81, 1, 0)]


def test_json_and_csv_have_the_same_fields(counted: Counted) -> None:
    first = json.loads(flows(counted, "json").finish().splitlines()[0])
    assert (first.pop("type"), first.pop("tool")) == ("flow", "connect")
    assert first["lport"] is None and first["family"] == "ipv4" and first["netns"] == 4026531840
    counted.count(HERE, THERE, 80, 3)
    writer = flows(counted, "csv")
    (row, *_) = csv.DictReader(io.StringIO(writer.finish()))
    assert list(row) == list(first) and row["lport"] == ""
    assert all(re.fullmatch(r"[\d-]+T[\d:.]+Z", x["time"]) for x in (row, first))
    counted.count(HERE, THERE, 80, 1)
    assert writer.finish().count("\n") == 1  # no second header


def test_local_ports_tell_flows_apart() -> None:
    counted = Counted()
    for lport in (40001, 40002, 0):  # 0: it failed before it had one
        counted.count(HERE, THERE, 80, 1, lport=lport)
    lines = flows(counted, "table", lports=True, wide=True).finish().splitlines()
    assert [line.split()[2] for line in lines] == ["LPORT", "0", "40001", "40002"]


def test_a_report_is_not_endless() -> None:
    """Rows beyond the most of all are added up."""
    counted = Counted()
    for lport in range(MOST_ROWS + 2):
        counted.count(HERE, THERE, 80, 3 if lport == 5 else 2, lport=lport + 1, failed=1)
    *lines, other = flows(counted, "table", lports=True).finish().splitlines()
    assert len(lines) == 1 + MOST_ROWS and lines[1].split()[2:] == ["6", "80", "3", "1"]
    assert other.split() == ["-", "other", "0", "0", "4", "2"]


def test_what_found_no_room_is_a_row(counted: Counted) -> None:
    writer = flows(counted, "json")
    counted[REST] = 4, 1
    other = json.loads(writer.finish().splitlines()[-1])
    assert (other["raddr"], other["rport"], other["netns"]) == ("other", None, None)
    assert (other["connects"], other["failed"]) == (4, 1)
    assert writer.finish() == ""
    counted[REST] = 5, 0
    assert flows(counted, "csv").finish().splitlines()[-1].endswith("Z,,,,,other,,5,0")


def test_one_row_has_all_that_is_not_shown() -> None:
    """What found no room, and what would make the report too long."""
    counted = Counted({REST: (4, 1)})
    for lport in range(MOST_ROWS + 1):
        counted.count(HERE, THERE, 80, 1, lport=lport + 1)
    rows = [json.loads(line) for line in flows(counted, "json", lports=True).finish().splitlines()]
    assert [(row["raddr"], row["connects"], row["failed"]) for row in rows[MOST_ROWS:]] == [
        ("other", 5, 1)
    ]
