"""synbl's rows: what BPF tells of each listener, less what the last report had."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Annotated, Any

from tcpcore.loader.perf import Record
from tcpcore.model import fields
from tcpcore.model.tool import Records
from tcpcore.value import Value

_Id = tuple[int, int]  # the socket, and when it was followed: its address is used again
_Told = dict[str, Any]  # an event's fields, or a row's, by name; all raw
_LENGTHS = struct.Struct("=16Q")
_HOOKED = ("overflows", "syn_overflows", "cookies")
_COUNTED = (*_HOOKED, "drops", "length_sum")


def bounds(slot: int) -> tuple[int, int]:
    """The lengths that are counted in a slot: from, and to. LENGTH_SLOTS is 16; a backlog is an
    int."""
    if slot < 2:
        return slot, slot
    return 1 << slot - 1, (1 << (slot if slot < 15 else 31)) - 1


def _buckets(counts: tuple[int, ...]) -> list[list[int]]:
    return [[*bounds(slot), count] for slot, count in enumerate(counts) if count]


def _bucket(lower: int, upper: int, count: int) -> str:
    return f"{lower}:{count}" if lower == upper else f"{lower}-{upper}:{count}"


def _text(buckets: list[Any]) -> str:
    return " ".join(_bucket(*each) for each in buckets) or "-"


Buckets = Annotated[list[Any], fields.Kind("", _buckets, text=_text)]
# None: no hook tells it here.
Hooked = Annotated[int | None, fields.Kind("", lambda count: count, few=False)]
Now = Annotated[int, fields.Kind("", lambda number: number, few=False)]


class Listener(Value):
    """A listener: its queues now, or at its end, and what was counted since the last report.

    connections: that came into the accept queue. buckets: how many of them found it how long, as
    [from, to, connections]; length_sum: of all these lengths. limit: of either queue; the accept
    queue takes one more. overflows: SYNs and last ACKs that found the accept queue full.
    syn_overflows: SYNs that found the SYN queue full. None: no hook tells it here.
    """

    pid: fields.Pid
    comm: fields.Comm
    uid: fields.U32
    netns: fields.U32
    family: fields.Family
    laddr: fields.Address
    lport: fields.Port
    connections: Now
    queue: Now
    limit: Now
    overflows: Hooked
    drops: Now
    syn_queue: Now
    syn_overflows: Hooked
    cookies: Hooked
    length_sum: Now
    buckets: Buckets


class Listeners:
    """The Counts of the table. BPF counts since it follows a listener, so that no report is wrong
    where an event of one before it was lost.

    names: the fields of the events, in their order. hooked: BPF sees what overflows. idle: also
    listeners to which nothing came and where nothing waits.
    """

    def __init__(self, names: Sequence[str], hooked: bool, idle: bool = False) -> None:
        self._names, self._hooked, self._idle = names, hooked, idle
        self._new: dict[_Id, _Told] = {}
        self._before: dict[_Id, tuple[int, ...]] = {}

    def add(self, records: Records) -> None:
        """The last one of a listener has all that those before it have."""
        for record in records:
            told = dict(zip(self._names, record, strict=True))
            self._new[told["sk"], told["since_ns"]] = told

    def take(self) -> list[Record]:
        """Those of which most was dropped first, then the fullest."""
        rows = [self._row(listener, told) for listener, told in self._new.items()]
        self._new.clear()
        shown = sorted((row for row in rows if self._idle or _is_busy(row)), key=_urgency)
        return [tuple(row[name] for name in Listener._fields) for row in shown]

    def _row(self, listener: _Id, told: _Told) -> _Told:
        """What has come since the last report takes the place of what came at all."""
        totals = (*(told[name] for name in _COUNTED), *_LENGTHS.unpack(told["lengths"]))
        before = self._before.pop(listener, (0,) * len(totals))
        if not told["ended"]:
            self._before[listener] = totals
        new = [now - then for now, then in zip(totals, before, strict=True)]
        lengths = tuple(new[len(_COUNTED) :])
        row = {**told, **dict(zip(_COUNTED, new, strict=False))}
        row |= {"connections": sum(lengths), "buckets": lengths}
        return row if self._hooked else row | dict.fromkeys(_HOOKED)


def _is_busy(row: _Told) -> bool:
    """Something came, or waits."""
    return any(row[name] for name in ("connections", "queue", "syn_queue", "drops", *_HOOKED))


def _urgency(row: _Told) -> tuple[Any, ...]:
    return -row["drops"], -row["queue"] / (row["limit"] + 1), row["laddr"], row["lport"]
