"""A sink that prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tcpcore.model.losses import Losses
from tcpcore.model.tool import Histograms, Lines, Records, Tool
from tcpcore.sinks.form import Style

if TYPE_CHECKING:
    from tcpcore.model.histogram import Histogram


class Printer:
    """Everything as text, in one style. write: takes the text."""

    def __init__(self, tool: Tool, style: Style, write: Callable[[str], None]) -> None:
        self._style, self._write = style, write
        self._stream = tool.stream.lines if tool.stream else None
        shown = [kind.lines for kind in tool.kinds if not isinstance(kind, Histograms)]
        self._forms = {lines: style.form(lines) for lines in shown}

    def begin(self) -> None:
        """The header of a stream."""
        if self._stream:
            self._write(self._forms[self._stream].header())

    def batch(self, lines: Lines, records: Records) -> None:
        self._write(self._forms[lines].rows(records))

    def report(self, lines: Lines, records: Records) -> None:
        form = self._forms[lines]
        # A snapshot of the stream's own rows needs no second header.
        self._write(form.rows(records) if lines is self._stream else form.block(records))

    def histograms(self, found: Sequence[Histogram]) -> None:
        self._write(self._style.histograms(found))

    def look(self) -> bool:
        """Called often; whether the reader wants to end it."""
        return False

    def losses(self, losses: Losses) -> None:
        self._write(self._style.record("lost", losses._asdict()))
