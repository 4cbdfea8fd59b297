"""The Python API: tcpcore.trace() gives what a tool shows as typed objects."""

from __future__ import annotations

import importlib
import inspect
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, get_args, get_type_hints

from tcpcore.errors import UsageError
from tcpcore.model import fields
from tcpcore.model.histogram import Histogram
from tcpcore.model.losses import Losses
from tcpcore.model.tool import Lines, Records
from tcpcore.request.request import OPTIONS, Limits, request
from tcpcore.request.values import checked
from tcpcore.session.loop import Loop, check
from tcpcore.session.session import Session, opened

Row = TypeVar("Row")


class _Queue(deque[Any]):
    """A sink that keeps everything until it is asked for."""

    def batch(self, lines: Lines, records: Records) -> None:
        self.extend(fields.values(lines.row, records))

    def report(self, lines: Lines, records: Records) -> None:
        if records:
            self.batch(lines, records)

    def histograms(self, found: Sequence[Histogram]) -> None:
        self.extend(found)

    def losses(self, losses: Losses) -> None:
        """Events.losses() tells them."""


class Events(Generic[Row]):
    """The tool's events in time order, and the rows of its reports; endless unless duration or
    count ends them.

    A loop may be left at any event: the next one goes on with the event behind it.

    After the trace's block every method raises TcpcoreError, and so it does in a child process,
    which has to begin a trace of its own.
    """

    def __init__(self, session: Session, limits: Limits) -> None:
        self._session, self._queue = session, _Queue()
        self._loop = Loop(session, self._queue, limits)

    @property
    def ways(self) -> dict[str, str]:
        """How each slot is seen: fentry, kprobe, tp_btf, raw_tp or tracepoint. Those that are not
        are left out."""
        return {use.slot.name: use.way.name for use in self._session.program.uses if use.way}

    @property
    def is_over(self) -> bool:
        """Its duration or count has come to the end; what was read is still there."""
        return self._loop.is_over

    def losses(self) -> Losses:
        """What was lost so far."""
        return self._session.losses()

    def fileno(self) -> int:
        """For select(2) and event loops: readable when many events wait. Those of a quiet host do
        not fill a ring, so read(wait=False) is due every 50 ms all the same."""
        self._session.program.check()
        return self._loop.fileno()

    def read(self, wait: bool = True) -> list[Row]:
        """The events of the next 50 ms or less, maybe none; those that are there: wait=False."""
        self._session.program.check()
        self._loop.step(wait)
        events = list(self._queue)
        self._queue.clear()
        return events

    def __iter__(self) -> Iterator[Row]:
        while True:
            self._session.program.check()
            if self._queue:
                yield self._queue.popleft()
            elif self._loop.is_over:
                return
            else:
                self._loop.step()


@contextmanager
def trace(name: str, **options: Any) -> Iterator[Events[Any]]:
    """Trace with the tool `name`; the block's value gives its events.

    options: those of request.Options (pid=[1, 2], comm="curl", rport=[80, (8000, 8099)],
    raddr=["10.0.0.0/8"], ipv4=True, netns="blue", duration=5, count=100, attach="kprobe"), and the
    tool's own (connlat: min_ms=1.5, failed=True). None is as if the option was not there. An editor
    and mypy know them for each tool, and the type of its events.

    Raises UsageError (no such tool or option, or a value that makes no sense), PrivilegeError,
    UnsupportedError (this kernel cannot run the tool), and TcpcoreError for what else fails.
    """
    module = _module(name)
    given = {key: value for key, value in options.items() if value is not None}
    own = inspect.signature(module.tool).parameters.keys()
    asked = request({key: value for key, value in given.items() if key in set(OPTIONS) - own})
    tool = module.tool(**_own_values(name, module.tool, given))
    check(tool, asked.limits)
    with opened(tool, asked) as session:
        yield Events(session, asked.limits)


def _module(name: str) -> Any:
    from tcpcore.tools import names

    if name not in names():
        raise UsageError(f"no tool '{name}'; there are: {', '.join(names())}")
    return importlib.import_module(f"tcpcore.tools.{name}")


def _own_values(name: str, tool: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The tool's own options, each of the type that the tool declares."""
    hints = get_type_hints(tool, include_extras=True)
    own = {key: get_args(hints[key])[0] for key in inspect.signature(tool).parameters}
    unknown = given.keys() - own.keys() - set(OPTIONS)
    if unknown:
        raise UsageError(f"{name} has no option '{min(unknown)}' here")
    numbers = {float: (int, float)}
    return {
        key: checked(key, given[key], *numbers.get(kind, (kind,)))
        for key, kind in own.items()
        if key in given
    }
