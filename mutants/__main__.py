"""Mutation testing: small changes of the product, each of which a test should notice.

Lines are drawn by seed, and a mutant of each. One that does not compile, or that does the same as
the original, is replaced. Each runs the rootless tests and then, as root, the live ones of this
host, up to the first that fails.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import itertools
import queue
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutants.candidates import Mutant, Place, places, sources
from mutants.checkout import Checkout, stop

ROOT = Path(__file__).parents[1]
TRIES = 6  # mutants of one line; to look at one in C takes seconds


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="tcpcore-mutants-") as folder:
        folders = [Path(folder, str(i)) for i in range(options.jobs + 1)]
        bench, *copies = [Checkout.copy(ROOT, path) for path in folders]
        with ThreadPoolExecutor(options.jobs) as pool, stopping(pool):
            pool.submit(untouched, bench).result()
            trials = Trials(copies)
            order = places(ROOT, options.files or sources(ROOT, options.only), options.seed)
            chosen = itertools.islice(choose(bench, order, options.seed), options.sample)
            verdicts = [pool.submit(trials.run, mutant) for mutant in chosen]
        survived = [text for verdict in verdicts if (text := verdict.result())]
    report(survived, len(verdicts))


@contextlib.contextmanager
def stopping(pool: ThreadPoolExecutor) -> Iterator[None]:
    """Ctrl-C ends what runs."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        stop()
        raise


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make mutants ARGS=...", description=__doc__)
    parser.add_argument("--sample", type=int, default=10, metavar="N", help="how many; 10")
    parser.add_argument("--seed", default="1", help="names the sample; 1")
    parser.add_argument("--only", choices=["src", "bpf"], help="Python or C alone")
    parser.add_argument("--files", nargs="+", metavar="FILE", help="these alone")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="beside each other; 2")
    return parser.parse_args()


def untouched(copy: Checkout) -> None:
    """All of its tests must pass, as for a mutant in Python."""
    if failed := copy.test("src/tcpcore/__init__.py"):
        sys.exit(f"mutants: without a mutant, too, this fails: {failed}")


def choose(bench: Checkout, order: list[Place], seed: str) -> Iterator[Mutant]:
    """A mutant of each place that has one."""
    for place in order:
        source = (ROOT / place.path).read_text(encoding="utf-8")
        tries = itertools.islice(place.mutants(source, seed), TRIES)
        if mutant := next(filter(bench.differs, tries), None):
            yield mutant


class Trials:
    """Each of them has a copy for itself while it runs."""

    def __init__(self, copies: list[Checkout]) -> None:
        self._free: queue.SimpleQueue[Checkout] = queue.SimpleQueue()
        for copy in copies:
            self._free.put(copy)

    def run(self, mutant: Mutant) -> str:
        """Where it is and what it changes if no test noticed, else nothing."""
        begin, copy = time.monotonic(), self._free.get()
        try:
            with copy.mutated(mutant):
                assert copy.builds()
                failed = copy.test(mutant.path)
        finally:
            self._free.put(copy)
        where, took = f"{mutant.path}:{mutant.line}", f"{time.monotonic() - begin:.0f} s"
        if failed:
            print(f"killed    {where}  {took}, by {failed}", flush=True)
            return ""
        text = f"{where}\n{changes(mutant)}"
        print(f"survived  {text}", flush=True)
        return text


def changes(mutant: Mutant) -> str:
    before = (ROOT / mutant.path).read_text(encoding="utf-8").splitlines()
    lines = difflib.unified_diff(before, mutant.source.splitlines(), n=0, lineterm="")
    return "\n".join(f"    {line}" for line in itertools.islice(lines, 3, None))


def report(survived: list[str], total: int) -> None:
    if survived:
        print("\nSurvivors:\n" + "\n".join(survived))
    killed = total - len(survived)
    print(f"\n{killed} of {total} killed: {killed / total:.2f}" if total else "no mutants")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
