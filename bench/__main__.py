"""`python -m bench [PART | TOOL]...`: measure and print tables. A target missed is no failure."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import host, parts, table, tools, tracer
from bench.parts import Setting
from bench.storm import Storm, build
from bench.tools import Tool
from bench.tracer import TracerError


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Measure what tracing costs.")
    choices = (*parts.ALL, *dict.fromkeys(tool.choice for tool in tools.ALL))
    words = f"parts and tools, all when none: {', '.join(choices)}"
    parser.add_argument("words", nargs="*", metavar="WORD", help=words)
    parser.add_argument("--rounds", type=_positive, default=3)
    parser.add_argument("--connections", type=_positive, default=50_000, help="of a storm")
    parser.add_argument("--pairs", type=_positive, default=1)
    arguments = parser.parse_args()
    unknown = set(arguments.words).difference(choices)
    if unknown:
        parser.error(f"no {', '.join(sorted(unknown))}; there are: {', '.join(choices)}")
    return arguments


def _measure(arguments: argparse.Namespace, folder: Path) -> str:
    lines = [host.describe()]
    storm = build(folder, arguments.connections, arguments.pairs)
    chosen = [tool for tool in tools.ALL if tool.choice in arguments.words] or tools.ALL
    absent = [tool for tool in chosen if not _works(tool, folder, storm)]
    setting = Setting(folder, storm, arguments.rounds, [t for t in chosen if t not in absent])
    groups = []
    for name in [name for name in parts.ALL if name in arguments.words] or parts.ALL:
        print(f"bench: {name}", file=sys.stderr)
        groups.append(parts.ALL[name](setting))
    load = f"{storm.connections:,} connections, {storm.pairs} client-server pair(s)"
    lines.append(f"{load}, medians of {arguments.rounds} rounds")
    lines += [f"{tool.name}: does not run here" for tool in absent]
    return "\n".join(lines) + f"\n\n{table.render(groups)}"


def _works(tool: Tool, folder: Path, storm: Storm) -> bool:
    """An original may be absent, or need what this kernel lacks. Ours have to work."""
    try:
        return tool.ours or bool(tracer.run(tool.command(), tool, folder, storm, idle=True))
    except (TracerError, OSError):
        return False


def main() -> None:
    """Run the parts that are asked for."""
    arguments = _arguments()
    host.enter()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: terminated"))  # not without clean-up
    try:
        with tempfile.TemporaryDirectory(prefix="tcpcore-bench-") as folder:
            print(_measure(arguments, Path(folder)), end="")
    except (TracerError, OSError, subprocess.SubprocessError) as e:
        sys.exit(f"bench: {e}")


if __name__ == "__main__":
    main()
