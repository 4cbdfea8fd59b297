"""The Python API, up to where it needs privilege."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tcpcore
from tcpcore import api, errors, tracing
from tcpcore.errors import UsageError


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
    assert machinery == tracing.Machinery(buffer=4 << 20, map_size=1024, btf=btf)
