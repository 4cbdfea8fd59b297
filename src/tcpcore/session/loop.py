"""The loop of every trace: wait, read, hand on, until it is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import chain, groupby, islice

from tcpcore.errors import OptionError, TcpcoreError
from tcpcore.loader.perf import Record
from tcpcore.model.losses import Losses
from tcpcore.model.tool import Tool
from tcpcore.request.request import Limits
from tcpcore.session.session import Session
from tcpcore.sinks.sink import Sink

LOSS_PERIOD = 1.0  # seconds between two looks at the loss counters


def check(tool: Tool, limits: Limits) -> None:
    """Raises OptionError for a limit that the tool does not know."""
    if limits.count is not None and (tool.asked or len(tool.counted) == len(tool.kinds)):
        problem = "this is counted in the kernel, where no number ends it; a duration does"
        raise OptionError("count", problem)


class Loop:
    """Drives a session, and hands what it gives to a sink. is_stopped: whether it shall end now.

    A caller with a loop of its own calls step(wait=False) when fileno() is readable, and every
    PERIOD. losses: what was told so far.
    """

    def __init__(
        self,
        session: Session,
        sink: Sink,
        limits: Limits,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._session, self._sink, self._is_stopped = session, sink, is_stopped
        now = time.monotonic()
        tool = session.tool
        self._left, self._interval = limits.count, limits.interval or tool.interval
        self._reports = tool.reports
        duration = 0.0 if tool.at_once else limits.duration or float("inf")
        self._end = now + duration
        self._report = now + self._interval if self._interval else float("inf")
        self._look = now + LOSS_PERIOD
        self.losses = Losses()
        self.is_over = False

    def fileno(self) -> int:
        return self._session.fileno()

    def run(self) -> None:
        """Until it is over."""
        while not self.is_over:
            self.step()

    def step(self, wait: bool = True) -> None:
        """Hand on what comes within a PERIOD, or with wait=False what is there now. At the end
        everything that is left is handed on; from then on this does nothing. Raises what the tool's
        alarm gives, when the report is out.
        """
        if self.is_over:
            return
        if wait and not self._is_stopped():
            self._session.wait(until=min(self._end, self._report))
        now = time.monotonic()
        last = self._is_stopped() or now >= self._end
        self._hand_on(self._session.read(last=last))
        if last or now >= self._report:
            self._reports = self._reports and self._reports - 1
        last = last or self._left == 0 or self._reports == 0
        alarm = self._give_reports(last) if last or now >= self._report else None
        last = last or alarm is not None
        if last or now >= self._look:
            self._look = now + LOSS_PERIOD
            self.tell_losses()
        self.is_over = last
        if alarm:
            raise alarm

    def _hand_on(self, records: list[Record]) -> None:
        if self._left is not None:
            records = self._first(records, self._left)
        if not records:
            return
        self._session.count(records)
        if stream := self._session.tool.stream:
            self._sink.batch(stream.lines, records)

    def _first(self, records: list[Record], most: int) -> list[Record]:
        """Those of so many events, which are then not left any more."""
        groups = groupby(records, self._session.tool.one_event or id)
        events = [list(rows) for _, rows in islice(groups, most)]
        self._left = most - len(events)
        return list(chain.from_iterable(events))

    def _give_reports(self, last: bool) -> TcpcoreError | None:
        """An error that ends the trace, if the tool finds a reason in them."""
        self._report += self._interval or 0
        self._session.walk()
        if asked := self._session.tool.asked:
            self._hand_on(self._session.swept(asked))
        for lines, records in self._session.tables():
            self._sink.report(lines, records)
        for found in self._session.histograms():
            self._sink.histograms(found)
        if last:
            for lines, records in self._session.snapshots():
                self._sink.report(lines, records)
        alarm = self._session.tool.alarm
        return alarm() if alarm else None

    def tell_losses(self) -> None:
        """To the sink, if there are more than it was told of."""
        losses = self._session.losses()
        if losses != self.losses:
            self.losses = losses
            self._sink.losses(losses)
