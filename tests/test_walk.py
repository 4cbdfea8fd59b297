"""The walk in CONTRIBUTING.md: its tools are built and run as they stand there."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import harness
from tests.live.conftest import refusal

ROOT = Path(__file__).parents[1]
WALK = (ROOT / "CONTRIBUTING.md").read_text()
# A file's name and its content; a command and what it prints.
_FILES = re.compile(r"^`([\w./]+)`:\n\n(```+)\w+\n(.*?)^\2$", re.MULTILINE | re.DOTALL)
_OUTPUTS = re.compile(r"^```\n\$ tcpcore (.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILES = {name: content for name, _, content in _FILES.findall(WALK)}
PRINTED = _OUTPUTS.findall(WALK)
NAMES = sorted(Path(name).stem for name in FILES if name.startswith("src/"))
CHECKED = ("bpf", "src", "tests", "bench", "docs")
KINDS = {"Stream", "Snapshot", "Table", "Histograms"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this one that has the walk's tools as well, built."""
    copy = tmp_path_factory.mktemp("walk")
    for folder in CHECKED:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"):
        shutil.copy(file, copy)
    for name, content in FILES.items():
        assert not (copy / name).exists(), f"{name} is tcpcore's own"
        (copy / name).write_text(content)
    objects = [f"src/tcpcore/objects/{name}.{x}.bpf.o" for name in NAMES for x in ("x86", "arm64")]
    run(copy, "make", f"-j{os.cpu_count()}", *objects)
    return copy


def environment(checkout: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{checkout}/src", "MAKEFLAGS": "", "PYTEST_ADDOPTS": ""}


def run(checkout: Path, *command: str) -> str:
    """What must work there; what it prints."""
    done = subprocess.run(
        command, cwd=checkout, env=environment(checkout), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pytest_there(checkout: Path, *arguments: str) -> str:
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)
    return run(checkout, *command)


def test_there_is_a_tool_of_each_kind() -> None:
    modules = "".join(FILES[f"src/tcpcore/tools/{name}.py"] for name in NAMES)
    assert {kind for kind in KINDS if f"{kind}(" in modules} == KINDS
    assert {command.split()[0] for command, _ in PRINTED} == {*NAMES}


def test_they_are_in_house_style(checkout: Path) -> None:
    python = [name for name in FILES if name.endswith(".py")]
    run(checkout, sys.executable, "-m", "ruff", "check", "--quiet", "--no-cache", *python)
    run(checkout, sys.executable, "-m", "ruff", "format", "--check", "--no-cache", *python)
    c = [name for name in FILES if name.endswith((".c", ".h"))]
    shutil.copy(ROOT / ".clang-format", checkout)
    run(checkout, "clang-format-19", "--dry-run", "-Werror", *c)


def test_they_pass_the_tests_of_every_tool(checkout: Path) -> None:
    """Those of documents only where the walk has the page."""
    unit = [f"tests/unit/test_{about}.py" for about in ("contract", "every_tool", "cli", "output")]
    pytest_there(checkout, *unit, "-k", " or ".join(NAMES))
    paged = [Path(name).stem for name in FILES if name.startswith("docs/")]
    pytest_there(checkout, "tests/unit/test_docs.py", "-k", " or ".join(paged))


@pytest.fixture
def kernel() -> None:
    """One that allows BPF, as for all live tests."""
    if os.geteuid() != 0:
        pytest.skip("live tests need root")
    if why := refusal("tracepoint"):
        pytest.skip(f"this host allows no BPF: {why}")


@pytest.mark.live
def test_their_live_tests_pass(checkout: Path, kernel: None) -> None:
    tests = [name for name in FILES if name.startswith("tests/live/")]
    assert len(tests) == len(NAMES)
    pytest_there(checkout, *tests)


@pytest.fixture(scope="module")
def net() -> Iterator[harness.Net]:
    with harness.namespaces() as pair:
        yield pair


def printed(checkout: Path, net: harness.Net, *arguments: str) -> list[str]:
    """What a tool prints of connections, one closed in order, one reset after it lost a segment,
    and one that is open at the end."""
    here, there = net
    with subprocess.Popen(
        (*harness.TCPCORE, *arguments, "--raddr", f"{there.address}/32,{here.address}/32", "-v"),
        env=environment(checkout),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as tracer:
        assert tracer.stderr and tracer.stdout
        told = list(itertools.takewhile(lambda line: "attached: " not in line, tracer.stderr))
        assert tracer.poll() is None, told
        with harness.task_name(b"python"), there.entered():
            harness.session(there.address)
            harness.lose_a_segment(here, there)
            with harness.pair(there.address):
                tracer.send_signal(signal.SIGINT)
                lines = tracer.stdout.read().splitlines()
    assert tracer.returncode == 0
    return lines


@pytest.mark.live
@pytest.mark.parametrize(("command", "shown"), PRINTED, ids=dict(PRINTED))
def test_they_print_what_the_walk_shows(
    checkout: Path, kernel: None, net: harness.Net, command: str, shown: str
) -> None:
    assert shapes(printed(checkout, net, *command.split())) == shapes(shown.splitlines())


def shapes(lines: list[str]) -> set[str]:
    """Lines without the numbers and bars in them: titles stay, and one row is as the other."""
    bare = (re.sub(r"[*|]", "", re.sub(r"\d[\d.]*", "0", line)) for line in lines)
    return {" ".join(line.split()) for line in bare} - {""}


@pytest.mark.live
@pytest.mark.parametrize("command", dict(PRINTED))
def test_json_and_csv_say_the_same(
    checkout: Path, kernel: None, net: harness.Net, command: str
) -> None:
    objects = [json.loads(line) for line in printed(checkout, net, *command.split(), "--json")]
    text = "\n".join(printed(checkout, net, *command.split(), "--csv"))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert objects and rows
    known = {**objects[0], **(objects[0].get("key") or {})}
    assert rows[0].keys() - {"lower", "upper"} <= known.keys()
