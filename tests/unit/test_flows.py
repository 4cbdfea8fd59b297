"""connect --count: a row per flow, from a map of counters."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest

from tcpcore.loader.map import Map
from tcpcore.model.report import MOST_ROWS
from tcpcore.sinks.csv import Cells
from tcpcore.sinks.form import Form
from tcpcore.sinks.ndjson import Objects
from tcpcore.sinks.table import Table
from tcpcore.tools.connect.flows import COUNT, FLOW, Flows, lines
from tests.unit.samples import ARCHITECTURES, address, object_file

HERE, THERE, LOOP = address("192.0.2.1"), address("198.51.100.7"), address("::1")


class Counters(dict[bytes, bytes]):
    """A kernel map, as far as Flows uses one."""

    def count(self, laddr: bytes, raddr: bytes, port: int, times: int, **more: Any) -> None:
        family = more.get("family", 2)
        key = FLOW.pack(laddr, raddr, 4026531840, more.get("lport", 0), port, family)
        connects, failed = COUNT.unpack(self.get(key, bytes(16)))
        self[key] = COUNT.pack(connects + times, failed + more.get("failed", 0))


class Report:
    """The table in one form."""

    def __init__(
        self,
        counters: Counters,
        style: str,
        lports: bool = False,
        wide: bool = False,
        others: Callable[[], Sequence[int]] = lambda: (0, 0),
    ) -> None:
        self._flows = Flows(cast(Map, counters), others)
        rows = lines(lports)
        forms: dict[str, Form] = {
            "table": Table(rows, wide),
            "json": Objects("connect", rows),
            "csv": Cells(rows),
        }
        self._form = forms[style]

    def finish(self) -> str:
        return self._form.block(self._flows.take())


flows = Report


@pytest.fixture
def counters() -> Counters:
    found = Counters()
    found.count(HERE, THERE, 80, 3, failed=1)
    found.count(HERE, THERE, 443, 7)
    found.count(LOOP, LOOP, 80, 1, family=10)
    return found


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def test_key_and_value_mirror_the_c_structs(architecture: str) -> None:
    file = object_file("connect", architecture)
    key, value = file.struct("flow"), file.struct("flow_count")
    names = ("laddr", "raddr", "netns", "lport", "rport", "family", "pad")
    sizes = (16, 16, 4, 2, 2, 2, 6)
    assert tuple(key.members) == names
    assert tuple(size for _, size in key.members.values()) == sizes
    assert key.size == FLOW.size == sum(sizes)
    assert (tuple(value.members), value.size) == (("connects", "failed"), COUNT.size)


def test_the_most_come_first(counters: Counters) -> None:
    header, *lines = flows(counters, "table").finish().splitlines()
    assert header.split() == ["LADDR", "RADDR", "RPORT", "CONNECTS", "FAILED"]
    assert [line.split() for line in lines] == [
        ["192.0.2.1", "198.51.100.7", "443", "7", "0"],
        ["192.0.2.1", "198.51.100.7", "80", "3", "1"],
        ["::1", "::1", "80", "1", "0"],
    ]
    assert len({line.index(line.split()[2]) for line in lines}) == 1


def test_only_what_is_new_since_the_last_report(counters: Counters) -> None:
    writer = flows(counters, "json")
    assert len(writer.finish().splitlines()) == 3
    assert writer.finish() == ""
    counters.count(HERE, THERE, 80, 2, failed=2)
    counters.count(LOOP, LOOP, 81, 1, family=10)
    new = [json.loads(line) for line in writer.finish().splitlines()]
    assert [(r["rport"], r["connects"], r["failed"]) for r in new] == [(80, 2, 2), (81, 1, 0)]


def test_json_and_csv_have_the_same_fields(counters: Counters) -> None:
    first = json.loads(flows(counters, "json").finish().splitlines()[0])
    assert (first.pop("type"), first.pop("tool"), bool(first.pop("time"))) == (
        *("flow", "connect"),
        True,
    )
    assert first["lport"] is None and first["family"] == "ipv4" and first["netns"] == 4026531840
    writer = flows(counters, "csv")
    (row, *_) = csv.DictReader(io.StringIO(writer.finish()))
    assert list(row) == list(first) and row["lport"] == ""
    counters.count(HERE, THERE, 80, 1)
    assert writer.finish().count("\n") == 1  # no second header


def test_local_ports_tell_flows_apart() -> None:
    counters = Counters()
    for lport in (40001, 40002, 0):  # 0: it failed before it had one
        counters.count(HERE, THERE, 80, 1, lport=lport)
    lines = flows(counters, "table", lports=True, wide=True).finish().splitlines()
    assert [line.split()[2] for line in lines] == ["LPORT", "0", "40001", "40002"]


def test_a_report_is_not_endless() -> None:
    """Rows beyond the most of all are added up."""
    counters = Counters()
    for lport in range(MOST_ROWS + 2):
        counters.count(HERE, THERE, 80, 3 if lport == 5 else 2, lport=lport + 1, failed=1)
    *lines, other = flows(counters, "table", lports=True).finish().splitlines()
    assert len(lines) == 1 + MOST_ROWS and lines[1].split()[2:] == ["6", "80", "3", "1"]
    assert other.split() == ["-", "other", "0", "0", "4", "2"]


def test_what_the_map_has_no_room_for_is_a_row(counters: Counters) -> None:
    full = [4, 1]
    writer = flows(counters, "json", others=lambda: full)
    other = json.loads(writer.finish().splitlines()[-1])
    assert (other["raddr"], other["rport"], other["netns"]) == ("other", None, None)
    assert (other["connects"], other["failed"]) == (4, 1)
    assert writer.finish() == ""
    full = [9, 1]
    (line,) = writer.finish().splitlines()
    assert (json.loads(line)["connects"], json.loads(line)["failed"]) == (5, 0)
    text = flows(counters, "csv", others=lambda: full).finish()
    assert text.splitlines()[-1] == ",,,,other,,9,1"


def test_the_counters_of_the_others_exist(architecture: str) -> None:
    counters = object_file("connect", architecture).variables(".bss")
    assert counters["other_connects"].size == counters["other_failed"].size == 8


def test_a_flow_that_goes_meanwhile_is_passed_over(counters: Counters) -> None:
    counters.get = lambda key: None  # type: ignore[method-assign,assignment]
    assert flows(counters, "json").finish() == ""
