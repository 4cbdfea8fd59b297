"""What a running trace still may do, and that it needs no more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tcpcore
from tests.live import harness
from tests.live.harness import TCPCORE, tracer

NOBODY = 65534
CAP_BPF = 1 << 39
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


@pytest.fixture(autouse=True)
def nobody_called_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SUDO_UID", "SUDO_GID"):
        monkeypatch.delenv(name, raising=False)


def status(pid: int) -> dict[str, list[str]]:
    """/proc/PID/status, proc(5): the values behind each name."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line.split(":")[0]: line.split()[1:] for line in lines}


def capabilities(shown: dict[str, list[str]]) -> dict[str, int]:
    return {name: int(shown[name][0], 16) for name in SETS}


def reading_takes_cap_bpf() -> bool:
    """Whether nobody can read a map that is open; Linux 5.19 allows it."""

    def read() -> None:
        with tcpcore.trace("states") as events:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            events.losses()

    return harness.reap(harness.fork(read)) != 0


@pytest.mark.each_variant
def test_root_becomes_nobody(attach: str) -> None:
    kept = CAP_BPF * reading_takes_cap_bpf()
    with tracer("states", "--json", "--attach", attach, "-p", str(os.getpid())) as running:
        shown = status(running.pid)
        harness.session()
        seen = {e["newstate"] for e in running.events()}
    assert seen >= {"LISTEN", "SYN_SENT", "ESTABLISHED", "FIN_WAIT1", "LAST_ACK", "CLOSE"}
    assert shown["Uid"] == shown["Gid"] == [str(NOBODY)] * 4
    assert shown["Groups"] == []
    assert capabilities(shown) == dict.fromkeys(SETS, 0) | {"CapPrm": kept, "CapEff": kept}
    assert shown["NoNewPrivs"] == ["1"]


def test_who_called_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", "1234")
    monkeypatch.setenv("SUDO_GID", "567")
    with tracer("connlat") as running:
        shown = status(running.pid)
        assert running.stop() == 0
    assert (shown["Uid"], shown["Gid"], shown["Groups"]) == (["1234"] * 4, ["567"] * 4, [])


def test_that_user_cannot_take_over_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may look into what is its own (ptrace(2)), and the rings are not."""
    monkeypatch.setenv("SUDO_UID", "1234")
    monkeypatch.setenv("SUDO_GID", "567")

    def look(pid: int) -> None:
        os.setgroups([])
        os.setresgid(567, 567, 567)
        os.setresuid(1234, 1234, 1234)
        list(Path(f"/proc/{pid}/fd").iterdir())

    with tracer("connlat") as running:
        assert harness.reap(harness.fork(lambda: look(running.pid))) != 0
        assert running.stop() == 0


def test_privileges_can_be_kept() -> None:
    own = capabilities(status(os.getpid()))
    with tracer("connlat", "--keep-privileges") as running:
        shown = status(running.pid)
        assert running.stop() == 0
    assert (shown["Uid"], shown["Gid"]) == (["0"] * 4, ["0"] * 4)
    assert capabilities(shown) == own and own["CapEff"]


def test_losses_are_read_and_told() -> None:
    with tracer("states", "--json", "--buffer", "4K", "-p", str(os.getpid())) as running:
        assert status(running.pid)["Uid"] == [str(NOBODY)] * 4
        running.send(signal.SIGSTOP)
        for _ in range(50):
            harness.session()
        running.send(signal.SIGCONT)
        assert running.stop() == 0
    lost = [r for r in running.records() if r["type"] == "lost"][-1]
    read = [r for r in running.records() if r["type"] == "event"]
    assert lost["ring"] > 0
    # What the process itself did: each connect has two changes of its own at least.
    assert len(read) + lost["ring"] >= 50 * 2
    assert any("lost so far" in line for line in running.errors())


# The command in an interpreter of its own; tells what is opened or imported after the drop.
WATCHED = """
import sys
from tcpcore import cli
from tcpcore.session import privilege

def watched(read, drop=privilege.drop):
    drop(read)
    sys.addaudithook(tell)

def tell(event, arguments):
    if event in ("import", "open"):
        print("late:", event, arguments[0], file=sys.stderr)

privilege.drop = watched
sys.argv[0] = "tcpcore"
cli.main()
"""


@contextmanager
def attached(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A tracer by its whole command, which has -v, once it is attached."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stderr
        assert any(line.startswith("attached:") for line in iter(child.stderr.readline, ""))
        yield child


@pytest.mark.any_kernel
@pytest.mark.parametrize(
    "arguments",
    [
        ("connlat", "--summary", "-T"),
        ("connect", "--dns", "--json"),
        ("connect", "--count", "--csv"),
        ("life", "--csv", "--all", "--open"),
        ("tracer", "-t", "-T", "--wide"),
    ],
    ids=" ".join,
)
def test_nothing_is_opened_or_imported_later(arguments: tuple[str, ...]) -> None:
    """Python may lie where only root reads, as in a virtual environment under /root."""
    with attached(sys.executable, "-c", WATCHED, *arguments, "-v") as child:
        with harness.task_name(b"odd\x1b\n\xff"):
            harness.session()
        child.send_signal(signal.SIGINT)
        out, errors = child.communicate(timeout=harness.PATIENCE)
    assert child.returncode == 0 and out
    assert "late:" not in errors


@pytest.mark.parametrize("missing", ["setuid", "setgid", "setpcap"])
def test_one_capability_less(missing: str) -> None:
    """What it may not give up it keeps; it traces, and ends well."""
    lacking = "setpriv", f"--bounding-set=-{missing}"
    with attached(*lacking, *TCPCORE, "states", "--json", "-v") as child:
        shown = status(child.pid)
        harness.session()
        child.send_signal(signal.SIGINT)
        out, errors = child.communicate(timeout=harness.PATIENCE)
    assert child.returncode == 0 and out, errors
    assert shown["Uid"][0] == ("0" if missing == "setuid" else str(NOBODY))
    assert shown["Gid"][0] == ("0" if missing == "setgid" else str(NOBODY))
    assert capabilities(shown)["CapEff"] in (0, CAP_BPF)
    assert bool(capabilities(shown)["CapBnd"]) == (missing == "setpcap")
