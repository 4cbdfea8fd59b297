"""The parts of the benchmark. Each measures all its tracers in turn, round by round: what else the
host does then falls on all of them."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import host, tracer
from bench.storm import Storm
from bench.table import Group, Row
from bench.tracer import Outcome, Tracer, TracerError

STARTS = 10


@dataclass(frozen=True)
class Setting:
    """What every part works with. folder: for files that are gone at the end."""

    folder: Path
    storm: Storm
    rounds: int

    def run(self, traced: Tracer, idle: bool = False) -> Outcome:
        return tracer.run(traced, self.folder, self.storm, idle)


def storm(setting: Setting) -> Group:
    """The rate of a storm untraced and traced, what the tracers saw of it, and their memory."""
    tracers = (tracer.tcpcore(), tracer.tcpstates())
    plain: list[float] = []
    runs: dict[str, list[Outcome]] = {t.name: [] for t in tracers}
    for _ in range(setting.rounds):
        plain.append(setting.storm.run())
        for traced in tracers:
            runs[traced.name].append(setting.run(traced))
    return Group("Storm, output to a file", _storm_rows(setting, plain, runs))


def _storm_rows(setting: Setting, plain: list[float], runs: dict[str, list[Outcome]]) -> list[Row]:
    def column(value: Callable[[Outcome], float]) -> dict[str, list[float]]:
        return {name: [value(run) for run in outcomes] for name, outcomes in runs.items()}

    rates = column(lambda run: run.rate)
    shares = {
        name: [rate / free for rate, free in zip(values, plain, strict=True)]
        for name, values in rates.items()
    }
    events, lost = column(lambda run: run.events), column(lambda run: run.lost)
    return [
        Row("connections/s", {"untraced": plain, **rates}),
        Row("of the untraced rate, same round", shares, 2, ("at least", 0.85)),
        Row("events read, fewest", events, target=("at least", setting.storm.events), pick=min),
        Row("events lost, most", lost, target=("at most", 0), pick=max),
        Row("peak memory, MB, most", column(lambda r: r.peak / 1e6), 1, ("at most", 45), max),
    ]


def kernel(setting: Setting) -> Group:
    """Time in the BPF programs. A storm of its own: measuring takes time as well."""
    tracers = (tracer.tcpcore(), tracer.tcpstates())
    nanoseconds: dict[str, list[float]] = {t.name: [] for t in tracers}
    calls: dict[str, list[float]] = {t.name: [] for t in tracers}
    with host.bpf_statistics():
        for _ in range(setting.rounds):
            for traced in tracers:
                run = setting.run(traced)
                nanoseconds[traced.name].append(run.kernel_ns / setting.storm.events)
                calls[traced.name].append(run.runs / setting.storm.events)
    return Group(
        "Kernel, per state change",
        [
            Row("ns in BPF programs", nanoseconds, 0, ("at most", 1000)),
            Row("runs of BPF programs", calls, 2),
        ],
    )


def reader(setting: Setting) -> Group:
    """CPU time of a line, without what the start and the end take."""
    tracers = {
        "text": tracer.tcpcore(),
        "json": tracer.tcpcore("--json"),
        "csv": tracer.tcpcore("--csv"),
        "tcpstates": tracer.tcpstates(),
    }
    us: dict[str, list[float]] = {name: [] for name in tracers}
    for _ in range(setting.rounds):
        for name, traced in tracers.items():
            us[name].append(_per_line(setting, traced))
    both = {"tcpcore": us["text"], "tcpstates": us["tcpstates"]}
    rows = [
        Row("us a line of text", both, 2, ("at most", 2.0)),
        Row("us a line of JSON", {"tcpcore": us["json"]}, 2, ("at most", 3.0)),
        Row("us a line of CSV", {"tcpcore": us["csv"]}, 2),
    ]
    return Group("Reader, CPU time (user and system)", rows)


def _per_line(setting: Setting, traced: Tracer) -> float:
    idle, busy = setting.run(traced, idle=True), setting.run(traced)
    return (busy.cpu - idle.cpu) / max(1, busy.events) * 1e6


def start(setting: Setting) -> Group:
    """From exec to the header on a terminal, and where that time goes."""
    tracers = (tracer.tcpcore(), tracer.tcpstates())
    times: dict[str, list[float]] = {t.name: [] for t in tracers}
    for traced in tracers:
        _first_line(setting, traced)  # fills the caches
    for _ in range(STARTS):
        for traced in tracers:
            times[traced.name].append(_first_line(setting, traced) * 1e3)
    rows = [Row("ms to the header line", times, 0, ("at most", 100))]
    return Group(f"Start, {STARTS} times", rows + _phases(setting))


def _first_line(setting: Setting, traced: Tracer) -> float:
    """Seconds from exec to the first output. A terminal, since into a pipe tcpstates would write
    its header only with its first 4 KiB."""
    ours, theirs = pty.openpty()
    begin = time.monotonic()
    process = subprocess.Popen(
        traced.command,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env=tracer.environment(setting.folder),
    )
    os.close(theirs)
    try:
        if not select.select([ours], [], [], 30)[0] or not _has_output(ours):
            raise TracerError(f"{traced.name} printed nothing")
        return time.monotonic() - begin
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(10)
        os.close(ours)


def _has_output(terminal: int) -> bool:
    try:
        return bool(os.read(terminal, 4096))
    except OSError:  # EIO: the other end was closed without a word
        return False


def _phases(setting: Setting) -> list[Row]:
    runs = [_phase(setting) for _ in range(STARTS)]
    names = sorted(runs[0], key=lambda name: -statistics.median(run[name] for run in runs))
    return [Row(f"ms: {n}", {"tcpcore": [run[n] for run in runs]}, 1) for n in names]


def _phase(setting: Setting) -> dict[str, float]:
    program = Path(__file__).with_name("phases.py")
    done = subprocess.run(
        [sys.executable, program, repr(time.monotonic())],
        check=True,
        stdout=subprocess.PIPE,
        env=tracer.environment(setting.folder),
    )
    phases: dict[str, float] = json.loads(done.stdout)
    return phases


ALL: dict[str, Callable[[Setting], Group]] = {
    "storm": storm,
    "kernel": kernel,
    "reader": reader,
    "start": start,
}
