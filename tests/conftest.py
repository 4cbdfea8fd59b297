"""A failed test is tried again where its mark says why, and the summary names each that was."""

from __future__ import annotations

import pytest

MORE_ATTEMPTS = 2
AGAIN = "tried again"
"""The name under which a JUnit report has the reason."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("flaky"):
            raise pytest.UsageError(f"{item.nodeid}: flaky has no reason; flaky_because has one")
        if item.get_closest_marker("flaky_because"):
            item.add_marker(pytest.mark.flaky(reruns=MORE_ATTEMPTS))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if getattr(item, "execution_count", 1) > 1:  # pytest-rerunfailures counts
        item.user_properties.append((AGAIN, why(item)))


def why(item: pytest.Item) -> str:
    mark = item.get_closest_marker("flaky_because")
    return str(mark.args[0]) if mark else "--reruns, without a mark of its own"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    again = {
        report.nodeid: reason
        for report in reports
        for name, reason in getattr(report, "user_properties", ())
        if name == AGAIN
    }
    if again:
        terminalreporter.section(AGAIN)
    for test, reason in again.items():
        terminalreporter.write_line(f"{test}: {reason}")
