"""A copy of the checkout, in which a mutant is built and tested."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mutants.candidates import Mutant, essence

PYTEST = (sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-rfE", "-p", "no:cacheprovider")
TYPES = (sys.executable, "-m", "mypy", "--no-error-summary")
# Network namespaces that are gone when it is killed.
ISOLATED = (
    *("unshare", "--net", "--mount", "sh", "-c"),
    'mkdir -p /run/netns && mount -t tmpfs none /run/netns && ip link set lo up && exec "$@"',
    "sh",
)
ARCHITECTURE = "arm64" if os.uname().machine == "aarch64" else "x86"
AS_ROOT = os.geteuid() == 0
TIMEOUT = 600  # seconds, for all tests of a kind; they take less than half of it
ALONE = threading.Lock()  # live tests see all that happens on the host
running: set[subprocess.Popen[bytes]] = set()


@dataclass(frozen=True)
class Checkout:
    root: Path

    @classmethod
    def copy(cls, original: Path, root: Path) -> Checkout:
        files = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.check_output(files, cwd=original, text=True).split("\0"):
            if (original / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(original / name, root / name)
        made = cls(root)
        if not made._succeeds("make", "-s", "bpf"):
            sys.exit("mutants: the BPF objects do not build: see make bpf")
        return made

    @contextlib.contextmanager
    def mutated(self, mutant: Mutant) -> Iterator[None]:
        path = self.root / mutant.path
        original = path.read_text(encoding="utf-8")
        path.write_text(mutant.source, encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(original, encoding="utf-8")

    def differs(self, mutant: Mutant) -> bool:
        """It compiles, and does something else."""
        if mutant.path.endswith(".py"):
            original = essence((self.root / mutant.path).read_text(encoding="utf-8"))
            if essence(mutant.source) in (None, original):
                return False
            with self.mutated(mutant):
                return self.imports(mutant.path)
        assert self.builds()
        before = self.programs()
        with self.mutated(mutant):
            return self.builds() and self.programs() != before

    def imports(self, path: str) -> bool:
        module = path.removeprefix("src/").removesuffix(".py").removesuffix("/__init__")
        return self._succeeds(sys.executable, "-c", f"import {module.replace('/', '.')}")

    def builds(self) -> bool:
        """The objects for this machine alone, as compiling takes longer than most tests."""
        tools = sorted(x.name.removesuffix(".bpf.c") for x in self.root.glob("bpf/*.bpf.c"))
        objects = (f"src/tcpcore/objects/{tool}.{ARCHITECTURE}.bpf.o" for tool in tools)
        return self._succeeds("make", "-s", f"-j{os.cpu_count()}", *objects)

    def programs(self) -> list[bytes]:
        """Code, data and types (a map is a type); not the lines of source that go with the code."""
        found = []
        for path in sorted(self.root.glob(f"src/tcpcore/objects/*.{ARCHITECTURE}.bpf.o")):
            bare = self.root / "build/bare.o"
            drop = ["-R", ".BTF", "-R", ".BTF.ext", str(path), str(bare)]
            subprocess.run(["llvm-objcopy-19", *drop], check=True)
            types = subprocess.check_output(["bpftool", "btf", "dump", "file", str(path)])
            found += [bare.read_bytes(), types]
        return found

    def test(self, path: str) -> str:
        """The test that fails with this file mutated, or the check of types; empty if all pass."""
        failed = self._test(order(self.root, "unit", path))
        if not failed and path.endswith(".py") and not self._succeeds(*TYPES):
            failed = "mypy"
        if failed or not AS_ROOT:
            return failed
        with ALONE:
            return self._test(order(self.root, "live", path))

    def _test(self, tests: list[str]) -> str:
        # Into a file: an orphan that a test left would keep a pipe open.
        with tempfile.TemporaryFile("w+") as said:
            child = subprocess.Popen(
                [*(ISOLATED if AS_ROOT else ()), *PYTEST, *tests],
                cwd=self.root,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            running.add(child)
            try:
                code = child.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                return "a test that does not end"
            finally:
                running.discard(child)
                _end(child)
            said.seek(0)
            text = said.read()
        if code == 0:
            return "" if " passed" in text else "that none of them runs"
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
        return failed[0] if failed else f"pytest, exit code {code}: {text[-300:]}"

    def _environment(self) -> dict[str, str]:
        mine = {"PYTHONPATH": str(self.root / "src"), "TCPCORE_TEST_PATIENCE": "20"}
        # Sizes and times of what a mutant leaves in __pycache__ can be those of the original.
        return {**os.environ, **mine, "PYTHONDONTWRITEBYTECODE": "1"}

    def _succeeds(self, *command: str) -> bool:
        done = subprocess.run(
            command, cwd=self.root, env=self._environment(), capture_output=True, timeout=300
        )
        return done.returncode == 0


def stop() -> None:
    """End all tests: a terminal's Ctrl-C does not reach their sessions."""
    for child in tuple(running):
        os.killpg(child.pid, signal.SIGKILL)


def _end(child: subprocess.Popen[bytes]) -> None:
    """It, what it started, and the cgroups that tests name after it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for folder in Path("/sys/fs/cgroup").glob(f"**/tcpcore-{child.pid}-*"):
        for _ in range(50):
            with contextlib.suppress(OSError):  # what was in it is not gone yet
                folder.rmdir()
                break
            time.sleep(0.1)


def order(root: Path, kind: str, path: str) -> list[str]:
    """The tests of a kind that may notice a change of the file; first those that are named so."""
    tests = sorted(root.glob(f"tests/{kind}/test_*.py"))
    if path.endswith(".py"):
        module, package = Path(path).stem, Path(path).parent.name
        names = {module, package, f"{package}_{module}"}
    else:
        names = set(users(root, path.removeprefix("bpf/")))
        spared = {x.name.removesuffix(".bpf.c") for x in root.glob("bpf/*.bpf.c")} - names
        if kind == "unit":
            spared |= {_subject(test) for test in tests} - {"contract"}
        tests = [test for test in tests if _subject(test) not in spared]
    tests.sort(key=lambda test: _subject(test) not in names)
    return [str(test.relative_to(root)) for test in tests]


def _subject(test: Path) -> str:
    return test.stem.removeprefix("test_")


def users(root: Path, file: str) -> Iterator[str]:
    """The tools whose source this is, or includes it at whatever depth."""
    for source in root.glob("bpf/*.bpf.c"):
        known = [source.name]
        for name in known:  # which grows meanwhile
            text = (root / "bpf" / name).read_text(encoding="utf-8")
            known += set(re.findall(r'^#include "(.+)"', text, re.MULTILINE)) - {*known}
        if file in known:
            yield source.name.removesuffix(".bpf.c")
