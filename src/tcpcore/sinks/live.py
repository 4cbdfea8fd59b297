"""A table that stays in its place on a terminal: q ends it, s sorts it otherwise, p pauses it."""

from __future__ import annotations

import io
import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from tcpcore.model.losses import Losses, describe
from tcpcore.model.tool import Lines, Records, Tool
from tcpcore.sinks.destination import tell
from tcpcore.sinks.printer import Printer
from tcpcore.sinks.table import Table
from tcpcore.sinks.table import Text as Plain

# console_codes(4): the other screen, so that what stood on this one comes back; no cursor there.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_BELOW = "\x1b[H", "\x1b[J"


class Live(Printer):
    """Shows the last report, as much of it as the terminal has room for.

    keys: gives what was typed. When it is over, the last report stands on the screen below.
    """

    def __init__(
        self, tool: Tool, lines: Lines, wide: bool, write: Callable[[str], None], keys: Keys
    ) -> None:
        super().__init__(tool, Plain(wide), write)
        self._lines, self._wide, self._keys = lines, wide, keys
        self._records: Records = ()
        self._size = (0, 0)
        self._paused = self.is_over = False
        self._losses = Losses()
        self._screen()  # rich imports more as it draws: later it could not

    def begin(self) -> None:
        self._write(_ENTER)
        self._draw()

    def batch(self, lines: Lines, records: Records) -> None:
        """There are no events."""

    def report(self, lines: Lines, records: Records) -> None:
        if not self._paused:
            self._records = records
            self._draw()

    def losses(self, losses: Losses) -> None:
        self._losses = losses
        self._draw()

    def end(self) -> None:
        """Back to the terminal as it was, with the last report on it."""
        self._write(_LEAVE)
        super().report(self._lines, self._records)
        if self._losses:
            tell(f"tcpcore: {describe(self._losses)}")

    def look(self) -> bool:
        """At the keyboard and the size of the terminal; whether the user wants to end it."""
        for key in self._keys.typed():
            self._obey(key)
        if self._size != _size():
            self._draw()
        return self.is_over

    def _obey(self, key: str) -> None:
        ranking = self._lines.ranking
        if key in "qQ":
            self.is_over = True
        elif key in "pP":
            self._paused = not self._paused
            self._draw()
        elif key in "sS" and ranking:
            ranking.turn()
            self._draw()

    def _draw(self) -> None:
        self._write(_HOME + self._screen() + _CLEAR_BELOW)

    def _screen(self) -> str:
        self._size = columns, rows = _size()
        out = io.StringIO()
        console = Console(
            file=out, width=columns, height=rows, force_terminal=True, color_system=None
        )
        head = self._lines.title().splitlines() if self._lines.title else []
        head.append(self._state())
        for line in head:
            console.print(Text(line, no_wrap=True, overflow="ellipsis"))
        console.print(self._grid(max(0, rows - len(head) - 2)))
        # A line break at the last line would scroll the first one away.
        return out.getvalue().rstrip("\n").replace("\n", "\x1b[K\r\n") + "\x1b[K"

    def _state(self) -> str:
        ranking = self._lines.ranking
        words = [f"sorted by {ranking.order}"] if ranking else []
        words += ["paused"] if self._paused else []
        words += [describe(self._losses)] if self._losses else []
        return "; ".join([*words, "keys: q quit, s sort, p pause"])

    def _grid(self, most: int) -> Grid:
        table = Table(self._lines, self._wide)
        grid = Grid(box=None, padding=(0, 1, 0, 0), show_edge=False, header_style="reverse")
        for title in table.titles:
            grid.add_column(Text(title), no_wrap=True, overflow="ellipsis")
        for cells in table.cells(self._records[:most]):
            grid.add_row(*map(Text, cells))
        return grid


def _size() -> tuple[int, int]:
    return os.get_terminal_size(1)


class Keys:
    """What is typed on standard input, a key at a time."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def typed(self) -> str:
        """The keys since the last call."""
        found = ""
        while self._fd is not None and select.select([self._fd], [], [], 0)[0]:
            data = os.read(self._fd, 100)
            if not data:
                self._fd = None  # the end: nothing more will come
            found += data.decode(errors="replace")
        return found


@contextmanager
def keyboard() -> Iterator[Keys]:
    """Keys as they are typed, and not shown; none where standard input is no terminal of ours."""
    try:
        fd = sys.stdin.fileno()
        before = termios.tcgetattr(fd)
        # A job in the background that asks the terminal for anything is stopped: tcsetattr(3).
        if os.tcgetpgrp(fd) != os.getpgrp():
            raise OSError("in the background")
        tty.setcbreak(fd)
    except (OSError, ValueError, AttributeError, termios.error):
        yield Keys(None)
        return
    try:
        yield Keys(fd)
    finally:
        with suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
