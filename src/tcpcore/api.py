"""The Python API: tcpcore.trace() gives a tool's events as typed objects."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_type_hints

from tcpcore.errors import UsageError
from tcpcore.model import fields
from tcpcore.model.tool import Tool
from tcpcore.request.options import Common
from tcpcore.session.run import Limits
from tcpcore.session.tracing import Losses, Trace, opened

# What only a command line can do.
_NOT_HERE = {
    *("json", "csv", "output", "wide", "timestamp", "time", "interval"),
    *("fail_on_loss", "keep_privileges", "verbose"),
}
_COMMON = {f.name for f in dataclasses.fields(Common)} - _NOT_HERE
_LISTS = {f.name for f in dataclasses.fields(Common) if f.default is dataclasses.MISSING}


class Events:
    """The tool's Event objects in time order; endless unless duration or count ends them.

    A loop may be left at any event: the next one goes on with the event behind it.

    After the trace's block every method raises TcpcoreError, and so it does in a child process,
    which has to begin a trace of its own.
    """

    def __init__(self, tool: Tool, trace: Trace, limits: Limits) -> None:
        self._tool, self._trace = tool, trace
        self._left = limits.count
        self._end = time.monotonic() + limits.duration if limits.duration else float("inf")
        self._read: deque[Any] = deque()
        self._is_over = False

    @property
    def ways(self) -> dict[str, str]:
        """How each slot is seen: fentry, kprobe, tp_btf, raw_tp or tracepoint. Those that are not
        are left out."""
        return {use.slot.name: use.way.name for use in self._trace.program.uses if use.way}

    def losses(self) -> Losses:
        """What was lost so far."""
        return self._trace.losses()

    def read(self) -> list[Any]:
        """The events of the next 50 ms or less, maybe none: for a caller with its own loop."""
        self._fetch()
        events = list(self._read)
        self._read.clear()
        return events

    def __iter__(self) -> Iterator[Any]:
        while True:
            self._trace.program.check()
            if self._read:
                yield self._read.popleft()
            elif self._is_over:
                return
            else:
                self._fetch()

    def _fetch(self) -> None:
        """Wait for events, and keep them. What is still in the rings at the end comes at once."""
        self._trace.wait(self._end)
        if self._is_over:
            return
        self._is_over = time.monotonic() >= self._end
        records = self._trace.read(last=self._is_over)
        if self._left is not None:
            records = records[: self._left]
            self._left -= len(records)
            self._is_over |= self._left == 0
        self._read.extend(fields.values(self._tool.event, records) if records else [])


@contextmanager
def trace(name: str, **options: Any) -> Iterator[Events]:
    """Trace with the tool `name`; the block's value gives its events.

    options: the long options of the command line as Python values: pid=[1, 2], comm="curl",
    rport="80,443", raddr="10.0.0.0/8", ipv4=True, netns="blue", duration=5, count=100,
    attach="kprobe", buffer="4M", and the tool's own (connlat: min_ms=10.0, failed=True). None is
    as if the option was not there.

    Raises UsageError (no such tool or option, or a value that makes no sense), PrivilegeError,
    UnsupportedError (this kernel cannot run the tool), and TcpcoreError for what else fails.
    """
    module = _module(name)
    given = {key: value for key, value in options.items() if value is not None}
    own = {key: given.pop(key) for key in list(given) if key not in _COMMON}
    common = Common(**{key: _common_value(key, value) for key, value in given.items()})
    tool = module.tool(**_own_values(name, module.tool, own))
    limits = Limits(common)
    with opened(tool, common.filters(), common.machinery()) as attached:
        yield Events(tool, attached, limits)


def _module(name: str) -> Any:
    from tcpcore.tools import names

    if name not in names():
        raise UsageError(f"no tool '{name}'; there are: {', '.join(names())}")
    return importlib.import_module(f"tcpcore.tools.{name}")


def _common_value(name: str, value: Any) -> Any:
    """An option as the command line would bring it: text, but for flags and paths."""
    kind = get_type_hints(Common)[name]
    if kind is bool:
        return _checked(name, value, bool)
    if name in _LISTS:
        several = value if isinstance(value, (list, tuple, set, frozenset, range)) else [value]
        return [_text(name, one) for one in several]
    return Path(_text(name, value)) if Path in get_args(kind) else _text(name, value)


def _text(name: str, value: Any) -> str:
    if isinstance(value, (str, bytes, os.PathLike)):
        return os.fsdecode(value)
    return str(_checked(name, value, str, int, float))


def _own_values(name: str, tool: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The tool's own options, each of the type that the tool declares."""
    kinds = get_type_hints(tool)
    unknown = given.keys() - inspect.signature(tool).parameters.keys()
    if unknown:
        raise UsageError(f"{name} has no option '{min(unknown)}' here")
    numbers = {float: (int, float)}
    return {
        key: _checked(key, value, *numbers.get(kinds[key], (kinds[key],)))
        for key, value in given.items()
    }


def _checked(name: str, value: Any, *kinds: type) -> Any:
    """The value; UsageError unless it is of one of the kinds. A flag is not a number."""
    if isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)):
        return value
    expected = " or ".join(kind.__name__ for kind in kinds)
    raise UsageError(f"{name}: {value!r} is of type {type(value).__name__}, not {expected}")
