"""Read what pytest said in a machine."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import AGAIN

MESSAGE_LIMIT = 400


@dataclass
class Report:
    """The outcome of a test run."""

    passed: int = 0
    failures: list[str] = field(default_factory=list)
    """The name and the message of each failed test."""
    skips: Counter[str] = field(default_factory=Counter)
    """How many tests were skipped for each reason."""
    again: list[str] = field(default_factory=list)
    """The name of each test that was tried again, and why; once per attempt."""

    def __str__(self) -> str:
        counts = f"{self.passed} passed, {len(self.failures)} failed, {self.skips.total()} skipped"
        reasons = "; ".join(f"{count}: {reason}" for reason, count in self.skips.most_common())
        return f"{counts} ({reasons})" if reasons else counts


def read(file: Path) -> Report:
    """Return what a JUnit file of pytest's tells."""
    report = Report()
    for case in ET.parse(file).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        report.again += [f"{name}: {reason}" for reason in _again(case)]
        bad = [_message(part) for part in case if part.tag in ("failure", "error")]
        skipped = case.find("skipped")
        if bad:  # a test may both fail and go wrong in its teardown
            report.failures.append(f"{name}: {' / '.join(bad)}")
        elif skipped is not None:
            report.skips[_message(skipped)] += 1
        else:
            report.passed += 1
    report.passed -= len(report.again)  # an attempt that did not count looks like a pass
    return report


def _again(case: ET.Element) -> Iterator[str]:
    """Why this attempt was made, if it is not the first one."""
    reasons = (each for each in case.iter("property") if each.get("name") == AGAIN)
    yield from (str(each.get("value")) for each in list(reasons)[-1:])


def _message(part: ET.Element) -> str:
    text = part.get("message") or part.text or "no message"
    return text if len(text) <= MESSAGE_LIMIT else text[:MESSAGE_LIMIT] + " ..."
