"""The same traffic under Debian's libbpf-tools: the same rows, apart from what is mended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import harness
from tests.live.harness import Event, tracer

pytestmark = pytest.mark.skipif(not shutil.which("tcpstates"), reason="no libbpf-tools here")


# They need it, and a host need not have it mounted.
WITH_TRACEFS = """
[ -e /sys/kernel/tracing/events ] || mount -t tracefs none /sys/kernel/tracing; exec "$@"
"""


@contextlib.contextmanager
def original(tool: str, tmp_path: Path) -> Iterator[list[str]]:
    """A tool of libbpf-tools, attached; its rows are there at the end of the block."""
    rows: list[str] = []
    out = tmp_path / f"{tool}.out"
    with out.open("w") as file:
        child = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", WITH_TRACEFS, "sh", tool],
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_attached(child)
            yield rows
            time.sleep(0.5)  # it polls; nothing tells when it has read all
        finally:
            child.send_signal(signal.SIGINT)
            child.communicate(timeout=harness.PATIENCE)
    rows += out.read_text().splitlines()[1:]


def wait_attached(child: subprocess.Popen[str]) -> None:
    """It has nothing to say until its first event. Its rings come last, after an epoll."""
    deadline = time.monotonic() + harness.PATIENCE
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(OSError):
            if any(
                "eventpoll" in str(fd.readlink()) for fd in Path(f"/proc/{child.pid}/fd").iterdir()
            ):
                time.sleep(0.2)
                return
        time.sleep(0.05)
    child.kill()
    pytest.skip(f"this kernel does not run the original: {child.communicate()[1].strip()}")


def everything() -> None:
    """Sessions of both families and orders, refusals."""
    closed = harness.refused_port()
    for host in ("127.0.0.1", "::1"):
        harness.session(host)
        harness.session(host, server_closes_first=True)
        harness.refuse(host, closed)


StateRow = tuple[str, str, str, int, str, str]


def our_states(events: list[Event]) -> Counter[StateRow]:
    return Counter(
        (e["skaddr"], e["laddr"], e["raddr"], e["rport"] or 0, e["oldstate"], e["newstate"])
        for e in events
    )


def their_states(rows: list[str]) -> Counter[StateRow]:
    found: Counter[StateRow] = Counter()
    for row in rows:
        skaddr, _, rest = row.partition(" ")
        laddr, _, raddr, rport, old, _, new, _ = rest.split()[-8:]
        found[skaddr, laddr, raddr, int(rport), old, new] += 1
    return found


def test_states(attach: str, tmp_path: Path) -> None:
    """Before Linux 6.x a new child has no peer yet when tcpstates sees it; we wait until it has."""
    with tracer("states", "--json", "--attach", attach) as running:
        with original("tcpstates", tmp_path) as rows:
            everything()
        ours, theirs = our_states(running.events()), their_states(rows)
    unfinished = [r for r in theirs if r[4:] == ("LISTEN", "SYN_RECV") and r[3] == 0]
    for row in unfinished:
        mended = [r for r in ours if r[0] == row[0] and r[4:] == row[4:]]
        theirs[row] -= len(mended)
        ours -= Counter(mended)
    assert sum(ours.values()) >= 40
    assert +theirs - ours == Counter()


def test_connlat(attach: str, tmp_path: Path) -> None:
    """The same connects, and latencies that agree: theirs ends at the segment's arrival, ours at
    the state change that it causes."""
    with tracer("connlat", "--json", "--attach", attach) as running:
        with original("tcpconnlat", tmp_path) as rows:
            for _ in range(10):
                everything()
        events = running.events()
    ours: dict[tuple[str, int], list[float]] = {}
    for e in events:
        if e["pid"] == os.getpid():
            ours.setdefault((e["raddr"], e["rport"]), []).append(e["latency_ns"] / 1e6)
    theirs: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        pid, *_, raddr, rport, latency = row.split()
        if int(pid) == os.getpid():
            theirs.setdefault((raddr, int(rport)), []).append(float(latency))
    assert {k: len(v) for k, v in ours.items()} == {k: len(v) for k, v in theirs.items()}
    differences = [a - b for k in ours for a, b in zip(ours[k], theirs[k], strict=True)]
    assert sorted(map(abs, differences))[len(differences) // 2] < 2


@pytest.mark.parametrize("delay", [20, 100])
def test_a_known_delay(attach: str, delay: int) -> None:
    """netem delays each way of loopback: a connect takes two of them, within 2 ms."""
    if subprocess.run(["modprobe", "-q", "sch_netem"], check=False).returncode:
        pytest.skip("this kernel has no netem")
    with harness.namespaces() as (here, there):
        harness.sh(f"tc -n {here.name} qdisc add dev ve0 root netem delay {delay}ms")
        with (
            there.entered(),
            harness.listener(there.address) as server,
            tracer("connlat", "--json", "--attach", attach, "--netns", here.name) as running,
            here.entered(),
        ):
            port = server.getsockname()[1]
            for _ in range(5):
                harness.connect(there.address, port).close()
            events = running.events()
    latencies = [e["latency_ns"] / 1e6 for e in events]
    assert len(latencies) == 5
    assert min(abs(x - delay) for x in latencies) < 2
