"""tcpcore.trace() as mypy and editors see it."""

from __future__ import annotations

from pathlib import Path

import pytest
from mypy import api

from tcpcore import overloads
from tests.unit.samples import PACKAGE, TOOLS

GOOD = """
import ipaddress

import tcpcore

with tcpcore.trace(
    "connlat", rport=[80, (8000, 8099)], raddr=["10.0.0.0/8"], min_ms=1.5, pid=1, comm=b"x"
) as events:
    for event in events:
        latency: int = event.latency_ns
        result: str = event.result
        lport: int | None = event.lport
with tcpcore.trace("connlat", summary=True, interval=1) as rows:
    for row in rows:
        total: int = row.count + row.p99_ns
with tcpcore.trace("connect", by_flow=True, raddr=ipaddress.ip_network("10.0.0.0/8")) as flows:
    connects: int = flows.read(wait=False)[0].connects
with tcpcore.trace("states", duration=1.5, netns="blue") as changes:
    states: list[str] = [change.newstate for change in changes]
    lost: int = changes.losses().ring
"""

# Each line is an error by itself.
BAD = """
import tcpcore

tcpcore.trace("nosuch")
tcpcore.trace("connlat", rport=[80.5])
tcpcore.trace("connlat", min_ms="1")
tcpcore.trace("states", min_ms=1)
tcpcore.trace("connlat", json=True)
tcpcore.trace("connlat").__enter__().read()[0].newstate
tcpcore.trace("connlat", summary=True).__enter__().read()[0].latency_ns
"""


def told(tmp_path: Path, program: str) -> list[str]:
    """What mypy --strict says of a program that uses the library."""
    overloads.store()
    path = tmp_path / "program.py"
    path.write_text(program)
    config = tmp_path / "mypy.ini"
    config.write_text(f"[mypy]\nmypy_path = {PACKAGE.parent}\n")
    options = ["--strict", "--config-file", str(config), "--cache-dir", str(tmp_path / "cache")]
    said, _, _ = api.run([*options, "--no-error-summary", str(path)])
    return [line for line in said.splitlines() if ": error: " in line]


def test_types_per_tool(tmp_path: Path) -> None:
    assert told(tmp_path, GOOD) == []


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    lines = {int(line.split(":")[1]) for line in told(tmp_path, BAD)}
    assert lines == {n for n, line in enumerate(BAD.splitlines(), 1) if "trace(" in line}


@pytest.mark.parametrize("name", TOOLS)
def test_each_tool_has_an_overload(name: str) -> None:
    assert f'name: Literal["{name}"]' in overloads.stub()


def test_an_unchanged_stub_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = tmp_path / "_typed.pyi"
    monkeypatch.setattr(overloads, "STUB", stub)
    overloads.store()
    written = stub.stat().st_mtime_ns
    overloads.store()
    assert stub.stat().st_mtime_ns == written
    stub.write_text("old")
    overloads.store()
    assert stub.read_text() == overloads.stub()
