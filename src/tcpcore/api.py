"""The Python API: tcpcore.trace() gives a tool's events as typed objects."""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tcpcore import fields
from tcpcore.errors import UsageError
from tcpcore.options import Common
from tcpcore.run import Limits
from tcpcore.tool import Tool
from tcpcore.tracing import Losses, Trace, opened

# What only a command line can do.
_NOT_HERE = {
    *("json", "csv", "output", "wide", "timestamp", "time", "interval"),
    *("fail_on_loss", "keep_privileges"),
}
_COMMON = {f.name for f in dataclasses.fields(Common)} - _NOT_HERE


class Events:
    """The tool's Event objects in time order; endless unless duration or count ends them.

    losses(): what was lost so far. variant: how the tool is attached.
    """

    def __init__(self, tool: Tool, trace: Trace, limits: Limits) -> None:
        self._tool, self._trace = tool, trace
        self._left = limits.count
        self._end = time.monotonic() + limits.duration if limits.duration else float("inf")

    @property
    def variant(self) -> str:
        return self._trace.program.variant.name

    def losses(self) -> Losses:
        return self._trace.losses()

    def read(self) -> list[Any]:
        """The events of the next 50 ms or less, maybe none: for a caller with its own loop."""
        self._trace.wait(self._end)
        return self._decode(self._trace.read())

    def _decode(self, records: list[Any]) -> list[Any]:
        return list(fields.values(self._tool.event, records)) if records else []

    def __iter__(self) -> Iterator[Any]:
        while time.monotonic() < self._end:
            yield from self._some(self.read())
            if self._left == 0:
                return
        yield from self._some(self._decode(self._trace.read(last=True)))

    def _some(self, events: list[Any]) -> list[Any]:
        if self._left is not None:
            events = events[: self._left]
            self._left -= len(events)
        return events


@contextmanager
def trace(name: str, **options: Any) -> Iterator[Events]:
    """Trace with the tool `name`; the block's value gives its events.

    options: the long options of the command line as Python values: pid=[1, 2], comm="curl",
    rport="80,443", raddr="10.0.0.0/8", ipv4=True, netns="blue", duration=5, count=100,
    attach="kprobe", buffer="4M", and the tool's own (connlat: min_ms=10.0, failed=True).

    Raises UsageError (no such tool or option, or a value that makes no sense), PrivilegeError,
    UnsupportedError (this kernel cannot run the tool).
    """
    module = _module(name)
    own = {key: options.pop(key) for key in list(options) if key not in _COMMON}
    common = Common(**{key: _as_text(key, value) for key, value in options.items()})
    try:
        tool = module.tool(**own)
    except TypeError as e:
        raise UsageError(f"{name}: {e}") from None
    limits = Limits(common)
    with opened(tool, common.filters(), common.machinery()) as attached:
        yield Events(tool, attached, limits)


def _module(name: str) -> Any:
    from tcpcore.tools import names

    if name not in names():
        raise UsageError(f"no tool '{name}'; there are: {', '.join(names())}")
    return importlib.import_module(f"tcpcore.tools.{name}")


_PATHS = {"btf", "cgroupmap", "mntnsmap"}
_LISTS = {f.name for f in dataclasses.fields(Common) if f.default is dataclasses.MISSING}


def _as_text(name: str, value: Any) -> Any:
    if name in _PATHS and value is not None:
        return Path(value)
    if name in _LISTS:
        several = value if isinstance(value, (list, tuple, set, range)) else [value]
        return [str(one) for one in several]
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
