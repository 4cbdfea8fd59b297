"""No tool is left out of the tests and of the benchmark: what is missing is told here."""

from __future__ import annotations

import importlib

import pytest

from bench import tools
from tests import facts
from tests.unit.samples import TOOLS, tool


@pytest.mark.parametrize("name", TOOLS)
def test_it_has_live_tests_with_facts(name: str) -> None:
    shown = facts.of(name)
    assert shown.reset + shown.closed, "provoke makes the tool show the connection"
    assert not shown.queued + shown.kept or tool(name).sockets


@pytest.mark.parametrize("name", TOOLS)
def test_all_its_variants_are_tried_in_every_machine(name: str) -> None:
    """One test at least: the others take turns there."""
    tests = vars(importlib.import_module(f"tests.live.test_{name}")).values()
    marks = [mark.name for test in tests for mark in getattr(test, "pytestmark", ())]
    assert "each_variant" in marks


@pytest.mark.parametrize("name", TOOLS)
def test_it_is_measured(name: str) -> None:
    assert name in {each.choice for each in tools.ALL}
