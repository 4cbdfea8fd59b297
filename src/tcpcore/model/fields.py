"""The kinds of fields that events have: their layout in C, their value in Python, their text.

A tool's Event is a Value of these; its field order is the C struct's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, get_type_hints

from tcpcore.loader.perf import Layout
from tcpcore.model import net
from tcpcore.model.enums import Names
from tcpcore.value import Value

Column = Sequence[Any]
"""One field of every record of a batch: conversions take it whole, so that the loops run in C."""
Convert = Callable[[Column], Iterable[Any]]

UNKNOWN_NS = (1 << 64) - 1
UNKNOWN_US = (1 << 32) - 1
NO_USER = (1 << 32) - 1  # bpf/lib/owner.bpf.h
UNKNOWN_SEQ = (1 << 64) - 1
INFINITE_SSTHRESH = 0x7FFFFFFF  # TCP_INFINITE_SSTHRESH, include/net/tcp.h


class Cache(dict[Any, Any]):
    """Remembers what `convert` gave; forgets all when it has grown large."""

    LIMIT = 1 << 16

    def __init__(self, convert: Callable[[Any], Any]) -> None:
        super().__init__()
        self._convert = convert

    def __missing__(self, key: Any) -> Any:
        if len(self) >= self.LIMIT:
            self.clear()
        value = self[key] = self._convert(key)
        return value


def text(value: Any) -> str:
    """A value in a table; unknown is `-`."""
    return "-" if value is None else str(value)


class Kind(Value):
    """code: of the struct module. value: from C to Python; None is unknown. text: of a value.

    few: the values repeat, so that their conversions are cached. secret: a file with such values is
    for its owner alone.
    """

    code: str
    value: Callable[[Any], Any]
    text: Callable[[Any], str] = text
    few: bool = True
    secret: bool = False
    enums: tuple[Names, ...] = ()

    def convert(self, make: Callable[[Any], Any]) -> Convert:
        """Apply `make`, which takes a raw value, to columns."""
        if self.few:
            lookup = Cache(make).__getitem__
            return lambda column: map(lookup, column)
        return lambda column: map(make, column)


def _same(raw: Any) -> Any:
    return raw


def _or_none(raw: int) -> int | None:
    return raw or None


def _duration(raw: int) -> int | None:
    return None if raw == UNKNOWN_NS else raw


def _comm(raw: bytes) -> str | None:
    return net.escape(raw) or None


def scaled(width: int, digits: int, divisor: float, unknown: int = -1) -> Convert:
    """Numbers divided, padded; `-` for the one that stands for unknown."""
    template, dash = f"%-{width}.{digits}f", "-".ljust(width)
    return lambda column: [dash if n == unknown else template % (n / divisor) for n in column]


def millis(width: int, digits: int) -> Convert:
    """Nanoseconds as milliseconds, padded; `-` when not known."""
    return scaled(width, digits, 1e6, UNKNOWN_NS)


U32 = Annotated[int, Kind("I", _same)]
Time = Annotated[int, Kind("Q", _same, few=False)]
"""Nanoseconds: CLOCK_MONOTONIC, or how long something took."""
Duration = Annotated[int | None, Kind("Q", _duration, few=False)]
"""Nanoseconds; None where the beginning was not seen."""
Pointer = Annotated[str, Kind("Q", lambda raw: f"{raw:x}", secret=True)]
"""A kernel address, in hexadecimal: too large for a JSON number. It helps whoever attacks the
kernel: kptr_restrict, Documentation/admin-guide/sysctl/kernel.rst."""
Pid = Annotated[int | None, Kind("I", _or_none)]
Uid = Annotated[int | None, Kind("I", lambda raw: None if raw == NO_USER else raw)]
"""None where there is no socket."""
Port = Annotated[int | None, Kind("H", _or_none, text=lambda port: str(port or 0))]
"""0 in C is None: no port yet, or none at all, as a listener has no peer. Text shows 0."""
Address = Annotated[str, Kind("16s", net.address_text)]
Comm = Annotated[str | None, Kind("16s", _comm)]
Family = Annotated[str, Kind("H", lambda raw: net.FAMILIES.get(raw, str(raw)))]
State = Annotated[str, Kind("B", net.state_name)]
OptionalState = Annotated[str | None, Kind("B", lambda raw: net.state_name(raw) if raw else None)]
"""None where there is no socket, or none is known."""
Direction = Annotated[str, Kind("B", ("sent", "received").__getitem__)]
Result = Annotated[str, Kind("H", net.result_name)]
CgroupId = Annotated[int | None, Kind("Q", _or_none)]
"""The inode of a cgroup v2 directory."""
Bytes = Annotated[int, Kind("Q", _same, few=False)]
MinRtt = Annotated[int | None, Kind("I", lambda us: None if us == UNKNOWN_US else us, few=False)]
"""Microseconds; None: never measured."""
Srtt = Annotated[int | None, Kind("I", _or_none, few=False)]
"""Microseconds; None: never measured."""
Action = Annotated[str, Kind("B", ("", "connect", "accept", "close").__getitem__)]
SeqNumber = Annotated[
    int | None, Kind("Q", lambda raw: None if raw == UNKNOWN_SEQ else raw, few=False)
]
"""Of TCP: RFC 9293, 3.4."""
Ssthresh = Annotated[
    int | None, Kind("I", lambda raw: raw if 0 < raw < INFINITE_SSTHRESH else None)
]
"""Of congestion control, in segments: RFC 5681, 3.1. None: nothing has set it."""
Role = Annotated[str | None, Kind("B", (None, "active", "passive").__getitem__)]
"""Which side of the connection this is; RFC 9293, 3.9.1, OPEN."""
Reason = Annotated[
    str, Kind("B", ("open", "fin", "reset sent", "reset received", "timeout").__getitem__)
]
"""Why a session ended."""
OTHER = "other"
"""What a report has instead of the address in the row of the rest."""
Count = Annotated[int, Kind("Q", _same, few=False)]
KeyFamily = Annotated[str | None, Kind("H", net.FAMILIES.get)]
KeyAddress = Annotated[str, Kind("16s", lambda raw: net.address_text(raw) if raw else OTHER)]
"""The address of a row in a report. The row of the rest has none (no bytes), and shows `other`."""
KeyHost = Annotated[str | None, Kind("16s", lambda raw: net.address_text(raw) if raw else None)]
KeyNetns = Annotated[int | None, Kind("I", _or_none)]
Ifindex = Annotated[int | None, Kind("I", _or_none)]
KeyTime = Annotated[int | None, Kind("Q", _or_none, few=False)]
Number = Annotated[int | None, Kind("", _same, few=False)]
Word = Annotated[str | None, Kind("", _same)]
"""No fields of a C struct: a table that makes its rows in user space has them."""
Interval = Annotated[int, Kind("", _same, few=False)]
"""Nanoseconds between two reports. No field of the C struct: a timed Counted adds it."""
Name = Annotated[str | None, Kind("", _same)]
"""No field of the C struct: a Derive adds it."""
NameAge = Annotated[int | None, Kind("", _same, few=False)]
"""Nanoseconds; from a Derive as well."""


def _kinds(event: type[Value]) -> dict[str, Kind]:
    hints = get_type_hints(event, include_extras=True)
    return {name: hints[name].__metadata__[0] for name in event._fields}


_KINDS = Cache(_kinds)
_CONVERTS = Cache(lambda event: [kind.convert(kind.value) for kind in kinds(event).values()])


def kinds(event: type[Value]) -> dict[str, Kind]:
    """The kind of each field of an Event, by name, in the order of the C struct."""
    found: dict[str, Kind] = _KINDS[event]
    return found


def layout(event: type[Value]) -> Layout:
    """Where the fields of an Event lie in the C struct of which it is the mirror."""
    return Layout("".join(kind.code for kind in kinds(event).values()))


def values(event: type[Value], records: Sequence[tuple[Any, ...]]) -> Iterable[Any]:
    """Raw records as Event objects."""
    columns = zip(*records, strict=True)
    cells = [f(column) for f, column in zip(_CONVERTS[event], columns, strict=True)]
    return map(event, *cells)
