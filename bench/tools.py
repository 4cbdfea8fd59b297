"""What is measured, what a connection of the storm makes of it, and the targets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.storm import ADDRESS
from bench.table import Target

# Of every tool of ours.
MEMORY_MB = 45
START_MS = 100
LINE_US = {"text": 2.0, "json": 3.0, "csv": None}


def _row(line: bytes) -> int:
    return 1


def _connects(line: bytes) -> int:
    return int(line.split()[-2])  # of CONNECTS FAILED


@dataclass(frozen=True)
class Tool:
    """A program to measure.

    name: its title, and for ours the arguments. events: of a connection, both ends together.
    kept: the least share of the untraced rate; None: not ours, no targets. ns: of a BPF program's
    time per event at most. listener: events of a listening socket. count: the events in a line.
    """

    name: str
    events: int
    kept: float | None = None
    ns: float | None = None
    listener: int = 0
    count: Callable[[bytes], int] = _row

    @property
    def choice(self) -> str:
        """The word that chooses it: a tool of ours together with its original."""
        return self.name.split()[0].removeprefix("tcp")

    @property
    def ours(self) -> bool:
        return self.kept is not None

    @property
    def streams(self) -> bool:
        """Prints a header at the start and a row per event, not a sum at the end."""
        return self.count is _row

    def command(self, *options: str) -> Sequence[str]:
        """tcpcore as this interpreter finds it, the installed script where there is one.
        libbpf-tools are in /usr/sbin, which is not on everybody's PATH."""
        if not self.ours:
            return (f"/usr/sbin/{self.name}",)
        script = Path(sys.executable).with_name("tcpcore")
        start = [str(script)] if script.exists() else [sys.executable, "-m", "tcpcore"]
        return (*start, *self.name.split(), *options)

    def target(self, least: float | None = None, most: float | None = None) -> Target | None:
        """None without limits, and for tools that are not ours."""
        return Target(least, most) if self.ours and (least, most) != (None, None) else None

    def read(self, output: Path) -> int:
        """The storm's events in what it printed, those of listeners with them."""
        with output.open("rb") as file:
            return sum(self.count(line) for line in file if ADDRESS.encode() in line)


# A connection is reset by both ends. The client's socket: CLOSE, SYN_SENT, ESTABLISHED, CLOSE. The
# accepted one: LISTEN, SYN_RECV, ESTABLISHED, CLOSE, mostly before it is accepted. So states has
# six rows, life one of each end, and tracer C, A and an X of each end.
ALL = (
    Tool("connlat", events=1, kept=0.85),
    Tool("connect", events=1, kept=0.85),
    Tool("connect -c", events=1, kept=0.85, count=_connects),
    Tool("accept", events=1, kept=0.85),
    Tool("tracer", events=4, kept=0.80),
    Tool("life", events=2, kept=0.80),
    Tool("states", events=6, kept=0.85, ns=1000, listener=2),
    Tool("tcpconnlat", events=1),
    Tool("tcpconnect", events=1),
    Tool("tcptracer", events=4),
    Tool("tcplife", events=2),
    Tool("tcpstates", events=6, listener=2),
)
