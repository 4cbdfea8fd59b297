"""The Python API, up to where it needs privilege."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import tcpcore
from tcpcore import api, errors
from tcpcore.errors import UsageError
from tcpcore.request.machinery import Machinery
from tcpcore.request.options import Common
from tcpcore.session.run import Limits
from tcpcore.session.tracing import Trace
from tests.unit.samples import event, tool

TOOL = tool("connlat")


def refused(name: str, **options: Any) -> str:
    with pytest.raises(UsageError) as e, tcpcore.trace(name, **options):
        pass
    return str(e.value)


def test_the_package_has_the_api() -> None:
    assert tcpcore.trace is api.trace
    assert tcpcore.TcpcoreError is errors.TcpcoreError


def test_what_makes_no_sense_is_a_usage_error() -> None:
    assert refused("nosuch").startswith("no tool 'nosuch'; there are: accept")
    assert "no_such_option" in refused("connlat", no_such_option=1)
    assert "json" in refused("connlat", json=True)
    assert "--pid: '0'" in refused("connlat", pid=0)
    assert "--rport: '99999'" in refused("connlat", rport=99999)
    assert "--buffer: 'much'" in refused("connlat", buffer="much")
    assert "--btf: /absent" in refused("connlat", btf="/absent")
    assert "--duration: 'soon'" in refused("connlat", duration="soon")
    assert "min_ms" in refused("connlat", min_ms=-1).lower()


class Reached(Exception):
    """The options got as far as the loader."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What tracing.opened would be called with."""
    found: list[Any] = []

    def opened(*arguments: Any) -> None:
        found.extend(arguments)
        raise Reached

    monkeypatch.setattr(api, "opened", opened)
    return found


def test_python_values_become_filters(asked: list[Any], tmp_path: Path) -> None:
    btf = tmp_path / "vmlinux"
    btf.touch()
    with pytest.raises(Reached), tcpcore.trace(
        "connlat", pid=[1, 2], comm="curl", rport="80,443", lport=22, raddr="10.0.0.0/8",
        ipv4=True, buffer="4M", map_size=1024, btf=str(btf), min_ms=1.5, failed=True,
    ):  # fmt: skip
        pass
    tool, filters, machinery = asked
    assert tool.name == "connlat"
    assert (filters.pid, filters.comm, filters.family) == ([1, 2], [b"curl"], 2)
    assert (filters.rport, filters.lport) == ([80, 443], [22])
    assert tool.rodata == {"targ_min_us": 1500, "target_failed": True}
    assert machinery == Machinery(buffer=4 << 20, map_size=1024, btf=btf)


def test_a_task_name_may_be_bytes(asked: list[Any]) -> None:
    with pytest.raises(Reached), tcpcore.trace("connlat", comm=[b"c\xff", "curl"], pid=None):
        pass
    _, filters, _ = asked
    assert (filters.comm, filters.pid) == ([b"c\xff", b"curl"], [])


@pytest.mark.parametrize(
    ("tool", "option", "value", "kind"),
    [
        ("connlat", "failed", "no", "bool"),
        ("connlat", "failed", 1, "bool"),
        ("connlat", "min_ms", "10", "int or float"),
        ("connlat", "min_ms", True, "int or float"),
        ("life", "open", "yes", "bool"),
        ("connlat", "ipv4", "no", "bool"),
        ("connlat", "comm", 5.5j, "str or int or float"),
        ("connlat", "pid", True, "str or int or float"),
        ("connlat", "rport", [80, None], "str or int or float"),
        ("connlat", "buffer", False, "str or int or float"),
    ],
)
def test_a_value_of_another_type_is_a_usage_error(
    tool: str, option: str, value: Any, kind: str
) -> None:
    said = refused(tool, **{option: value})
    assert said.startswith(f"{option}: ")
    assert f" is of type {type(value).__name__}" in said or isinstance(value, list)
    assert said.endswith(f"not {kind}")


class FakeTrace:
    """batches: raw records, one list a drain. What was asked for is kept."""

    def __init__(self, *batches: int) -> None:
        self.batches = [[event(TOOL, ts_ns=n) for n in range(size)] for size in batches]
        self.last: list[bool] = []
        self.is_closed = False
        self.program = SimpleNamespace(check=self._check)

    def _check(self) -> None:
        if self.is_closed:
            raise tcpcore.TcpcoreError("closed")

    def wait(self, until: float) -> None:
        self._check()

    def read(self, last: bool = False) -> list[Any]:
        self._check()
        self.last.append(last)
        assert len(self.last) < 20, "it reads for ever"
        return self.batches.pop(0) if self.batches else []


def events(trace: FakeTrace, count: str | None = None, duration: str | None = None) -> api.Events:
    return api.Events(TOOL, cast(Trace, trace), Limits(Common(count=count, duration=duration)))


def times(found: Iterable[Any]) -> list[int]:
    return [one.ts_ns for one in found]


def test_a_loop_that_is_left_loses_nothing() -> None:
    found = events(FakeTrace(4, 0, 3))
    assert next(iter(found)).ts_ns == 0
    for one in found:
        if one.ts_ns == 2:
            break
    assert times(found.read()) == [3]
    assert times(next(iter(found)) for _ in range(3)) == [0, 1, 2]


def test_what_was_read_comes_before_what_is_new() -> None:
    found = events(FakeTrace(3, 2))
    next(iter(found))
    assert times(found.read()) == [1, 2, 0, 1]


def test_the_count_is_of_all_loops_together() -> None:
    trace = FakeTrace(3, 5, 5)
    found = events(trace, count="4")
    assert times(found.read()) == [0, 1, 2]
    assert times(found) == [0]
    assert (times(found), found.read(), len(trace.last)) == ([], [], 2)


def test_the_end_brings_what_is_left_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    trace = FakeTrace(1, 2, 9)
    found = events(trace, duration="5")
    assert times(found.read()) == [0]
    clock[0] = 105.0
    assert times(found) == [0, 1]
    assert (times(found), found.read()) == ([], [])
    assert trace.last == [False, True]


def test_after_the_block_nothing_is_given() -> None:
    trace = FakeTrace(4)
    found = events(trace, count="4")
    loop = iter(found)
    next(loop)
    trace.is_closed = True
    for use in (lambda: next(loop), lambda: list(found), found.read):
        with pytest.raises(tcpcore.TcpcoreError, match="closed"):
            use()
