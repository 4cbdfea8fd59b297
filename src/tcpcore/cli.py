"""The `tcpcore` command: one subcommand per module in tcpcore.tools."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, Any, TextIO

import typer

from tcpcore import __version__
from tcpcore.errors import TcpcoreError, UsageError
from tcpcore.model import net
from tcpcore.model.option import Examples
from tcpcore.sinks.destination import tell
from tcpcore.tools import about, names

# typer carries a copy of click since 0.2x, under a private name.
_ClickUsageError: Any = typer.BadParameter.__mro__[1]

_HELP = """Trace TCP on this host. Needs root, or CAP_BPF and CAP_PERFMON.

Exit codes: 0 done, 1 failure, 2 usage, 3 this kernel cannot run the tool, 4 missing privilege, \
5 events lost under --fail-on-loss.
"""


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
        app.command(name, help=paragraphs(about(name)))(_main)
    return app


def _add(app: typer.Typer, name: str) -> None:
    from tcpcore.options import command  # imports all that a trace needs

    module = importlib.import_module(f"tcpcore.tools.{name}")
    examples = _examples(module.EXAMPLES)
    app.command(name, help=paragraphs(module.__doc__ or ""), epilog=examples)(command(module))


def paragraphs(text: str) -> str:
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
    """The tool that is called, so that it starts fast; all where the shell asks for completions:
    what is typed so far, it hands over in another way."""
    if "_TCPCORE_COMPLETE" in os.environ:
        return names()
    called = next((a for a in arguments if not a.startswith("-")), None)
    return [called] if called in names() else []


def main() -> None:
    """Run the command line; every error is one line on standard error."""
    if sys.stderr is None:  # closed: print() would take standard output for it
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    code = _run(sys.argv[1:] or ["--help"])
    _give_up(sys.stdout)
    _give_up(sys.stderr)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """The exit code."""
    try:
        # The exit code of what typer does by itself (help, completion); None of a tool.
        done = application(_wanted(arguments))(
            arguments, prog_name="tcpcore", standalone_mode=False
        )
        if sys.stdout is not None:
            sys.stdout.flush()
    except TcpcoreError as e:
        return _fail(str(e), e.exit_code)
    except _ClickUsageError as e:
        return _fail(e.format_message(), UsageError.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except Exception as e:
        if os.environ.get("TCPCORE_DEBUG"):
            raise
        if isinstance(e, OSError) and e.strerror:
            return _fail(f"{e.filename}: {e.strerror}" if e.filename else e.strerror, 1)
        what = f"{type(e).__name__}: {e}"
        return _fail(f"internal error: {what} (TCPCORE_DEBUG=1 shows where)", 1)
    return done or 0


def _fail(message: str, code: int) -> int:
    tell(f"tcpcore: {net.printable(message)}")
    return code


def _give_up(stream: TextIO | None) -> None:
    """Python writes at its end what is left, and exits with 120 where that fails."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
