"""What takes in what a session gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from tcpcore.model.losses import Losses
from tcpcore.model.tool import Lines, Records

if TYPE_CHECKING:
    from tcpcore.model.histogram import Histogram


class Sink(Protocol):
    """Called by the loop, in one thread.

    batch: events of a stream, in time order. report: the rows of a table or a snapshot, a block at
    a time. histograms: a block of them. losses: all that was lost so far, each time it has grown.
    Records are raw: fields.values(lines.row, records) makes objects of them.
    """

    def batch(self, lines: Lines, records: Records) -> None: ...
    def report(self, lines: Lines, records: Records) -> None: ...
    def histograms(self, found: Sequence[Histogram]) -> None: ...
    def losses(self, losses: Losses) -> None: ...
