"""The workflows: whose code runs in them."""

from __future__ import annotations

import re

from tests.unit.samples import ROOT

_USES = re.compile(r"^.*\buses: (.*)$", re.MULTILINE)


def test_actions_are_pinned_by_commit() -> None:
    """A tag may be moved to other code. The version in the comment is for people and dependabot."""
    files = ROOT.glob(".github/workflows/*.yml")
    used = [use for file in files for use in _USES.findall(file.read_text())]
    assert used
    assert [use for use in used if not re.fullmatch(r"\S+@[0-9a-f]{40} # v[0-9.]+", use)] == []
