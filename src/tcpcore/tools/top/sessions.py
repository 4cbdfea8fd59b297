"""The rows of top: what each session did in an interval, and what held its sender back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tcpcore.loader.perf import Record
from tcpcore.model import clock, fields
from tcpcore.model.tool import Ranking
from tcpcore.value import Value


class Key(Value):
    """A session. Mirror of struct session, bpf/top.h. raddr: `other` for the rest of a report."""

    laddr: fields.KeyHost
    raddr: fields.KeyAddress
    pid: fields.Pid
    netns: fields.KeyNetns
    comm: fields.Comm
    lport: fields.Port
    rport: fields.Port
    family: fields.KeyFamily


class Session(Key):
    """What it did in one interval.

    Bytes are payload; out_of_order: segments. srtt_us, cwnd (segments), delivery_rate (bytes per
    second, tcp_info's): the mean of all looks, None where not known. The times say how long the
    sender waited for the receiver's window, for room in its own send buffer, for the network
    (congestion window), and for its application, which had nothing to send. limit: the longest of
    the four.
    """

    tx_bytes: fields.Number
    rx_bytes: fields.Number
    retransmits: fields.Number
    out_of_order: fields.Number
    srtt_us: fields.Number
    cwnd: fields.Number
    delivery_rate: fields.Number
    rwnd_limited_ns: fields.Number
    sndbuf_limited_ns: fields.Number
    cwnd_limited_ns: fields.Number
    app_limited_ns: fields.Number
    limit: fields.Word
    interval_ns: fields.Interval


class Counters(Value):
    """Mirror of struct session_count: the sums of an interval."""

    tx_bytes: fields.Count
    rx_bytes: fields.Count
    retransmits: fields.Count
    out_of_order: fields.Count
    busy: fields.Count
    rwnd_limited: fields.Count
    sndbuf_limited: fields.Count
    looks: fields.Count
    srtt_us: fields.Count
    cwnd: fields.Count
    delivery_rate: fields.Count


_KEYS = len(Key._fields)
_BLANK = (b"", b"", 0, 0, b"", 0, 0, 0)  # the key of the rest
_TX, _RX = _KEYS, _KEYS + 1
_Rank = Callable[[Record], int]
ORDERS: dict[str, _Rank] = {
    "all": lambda row: row[_TX] + row[_RX],
    "tx": lambda row: row[_TX],
    "rx": lambda row: row[_RX],
}


class Traffic:
    """What all sessions received and sent: KB per second in the last interval, MB in all."""

    def __init__(self) -> None:
        self._rates = self._totals = (0.0, 0.0)

    def add(self, rows: Sequence[Record]) -> None:
        """The rows of an interval."""
        sums = [sum(row[which] for row in rows) for which in (_RX, _TX)]
        seconds = rows[0][-1] / 1e9 if rows else 1.0
        self._rates = sums[0] / 1024 / seconds, sums[1] / 1024 / seconds
        self._totals = self._totals[0] + sums[0] / 2**20, self._totals[1] + sums[1] / 2**20

    def __str__(self) -> str:
        (rx, tx), (all_rx, all_tx) = self._rates, self._totals
        return f"rx {rx:.1f} KB/s, {all_rx:.1f} MB  tx {tx:.1f} KB/s, {all_tx:.1f} MB"


def busiest(rows: Sequence[Record], ranking: Ranking, most: int, traffic: Traffic) -> list[Record]:
    """From rows of counters those of Session: the first so many, and one for all others."""
    traffic.add(rows)
    rank = ORDERS[ranking.order]
    ranked = sorted(rows, key=lambda row: (not row[1], -rank(row)))  # what had no room comes last
    return [_session(row) for row in ranked[:most]] + _rest(ranked[most:])


def _session(row: Record) -> Record:
    key, numbers, interval = row[:_KEYS], row[_KEYS:-1], row[-1]
    *traffic, busy, rwnd, sndbuf, looks, srtt, cwnd, rate = numbers
    gauges = [value // looks or None if looks else None for value in (srtt, cwnd, rate)]
    waits = [jiffies * clock.jiffy_ns() for jiffies in (rwnd, sndbuf, busy)]
    waits.append(max(0, interval - sum(waits)))
    limit = _LIMITS[waits.index(max(waits))]
    return (*key, *traffic, *gauges, *waits, limit, interval)


_LIMITS = ("rwnd", "sndbuf", "cwnd", "app")


def _rest(rows: Sequence[Record]) -> list[Record]:
    """The traffic alone: gauges and times of many make no sense."""
    if not rows:
        return []
    traffic = map(sum, zip(*(row[_KEYS : _KEYS + 4] for row in rows), strict=True))
    return [(*_BLANK, *traffic, *[None] * 8, rows[0][-1])]
