"""What a tool shows, as only its author can tell. Tests and benchmark go by it: each tool's live
tests, tests/live/test_<tool>.py, have it as FACTS."""

from __future__ import annotations

import importlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from tcpcore import tools

Act = Callable[[socket.socket, socket.socket], object]
"""What is done with the client's and the server's end of an open connection."""


def nothing(client: socket.socket, accepted: socket.socket) -> None:
    """Enough for a tool that shows every connection."""


@dataclass(frozen=True)
class Facts:
    """header: of the table; scripts cut columns by their place. fields: of JSON, without those that
    every event has. A tool of histograms has neither.

    Of a tool with a stream:

    Rows of one connection over loopback, both ends together: reset, closed: with an owner, if it
    ends by RST or in order. ownerless: before anybody accepts it. listener: of the listening
    socket.

    Entries in the tool's map: queued: ends of a connection that waits to be accepted. kept: ends of
    one that was accepted and is open. listening: of a listening socket, also where filters ask for
    a peer, which it has not.

    provoke: on the open connection, what makes the tool show it.

    packets: it shows packets, whatever connection they are of, and no owner: tests of its own try
    the filters on it.
    """

    header: str = ""
    fields: frozenset[str] = frozenset()
    reset: int = 0
    closed: int = 0
    ownerless: int = 0
    listener: int = 0
    queued: int = 0
    kept: int = 0
    packets: bool = False
    listening: int = 0
    provoke: Act = nothing


def of(tool: str) -> Facts:
    """A tool's facts. No default: without them nothing would test it."""
    return cast(Facts, importlib.import_module(f"tests.live.test_{tool}").FACTS)


def streams() -> list[str]:
    """The tools that show events of connections. All filters are tried on them: they are the same
    in all tools. One that shows listeners alone tries them in tests of its own."""
    made = {name: importlib.import_module(f"tcpcore.tools.{name}").TOOL for name in tools.names()}
    shown = [name for name, tool in made.items() if tool.stream]
    return [name for name in shown if of(name).reset + of(name).closed]
