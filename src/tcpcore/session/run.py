"""A tool on the command line: attach, print until told to stop, tell what was lost."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from tcpcore.errors import LostError, OptionError, TcpcoreError
from tcpcore.loader import ffi
from tcpcore.model import fields
from tcpcore.model.losses import Losses, describe
from tcpcore.model.tool import Histograms, Table, Tool
from tcpcore.request.request import Request
from tcpcore.session import loop, privilege
from tcpcore.session.session import Session, opened
from tcpcore.sinks.destination import Destination, output_file, standard_output, tell
from tcpcore.sinks.form import Style
from tcpcore.sinks.histogram import can_draw_blocks
from tcpcore.sinks.printer import Printer
from tcpcore.sinks.table import Text
from tcpcore.value import Value


class Output(Value):
    """Options that only the command line has.

    style: "table", "json" or "csv". wide, timestamp, time: of the table. heatmap: histograms as a
    picture. path: of a file, instead of standard output. fail_on_loss: losses are an error.
    keep_privileges: give up nothing after the attach. verbose: 1: what was tried and why; 2: all of
    libbpf's messages, too.
    """

    style: str = "table"
    wide: bool = False
    timestamp: bool = False
    time: bool = False
    heatmap: bool = False
    path: Path | None = None
    fail_on_loss: bool = False
    keep_privileges: bool = False
    verbose: int = 0


class Stop:
    """Set by the first SIGINT, SIGTERM or SIGHUP; a second SIGINT or SIGTERM ends the process
    at once. nohup(1) has SIGHUP ignored, and so it stays.

    signalled: a descriptor that is readable from then on. It ends a wait: poll(2) begins anew after
    a signal's handler (PEP 475).
    """

    def __init__(self) -> None:
        self.wanted = False
        self.signalled, written = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.wanted = True
        # Not SIGHUP: a terminal that goes away brings two, one from the kernel, one from the shell.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def run(tool: Tool, request: Request, output: Output) -> None:
    """Trace until a signal or one of the request's limits ends it.

    Raises every TcpcoreError: LostError under --fail-on-loss.
    """
    loop.check(tool, request.limits)
    if output.heatmap:
        request = _for_heatmap(tool, request, output.style)
    stop = Stop()
    ffi.verbose = output.verbose
    style = _style(tool, output)  # before the first event: stamps count from here
    with (
        opened(tool, request) as session,
        _destination(tool, output, stop) as destination,
        _printer(tool, output, style, destination) as printer,
    ):
        # From here on no file is opened that takes the caller's rights.
        if not output.keep_privileges:
            privilege.drop(session.losses)
        if output.verbose:
            _explain(session)
        # What start-up made lives as long as the trace: the garbage collector need not look at it
        # again and again.
        gc.freeze()
        gc.set_threshold(100_000)
        gc.enable()
        session.wake_on(stop.signalled)
        losses = _print(session, request, printer, destination, stop)
    if losses and output.fail_on_loss:
        raise LostError(f"{tool.name}: {describe(losses)}")


class _Telling(Printer):
    """Tells losses on standard error as well."""

    def losses(self, losses: Losses) -> None:
        tell(f"tcpcore: {describe(losses)}")
        with suppress(BrokenPipeError):
            super().losses(losses)


def _print(
    session: Session, request: Request, printer: Printer, destination: Destination, stop: Stop
) -> Losses:
    """Runs until it is time to stop, or the reader has gone. Returns what was lost."""

    def is_stopped() -> bool:
        return stop.wanted or destination.gone() or printer.look()

    at_work = loop.Loop(session, printer, request.limits, is_stopped)
    with suppress(BrokenPipeError):
        printer.begin()
        at_work.run()
    at_work.tell_losses()
    return at_work.losses


def _for_heatmap(tool: Tool, request: Request, style: str) -> Request:
    """A line a second, unless another interval is asked for. Raises OptionError."""
    if style != "table":
        raise OptionError("heatmap", f"it is a picture, and no {style.upper()}")
    if not _histograms(tool):
        raise OptionError("heatmap", f"{tool.name} shows no histogram here")
    limits = request.limits
    return request._replace(
        limits=limits._replace(interval=limits.interval or tool.interval or 1.0)
    )


def _histograms(tool: Tool) -> list[Histograms]:
    return [kind for kind in tool.kinds if isinstance(kind, Histograms)]


@contextmanager
def _printer(
    tool: Tool, output: Output, style: Style, destination: Destination
) -> Iterator[Printer]:
    """One that stays in its place, where the tool has such rows and standard output is a terminal;
    at the end the terminal is as it was."""
    ranked = [kind.lines for kind in tool.kinds if isinstance(kind, Table) and kind.lines.ranking]
    is_table = output.path is None and output.style == "table"
    if not (ranked and is_table and os.isatty(1)):
        yield _Telling(tool, style, destination.write)
        return
    from tcpcore.sinks.live import Live, keyboard

    with keyboard() as keys:
        live = Live(tool, ranked[0], output.wide, destination.write, keys)
        try:
            yield live
        finally:
            with suppress(BrokenPipeError, TcpcoreError):
                live.end()


def _style(tool: Tool, output: Output) -> Style:
    if output.style == "json":
        from tcpcore.sinks.ndjson import Json

        return Json(tool.name)
    if output.style == "csv":
        from tcpcore.sinks.csv import Csv

        return Csv()
    drawn = _histograms(tool)
    # A pipe has no width, and whoever reads it may know ASCII alone.
    is_terminal = bool(drawn) and output.path is None and os.isatty(1)
    blocks = is_terminal and can_draw_blocks(sys.stdout.encoding)
    stamps, columns = (output.timestamp, output.time), _columns(is_terminal)
    summary = any(kind.summary for kind in drawn)
    text = Text(output.wide, *stamps, columns, blocks, summary)
    if not output.heatmap:
        return text
    from tcpcore.sinks.heatmap import Heatmap

    colours = is_terminal and not os.environ.get("NO_COLOR")  # https://no-color.org
    return Heatmap(text, *stamps, columns, colours)


def _columns(is_terminal: bool) -> int:
    if not is_terminal:
        return 80
    import shutil

    return shutil.get_terminal_size().columns


def _explain(session: Session) -> None:
    uses = session.program.uses
    for refusal in (refusal for use in uses for refusal in use.refusals):
        tell(f"refused: {refusal}")
    for absent in (absent for use in uses for absent in use.absent):
        tell(f"not attached: {absent}")
    tell(f"ring per CPU: {session.program.rings['events'].size >> 10} KiB")
    for use in uses:
        tell(f"attached: {use.slot.name}: {use.way.name if use.way else 'no way'}")


@contextmanager
def _destination(tool: Tool, output: Output, stop: Stop) -> Iterator[Destination]:
    if output.path is None:
        yield standard_output()
        return
    secret = any(kind.secret for kind in fields.kinds(tool.event).values())
    with output_file(output.path, secret, lambda: stop.wanted) as destination:
        yield destination
