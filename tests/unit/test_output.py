"""The three writers, with every tool's events."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from tcpcore.model import clock, fields
from tcpcore.model.tool import Tool
from tcpcore.sinks.csv import Csv, csv_lines
from tcpcore.sinks.ndjson import Json
from tcpcore.sinks.table import Text
from tests import facts
from tests.unit.samples import address, as_csv, as_json, as_table, comm, event, lines, tool

LONGEST = "2001:1db8:1111:2222:3333:4444:5555:6666"  # 39 characters

# design.md, section 6.
COMMON = (
    "type", "tool", "time", "ts_ns", "pid", "comm", "uid", "netns", "family", "laddr", "lport",
    "raddr", "rport",
)  # fmt: skip

NASTY = (
    (b"\x1b[2J\x1b]0;x\x07", r"\x1b[2J\x1b]0;x\x07"),
    (b'say "hi", you', 'say "hi", you'),
    (b"a\\b", r"a\\b"),
    (b"two\nlines\r\n", r"two\nlines\r\n"),
    (b"\xff\xfe\x80", r"\xff\xfe\x80"),
    (b"%s%n%d", "%s%n%d"),
)


@pytest.fixture(params=facts.streams())
def each(request: pytest.FixtureRequest) -> Tool:
    return tool(request.param)


def starts(header: str) -> list[int]:
    return [match.start() for match in re.finditer(r"\S+", header)]


def lines_up(header: str, row: str) -> bool:
    """Every cell begins where its title does, behind a blank."""
    return all(
        row[at] != " " and (at == 0 or row[at - 1] == " ") for at in starts(header.rstrip("\n"))
    )


def test_columns_stay_where_they_are(each: Tool) -> None:
    assert as_table(each).header() == facts.of(each.name).header + "\n"


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("stamps", [(False, False), (True, False), (False, True), (True, True)])
def test_columns_line_up(each: Tool, wide: bool, stamps: tuple[bool, bool]) -> None:
    table = as_table(each, wide, *stamps)
    header = table.header()
    rows = table.rows([event(each), event(each, pid=0, comm=bytes(16), lport=0, rport=1)])
    assert header.count("\n") == 1
    assert len(rows.splitlines()) == 2
    assert all(lines_up(header, row) for row in rows.splitlines())
    assert not any(line.endswith(" ") for line in (header + rows).splitlines())


def test_wide_has_room_for_the_longest_address(each: Tool) -> None:
    table = as_table(each, wide=True)
    far = event(each, family=10, laddr=address(LONGEST), raddr=address(LONGEST))
    assert len(LONGEST) == 39
    assert lines_up(table.header(), table.rows([far]).rstrip("\n"))
    assert table.rows([far]).count(LONGEST) == 2


def test_v4_mapped_is_ipv4_everywhere(each: Tool) -> None:
    record = [event(each, raddr=address("::ffff:203.0.113.9"))]
    for writer in (as_table(each), as_table(each, wide=True), as_json(each)):
        assert "203.0.113.9" in writer.rows(record)
        assert "ffff:" not in writer.rows(record)
    assert ",203.0.113.9," in as_csv(each).rows(record)


def test_a_long_name_is_cut_in_text_and_whole_elsewhere(each: Tool) -> None:
    record = [event(each, comm=comm(b"abcdefghijklmno"))]
    narrow = as_table(each)
    assert lines_up(narrow.header(), narrow.rows(record).rstrip("\n"))
    (width,) = (column.width for column in lines(each).columns if column.field == "comm")
    assert ("abcdefghijklmno" in narrow.rows(record)) == (width >= 15)
    for writer in (as_table(each, wide=True), as_json(each), as_csv(each)):
        assert "abcdefghijklmno" in writer.rows(record)


@pytest.mark.parametrize(("raw", "shown"), NASTY)
def test_nasty_names(each: Tool, raw: bytes, shown: str) -> None:
    record = [event(each, comm=comm(raw))]
    text = as_table(each, wide=True).rows(record)
    assert text.count("\n") == 1
    assert text.rstrip("\n").isprintable()
    assert shown[:16] in text
    line = as_json(each).rows(record)
    assert line.count("\n") == 1
    assert json.loads(line)["comm"] == shown
    assert (
        next(csv.DictReader(io.StringIO(as_csv(each).header() + as_csv(each).rows(record))))["comm"]
        == shown
    )


def test_json_has_the_fields_of_the_design(each: Tool) -> None:
    lines = as_json(each).rows([event(each), event(each)]).splitlines()
    assert len(lines) == 2
    for line in lines:
        found = json.loads(line)
        assert tuple(found)[: len(COMMON)] == COMMON
        assert set(found) - set(COMMON) == facts.of(each.name).fields
        assert (found["type"], found["tool"]) == ("event", each.name)
        assert (found["pid"], found["lport"], found["family"]) == (4711, 40000, "ipv4")
        assert found["raddr"] == "198.51.100.7"


def test_unknown_is_null_in_json_empty_in_csv_and_a_dash_in_text(each: Tool) -> None:
    record = [event(each, pid=0, comm=bytes(16), lport=0)]
    found = json.loads(as_json(each).rows(record))
    assert (found["pid"], found["comm"], found["lport"]) == (None, None, None)
    row = next(csv.DictReader(io.StringIO(as_csv(each).header() + as_csv(each).rows(record))))
    assert (row["pid"], row["comm"], row["lport"]) == ("", "", "")
    assert as_table(each).rows(record).split().count("-") >= 2


@pytest.mark.parametrize("name", [b"=1+1", b"+1", b"-1", b"@sum", b'="a"&"b"'])
def test_csv_brings_no_formula_into_a_spreadsheet(each: Tool, name: bytes) -> None:
    text = as_csv(each).header() + as_csv(each).rows([event(each, comm=comm(name), uid=7)])
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["comm"], row["uid"]) == ("'" + name.decode(), "7")
    assert json.loads(as_json(each).rows([event(each, comm=comm(name))]))["comm"] == name.decode()


def test_a_name_that_was_asked_for_is_no_formula_either() -> None:
    connect = tool("connect")
    (row,) = csv.DictReader(
        io.StringIO(
            as_csv(connect).header() + as_csv(connect).rows([event(connect, query="@evil")])
        )
    )
    assert row["query"] == "'@evil"


def test_csv_lines_keep_numbers() -> None:
    assert csv_lines([("\tx", -1, None, "a-b")]) == "'\tx,-1,,a-b\n"


def test_csv_of_unknown_numbers() -> None:
    life = tool("life")
    unknown = event(
        life, duration_ns=fields.UNKNOWN_NS, rtt_min_us=fields.UNKNOWN_US, srtt_us=0, tx_bytes=0
    )
    (row,) = csv.DictReader(io.StringIO(as_csv(life).header() + as_csv(life).rows([unknown])))
    assert (row["duration_ns"], row["rtt_min_us"], row["srtt_us"]) == ("", "", "")
    assert row["tx_bytes"] == "0"


def test_csv_and_json_say_the_same(each: Tool) -> None:
    records = [event(each), event(each, uid=0, rport=80)]
    objects = [json.loads(line) for line in as_json(each).rows(records).splitlines()]
    rows = list(csv.DictReader(io.StringIO(as_csv(each).header() + as_csv(each).rows(records))))
    for in_json, in_csv in zip(objects, rows, strict=True):
        del in_json["type"], in_json["tool"]
        assert list(in_csv) == list(in_json)
        # Both ask the clock for the offset; all else is equal to the letter.
        del in_json["time"], in_csv["time"]
        assert in_csv == {name: str(value) for name, value in in_json.items()}


def parsed(stamp: str) -> float:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", stamp)
    whole = datetime.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    return whole.timestamp() + float(stamp[19:29])


def test_time_is_rfc3339_with_nanoseconds(each: Tool) -> None:
    record = [event(each)]
    now = time.time()
    row = next(csv.DictReader(io.StringIO(as_csv(each).header() + as_csv(each).rows(record))))
    for stamp in (json.loads(as_json(each).rows(record))["time"], row["time"]):
        assert abs(parsed(stamp) - now) < 5


def test_the_clock_keeps_each_nanosecond(each: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    """9 digits, leading zeros kept, also where a second begins."""
    monkeypatch.setattr(clock, "_offset", lambda: 1_700_000_000 * clock.SECOND)
    records = [event(each, ts_ns=ns) for ns in (0, 5, 999_999_999, 1_000_000_000)]
    assert [json.loads(line)["time"] for line in as_json(each).rows(records).splitlines()] == [
        "2023-11-14T22:13:20.000000000Z",
        "2023-11-14T22:13:20.000000005Z",
        "2023-11-14T22:13:20.999999999Z",
        "2023-11-14T22:13:21.000000000Z",
    ]


@pytest.mark.parametrize(
    ("inode", "offsets", "ahead"),
    [
        (0xEFFFFFFA, "monotonic 100 5\nboottime 0 0\n", 0),  # those of its children
        (4026532177, "monotonic           100         5\nboottime 7 8\n", 100_000_000_005),
        (4026532177, "monotonic -100 999999999\nboottime 7 8\n", -99_000_000_001),
        (None, "", 0),
    ],
)
def test_a_time_namespace_is_not_the_clock_of_bpf(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, inode: int | None, offsets: str, ahead: int
) -> None:
    file = tmp_path / "timens_offsets"
    if inode:
        file.write_text(offsets)
    monkeypatch.setattr(clock, "_namespace", lambda: inode)
    monkeypatch.setattr(clock, "_OFFSETS", file)
    monkeypatch.setattr(time, "monotonic_ns", lambda: 10**12)
    monkeypatch.setattr(time, "time_ns", lambda: 2 * 10**12)
    clock._ahead.cache_clear()
    try:
        assert clock.monotonic_ns() == 10**12 - ahead
        assert clock.rfc3339([10**12 - ahead]) == ["1970-01-01T00:33:20.000000000Z"]
    finally:
        clock._ahead.cache_clear()


def test_text_stamps(each: Tool) -> None:
    table = as_table(each, False, True, True)
    assert table.header().split()[:2] == ["TIME", "TIME(s)"]
    wall, since = table.rows([event(each)]).split()[:2]
    assert re.fullmatch(r"\d\d:\d\d:\d\d", wall)
    assert 0 <= float(since) < 5


def test_the_header_is_apart_from_the_rows(each: Tool) -> None:
    for writer in (as_table(each), as_csv(each)):
        assert len(writer.header().splitlines()) == 1
        first = writer.header().split()[0].split(",")[0]
        assert first not in writer.rows([event(each), event(each)]).split()
    assert as_json(each).header() == ""


def test_other_records_are_for_json_only(each: Tool) -> None:
    content: dict[str, Any] = {"ring": 3, "map": 0}
    found = json.loads(Json(each.name).record("lost", content))
    assert list(found) == ["type", "tool", "time", "ring", "map"]
    assert (found["type"], found["tool"], found["ring"]) == ("lost", each.name, 3)
    parsed(found["time"])
    assert Text().record("lost", content) == ""
    assert Csv().record("lost", content) == ""


def test_the_columns_of_the_tools_before_us() -> None:
    """bcc and libbpf-tools: scripts that cut columns carry over; new ones come at the end."""
    connlat = as_table(tool("connlat")).header().split()
    assert connlat[:7] == ["PID", "COMM", "IP", "SADDR", "DADDR", "DPORT", "LAT(ms)"]
    states = as_table(tool("states")).header().split()
    assert states == [
        "SKADDR", "PID", "COMM", "LADDR", "LPORT", "RADDR", "RPORT", "OLDSTATE", "->", "NEWSTATE",
        "MS",
    ]  # fmt: skip
