"""The Python API, up to where it needs privilege."""

from __future__ import annotations

import time
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import tcpcore
from tcpcore import api, errors
from tcpcore.errors import UsageError
from tcpcore.model.losses import Losses
from tcpcore.request.machinery import Machinery
from tcpcore.request.request import Limits
from tcpcore.session.session import Session
from tests.unit.samples import event, python, tool

TOOL = tool("connlat")


def refused(name: str, **options: Any) -> str:
    with pytest.raises(UsageError) as e, api.trace(name, **options):
        pass
    return str(e.value)


def test_the_package_has_the_api() -> None:
    assert tcpcore.trace is api.trace
    assert tcpcore.TcpcoreError is errors.TcpcoreError


def test_what_makes_no_sense_is_a_usage_error() -> None:
    assert refused("nosuch").startswith("no tool 'nosuch'; there are: accept")
    assert "no_such_option" in refused("connlat", no_such_option=1)
    assert "json" in refused("connlat", json=True)
    assert "pid: '0'" in refused("connlat", pid=0)
    assert "rport: '99999'" in refused("connlat", rport=99999)
    assert "buffer: 'much'" in refused("connlat", buffer="much")
    assert "btf: /absent" in refused("connlat", btf="/absent")
    assert "duration: 'soon'" in refused("connlat", duration="soon")
    assert "min_ms" in refused("connlat", min_ms=-1).lower()


class Reached(Exception):
    """The options got as far as the loader."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What session.opened would be called with."""
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
    tool, request = asked
    filters, machinery = request.filters, request.machinery
    assert tool.name == "connlat"
    assert (filters.pid, filters.comm, filters.family) == ([1, 2], [b"curl"], 2)
    assert (filters.rport, filters.lport) == ([80, 443], [22])
    assert tool.rodata == {"targ_min_us": 1500, "target_failed": True}
    assert machinery == Machinery(buffer=4 << 20, map_size=1024, btf=btf)


def test_a_task_name_may_be_bytes(asked: list[Any]) -> None:
    with pytest.raises(Reached), tcpcore.trace("connlat", comm=[b"c\xff", "curl"], pid=None):
        pass
    filters = asked[1].filters
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
        ("connlat", "comm", 5, "str or bytes"),
        ("connlat", "pid", True, "int or str"),
        ("connlat", "pid", [1.0], "int or str"),
        ("connlat", "rport", [80, None], "int, pair or text"),
        ("connlat", "rport", [(80, 81, 82)], "int, pair or text"),
        ("connlat", "rport", True, "int, pair or text"),
        ("connlat", "raddr", 10, "str or IPv4Address or IPv6Address or IPv4Network or IPv6Network"),
        ("connlat", "duration", "soon", "a number of seconds"),
        ("connlat", "duration", [1], "int or float or str"),
        ("connlat", "buffer", False, "int or str"),
        ("connlat", "cgroup", 1.5, "str or bytes or int or PathLike"),
        ("connlat", "btf", 1, "str or bytes or PathLike"),
    ],
)
def test_a_value_of_another_type_is_a_usage_error(
    tool: str, option: str, value: Any, kind: str
) -> None:
    said = refused(tool, **{option: value})
    assert said.startswith(f"{option}: ")
    assert f" is of type {type(value).__name__}" in said or isinstance(value, list | str)
    assert said.endswith(f"not {kind}")


@pytest.mark.parametrize(
    ("given", "ports"),
    [
        (80, [80]),
        ([80, (8000, 8002)], [80, 8000, 8001, 8002]),
        ((80, 443), [80, 443]),
        (range(1, 4), [1, 2, 3]),
        ([range(1, 3), "7-9", 80], [1, 2, 7, 8, 9, 80]),
        ("80,443", [80, 443]),
    ],
)
def test_ports_as_python_has_them(asked: list[Any], given: Any, ports: list[int]) -> None:
    with pytest.raises(Reached), tcpcore.trace("connlat", rport=given):
        pass
    assert asked[1].filters.rport == ports


def test_addresses_and_paths_are_objects(asked: list[Any], tmp_path: Path) -> None:
    with pytest.raises(Reached), tcpcore.trace(
        "connlat", raddr=[IPv4Network("10.0.0.0/8"), IPv6Address("::1"), "192.0.2.1"],
        netns=4026531840, duration=1.5, count=3, attach="kprobe", compat=True,
    ):  # fmt: skip
        pass
    _, request = asked
    assert [str(network) for network in request.filters.raddr] == [
        "::ffff:a00:0/104", "::1/128", "::ffff:c000:201/128",
    ]  # fmt: skip
    assert request.filters.netns == [4026531840]
    assert request.limits == Limits(duration=1.5, count=3)
    assert request.machinery == Machinery(attach=("kprobe",), compat=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rport": [80, (90, 85)]}, "rport: the range '(90, 85)' runs backwards"),
        ({"rport": [0]}, "rport: '0' is not a port"),
        ({"raddr": ["10.0.0.0/33"]}, "raddr: '10.0.0.0/33' is not an address"),
        ({"min_ms": float("nan")}, "min_ms: 'nan' is not a number of milliseconds"),
        ({"summary": True, "duration": float("inf")}, "duration: 'inf' is not"),
    ],
)
def test_errors_name_what_the_caller_wrote(options: dict[str, Any], says: str) -> None:
    assert refused("connlat", **options).startswith(says)


def test_importing_the_library_imports_no_command_line() -> None:
    code = (
        "import sys, tcpcore\n"
        "try:\n"
        "    with tcpcore.trace('connlat', rport=[0]): pass\n"
        "except tcpcore.TcpcoreError: pass\n"
        "print([m for m in ('typer', 'click', 'rich', 'tcpcore.options') if m in sys.modules])"
    )
    assert python(code).stdout == "[]\n"


class FakeSession:
    """batches: raw records, one list a drain. What was asked for is kept."""

    def __init__(self, *batches: int) -> None:
        self.tool = TOOL
        self.batches = [[event(TOOL, ts_ns=n) for n in range(size)] for size in batches]
        self.last: list[bool] = []
        self.waited = 0
        self.is_closed = False
        self.program = SimpleNamespace(check=self._check)

    def _check(self) -> None:
        if self.is_closed:
            raise tcpcore.TcpcoreError("closed")

    def wait(self, until: float) -> None:
        self._check()
        self.waited += 1

    def read(self, last: bool = False) -> list[Any]:
        self._check()
        self.last.append(last)
        assert len(self.last) < 20, "it reads for ever"
        return self.batches.pop(0) if self.batches else []

    def count(self, records: Any) -> None:
        pass

    def walk(self) -> None:
        pass

    def tables(self) -> list[Any]:
        return []

    histograms = snapshots = tables

    def losses(self) -> Losses:
        return Losses()

    def fileno(self) -> int:
        return 77


def events(
    session: FakeSession, count: int | None = None, duration: float | None = None
) -> api.Events[Any]:
    return api.Events(cast(Session, session), Limits(count=count, duration=duration))


def times(found: Iterable[Any]) -> list[int]:
    return [one.ts_ns for one in found]


def test_a_loop_that_is_left_loses_nothing() -> None:
    found = events(FakeSession(4, 0, 3))
    assert next(iter(found)).ts_ns == 0
    for one in found:
        if one.ts_ns == 2:
            break
    assert times(found.read()) == [3]
    assert times(next(iter(found)) for _ in range(3)) == [0, 1, 2]


def test_what_was_read_comes_before_what_is_new() -> None:
    found = events(FakeSession(3, 2))
    next(iter(found))
    assert times(found.read()) == [1, 2, 0, 1]


def test_the_count_is_of_all_loops_together() -> None:
    trace = FakeSession(3, 5, 5)
    found = events(trace, count=4)
    assert times(found.read()) == [0, 1, 2]
    assert times(found) == [0]
    assert (times(found), found.read(), len(trace.last)) == ([], [], 2)


def test_the_end_brings_what_is_left_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    trace = FakeSession(1, 2, 9)
    found = events(trace, duration=5.0)
    assert times(found.read()) == [0]
    clock[0] = 105.0
    assert times(found) == [0, 1]
    assert (times(found), found.read()) == ([], [])
    assert trace.last == [False, True]


def test_after_the_block_nothing_is_given() -> None:
    trace = FakeSession(4)
    found = events(trace, count=4)
    loop = iter(found)
    next(loop)
    trace.is_closed = True
    for use in (lambda: next(loop), lambda: list(found), found.read):
        with pytest.raises(tcpcore.TcpcoreError, match="closed"):
            use()


def test_a_caller_with_a_loop_of_its_own_does_not_wait() -> None:
    session = FakeSession(2, 1)
    found = events(session)
    assert times(found.read(wait=False)) == [0, 1]
    assert (session.waited, found.fileno(), found.is_over) == (0, 77, False)
    assert times(found.read()) == [0]
    assert session.waited == 1
    session.is_closed = True
    with pytest.raises(tcpcore.TcpcoreError, match="closed"):
        found.fileno()
