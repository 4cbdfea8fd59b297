"""The options of a tool's own: annotations on the parameters of its tool()."""

from __future__ import annotations

from tcpcore.value import Value

Examples = tuple[tuple[str, str], ...]
"""At the end of a tool's help: its name with arguments, and what that does."""


class Option(Value):
    """help: a line. names: on the command line; `--` and the parameter's name by default. panel: of
    the help; None for a tool's own. metavar: what the help calls the value."""

    help: str
    names: tuple[str, ...] = ()
    panel: str | None = None
    metavar: str | None = None


class Argument(Value):
    """A parameter without a name on the command line. metavar: what the help calls it."""

    help: str
    metavar: str
