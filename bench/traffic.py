"""Connections that live longer than a storm's: traffic.c, compiled at run time."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.storm import ADDRESS

SECONDS = 3
LOSS = "5%"
_LOSSY = (
    "unshare",
    "--net",
    "sh",
    "-c",
    f'ip link set lo up && tc qdisc add dev lo root netem loss {LOSS} && exec "$@"',
    "sh",
)
_MOST = 9_000  # connections of one process, which has both ends open: most may have 20,000 files


@dataclass(frozen=True)
class Traffic:
    """A built generator."""

    program: Path

    def run(self, kind: str) -> float:
        """MB per second of one bulk transfer, or requests per second."""
        return self._run(kind)

    def run_lossy(self, kind: str) -> float:
        """The same in a network namespace of its own, whose loopback device loses packets."""
        return self._run(kind, _LOSSY)

    def _run(self, kind: str, within: Sequence[str] = ()) -> float:
        command = [*within, str(self.program), kind, ADDRESS, str(SECONDS)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=60)
        return float(done.stdout)

    @contextmanager
    def idle(self, connections: int) -> Iterator[None]:
        """So many open connections, on which nothing happens."""
        with ExitStack() as stack:
            for begin in range(0, connections, _MOST):
                stack.enter_context(self._some(min(_MOST, connections - begin)))
            yield

    @contextmanager
    def _some(self, connections: int) -> Iterator[None]:
        command = [str(self.program), "idle", ADDRESS, str(connections)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout and process.stdin
            if not process.stdout.readline():
                raise OSError(f"no {connections} connections")
            yield
            process.stdin.close()


def can_lose() -> bool:
    """Whether this kernel has netem."""
    return not subprocess.run([*_LOSSY, "true"], stderr=subprocess.DEVNULL).returncode


def build(folder: Path) -> Traffic:
    """Compile the generator into `folder`."""
    program = folder / "traffic"
    source = Path(__file__).with_name("traffic.c")
    subprocess.run(["gcc", "-O2", "-pthread", "-o", program, source], check=True)
    return Traffic(program)
