"""What typer does: help, completion, and to tell what is wrong with a command line."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tcpcore import __version__
from tcpcore.errors import UsageError
from tcpcore.model.option import Examples, Option
from tcpcore.tools import about, names

if TYPE_CHECKING:
    from tcpcore.options import Command, Parameter

# typer carries a copy of click since 0.2x, under a private name.
_ClickUsageError: Any = typer.BadParameter.__mro__[1]

_HELP = """Trace TCP on this host. Needs root, or CAP_BPF and CAP_PERFMON.

Exit codes: 0 done, 1 failure, 2 usage, 3 this kernel cannot run the tool, 4 missing privilege, \
5 events lost under --fail-on-loss.
"""


def run(arguments: list[str]) -> int:
    """The exit code of what typer does by itself. Raises UsageError, and what a tool raises."""
    try:
        done = application(_wanted(arguments))(
            arguments, prog_name="tcpcore", standalone_mode=False
        )
    except _ClickUsageError as e:
        raise UsageError(e.format_message()) from None
    except typer.Abort:
        raise KeyboardInterrupt from None
    return done or 0  # None of a tool


def application(wanted: list[str]) -> typer.Typer:
    """The command line with these tools; where there are none, with a list of all of them."""
    app = typer.Typer(
        help=_HELP,
        rich_markup_mode="rich",  # typer imports rich for --help alone
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_main)
    for name in wanted:
        _add(app, name)
    for name in [] if wanted else names():
        app.command(name, help=_paragraphs(about(name)))(_main)
    return app


def _add(app: typer.Typer, name: str) -> None:
    from tcpcore.options import Command  # with it comes all that a trace needs

    module = importlib.import_module(f"tcpcore.tools.{name}")
    examples = _examples(module.EXAMPLES)
    function = _function(Command(module))
    app.command(name, help=_paragraphs(module.__doc__ or ""), epilog=examples)(function)


def _function(command: Command) -> Callable[..., None]:
    """A function with the signature that typer is to read."""

    def call(**arguments: Any) -> None:
        command.run(**arguments)

    annotations = {p.name: _annotation(p) for p in command.parameters.values()}
    vars(call)["__signature__"] = inspect.Signature(
        [
            inspect.Parameter(
                p.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=p.default,
                annotation=annotations[p.name],
            )
            for p in command.parameters.values()
        ]
    )
    call.__annotations__ = annotations
    return call


def _annotation(parameter: Parameter) -> Any:
    """Annotated[kind, what typer calls an option], of a kind that only the run knows."""
    special: Any = Annotated
    return special[parameter.kind, _declared(parameter)]


def _declared(parameter: Parameter) -> Any:
    of = parameter.declared
    if not isinstance(of, Option):
        return typer.Argument(help=of.help, metavar=of.metavar)
    more: dict[str, Any] = {"metavar": of.metavar}
    if parameter.kind is int:
        more = {"count": True, "metavar": "", "show_default": False}
    return typer.Option(*of.names, help=of.help, rich_help_panel=of.panel, **more)


def _paragraphs(text: str) -> str:
    """A docstring with a line for each paragraph, for the terminal to break."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _examples(pairs: Examples) -> str:
    """The end of a tool's help: command lines, and what they do."""
    width = max(len(arguments) for arguments, _ in pairs)
    lines = [f"tcpcore {arguments:{width}}  {meaning}" for arguments, meaning in pairs]
    return "\n".join(["Examples:", *lines])


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tcpcore {__version__}")
        raise typer.Exit()


def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _wanted(arguments: list[str]) -> list[str]:
    """The tool that is called; all where the shell asks for completions, which has another way to
    hand over what is typed so far."""
    if "_TCPCORE_COMPLETE" in os.environ:
        return names()
    called = next((a for a in arguments if not a.startswith("-")), None)
    return [called] if called in names() else []
