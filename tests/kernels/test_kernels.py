"""The live tests pass on each kernel series the tracer promises to run on.

TCPCORE_KERNELS="6.1 6.12" in the environment picks some of them; the default is all.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from . import machine, report
from .images import SUITES, Image, Unavailable, fetch

PROJECT = Path(__file__).parents[2]
TIME_LIMIT = 3600.0
CONSOLE_TAIL = 60
AT_ONCE = 4
"""Emulated processors wait a lot: more machines than processors take little longer than as many."""

# A suite leaves the mirror when it grows old, and sid is not always whole.
MAY_BE_MISSING = {"5.10", "newest"}

# Emulated processors stand still when the host is busy, for longer than some test expects. So any
# live test may be tried once more in a machine, but only a few of them: more is no accident.
AGAIN = ("--reruns", "1", "--max-suite-reruns", "5")

# Every one of these has to work on a kernel as Debian ships it: a refusal is no reason to skip.
ATTACH_VARIANTS = "fentry kprobe tracepoint"


@dataclass(frozen=True)
class Case:
    """A kernel, how to boot it, and which tests to run in it."""

    label: str
    boot_arguments: tuple[str, ...] = ()
    tests: tuple[str, ...] = ("tests/live",)

    @property
    def turn(self) -> int:
        return list(SUITES).index(self.label)

    def __str__(self) -> str:
        return " ".join((self.label, *self.boot_arguments))


# Where IPv6 is off, its hooks are there and its sockets are not.
WITHOUT_IPV6 = Case(
    "6.12",
    ("ipv6.disable=1",),
    (
        "tests/live/test_connlat.py::test_ok_and_refused",
        "tests/live/test_states.py::test_an_aborted_connection",
    ),
)

Outcome = tuple[str, list[str]]
"""A line for the summary, and all that went wrong."""


def _cases() -> list[Case]:
    wanted = os.environ.get("TCPCORE_KERNELS", "").split() or list(SUITES)
    unknown = set(wanted) - set(SUITES)
    if unknown:
        raise pytest.UsageError(f"TCPCORE_KERNELS: {unknown} not among {list(SUITES)}")
    cases = [Case(label) for label in wanted]
    return [*cases, WITHOUT_IPV6] if WITHOUT_IPV6.label in wanted else cases


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Case, Future[Outcome]]]:
    """What comes of every machine; they run beside each other."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            case: pool.submit(_run, case, tmp_path_factory.mktemp("kernel")) for case in _cases()
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.kernels
@pytest.mark.parametrize("case", _cases(), ids=str)
def test_live_tests_pass_on(
    case: Case, outcomes: dict[Case, Future[Outcome]], summarise: Callable[[str], None]
) -> None:
    """One machine, one pytest run in it."""
    try:
        summary, problems = outcomes[case].result()
    except Unavailable as error:
        reason = f"kernel {case} not run: {error}"
        summarise(reason)
        if case.label not in MAY_BE_MISSING:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    summarise(summary)
    if problems:
        pytest.fail("\n\n".join([summary, *problems]), pytrace=False)


def _run(case: Case, share: Path) -> Outcome:
    """Run a case's tests in its machine; Unavailable when its kernel is not to be had.

    A machine that stands still is started once more, for the tests that it has not done.
    """
    image = fetch(case.label)
    result = _test(case, image, share)
    name = " ".join((image.version, *case.boot_arguments))
    told = ""
    if result.timed_out:
        done = _done(result.output)
        told = f"stood still after {len(done)} tests, {result.seconds:.0f} s; then "
        result = _test(case, image, share, done)
    summary, problems = _judge(result, share / "report.xml")
    return f"kernel {name}, {told}{result.seconds:.0f} s: {summary}", problems


def _test(case: Case, image: Image, share: Path, done: Sequence[str] = ()) -> machine.Result:
    """done: tests that are left out."""
    return machine.run(
        image,
        [
            *(sys.executable, "-m", "pytest", *case.tests, "-v"),
            f"--junitxml={share / 'report.xml'}",
            *AGAIN,
            # The host's own folders of this kind are no business of the guest's.
            *("-p", "no:cacheprovider", "--basetemp=/run/pytest"),
            *(f"--deselect={test}" for test in done),
        ],
        share,
        timeout=TIME_LIMIT,
        env={"TCPCORE_TEST_ATTACH": ATTACH_VARIANTS, "TCPCORE_TEST_TURN": str(case.turn)},
        folder=PROJECT,
        boot_arguments=case.boot_arguments,
    )


def _done(output: str) -> list[str]:
    """The tests that passed, or were skipped, in what `pytest -v` printed."""
    return re.findall(r"^(tests/\S+::.+?) (?:PASSED|SKIPPED)\b", output, re.MULTILINE)


def test_what_was_done_is_told_by_the_output() -> None:
    tests = "tests/live/test_a.py::test_one", "tests/live/test_a.py::test_two[a b-1]"
    output = (
        "collected 4 items\n\n"
        f"{tests[0]} PASSED     [ 25%]\n"
        f"{tests[1]} SKIPPED (why) [ 50%]\n"
        "tests/live/test_a.py::test_three FAILED   [ 75%]\n"
        "tests/live/test_a.py::test_four "
    )
    assert _done(output) == [*tests]


def test_a_machine_that_stands_still_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as it says nothing more."""
    monkeypatch.setattr(machine, "BOOT_LIMIT", 0.3)
    monkeypatch.setattr(machine, "SILENCE_LIMIT", 0.3)
    output, log = tmp_path / "output", tmp_path / "log"
    talks = f"for x in 1 2 3 4 5 6; do echo $x >>{output}; sleep 0.2; done"
    assert machine._emulate(["sh", "-c", talks], log, 60, output)
    assert not machine._emulate(["sh", "-c", f"{talks}; sleep 60"], log, 60, output)
    assert not machine._emulate(["sleep", "60"], log, 60, tmp_path / "none")


def _judge(result: machine.Result, junit: Path) -> Outcome:
    problems = [f"the kernel complained:\n{complaint}" for complaint in result.complaints]
    if not junit.exists():
        reason = "time limit reached" if result.timed_out else f"exit code {result.exit_code}"
        summary = f"no report, {reason}"
        return summary, [*problems, f"{summary}:\n{result.output}", *_console(result, junit.parent)]
    found = report.read(junit)
    problems = [*found.failures, *problems]
    if not found.passed and not found.failures:
        problems.append(f"no test was run:\n{result.output}")
    if result.exit_code != 0 and not problems:
        problems.append(f"pytest ended with exit code {result.exit_code}:\n{result.output}")
    return "\n".join([str(found), *(f"  tried again: {each}" for each in found.again)]), problems


def _console(result: machine.Result, share: Path) -> list[str]:
    """Return the end of the console log when it is the guest that did not come to its end."""
    if result.exit_code is not None:
        return []
    tail = result.console.splitlines()[-CONSOLE_TAIL:]
    return ["\n".join([f"end of {share / 'console.log'}:", *tail])]
