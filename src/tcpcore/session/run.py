"""A tool on the command line: attach, print until told to stop, tell what was lost."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from types import FrameType

from tcpcore.errors import LostError, UsageError
from tcpcore.loader import ffi
from tcpcore.loader.perf import Record
from tcpcore.model import fields
from tcpcore.model.tool import Tool
from tcpcore.request import filters
from tcpcore.request.options import Common, seconds
from tcpcore.session import privilege
from tcpcore.session.tracing import Losses, Trace, opened
from tcpcore.sinks.destination import Destination, output_file, standard_output, tell
from tcpcore.sinks.output import Csv, Json, Table, Writer

LOSS_PERIOD = 1.0  # seconds between two looks at the loss counters


class Stop:
    """Set by the first SIGINT, SIGTERM or SIGHUP; a second SIGINT or SIGTERM ends the process
    at once. nohup(1) has SIGHUP ignored, and so it stays."""

    def __init__(self) -> None:
        self.wanted = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.wanted = True
        # Not SIGHUP: a terminal that goes away brings two, one from the kernel, one from the shell.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def style(common: Common) -> str:
    """ "table", "json" or "csv"; UsageError for two of them."""
    if common.json and common.csv:
        raise UsageError("--json and --csv: one of them")
    return "json" if common.json else "csv" if common.csv else "table"


def writer(tool: Tool, common: Common) -> Writer:
    """The writer of events that the options ask for."""
    chosen = style(common)
    if chosen == "table":
        return Table(tool, common.wide, common.timestamp, common.time)
    return Json(tool) if chosen == "json" else Csv(tool)


def stream(tool: Tool, common: Common, report: Callable[[Trace], Writer] | None = None) -> None:
    """Trace until a signal, --duration or --count ends it; the events go through the
    usual writer, or through `report`'s.

    Raises every TcpcoreError: LostError under --fail-on-loss.
    """
    stop = Stop()
    ffi.verbose = common.verbose
    out = writer(tool, common)
    limits = Limits(common)
    chosen, machinery = common.filters(), common.machinery()
    with opened(tool, chosen, machinery) as trace, _destination(tool, common, stop) as destination:
        if not common.keep_privileges:  # behind the last file that the caller's rights have to open
            privilege.drop(trace.losses)
        if common.verbose:
            _explain(trace)
        # What start-up made stays: the collector need not look at it after each few records.
        gc.freeze()
        gc.set_threshold(100_000)
        losses = Printer(trace, report(trace) if report else out, destination, limits, stop).run()
    if losses and common.fail_on_loss:
        raise LostError(f"{tool.name}: {describe(losses)}")


class Limits:
    """When to stop and how often to report; None is never."""

    def __init__(self, common: Common) -> None:
        self.duration = seconds("--duration", common.duration)
        self.interval = seconds("--interval", common.interval)
        count = filters.number("--count", "a number of events", 1, 1 << 62)
        self.count = None if common.count is None else count(common.count)


class Printer:
    """The loop: what the trace reads goes through `out` to the destination."""

    def __init__(
        self, trace: Trace, out: Writer, destination: Destination, limits: Limits, stop: Stop
    ) -> None:
        self._trace, self._out, self._destination, self._stop = trace, out, destination, stop
        self._left = limits.count
        self._duration, self._interval = limits.duration, limits.interval
        self._told = Losses()

    def run(self) -> Losses:
        """Print until it is time to stop, or the reader has gone; what was lost.

        Raises TcpcoreError when the destination fails.
        """
        with suppress(BrokenPipeError):
            self._destination.write(self._out.header())
            self._loop()
            self._destination.write(self._out.finish())
        self._tell_losses()
        return self._told

    def _loop(self) -> None:
        now = time.monotonic()
        end = now + self._duration if self._duration else float("inf")
        report = now + self._interval if self._interval else float("inf")
        look = now + LOSS_PERIOD
        while not self._is_over(now, end):
            self._trace.wait(until=min(end, report))
            self._print(self._trace.read())
            now = time.monotonic()
            if now >= report and self._interval:
                self._destination.write(self._out.finish())
                report += self._interval
            if now >= look:
                self._tell_losses()
                look = now + LOSS_PERIOD
        self._print(self._trace.read(last=True))

    def _is_over(self, now: float, end: float) -> bool:
        return self._stop.wanted or now >= end or self._left == 0 or self._destination.gone()

    def _print(self, records: list[Record]) -> None:
        if self._left is not None:
            records = records[: self._left]
            self._left -= len(records)
        if records:
            self._destination.write(self._out.rows(records))

    def _tell_losses(self) -> None:
        losses = self._trace.losses()
        if losses == self._told:
            return
        self._told = losses
        tell(f"tcpcore: {describe(losses)}")
        with suppress(BrokenPipeError):
            self._destination.write(self._out.record("lost", asdict(losses)))


def describe(losses: Losses) -> str:
    """One line: how much was lost, why, and what helps."""
    causes = {
        f"{losses.ring} events found the ring full (a larger --buffer helps)": losses.ring,
        f"{losses.map} sockets found a map full (a larger --map-size helps)": losses.map,
        f"{losses.missed} events came while the program ran already": losses.missed,
        f"{losses.malformed} records could not be decoded": losses.malformed,
        f"{losses.answers} DNS packets came too fast to be read": losses.answers,
        f"{losses.output} events had no ring to go to (a CPU that came after the start has none: "
        "start again)": losses.output,
    }
    return "lost so far: " + "; ".join(text for text, number in causes.items() if number)


def _explain(trace: Trace) -> None:
    uses = trace.program.uses
    for refusal in (refusal for use in uses for refusal in use.refusals):
        tell(f"refused: {refusal}")
    for absent in (absent for use in uses for absent in use.absent):
        tell(f"not attached: {absent}")
    tell(f"ring per CPU: {trace.program.rings['events'].size >> 10} KiB")
    for use in uses:
        tell(f"attached: {use.slot.name}: {use.way.name if use.way else 'no way'}")


@contextmanager
def _destination(tool: Tool, common: Common, stop: Stop) -> Iterator[Destination]:
    if common.output is None:
        yield standard_output()
        return
    secret = any(kind.secret for kind in fields.kinds(tool.event).values())
    with output_file(common.output, secret, lambda: stop.wanted) as destination:
        yield destination
