from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from tcpcore.loader import ObjectFile
from tcpcore.request import containers
from tests.unit.samples import ARCHITECTURES, TOOLS, object_file

# A busy host is slow, which is no failure.
settings.register_profile("tcpcore", deadline=None)
settings.load_profile("tcpcore")


@pytest.fixture(autouse=True)
def pids_are_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever container the tests run in."""
    monkeypatch.setattr(containers, "_HOST", str(Path("/proc/self/ns/pid").readlink()))


@pytest.fixture(params=[f"{name}.{arch}" for name in TOOLS for arch in ARCHITECTURES])
def built(request: pytest.FixtureRequest) -> tuple[str, ObjectFile]:
    """Each tool's name with each of its objects."""
    name, architecture = request.param.split(".")
    try:
        return name, object_file(name, architecture)
    except FileNotFoundError as e:
        pytest.fail(f"{e.filename} is not built: run `make bpf`", pytrace=False)
