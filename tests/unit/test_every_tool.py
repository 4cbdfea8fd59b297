"""No tool is left out of the tests and of the benchmark: what is missing is told here."""

from __future__ import annotations

import importlib

import pytest

from bench import tools
from tcpcore.sinks.form import HEAD, order
from tcpcore.sinks.table import Table
from tests import facts
from tests.unit.samples import TOOLS, all_lines, tool


@pytest.mark.parametrize("name", TOOLS)
def test_it_has_live_tests_with_facts(name: str) -> None:
    shown = facts.of(name)
    if tool(name).stream:
        shows_connections = shown.reset + shown.closed
        others = shown.listener or shown.packets
        assert shows_connections or others, "provoke makes the tool show the connection"
    assert not shown.queued + shown.kept or tool(name).sockets


def test_a_report_is_as_its_facts_say() -> None:
    """tests/unit/test_output.py has the tools with streams."""
    for name in {*TOOLS} - {*facts.streams()}:
        reports = all_lines(name)[:1]
        assert [facts.of(name).header + "\n"] * len(reports) == [Table(x).header() for x in reports]
        assert facts.of(name).fields == {one for each in reports for one in order(each)} - {*HEAD}


@pytest.mark.parametrize("name", TOOLS)
def test_all_its_variants_are_tried_in_every_machine(name: str) -> None:
    """One test at least: the others take turns there."""
    tests = vars(importlib.import_module(f"tests.live.test_{name}")).values()
    marks = [mark.name for test in tests for mark in getattr(test, "pytestmark", ())]
    assert "each_variant" in marks


@pytest.mark.parametrize("name", TOOLS)
def test_it_is_measured(name: str) -> None:
    assert name in {each.choice for each in tools.ALL}
