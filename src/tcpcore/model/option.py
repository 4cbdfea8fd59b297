"""The options of a tool's own: annotations on the parameters of its tool()."""

from __future__ import annotations

from dataclasses import dataclass

Examples = tuple[tuple[str, str], ...]
"""At the end of a tool's help: its name with arguments, and what that does."""


@dataclass(frozen=True)
class Option:
    """help: a line. names: on the command line; `--` and the parameter's name by default."""

    help: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Argument:
    """A parameter without a name on the command line. metavar: what the help calls it."""

    help: str
    metavar: str
