"""The load: storm.c, compiled at run time."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

ADDRESS = "127.0.0.77"
"""Not 127.0.0.1: so the storm's rows are told from those of anybody else's connections."""
EVENTS = 6
"""State changes of a connection: three of the client's socket, three of the accepted one."""
_LISTENER_EVENTS = 2


@dataclass(frozen=True)
class Storm:
    """A built generator and how much it does."""

    program: Path
    connections: int
    pairs: int

    @property
    def events(self) -> int:
        """State changes of all connections, the listeners left out."""
        return self.connections * EVENTS

    def run(self) -> float:
        """Storm once; connections per second."""
        command = [str(self.program), ADDRESS, str(self.connections), str(self.pairs)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=300)
        return float(done.stdout)

    def count(self, path: Path) -> int:
        """The connections' events among the lines of a tracer's output."""
        with path.open("rb") as file:
            rows = sum(ADDRESS.encode() in line for line in file)
        return max(0, rows - self.pairs * _LISTENER_EVENTS)


def build(folder: Path, connections: int, pairs: int) -> Storm:
    """Compile the generator into `folder`. A pair's share is a whole number of connections."""
    program = folder / "storm"
    source = Path(__file__).with_name("storm.c")
    subprocess.run(["gcc", "-O2", "-pthread", "-o", program, source], check=True)
    return Storm(program, connections // pairs * pairs, pairs)
