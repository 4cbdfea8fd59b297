"""Tests that are tried again: only where a mark says why, a few times, and told in the end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.kernels import report
from tests.unit.samples import ROOT

# Each test passes at the attempt that it is named for.
TESTS = """
import pytest

made = []

def attempt(which):
    made.append(which)
    assert made.count(which) == which

@pytest.mark.flaky_because("it was not built in a day")
def test_three():
    attempt(3)

@pytest.mark.flaky_because("it never comes")
def test_four():
    attempt(4)

def test_two():
    attempt(2)
"""


def outcome(folder: Path, text: str, *options: str) -> tuple[str, report.Report]:
    """What pytest prints of these tests, and what it reports."""
    file, junit = folder / "test_it.py", folder / "report.xml"
    file.write_text(text)
    ours = ("-p", "tests.conftest", "-p", "no:cacheprovider", "-c", "pyproject.toml")
    where = (f"--rootdir={folder}", f"--junitxml={junit}", str(file))
    command = [sys.executable, "-m", "pytest", *ours, *where, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr, report.read(junit)


def test_a_mark_that_says_why(tmp_path: Path) -> None:
    said, found = outcome(tmp_path, TESTS)
    assert "test_it.py::test_three: it was not built in a day\n" in said
    assert "test_it.py::test_four: it never comes\n" in said
    assert [failure.split(": ")[0] for failure in found.failures] == [
        "test_it::test_four",
        "test_it::test_two",
    ]
    assert found.passed == 1
    assert found.again == [
        *["test_it::test_three: it was not built in a day"] * 2,
        *["test_it::test_four: it never comes"] * 2,
    ]


def test_all_of_them_but_not_too_often(tmp_path: Path) -> None:
    """As in an emulated machine."""
    said, found = outcome(tmp_path, TESTS, "--reruns", "1", "--max-suite-reruns", "5")
    assert "test_it.py::test_two: --reruns, without a mark of its own\n" in said
    assert (found.passed, len(found.failures), len(found.again)) == (2, 1, 5)
    _, found = outcome(tmp_path, TESTS, "--reruns", "1", "--max-suite-reruns", "2")
    assert (found.passed, len(found.failures), len(found.again)) == (1, 2, 2)


def test_no_mark_without_a_reason(tmp_path: Path) -> None:
    said, _ = outcome(tmp_path, TESTS.replace("flaky_because(", "flaky(reruns=1) # "))
    assert "flaky has no reason" in said
