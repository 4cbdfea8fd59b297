"""Packets that the kernel drops: flood.c, compiled at run time."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.storm import ADDRESS

PACKETS = 100_000


@dataclass(frozen=True)
class Flood:
    """A built generator."""

    program: Path

    def run(self) -> float:
        """Packets per second."""
        command = [str(self.program), ADDRESS, str(PACKETS)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=300)
        return float(done.stdout)


def build(folder: Path) -> Flood:
    """Compile the generator into `folder`."""
    program = folder / "flood"
    source = Path(__file__).with_name("flood.c")
    subprocess.run(["gcc", "-O2", "-o", program, source], check=True)
    return Flood(program)
