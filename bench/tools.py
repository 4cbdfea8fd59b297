"""What is measured, what a connection of the storm makes of it, and the targets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.storm import ADDRESS
from bench.table import Target
from tcpcore.tools import names
from tests import facts

# Of every tool of ours.
MEMORY_MB = 45
STARTS_OF_TCPSTATES = 6
END_BEYOND_TCPSTATES_MS = 50
LINE_US = {"text": 2.0, "json": 3.0, "csv": None}
# Of those that have one of their own: the share of the untraced rate, the time in BPF per event.
KEPT = {"accept": 0.85, "connect": 0.85, "connect -c": 0.85, "connlat": 0.85, "states": 0.94}
KEPT |= {"retrans": 0.85, "reset": 0.85, "drop": 0.85, "ports": 0.95, "path --lport 40000": 0.70}
KEPT_BY_ALL = 0.80
NS = {"states": 750.0}
# The share of a bulk transfer, and of requests, under tools that have to do with what is sent.
KEPT_OF_TRAFFIC = {"top": 0.98, "subnet": 0.98, "rtt --weight connection": 0.98}
KEPT_OF_TRAFFIC |= {"rtt": 0.95, "pktlat": 0.95}

# Those that have to do with packets that are lost.
OF_LOSSES = ("retrans", "cong", "drop")

ONE_FLOW = {"path": "path --lport 40000"}
"""Who shows every packet is measured as it is used: on one flow among many."""
OF_ORIGINALS = {"tcptop": ("-C",)}
"""Options: without a terminal it cannot clear one, and ends."""
ORIGINALS = Path("/usr/sbin")
"""Of libbpf-tools; it is not on everybody's PATH."""


def _row(line: bytes) -> int:
    return 1


def _connects(line: bytes) -> int:
    return int(line.split()[-2])  # of CONNECTS FAILED


@dataclass(frozen=True)
class Tool:
    """A program to measure.

    name: its title, and for ours the arguments. count: the events in a line.
    """

    name: str
    ours: bool = True
    count: Callable[[bytes], int] = _row

    @property
    def choice(self) -> str:
        """The word that chooses it: a tool of ours together with its original."""
        return self.name.split()[0].removeprefix("tcp")

    @property
    def events(self) -> int:
        """Of a connection, both ends together. In the storm both reset it, and provoke no more."""
        shown = facts.of(self.choice)
        return shown.reset + shown.ownerless if shown.provoke is facts.nothing else 0

    @property
    def listener(self) -> int:
        """Events of a listening socket."""
        return facts.of(self.choice).listener

    @property
    def kept(self) -> float:
        """The least share of the untraced rate."""
        return KEPT.get(self.name, KEPT_BY_ALL)

    @property
    def ns(self) -> float | None:
        """The most time in its BPF programs, per event."""
        return NS.get(self.name)

    @property
    def streams(self) -> bool:
        """Prints a header at the start and a row per event, not a sum at the end."""
        return self.count is _row and (not self.ours or self.choice in facts.streams())

    @property
    def follows_traffic(self) -> bool:
        return (self.name if self.ours else self.choice) in KEPT_OF_TRAFFIC

    def command(self, *options: str) -> Sequence[str]:
        if self.ours:
            return (*TCPCORE, *self.name.split(), *options)
        return (str(_path(self.name)), *OF_ORIGINALS.get(self.name, ()))

    def target(self, least: float | None = None, most: float | None = None) -> Target | None:
        """None without limits, and for tools that are not ours."""
        return Target(least, most) if self.ours and (least, most) != (None, None) else None

    def read(self, output: Path) -> int:
        """The storm's events in what it printed, with those of listeners."""
        with output.open("rb") as file:
            return sum(self.count(line) for line in file if ADDRESS.encode() in line)


def _path(original: str) -> Path:
    return ORIGINALS / original


def _tcpcore() -> Sequence[str]:
    """As this interpreter finds it, the installed script where there is one."""
    script = Path(sys.executable).with_name("tcpcore")
    return [str(script)] if script.exists() else [sys.executable, "-m", "tcpcore"]


TCPCORE = _tcpcore()
TCPSTATES = Tool("tcpstates", ours=False)
ALL = (
    *(Tool(ONE_FLOW.get(name, name)) for name in names()),
    Tool("connect -c", count=_connects),
    *(Tool(name) for name in KEPT_OF_TRAFFIC if " " in name and name.split()[0] in names()),
    *(Tool(f"tcp{name}", ours=False) for name in names() if _path(f"tcp{name}").exists()),
)
