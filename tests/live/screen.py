"""A terminal to look at: what tcpcore draws on it is text that a test can read."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import time
from collections.abc import Callable

from tests.live.harness import until

SHOWN = 1.2  # seconds; what is shown for an interval is looked for so long
_NUMBERS = itertools.count()


class Screen:
    """A terminal of tmux(1), with a server of its own."""

    def __init__(self, command: str, width: int = 90, height: int = 20) -> None:
        self._socket = f"tcpcore-test-{os.getpid()}-{next(_NUMBERS)}"
        size = ("-x", str(width), "-y", str(height))
        self.tmux("-f", "/dev/null", "new-session", "-d", *size, command)

    def tmux(self, *arguments: str) -> str:
        command = ["tmux", "-L", self._socket, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def lines(self) -> list[str]:
        return self.tmux("capture-pane", "-p").splitlines()

    def coloured(self) -> str:
        """With the escape sequences of its colours."""
        return self.tmux("capture-pane", "-p", "-e")

    def shows(self, *texts: str) -> None:
        """Waits until a line has all of these words."""
        until(lambda: self._has(*texts))

    def shows_after(self, act: Callable[[], object], *texts: str) -> None:
        """Acts until a line has all of these words: what happens is shown for an interval only."""

        def is_shown() -> bool:
            act()
            deadline = time.monotonic() + SHOWN
            while time.monotonic() < deadline:
                if self._has(*texts):
                    return True
            return False

        until(is_shown)

    def _has(self, *texts: str) -> bool:
        return any(all(text in line for text in texts) for line in self.lines())

    def type(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def close(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self.tmux("kill-server")
