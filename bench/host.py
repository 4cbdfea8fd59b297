"""What the measurements need of the host, and the way it is put back."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")
_PROC_STAT = Path("/proc/stat")
_TRACEFS = Path("/sys/kernel/tracing")
_WITH_TRACEFS = f'mount -t tracefs none {_TRACEFS} && exec "$@"'


def enter() -> None:
    """Be root, with a tracefs: libbpf-tools find their tracepoints there.

    Where none is mounted we start again in a mount namespace of our own: nothing to undo.
    """
    if os.geteuid():
        sys.exit("bench: needs root")
    if not (_TRACEFS / "events").exists():
        again = [sys.executable, "-m", "bench", *sys.argv[1:]]
        os.execvp("unshare", ["unshare", "--mount", "sh", "-c", _WITH_TRACEFS, "sh", *again])


@contextmanager
def bpf_statistics() -> Iterator[None]:
    """Let the kernel measure BPF programs; as it was before at the end."""
    before = _STATISTICS.read_text()
    _STATISTICS.write_text("1")
    try:
        yield
    finally:
        _STATISTICS.write_text(before)


def describe() -> str:
    """The machine in a line, with what others do on it: rates need idle CPUs to mean much."""
    system = os.uname()
    busy = f"{_busy():.0%} busy before"
    return f"Linux {system.release} {system.machine}, {os.cpu_count()} CPUs, {busy}"


def _busy() -> float:
    """The CPUs' share of a second that others use."""
    before = _ticks()
    time.sleep(1)
    total, idle = (new - old for new, old in zip(_ticks(), before, strict=True))
    return 1 - idle / total if total else 0.0


def _ticks() -> tuple[int, int]:
    numbers = [int(n) for n in _PROC_STAT.read_text().split("\n", 1)[0].split()[1:9]]
    return sum(numbers), numbers[3] + numbers[4]
