"""`python -m bench [PART...]`: measure and print one table. A target missed is no failure."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import host, parts, table
from bench.parts import Setting
from bench.storm import build
from bench.tracer import TracerError


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Measure what tracing costs.")
    parser.add_argument("part", nargs="*", help=f"of {', '.join(parts.ALL)}; all when none")
    parser.add_argument("--rounds", type=_positive, default=3)
    parser.add_argument("--connections", type=_positive, default=50_000, help="of a storm")
    parser.add_argument("--pairs", type=_positive, default=1)
    arguments = parser.parse_args()
    unknown = set(arguments.part) - parts.ALL.keys()
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are: {', '.join(parts.ALL)}")
    return arguments


def _measure(arguments: argparse.Namespace, folder: Path) -> str:
    machine = host.describe()
    storm = build(folder, arguments.connections, arguments.pairs)
    setting = Setting(folder, storm, arguments.rounds)
    groups = []
    for name in arguments.part or parts.ALL:
        print(f"bench: {name}", file=sys.stderr)
        groups.append(parts.ALL[name](setting))
    rounds = f"medians of {arguments.rounds} rounds"
    head = f"{storm.connections:,} connections, {storm.pairs} client-server pair(s), {rounds}"
    return f"{machine}\n{head}\n\n{table.render(groups)}"


def main() -> None:
    """Run the parts that are asked for."""
    arguments = _arguments()
    host.enter()
    try:
        with tempfile.TemporaryDirectory(prefix="tcpcore-bench-") as folder:
            print(_measure(arguments, Path(folder)), end="")
    except (TracerError, OSError, subprocess.SubprocessError) as e:
        sys.exit(f"bench: {e}")


if __name__ == "__main__":
    main()
