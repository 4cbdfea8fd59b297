"""The parts of the benchmark. Each measures all its tools in turn, round by round: what else the
host does then falls on all of them."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import host, tools, tracer
from bench.flood import PACKETS, Flood
from bench.flood import build as build_flood
from bench.storm import ADDRESS, Storm
from bench.table import Cell, Group, Row, Target
from bench.terminal import Life, live
from bench.tools import Tool
from bench.tracer import Outcome
from bench.traffic import LOSS, SECONDS, build, can_lose

STARTS = 10
FILTERED, FILTERED_KEPT = "states", 0.95
FLOODED = ((), ("-c",), ("--rate", "100"))  # options of drop
TRAFFIC = ("bulk", "requests")
WALKING = ("top", "subnet", "rtt --weight connection")
SOCKETS = (100, 1_000, 10_000, 25_000)  # connections: each has two sockets here
WALKED_SECONDS = 4
# Addresses of RFC 2544, which nobody has.
UNWANTED = {
    "--raddr": ("--raddr", "198.18.0.1"),
    "-D": ("-D", "1"),
    "--pid": ("--pid", "1"),
    "64 prefixes": ("--raddr", ",".join(f"198.18.{number}.0/24" for number in range(64))),
}


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
    rows: dict[str, Row] = {}
    for tool in setting.tools:
        ns = [outcomes[tool].kernel_ns / setting.storm.connections for outcomes in rounds]
        runs = [outcomes[tool].runs / setting.storm.connections for outcomes in rounds]
        row = {"ns a connection": Cell(ns), "runs a connection": Cell(runs, 1)}
        if tool.events:
            per_event, most = [n / tool.events for n in ns], tool.target(most=tool.ns)
            row["ns an event"] = Cell(per_event, 0, most, spread=True)
        rows[tool.name] = row
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


def filters(setting: Setting) -> Group:
    """A storm under filters that none of it passes."""
    tools = [tool for tool in setting.tools if tool.name == FILTERED]
    shares: dict[tuple[Tool, str], list[float]]
    shares = {(tool, name): [] for tool in tools for name in UNWANTED}
    for _ in range(setting.rounds):
        free = setting.storm.run()
        for (tool, name), values in shares.items():
            values.append(setting.run(tool, *UNWANTED[name]).rate / free)
    rows = {
        f"{tool.name} {name}": {
            "of untraced": Cell(values, 3, tool.target(least=FILTERED_KEPT), spread=True)
        }
        for (tool, name), values in shares.items()
    }
    return Group("Storm under filters that nothing passes", rows)


def traffic(setting: Setting) -> Group:
    """What is left of a bulk transfer's rate, and of the rate of small requests, under the tools
    that have to do with what connections send."""
    load = build(setting.folder)
    chosen = [tool for tool in setting.tools if tool.follows_traffic]
    kept: dict[Tool, dict[str, list[float]]] = {
        tool: {kind: [] for kind in TRAFFIC} for tool in chosen
    }
    for _ in range(setting.rounds):
        for kind in TRAFFIC:
            free = load.run(kind)
            for tool in chosen:
                with tracer.at_work(tool.command(), setting.folder):
                    kept[tool][kind].append(load.run(kind) / free)
    return Group(
        "Traffic of open connections, share of untraced",
        {
            tool.name: {
                kind: Cell(
                    values, 3, tool.target(tools.KEPT_OF_TRAFFIC.get(tool.name)), spread=True
                )
                for kind, values in shares.items()
            }
            for tool, shares in kept.items()
        },
    )


def flood(setting: Setting) -> Group:
    """Packets per second that the kernel drops, and what drop makes of them: shown, counted, told
    as lost, or missing."""
    load = build_flood(setting.folder)
    rates: list[float] = []
    rows: dict[str, Row] = {"untraced": {"packets/s": Cell(rates, spread=True)}}
    chosen = [tool for tool in setting.tools if tool.name == "drop"]
    runs: dict[tuple[Tool, tuple[str, ...]], list[tuple[float, ...]]]
    runs = {(tool, options): [] for tool in chosen for options in FLOODED}
    for _ in range(setting.rounds):
        rates.append(load.run())
        for (tool, options), outcomes in runs.items():
            outcomes.append(_flooded(setting, tool, options, load))
    for (tool, options), outcomes in runs.items():
        rate, shown, counted, lost = zip(*outcomes, strict=True)
        missing = [PACKETS - sum(each[1:]) for each in outcomes]
        rows[" ".join((tool.name, *options))] = {
            "packets/s": Cell(rate, spread=True),
            "shown": Cell(shown),
            "counted": Cell(counted),
            "lost": Cell(lost),
            "missing": Cell(missing, 0, Target(0, 0), _furthest(0)),
        }
    return Group(f"Flood of {PACKETS:,} dropped packets", rows)


def _flooded(
    setting: Setting, tool: Tool, options: Sequence[str], load: Flood
) -> tuple[float, int, int, int]:
    """One flood: its rate, the packets shown, those counted, those told as lost."""
    command = tool.command("--json", "--laddr", ADDRESS, *options)
    with tracer.at_work(command, setting.folder):
        rate = load.run()
    shown = counted = lost = 0
    with (setting.folder / "output").open() as file:
        for record in map(json.loads, file):
            shown += record["type"] == "event"
            counted += record.get("drops", 0)
            if record["type"] == "lost":  # so far
                lost = sum(number for number in record.values() if isinstance(number, int))
    return rate, shown, counted, lost


def sockets(setting: Setting) -> Group:
    """Time in BPF programs for each look at an open connection's two ends, by how many are open."""
    load = build(setting.folder)
    rows: dict[str, Row] = {}
    with host.bpf_statistics():
        for tool in [tool for tool in setting.tools if tool.name in WALKING]:
            cells = {}
            for number in SOCKETS:
                with load.idle(number):
                    us = [_us_a_second(setting, tool) for _ in range(setting.rounds)]
                cells[f"{number:,} us a second"] = Cell(us, 0, spread=True)
            rows[tool.name] = cells
    return Group("Walks over open connections", rows)


def _us_a_second(setting: Setting, tool: Tool) -> float:
    """Time in its programs, once it is attached and has found what was there."""
    with tracer.at_work(tool.command(), setting.folder) as pid:
        before = _program_ns(pid)
        time.sleep(WALKED_SECONDS)
        return (_program_ns(pid) - before) / 1e3 / WALKED_SECONDS


def _program_ns(pid: int) -> int:
    return sum(ns for ns, _ in tracer.programs(pid).values())


def looks(setting: Setting) -> Group:
    """CPU time of a look at the ports of all open connections, each second, beside ss, which
    is to be started for each."""
    load = build(setting.folder)
    rows: dict[str, dict[str, Cell]] = {"ports": {}, "ss -Htan": {}}
    for number in SOCKETS:
        with load.idle(number):
            ours = [_ms_of_ports(setting) for _ in range(setting.rounds)]
            theirs = [_ms_of_ss() for _ in range(setting.rounds)]
        title = f"{number:,} ms a second"
        rows["ports"][title] = Cell(ours, 1, spread=True)
        rows["ss -Htan"][title] = Cell(theirs, 1, spread=True)
    return Group("Ports in use, CPU time", rows)


def _ms_of_ports(setting: Setting) -> float:
    with tracer.at_work(Tool("ports").command("-i", "1"), setting.folder) as pid:
        before = tracer.running_ns(pid)
        time.sleep(WALKED_SECONDS)
        return (tracer.running_ns(pid) - before) / 1e6 / WALKED_SECONDS


def _ms_of_ss() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(WALKED_SECONDS):
        subprocess.run(["ss", "-Htan"], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds * 1e3 / WALKED_SECONDS


def loss(setting: Setting) -> Group:
    """What is left of the rate of a bulk transfer that loses packets, and the time in BPF programs,
    which is measured meanwhile: where the kernel has netem."""
    load = build(setting.folder)
    chosen = [tool for tool in setting.tools if tool.name in tools.OF_LOSSES and can_lose()]
    kept: dict[Tool, list[float]] = {tool: [] for tool in chosen}
    spent: dict[Tool, list[float]] = {tool: [] for tool in chosen}
    with host.bpf_statistics():
        for _ in range(setting.rounds if chosen else 0):
            free = load.run_lossy("bulk")
            for tool in chosen:
                with tracer.at_work(tool.command(), setting.folder) as pid:
                    before = _program_ns(pid)
                    kept[tool].append(load.run_lossy("bulk") / free)
                    spent[tool].append((_program_ns(pid) - before) / 1e3 / SECONDS)
    return Group(
        f"Bulk transfer, netem loss {LOSS}",
        {
            tool.name: {
                "of untraced": Cell(kept[tool], 3, spread=True),
                "us a second": Cell(spent[tool], 0, spread=True),
            }
            for tool in chosen
        },
    )


def start(setting: Setting) -> Group:
    """From exec to the header on a terminal, where that time goes in a tool of ours, and from the
    signal to the exit: beside those of tcpstates, each time in turn. The first time, which fills
    the caches, does not count."""
    lives: dict[Tool, list[Life]] = {tool: [] for tool in [tools.TCPSTATES, *setting.tools]}
    phases: dict[Tool, list[dict[str, float]]] = {
        tool: [] for tool in setting.tools if tool.ours and tool.streams
    }
    whole: dict[str, list[float]] = {"--version": [], "--help": []}
    for _ in range(1 + STARTS):
        for tool, runs in lives.items():
            runs.append(_live(setting, tool))
        for tool, times in phases.items():
            times.append(_phases(setting, tool))
        for option, ms in whole.items():
            ms.append(_whole_run(setting, option))
    theirs = lives[tools.TCPSTATES]
    rows = {tool.name: _life_row(tool, runs[1:], theirs[1:]) for tool, runs in lives.items()}
    for tool, times in phases.items():
        rows[tool.name] |= {name: Cell([run[name] for run in times[1:]], 1) for name in times[0]}
    for option, ms in whole.items():
        rows[f"tcpcore {option}"] = {"start": Cell(ms[1:], spread=True)}
    return Group(f"Start and end, {STARTS} times, ms", rows)


def _life_row(tool: Tool, runs: Sequence[Life], theirs: Sequence[Life]) -> dict[str, Cell]:
    pairs = list(zip(runs, theirs, strict=True))
    times = [ours.start / other.start for ours, other in pairs]
    longer = [(ours.end - other.end) * 1e3 for ours, other in pairs]
    return {
        "start": Cell([run.start * 1e3 for run in runs], spread=True),
        "of tcpstates'": Cell(times, 1, tool.target(most=tools.STARTS_OF_TCPSTATES)),
        "end": Cell([run.end * 1e3 for run in runs], spread=True),
        "beyond tcpstates'": Cell(longer, 0, tool.target(most=tools.END_BEYOND_TCPSTATES_MS)),
    }


def _live(setting: Setting, tool: Tool) -> Life:
    """Who has no header at the start says with -v that it is attached."""
    options, awaited = ((), b"\n") if tool.streams else (("-v",), b"attached: ")
    return live(tool.command(*options), awaited, tracer.environment(setting.folder))


def _whole_run(setting: Setting, option: str) -> float:
    """From exec to exit, in ms."""
    environment = tracer.environment(setting.folder)
    begin = time.monotonic()
    subprocess.run([*tools.TCPCORE, option], check=True, stdout=subprocess.DEVNULL, env=environment)
    return (time.monotonic() - begin) * 1e3


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
    "filters": filters,
    "traffic": traffic,
    "flood": flood,
    "sockets": sockets,
    "looks": looks,
    "loss": loss,
    "start": start,
}
