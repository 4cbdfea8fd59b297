"""What a tool is: data that a session turns into a trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from tcpcore.errors import TcpcoreError
from tcpcore.loader import Attached, Slot
from tcpcore.loader.perf import Record
from tcpcore.model.counted import Counted, Measured
from tcpcore.model.enums import Names
from tcpcore.model.event import ConnectionEvent
from tcpcore.model.fields import Convert, kinds
from tcpcore.value import Value

if TYPE_CHECKING:
    from tcpcore.model.histogram import Histogram

Rodata = dict[str, int | bytes]
"""Values of read-only variables by name."""
NO_RODATA: Rodata = {}
NO_CONTENTS: Mapping[str, Mapping[bytes, bytes]] = {}
Records = Sequence[Record]


class Derive(Protocol):
    """Makes the rows of a batch out of its records: appends fields that do not come from the kernel
    to each, or keeps some until it knows more of them.

    last: nothing comes behind this batch. lost: how many of its sources, such as DNS packets, could
    not be read so far.
    """

    def __call__(self, records: list[Record], last: bool) -> list[Record]: ...
    def lost(self) -> int: ...


class Column(Value):
    """A column of the text table.

    title: its heading. field: of the row. width: in characters; longer cells push the line, as
    an address does. cut: shorten longer cells to the width. text: of a value, instead of the field
    kind's own. cells: of a whole raw column, padded already, for values that hardly repeat.
    """

    title: str
    field: str
    width: int
    cut: bool = False
    text: Callable[[Any], str] | None = None
    cells: Convert | None = None

    def pad(self, text: str) -> str:
        """A cell of this column."""
        return (text[: self.width] if self.cut else text).ljust(self.width)


class Ranking:
    """What rows are ordered by: one of several names, which a user may change while it runs."""

    def __init__(self, orders: Sequence[str], order: str) -> None:
        self.orders, self.order = orders, order

    def turn(self) -> None:
        """To the next one."""
        self.order = self.orders[(self.orders.index(self.order) + 1) % len(self.orders)]


class Lines(Value):
    """Rows, and how they are shown.

    row: a class whose fields are of the kinds in fields.py. columns, wide: of the text table,
    and with --wide. record: the type of their JSON objects. title: lines above each block of the
    text. ranking: the order of the rows; they are shown in place on a terminal. heading: of
    consecutive rows that are alike in a field, a line above them, made of the first one.
    """

    row: type[Value]
    columns: tuple[Column, ...]
    wide: tuple[Column, ...]
    record: str = "flow"
    title: Callable[[], str] | None = None
    ranking: Ranking | None = None
    heading: tuple[str, Callable[[Record], str]] | None = None


class Sweep(Value):
    """Rows that BPF sends only when user space asks for them.

    map: their sockets. section: the program that user space calls for each. changed: a counter;
    new rows wait only if it is another one than at the last look.
    """

    map: str
    section: str
    changed: str | None = None


# The four kinds of what a tool shows. A tool may have two of them.


class Stream(Value):
    """Events, a line each as they come."""

    lines: Lines


class Counts(Protocol):
    """Where a table has its rows from. add: the events of a batch, for what counts in user space.
    take: the rows since the last call."""

    def add(self, records: Records) -> None: ...
    def take(self) -> list[Record]: ...


class Table(Value):
    """Counters by key: a block for each --interval, and one at the end.

    counts: made with the trace. Counted: in the kernel, which sends no events then.
    """

    lines: Lines
    counts: Counted | Callable[[Attached], Counts]


class Measures(Protocol):
    """Where histograms come from. add: the events of a batch, for what measures here. take:
    what was measured since the last call."""

    def add(self, records: Records) -> None: ...
    def take(self) -> list[Histogram]: ...


class Histograms(Value):
    """Log2 buckets by key: a block for each --interval, and one at the end.

    measures: made with the trace. Measured: in the kernel. summary: text has their average and
    percentiles as well.
    """

    measures: Measured | Callable[[Attached], Measures]
    summary: bool = False


class Snapshot(Value):
    """What is there at the end of the trace. rows: how it is asked for; they are events."""

    lines: Lines
    rows: Sweep


Kind = Stream | Table | Histograms | Snapshot


class Tool(Value):
    """A tool, with the options of its own applied.

    kinds: what it shows. slots: what it has to see, attached in their order. event: the mirror of
    the C struct `<name>_event`; a tool that sends no events has none. sockets: the maps that
    --map-size sizes, one entry a socket. rodata: of the tool's own options. held: rows that wait
    until their tuple is complete, asked for on each drain. pending: rows asked for at the end.
    asked: events asked for before each report, whose tables count them. at_once: the trace ends
    with its first report, for which nothing is waited for. seed: a BPF iterator that runs once
    after the attach; needs_seed: there is no trace without it. derive: opened with the trace.
    contents: of maps, by name, before the attach. interval: seconds between two reports, unless
    --interval says so; None is never. reports: the trace ends after so many. with_owners: the tool
    to run in place of this one where a filter asks for the owner of a socket. iterators: BPF
    iterators that its counts run. in_namespaces: of a tool that looks into network namespaces: the
    tool for those with these inodes, or for our own, open as long as the trace. alarm: asked
    after each report; what it gives ends the trace. one_event: neighbouring rows for which it gives
    the same are one event to --count.
    """

    name: str
    kinds: tuple[Kind, ...]
    slots: tuple[Slot, ...]
    event: type[ConnectionEvent] = ConnectionEvent
    sockets: tuple[str, ...] = ()
    rodata: Rodata = NO_RODATA
    held: Sweep | None = None
    pending: Sweep | None = None
    asked: Sweep | None = None
    at_once: bool = False
    seed: str | None = None
    needs_seed: bool = True
    derive: Callable[[], AbstractContextManager[Derive]] | None = None
    contents: Mapping[str, Mapping[bytes, bytes]] = NO_CONTENTS
    interval: float | None = None
    reports: int | None = None
    with_owners: Tool | None = None
    iterators: tuple[str, ...] = ()
    in_namespaces: Callable[[Tool, Sequence[int]], AbstractContextManager[Tool]] | None = None
    alarm: Callable[[], TcpcoreError | None] | None = None
    one_event: Callable[[Record], object] | None = None

    @property
    def struct(self) -> str:
        """The name of the event's C struct."""
        return f"{self.name}_event"

    @property
    def stream(self) -> Stream | None:
        return next((kind for kind in self.kinds if isinstance(kind, Stream)), None)

    @property
    def counted(self) -> tuple[Counted | Measured, ...]:
        """What the kernel counts, each in an aggregate."""
        sources = (_source(kind) for kind in self.kinds)
        return tuple(source for source in sources if isinstance(source, Counted | Measured))

    @property
    def sweeps(self) -> tuple[Sweep, ...]:
        """All rows that wait in BPF."""
        snapshots = (kind.rows for kind in self.kinds if isinstance(kind, Snapshot))
        return tuple(rows for rows in (self.held, self.pending, self.asked, *snapshots) if rows)

    @property
    def enums(self) -> tuple[Names, ...]:
        """Those of the kernel whose names its rows show."""
        shown = [kind.lines.row for kind in self.kinds if not isinstance(kind, Histograms)]
        rows = dict.fromkeys((self.event, *shown))
        return tuple(enum for row in rows for kind in kinds(row).values() for enum in kind.enums)

    @property
    def called(self) -> tuple[str, ...]:
        """The programs that user space runs, by section."""
        sections = dict.fromkeys(rows.section for rows in self.sweeps)
        return (*sections, *([self.seed] if self.seed else []), *self.iterators)


def _source(kind: Kind) -> object:
    """Where its rows come from, apart from the tool's events."""
    if isinstance(kind, Table):
        return kind.counts
    return kind.measures if isinstance(kind, Histograms) else None
