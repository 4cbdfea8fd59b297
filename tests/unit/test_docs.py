"""The documents against the code: what they have to name is found there."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tcpcore import explain
from tcpcore.model import fields
from tcpcore.model.losses import Losses
from tests.unit.samples import ROOT, TOOLS, all_lines, object_file

PAGES = ROOT / "docs/tools"
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]

# A block with more backticks may have others inside.
_FENCE = re.compile(r"^(```+).*?^\1$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)]+)\)")
_COMMAND = re.compile(r"^(?:\$ )?(?:sudo )?(?:\.venv/bin/)?tcpcore (.*)$", re.MULTILINE)

# A document says where it is: `docs/options.md`.
named = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text()


def codes(text: str) -> set[str]:
    """All that stands in backticks, word by word: `-c`, `--port PORTS`, `UID`."""
    spans = re.findall(r"`([^`\n]+)`", _FENCE.sub("", text))
    return {word for span in spans for word in (span, *span.split())}


def command_line() -> Any:
    """typer's own carries a copy of click, whose types are private."""
    return typer.main.get_command(explain.application(TOOLS))


def parameters(name: str, own: bool) -> Iterator[Any]:
    """Of a tool: its own, or the common ones, which stand in panels of the help text."""
    for parameter in command_line().commands[name].params:
        in_panel = getattr(parameter, "rich_help_panel", None) is not None
        if in_panel != own and parameter.name != "help":
            yield parameter


def names(parameter: Any) -> list[str]:
    """An option's, or what stands for an argument: MIN_MS."""
    if parameter.param_type_name == "argument":
        return [parameter.metavar]
    return [*parameter.opts, *parameter.secondary_opts]


def aliases(name: str) -> set[str]:
    """More names that the tool has for common options."""
    found = getattr(importlib.import_module(f"tcpcore.tools.{name}"), "ALIASES", {})
    return {one for more in found.values() for one in more}


def hooked(name: str) -> set[str]:
    """The kernel's functions and tracepoints at which a tool has programs."""
    sections = object_file(name, "x86").programs
    targets = [section.rpartition("/")[2] for section in sections if "/" in section]
    return {name for target in targets for name in target.split(",")}


def test_each_tool_has_a_page() -> None:
    assert sorted(path.stem for path in PAGES.glob("*.md")) == TOOLS


def test_the_own_options_are_told_from_the_common_ones() -> None:
    own = {name for parameter in parameters("connlat", own=True) for name in names(parameter)}
    assert {"MIN_MS", "--failed", "--summary"} <= own
    assert not {"--pid", "--json", "--help"} & own


@pytest.mark.parametrize("name", TOOLS)
def test_a_page_names_the_tools_own_options(name: str) -> None:
    wanted = {one for parameter in parameters(name, own=True) for one in names(parameter)}
    assert not (wanted | aliases(name)) - codes(page(name))


def test_the_common_options_are_named() -> None:
    wanted = {
        one
        for tool in TOOLS
        for parameter in parameters(tool, own=False)
        for one in {*names(parameter)} - aliases(tool)
    }
    assert not wanted - codes((ROOT / "docs/options.md").read_text())


@pytest.mark.parametrize("name", TOOLS)
def test_a_page_names_all_columns_and_fields(name: str) -> None:
    for each in all_lines(name):
        titles = {column.title for column in (*each.columns, *each.wide)} - {""}
        assert not (titles | set(fields.kinds(each.row))) - codes(page(name))


@pytest.mark.parametrize("name", TOOLS)
def test_a_page_has_an_output_with_todays_columns(name: str) -> None:
    for each in all_lines(name)[:1]:
        titles = [column.title for column in each.columns]
        assert titles in [line.split() for line in page(name).splitlines()]


@pytest.mark.parametrize("name", TOOLS)
def test_a_page_names_the_kernels_functions(name: str) -> None:
    assert not hooked(name) - codes(page(name))


def test_the_losses_are_explained() -> None:
    wanted = set(Losses._fields)
    assert not wanted - codes((ROOT / "docs/output.md").read_text())


@named
def test_links_lead_somewhere(path: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", path.read_text())):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link


def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def commands(path: Path) -> list[list[str]]:
    """The arguments of each tcpcore that a reader is shown."""
    blocks = "\n".join(block[0] for block in _FENCE.finditer(path.read_text()))
    return [shlex.split(line, comments=True) for line in _COMMAND.findall(blocks)]


def test_commands_are_found() -> None:
    assert ["connlat"] in commands(ROOT / "README.md")


@named
def test_the_command_line_takes_the_commands(path: Path) -> None:
    root = command_line()
    for name, *arguments in commands(path):
        if name in TOOLS:  # else one that the walk in CONTRIBUTING.md makes up
            root.commands[name].make_context(name, arguments)


@named
def test_python_compiles(path: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL):
        compile(block, str(path), "exec")
