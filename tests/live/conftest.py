"""Live tests: real sockets on this kernel, as root. A kernel that allows no BPF at all is told."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tcpcore.errors import PrivilegeError, UnsupportedError
from tests.live import harness

VARIANTS = ("fentry", "kprobe", "tracepoint")

# Variants that must work here, as in the virtual machines; without it, whatever the kernel takes.
REQUIRED = os.environ.get("TCPCORE_TEST_ATTACH", "").split()

# A number for each virtual machine. Emulation is slow: each variant of a test is run in one of the
# four, and so is a test without variants. Without this number, all are.
MACHINES = 4
TURN = os.environ.get("TCPCORE_TEST_TURN", "")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    live = [item for item in items if here in item.path.parents]
    for item in live:
        item.add_marker("live")
    waiting = [item for item in live if not is_its_turn(item)]
    config.hook.pytest_deselected(items=waiting)
    items[:] = [item for item in items if item not in waiting]


def is_its_turn(item: pytest.Item) -> bool:
    if not TURN or item.get_closest_marker("each_variant"):
        return True
    if item.get_closest_marker("any_kernel"):
        return False
    call = getattr(item, "callspec", None)
    parameters: dict[str, object] = call.params if call else {}
    turn = zlib.crc32(item.nodeid.partition("[")[0].encode()) + int(TURN)
    variant = VARIANTS.index(str(parameters.get("attach", VARIANTS[0])))
    return turn % MACHINES == variant


@cache
def refusal(attach: str) -> str:
    """Why this kernel does not take a variant; empty if it does. A fault of ours is no reason."""
    probe = harness.Tracer("states", "--attach", attach)
    if probe.attached:
        assert probe.stop() == 0, probe.errors()
        return ""
    assert probe.wait() in (UnsupportedError.exit_code, PrivilegeError.exit_code), probe.errors()
    return "; ".join(probe.errors())


@pytest.fixture(autouse=True, scope="session")
def bpf() -> None:
    if os.geteuid() != 0:
        pytest.skip("live tests need root")
    why = refusal("tracepoint")
    if why and not REQUIRED:
        pytest.skip(f"this host allows no BPF: {why}")


@pytest.fixture(params=VARIANTS)
def attach(request: pytest.FixtureRequest) -> str:
    """Each variant that works on this kernel, forced."""
    name: str = request.param
    why = refusal(name)
    if why and name not in REQUIRED:
        pytest.skip(f"this kernel takes no {name}: {why}")
    return name


@pytest.fixture(scope="session")
def net() -> Iterator[tuple[harness.Namespace, harness.Namespace]]:
    with harness.namespaces() as pair:
        yield pair


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    """A file system for pinned maps."""
    harness.sh(f"mount -t bpf none '{tmp_path}'")
    try:
        yield tmp_path
    finally:
        harness.sh(f"umount '{tmp_path}'")
