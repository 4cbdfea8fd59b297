"""Show one line about each kernel at the end of the run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

_LINES = pytest.StashKey[list[str]]()


@pytest.fixture
def summarise(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return a function which keeps a line for the summary, whether the test passes or not."""
    return request.config.stash.setdefault(_LINES, []).append


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the lines which the tests have kept."""
    lines = config.stash.get(_LINES, [])
    if lines:
        terminalreporter.section("kernels")
        for line in lines:
            terminalreporter.write_line(line)
