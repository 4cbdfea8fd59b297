"""Live tests: real sockets on this kernel, as root. A kernel that allows no BPF at all is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.live import harness

# Variants that must work here, as in the virtual machines; without it, whatever the kernel takes.
REQUIRED = os.environ.get("TCPCORE_TEST_ATTACH", "").split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("live")
            # Hosts are shared, emulated processors stand still: the second attempt decides, and
            # pytest's summary tells that there was one.
            item.add_marker(pytest.mark.flaky(reruns=1))


@cache
def refusal(attach: str) -> str:
    """Why this kernel does not take a variant; empty if it does."""
    try:
        with harness.tracer("states", "--attach", attach):
            return ""
    except AssertionError as e:
        return str(e)


@pytest.fixture(autouse=True, scope="session")
def bpf() -> None:
    if os.geteuid() != 0:
        pytest.skip("live tests need root")
    why = refusal("tracepoint")
    if why and not REQUIRED:
        pytest.skip(f"this host allows no BPF: {why}")


@pytest.fixture(params=["fentry", "kprobe", "tracepoint"])
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
