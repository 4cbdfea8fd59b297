"""A tracer as a process of its own: attached, loaded with a storm, drained, stopped, measured."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.storm import Storm
from bench.tools import Tool

_QUIET = 0.1
"""A tracer that wants less of a CPU than this is waiting for events."""
_WINDOW = 0.25
_LIMIT = 120.0


class TracerError(Exception):
    """A tracer that did not start, or did not come to rest."""


def environment(folder: Path) -> dict[str, str]:
    """Ours, with bytecode in `folder`: written, as it is for an installed package, and out of the
    checkout, which may belong to somebody who is not root."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}


@dataclass(frozen=True)
class Outcome:
    """One run. cpu: seconds, user and system. peak: bytes. kernel_ns, runs: of all its programs.

    rate: connections per second, 0 when there was no storm. events: of the connections, read.
    """

    rate: float
    events: int
    lost: int
    cpu: float
    peak: int
    kernel_ns: int
    runs: int


def run(
    command: Sequence[str], tool: Tool, folder: Path, storm: Storm, idle: bool = False
) -> Outcome:
    """Trace one storm into a file, or nothing when idle. command: the tool's."""
    output, errors = folder / "output", folder / "errors"
    with _started(command, folder, output, errors) as process:
        _rest(process, errors)
        rate = 0.0 if idle else storm.run()
        _rest(process, errors)
        kernel_ns, runs = map(sum, zip(*programs(process.pid).values(), strict=True))
        peak = _peak(process.pid)
        cpu = _stop(process)
    counts = tool.events and not idle
    events = tool.read(output) - storm.pairs * tool.listener if counts else 0
    return Outcome(rate, events, _lost(errors.read_text()), cpu, peak, kernel_ns, runs)


@contextmanager
def at_work(command: Sequence[str], folder: Path) -> Iterator[int]:
    """A tracer that is attached, and ended afterwards; its pid."""
    output, errors = folder / "output", folder / "errors"
    with _started(command, folder, output, errors) as process:
        _rest(process, errors)
        yield process.pid
        _stop(process)


@contextmanager
def _started(
    command: Sequence[str], folder: Path, output: Path, errors: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with output.open("wb") as out, errors.open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment(folder))
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()


def _rest(process: subprocess.Popen[bytes], errors: Path) -> None:
    """Until the tracer has loaded its programs and waits for events. The header says so too, but
    that of libbpf-tools stays in a buffer until the end, as do their last rows."""
    end = time.monotonic() + _LIMIT
    while time.monotonic() < end:
        before = _wanted_ns(process.pid)
        time.sleep(_WINDOW)
        if process.poll() is not None:
            raise TracerError(errors.read_text().strip() or f"exit {process.returncode}")
        quiet = _wanted_ns(process.pid) - before < _QUIET * _WINDOW * 1e9
        if quiet and programs(process.pid):
            return
    raise TracerError(f"{process.args!r} did not come to rest")


def _wanted_ns(pid: int) -> int:
    """Time on a CPU and time spent waiting for one: on a busy host the second counts as well."""
    return sum(_scheduled_ns(pid))


def running_ns(pid: int) -> int:
    """Time on a CPU."""
    return _scheduled_ns(pid)[0]


def _scheduled_ns(pid: int) -> tuple[int, int]:
    running, waiting, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(running), int(waiting)


def programs(pid: int) -> dict[int, tuple[int, int]]:
    """The BPF programs that a process holds: id to (run time in ns, runs)."""
    found: dict[int, tuple[int, int]] = {}
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(OSError):  # closed meanwhile
            lines = path.read_text().splitlines()
            fields = dict(line.split(":", 1) for line in lines if ":" in line)
            if "prog_type" in fields:  # links have a prog_id too
                times = int(fields["run_time_ns"]), int(fields["run_cnt"])
                found[int(fields["prog_id"])] = times
    return found


def _peak(pid: int) -> int:
    """VmHWM, since wait4's ru_maxrss begins with what the parent had when it forked."""
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match
    return int(match[1]) << 10


def _stop(process: subprocess.Popen[bytes]) -> float:
    """End it the way a user does; its CPU time, user and system."""
    process.send_signal(signal.SIGINT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def _lost(errors: str) -> int:
    """tcpcore tells the sum so far, clause by clause; libbpf-tools tell each loss."""
    sums = [line for line in errors.splitlines() if line.startswith("tcpcore: lost so far:")]
    if sums:
        return sum(map(int, re.findall(r"[:;] (\d+) ", sums[-1])))
    return sum(map(int, re.findall(r"lost (\d+) events", errors, re.IGNORECASE)))
