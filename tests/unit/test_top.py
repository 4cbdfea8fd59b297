"""The rows of top, made of counters; and its keyboard."""

from __future__ import annotations

import os

import pytest

from tcpcore.loader.perf import Record
from tcpcore.model import clock, fields
from tcpcore.model.tool import Ranking
from tcpcore.sinks.live import Keys
from tcpcore.tools.top import sessions
from tcpcore.tools.top.sessions import ORDERS, Session, Traffic, busiest
from tests.unit.samples import address, comm

SECOND = 10**9


@pytest.fixture(autouse=True)
def jiffies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "jiffy_ns", lambda: 4_000_000)


def row(port: int = 1, tx: int = 0, rx: int = 0, **counters: int) -> Record:
    key = (address("192.0.2.1"), address("192.0.2.2"), 7, 1, comm(b"x"), port, 80, 2)
    names = list(sessions.Counters._fields)[2:]
    return (*key, tx, rx, *(counters.get(name, 0) for name in names), SECOND)


def ranked(rows: list[Record], order: str = "all", most: int = 20) -> list[Session]:
    shown = busiest(rows, Ranking(list(ORDERS), order), most, Traffic())
    return list(fields.values(Session, shown))


@pytest.mark.parametrize(
    ("order", "ports"), [("all", [3, 1, 2]), ("tx", [1, 3, 2]), ("rx", [2, 3, 1])]
)
def test_orders(order: str, ports: list[int]) -> None:
    rows = [row(1, tx=50, rx=1), row(2, tx=2, rx=40), row(3, tx=30, rx=39)]
    assert [each.lport for each in ranked(rows, order)] == ports


def test_gauges_are_the_mean_of_all_looks() -> None:
    (one,) = ranked([row(tx=1, looks=2, srtt_us=30, cwnd=20, delivery_rate=0)])
    assert (one.srtt_us, one.cwnd, one.delivery_rate) == (15, 10, None)
    (none,) = ranked([row(tx=1)])
    assert (none.srtt_us, none.cwnd) == (None, None)


@pytest.mark.parametrize(
    ("counters", "limit"),
    [
        ({"rwnd_limited": 130, "busy": 20}, "rwnd"),
        ({"sndbuf_limited": 130}, "sndbuf"),
        ({"busy": 130}, "cwnd"),
        ({"busy": 100}, "app"),
    ],
)
def test_what_held_it_back_longest(counters: dict[str, int], limit: str) -> None:
    (one,) = ranked([row(**counters)])
    assert one.limit == limit
    waits = (one.rwnd_limited_ns, one.sndbuf_limited_ns, one.cwnd_limited_ns, one.app_limited_ns)
    assert sum(wait or 0 for wait in waits) == SECOND


def test_ticks_may_be_more_than_the_interval() -> None:
    (one,) = ranked([row(busy=251)])
    assert (one.app_limited_ns, one.limit) == (0, "cwnd")


def test_the_rest_and_what_found_no_room_come_last() -> None:
    blank = (*sessions._BLANK, 900, 0, *[0] * 9, SECOND)
    first, rest = ranked([blank, row(1, tx=5, rx=1), row(2, tx=3)], most=1)
    assert (first.lport, first.tx_bytes) == (1, 5)
    assert (rest.raddr, rest.laddr, rest.tx_bytes, rest.rx_bytes) == ("other", None, 903, 0)
    assert (rest.srtt_us, rest.limit, rest.interval_ns) == (None, None, SECOND)


def test_rates_are_of_the_interval_and_totals_of_all() -> None:
    traffic = Traffic()
    for tx, rx in ((1 << 20, 2 << 20), (512 << 10, 0)):
        one = (*row(tx=tx, rx=rx)[:-1], SECOND // 2)
        busiest([one], Ranking(list(ORDERS), "all"), 0, traffic)
    assert str(traffic) == "rx 0.0 KB/s, 2.0 MB  tx 1024.0 KB/s, 1.5 MB"
    traffic.add([])
    assert str(traffic) == "rx 0.0 KB/s, 2.0 MB  tx 0.0 KB/s, 1.5 MB"


def test_keys_are_read_until_the_terminal_ends() -> None:
    reading, writing = os.pipe()
    keys = Keys(reading)
    assert keys.typed() == ""
    os.write(writing, b"sp")
    assert keys.typed() == "sp"
    os.close(writing)
    assert keys.typed() == "" == keys.typed()
    os.close(reading)
    assert Keys(None).typed() == ""
