"""The parts of the benchmark. Each measures all its tools in turn, round by round: what else the
host does then falls on all of them."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import host, tools, tracer
from bench.storm import Storm
from bench.table import Cell, Group, Row, Target
from bench.tools import Tool
from bench.tracer import Outcome, TracerError

STARTS = 10


@dataclass(frozen=True)
class Setting:
    """What every part works with. folder: for files that are gone at the end."""

    folder: Path
    storm: Storm
    rounds: int
    tools: Sequence[Tool]

    def run(self, tool: Tool, *options: str, idle: bool = False) -> Outcome:
        return tracer.run(tool.command(*options), tool, self.folder, self.storm, idle)

    def round(self) -> dict[Tool, Outcome]:
        """A storm for each tool."""
        return {tool: self.run(tool) for tool in self.tools}


def storm(setting: Setting) -> Group:
    """Connections per second under each tool, and as a share of those without any in the same
    round; the events read and lost, and the tool's memory."""
    rounds = [(setting.storm.run(), setting.round()) for _ in range(setting.rounds)]
    free = [rate for rate, _ in rounds]
    rows: dict[str, Row] = {"untraced": {"connections/s": Cell(free, spread=True)}}
    for tool in setting.tools:
        runs = [outcomes[tool] for _, outcomes in rounds]
        kept = [run.rate / rate for run, rate in zip(runs, free, strict=True)]
        events = setting.storm.connections * tool.events
        read = [run.events for run in runs]
        memory = tool.target(most=tools.MEMORY_MB)
        rows[tool.name] = {
            "connections/s": Cell([run.rate for run in runs]),
            "of untraced": Cell(kept, 3, tool.target(least=tool.kept), spread=True),
            "events": Cell(read, 0, Target(events, events), _furthest(events)),
            "lost": Cell([run.lost for run in runs], 0, tool.target(most=0), max),
            "peak MB": Cell([run.peak / 1e6 for run in runs], 1, memory, max),
        }
    return Group("Storm, output to a file", rows)


def _furthest(wanted: float) -> Callable[[Sequence[float]], float]:
    return lambda values: max(values, key=lambda value: abs(value - wanted))


def kernel(setting: Setting) -> Group:
    """Time in the BPF programs. A storm of its own: measuring takes time as well."""
    with host.bpf_statistics():
        rounds = [setting.round() for _ in range(setting.rounds)]
    rows = {}
    for tool in setting.tools:
        ns = [outcomes[tool].kernel_ns / setting.storm.connections for outcomes in rounds]
        runs = [outcomes[tool].runs / setting.storm.connections for outcomes in rounds]
        per_event = [n / tool.events for n in ns]
        rows[tool.name] = {
            "ns an event": Cell(per_event, 0, tool.target(most=tool.ns), spread=True),
            "ns a connection": Cell(ns),
            "runs a connection": Cell(runs, 1),
        }
    return Group("Time in BPF programs", rows)


def reader(setting: Setting) -> Group:
    """CPU time of a line (user and system), without what the start and the end take."""
    us: dict[Tool, dict[str, list[float]]] = {
        tool: {style: [] for style in (tools.LINE_US if tool.ours else ("text",))}
        for tool in setting.tools
        if tool.streams
    }
    for _ in range(setting.rounds):
        for tool, styles in us.items():
            for style, values in styles.items():
                values.append(_per_line(setting, tool, style))
    return Group(
        "Reader, CPU time, us a line",
        {
            tool.name: {
                style: Cell(values, 2, tool.target(most=tools.LINE_US[style]), spread=True)
                for style, values in styles.items()
            }
            for tool, styles in us.items()
        },
    )


def _per_line(setting: Setting, tool: Tool, style: str) -> float:
    options = () if style == "text" else (f"--{style}",)
    idle, busy = setting.run(tool, *options, idle=True), setting.run(tool, *options)
    return (busy.cpu - idle.cpu) / max(1, busy.events) * 1e6


def start(setting: Setting) -> Group:
    """From exec to the header on a terminal, and where that time goes in a tool of ours."""
    ms: dict[Tool, list[float]] = {tool: [] for tool in setting.tools if tool.streams}
    phases: dict[Tool, list[dict[str, float]]] = {tool: [] for tool in ms if tool.ours}
    for tool in ms:
        _first_line(setting, tool)  # fills the caches
    for _ in range(STARTS):
        for tool, times in ms.items():
            times.append(_first_line(setting, tool) * 1e3)
        for tool, runs in phases.items():
            runs.append(_phases(setting, tool))
    rows = {}
    for tool, times in ms.items():
        runs = phases.get(tool, [{}])
        rows[tool.name] = {
            "to the header": Cell(times, 0, tool.target(most=tools.START_MS), spread=True),
            **{phase: Cell([run[phase] for run in runs], 1) for phase in runs[0]},
        }
    return Group(f"Start, {STARTS} times, ms", rows)


def _first_line(setting: Setting, tool: Tool) -> float:
    """Seconds from exec to the first output. A terminal, since into a pipe libbpf-tools would write
    their header only with the first 4 KiB."""
    ours, theirs = pty.openpty()
    begin = time.monotonic()
    process = subprocess.Popen(
        tool.command(),
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env=tracer.environment(setting.folder),
    )
    os.close(theirs)
    try:
        if not select.select([ours], [], [], 30)[0] or not _has_output(ours):
            raise TracerError(f"{tool.name} printed nothing")
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


def _phases(setting: Setting, tool: Tool) -> dict[str, float]:
    program = Path(__file__).with_name("phases.py")
    done = subprocess.run(
        [sys.executable, program, tool.name, repr(time.monotonic())],
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
