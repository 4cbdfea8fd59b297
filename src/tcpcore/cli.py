"""The `tcpcore` command: one subcommand per module in tcpcore.tools."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TextIO

from tcpcore import __version__
from tcpcore.errors import TcpcoreError
from tcpcore.model import net
from tcpcore.sinks.destination import tell
from tcpcore.tools import names


def main() -> None:
    """Run the command line; every error is one line on standard error."""
    if sys.stderr is None:  # closed: print() would take standard output for it
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    code = _run(sys.argv[1:] or ["--help"])
    _give_up(sys.stdout)
    _give_up(sys.stderr)
    sys.exit(code)


_ALIASES = {"trace": "path"}
"""More names of tools."""


def _run(arguments: list[str]) -> int:
    """The exit code."""
    try:
        done = _call(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except TcpcoreError as e:
        return _fail(str(e), e.exit_code)
    except KeyboardInterrupt:
        return 130
    except Exception as e:
        if os.environ.get("TCPCORE_DEBUG"):
            raise
        if isinstance(e, OSError) and e.strerror:
            return _fail(f"{e.filename}: {e.strerror}" if e.filename else e.strerror, 1)
        what = f"{type(e).__name__}: {e}"
        return _fail(f"internal error: {what} (TCPCORE_DEBUG=1 shows where)", 1)
    return done


def _call(arguments: list[str]) -> int:
    """What typer need not be asked about starts at once."""
    if arguments == ["--version"]:
        print(f"tcpcore {__version__}")
        return 0
    name, *words = arguments = [_ALIASES.get(arguments[0], arguments[0]), *arguments[1:]]
    if name in names() and "_TCPCORE_COMPLETE" not in os.environ:
        from tcpcore.options import Command  # with it comes all that a trace needs

        command = Command(importlib.import_module(f"tcpcore.tools.{name}"))
        values = command.read(words)
        if values is not None:
            command.run(**values)
            return 0
    from tcpcore import explain

    return explain.run(arguments)


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
