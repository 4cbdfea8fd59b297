"""What a tool is: data that run.py turns into a trace."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from tcpcore.loader.perf import Record
from tcpcore.loader.plan import Variant
from tcpcore.model.event import ConnectionEvent
from tcpcore.model.fields import Convert

Rodata = dict[str, int | bytes]
"""Values of read-only variables by name."""


class Derive(Protocol):
    """Adds what is not of the kernel to each record of a batch, behind its other fields.

    lost: how many sources of it could not be read so far.
    """

    def __call__(self, records: list[Record]) -> list[Record]: ...
    def lost(self) -> int: ...


Examples = tuple[tuple[str, str], ...]
"""At the end of a tool's help: its name with arguments, and what that does."""


@dataclass(frozen=True)
class Column:
    """A column of the text table.

    title: its heading. field: of the Event. width: in characters; longer cells push the line, as
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


@dataclass(frozen=True)
class Sweep:
    """Rows that wait in BPF.

    map: their sockets. section: the program that user space calls for each. changed: a counter;
    new rows wait only if it is another one than at the last look.
    """

    map: str
    section: str
    changed: str | None = None


@dataclass(frozen=True)
class Tool:
    """A stream of events.

    event: the mirror of the C struct named `struct`, whose first field is ts_ns. columns, wide: of
    the table, and with --wide. sockets: the maps that --map-size sizes, one entry a socket.
    rodata: of the tool's own options. held: rows that wait until their tuple is complete, asked for
    on each drain. pending: rows asked for at the end. seed: a BPF iterator that runs once after the
    attach. derive: opened with the trace.
    """

    name: str
    event: type[ConnectionEvent]
    struct: str
    columns: tuple[Column, ...]
    wide: tuple[Column, ...]
    variants: tuple[Variant, ...]
    sockets: tuple[str, ...] = ()
    rodata: Rodata = field(default_factory=dict)
    held: Sweep | None = None
    pending: Sweep | None = None
    seed: str | None = None
    derive: Callable[[], AbstractContextManager[Derive]] | None = None

    @property
    def called(self) -> tuple[str, ...]:
        """The programs that user space runs, by section."""
        sections = [rows.section for rows in (self.held, self.pending) if rows]
        return (*sections, *([self.seed] if self.seed else []))
