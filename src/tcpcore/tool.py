"""What a tool is: data that run.py turns into a trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from tcpcore.fields import Convert
from tcpcore.loader.plan import Variant


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
class Held:
    """Rows that wait in BPF until their tuple is complete.

    map: their sockets. section: the program that user space calls for each.
    """

    map: str
    section: str


@dataclass(frozen=True)
class Tool:
    """A stream of events.

    event: the mirror of the C struct named `struct`, whose first field is ts_ns. columns, wide: of
    the table, and with --wide. sockets: the maps that --map-size sizes, one entry a socket.
    """

    name: str
    event: type[NamedTuple]
    struct: str
    columns: tuple[Column, ...]
    wide: tuple[Column, ...]
    variants: tuple[Variant, ...]
    sockets: tuple[str, ...] = ()
    held: Held | None = None
