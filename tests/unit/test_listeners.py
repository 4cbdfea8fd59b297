"""synbl: rows of listeners, made of what BPF counts since it follows them."""

from __future__ import annotations

import csv
import io
import json
import struct
from typing import Any

from tcpcore.model import fields
from tcpcore.model.tool import Lines, Table
from tcpcore.sinks.csv import Cells
from tcpcore.sinks.ndjson import Objects
from tcpcore.sinks.table import Table as Text
from tcpcore.tools.synbl.lengths import Distributions
from tcpcore.tools.synbl.listeners import Listeners, bounds
from tests.unit.samples import event, tool

SYNBL = tool("synbl")
NAMES = list(fields.kinds(SYNBL.event))


def lines() -> Lines:
    (kind,) = SYNBL.kinds
    assert isinstance(kind, Table)
    return kind.lines


def told(*lengths: int, **values: Any) -> tuple[Any, ...]:
    """A listener's event. lengths: how many connections are in each slot."""
    nothing = ["queue", "syn_queue", "overflows", "drops", "syn_overflows", "cookies", "ended"]
    nothing.append("length_sum")
    usual = dict.fromkeys(nothing, 0) | {"limit": 128, "sk": 1, "since_ns": 1}
    packed = struct.pack("=16Q", *lengths, *[0] * (16 - len(lengths)))
    return event(SYNBL, **usual | {"lengths": packed} | values)


def taken(listeners: Listeners, *records: tuple[Any, ...]) -> list[Any]:
    listeners.add(records)
    rows = listeners.take()
    return list(fields.values(lines().row, rows)) if rows else []


def test_a_report_has_what_came_since_the_last_one() -> None:
    listeners = Listeners(NAMES, hooked=True)
    (one,) = taken(listeners, told(3, 1, drops=2, overflows=1, cookies=4, syn_overflows=5))
    (two,) = taken(listeners, told(3, 4, drops=9, overflows=3, cookies=5, syn_overflows=7))
    assert (one.connections, one.drops, one.overflows, one.cookies, one.syn_overflows) == (
        *(4, 2, 1, 4, 5),
    )
    assert one.buckets == [[0, 0, 3], [1, 1, 1]]
    assert (two.connections, two.drops, two.overflows, two.cookies, two.syn_overflows) == (
        *(3, 7, 2, 1, 2),
    )
    assert two.buckets == [[1, 1, 3]]


def test_the_last_event_before_a_report_has_everything() -> None:
    """As of one that ends while it is asked."""
    listeners = Listeners(NAMES, hooked=True)
    (row,) = taken(listeners, told(1), told(2, ended=1))
    assert row.connections == 2
    assert taken(listeners) == []


def test_an_idle_listener_is_left_out() -> None:
    listeners = Listeners(NAMES, hooked=True)
    assert taken(listeners, told()) == []
    for some in ("queue", "syn_queue", "drops", "overflows", "syn_overflows", "cookies"):
        (row,) = taken(listeners, told(**{some: 1}, since_ns=hash(some)))
        assert getattr(row, some) == 1
    assert len(taken(listeners, told(1, sk=7))) == 1
    assert taken(listeners, told(1, sk=7)) == []
    assert len(taken(Listeners(NAMES, hooked=False, idle=True), told())) == 1


def test_a_later_listener_at_the_same_address_begins_anew() -> None:
    listeners = Listeners(NAMES, hooked=True)
    taken(listeners, told(5, drops=3, ended=1))
    (row,) = taken(listeners, told(1, since_ns=2))
    assert (row.connections, row.drops) == (1, 0)


def test_ended_listeners_leave_nothing_behind() -> None:
    listeners = Listeners(NAMES, hooked=True)
    for i in range(10):
        taken(listeners, told(1, since_ns=i), told(1, since_ns=i, ended=1))
    assert not listeners._before and not listeners._new


def test_without_hooks_overflows_are_unknown() -> None:
    (row,) = taken(Listeners(NAMES, hooked=False), told(1, drops=4))
    assert (row.overflows, row.syn_overflows, row.cookies, row.drops) == (None, None, None, 4)


def test_what_drops_most_comes_first_then_what_is_fullest() -> None:
    records = [
        told(1, sk=1, lport=1),
        told(1, sk=2, lport=2, drops=2),
        told(1, sk=3, lport=3, drops=5),
        told(1, sk=4, lport=4, queue=50, limit=100),
        told(1, sk=5, lport=5, queue=60, limit=1000),
        told(1, sk=6, lport=6, queue=1, limit=0),
    ]
    rows = taken(Listeners(NAMES, hooked=True), *records)
    assert [row.lport for row in rows] == [3, 2, 6, 4, 5, 1]


def test_bounds_of_slots() -> None:
    """0 and 1 are told apart, and all others as in bpf/synbl.bpf.c."""
    for length in (0, 1, 2, 3, 4, 7, 8, 127, 128, 4096, 16383, 16384, (1 << 31) - 1):
        slot = min(15, length.bit_length())
        lower, upper = bounds(slot)
        assert lower <= length <= upper
    assert [bounds(i)[1] for i in (0, 1, 14, 15)] == [0, 1, 16383, (1 << 31) - 1]
    assert all(bounds(i)[0] == bounds(i - 1)[1] + 1 for i in range(1, 16))


def test_text_json_and_csv() -> None:
    record = told(5, 1, 2, *[0] * 12, 7, drops=3, queue=2)
    listeners = Listeners(NAMES, hooked=False)
    listeners.add([record])
    rows = listeners.take()
    (_, text) = Text(lines()).block(rows).splitlines()
    assert text.split()[4:] == [
        *("15", "2", "128", "-", "3", "0", "-", "-"),
        *("0:5", "1:1", "2-3:2", "16384-2147483647:7"),
    ]
    found = json.loads(Objects("synbl", lines()).block(rows))
    buckets = [[0, 0, 5], [1, 1, 1], [2, 3, 2], [16384, 2147483647, 7]]
    assert (found["type"], found["buckets"], found["overflows"]) == ("flow", buckets, None)
    (row,) = csv.DictReader(io.StringIO(Cells(lines()).block(rows)))
    assert (row["connections"], row["cookies"], row["drops"]) == ("15", "", "3")
    assert row["buckets"] == str(buckets)


def test_no_lengths_are_a_dash() -> None:
    listeners = Listeners(NAMES, hooked=True, idle=True)
    listeners.add([told()])
    (_, text) = Text(lines()).block(listeners.take()).splitlines()
    assert text.split()[-1] == "-"


def test_histograms_have_a_bucket_for_0_and_one_for_1() -> None:
    lengths = Distributions(Listeners(NAMES, hooked=True))
    lengths.add([told(2, 3, 0, 1, length_sum=8, sk=1, lport=80), told(drops=3, sk=2)])
    (found,) = lengths.take()
    assert list(found.buckets()) == [(0, 0, 2), (1, 1, 3), (2, 3, 0), (4, 7, 1)]
    assert (found.count, found.sum, found.measure) == (6, 8, "backlog")
    assert [found.percentile(x) for x in (1, 34, 83, 100)] == [0, 1, 1, 5]
    assert found.key is not None and (found.key["lport"], found.key["limit"]) == (80, 128)
    lengths.add([told(2, 3, 0, 2, length_sum=13, sk=1)])
    (found,) = lengths.take()
    assert list(found.buckets()) == [(4, 7, 1)] and found.sum == 5
