"""The load: storm.c, compiled at run time."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

ADDRESS = "127.0.0.77"
"""Not 127.0.0.1: so the storm's rows are told from those of anybody else's connections."""


@dataclass(frozen=True)
class Storm:
    """A built generator and how much it does. Each pair has a listener of its own."""

    program: Path
    connections: int
    pairs: int

    def run(self) -> float:
        """Storm once; connections per second."""
        command = [str(self.program), ADDRESS, str(self.connections), str(self.pairs)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=300)
        return float(done.stdout)


def build(folder: Path, connections: int, pairs: int) -> Storm:
    """Compile the generator into `folder`. A pair's share is a whole number of connections."""
    program = folder / "storm"
    source = Path(__file__).with_name("storm.c")
    subprocess.run(["gcc", "-O2", "-pthread", "-o", program, source], check=True)
    return Storm(program, connections // pairs * pairs, pairs)
