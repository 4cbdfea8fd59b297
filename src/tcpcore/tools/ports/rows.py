"""The rows of ports. They are made as dictionaries of raw values, by the fields of Use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from tcpcore.loader.perf import Record
from tcpcore.model import fields, net
from tcpcore.value import Value

_ANY = b"any"


def _destination(raw: bytes) -> str:
    if raw == _ANY:
        return "any"
    return net.address_text(raw) if raw else fields.OTHER


class Key(Value):
    """Where ports are in use to. Mirror of struct ports, bpf/ports.h.

    raddr: `any` for ports that are bound, which no connect() chooses; `other` for the rest of a
    report. The owner is there if it is asked for.
    """

    laddr: fields.KeyHost
    raddr: Annotated[str, fields.Kind("16s", _destination)]
    netns: fields.KeyNetns
    pid: fields.Pid
    uid: fields.Uid
    rport: fields.Port
    family: fields.KeyFamily
    comm: fields.Comm


class Counters(Value):
    """Mirror of struct ports_count: the states, what connect() may choose for other destinations
    too, and what happened between two passes."""

    syn_sent: fields.Count
    established: fields.Count
    close_wait: fields.Count
    closing: fields.Count
    time_wait: fields.Count
    shared: fields.Count
    taken: fields.Count
    failed: fields.Count


class Use(Key):
    """Ports in use to a destination, and how many of them are in which state.

    bound: ports of the namespace that bind() has taken, for all destinations. range: those that
    connect() may choose from. share: of the range, what is not free for the destination, whoever
    has it. taken, given_back: since the last report; None: not known. failed: connects that found
    no port (EADDRNOTAVAIL). warn: the share is as large as that to warn of, or connects failed.
    """

    in_use: fields.Number
    syn_sent: fields.Number
    established: fields.Number
    close_wait: fields.Number
    closing: fields.Number
    time_wait: fields.Number
    bound: fields.Number
    range: fields.Number
    share: Annotated[float | None, fields.Kind("", lambda share: share)]
    taken: fields.Number
    given_back: fields.Number
    failed: fields.Number
    warn: Annotated[bool, fields.Kind("", bool)]
    interval_ns: fields.Number


Row = dict[str, Any]

LAYOUT = fields.layout(Key)
NOTHING = (0,) * len(Counters._fields)
_STATES = ("syn_sent", "established", "close_wait", "closing", "time_wait")
_NO_KEY = (b"", b"", 0, 0, fields.NO_USER, 0, 0, b"")


def _row(key: Record, **values: Any) -> Row:
    """What has no value is not known."""
    return {**dict.fromkeys(Use._fields), **dict(zip(Key._fields, key, strict=True)), **values}


def of_destination(key: bytes, counters: Record, given_back: int) -> Row:
    """Has `shared` as well, of Counters."""
    counted = dict(zip(Counters._fields, counters, strict=True))
    in_use = sum(counted[state] for state in _STATES)
    return _row(LAYOUT.event.unpack(key), **counted, in_use=in_use, given_back=given_back)


def of_bound(netns: int, ports: int, before: int) -> Row:
    """What is bound in a namespace. ports, before: sets, now and in the last report."""
    taken, given_back = (ports & ~before).bit_count(), (before & ~ports).bit_count()
    changed = {"taken": taken, "given_back": given_back}
    key = {"raddr": _ANY, "netns": netns}
    return _row(_NO_KEY, **key, in_use=ports.bit_count(), shared=0, **changed)


def rest(rows: Sequence[Row]) -> Row:
    """Many in one: of shares there is no sum."""
    sums = {name: sum(row[name] or 0 for row in rows) for name in ("in_use", *_STATES)}
    return _row(_NO_KEY, **sums)


def destination_of(row: Row) -> Record:
    """Without the owner."""
    return tuple(row[name] for name in ("laddr", "raddr", "netns", "rport", "family"))


def urgency(row: Row) -> tuple[Any, ...]:
    """What is to warn of comes first, then the highest share."""
    return not row["warn"], -row["share"], -row["in_use"], row["netns"], row["raddr"]


def record(row: Row) -> Record:
    return tuple(row[name] for name in Use._fields)
