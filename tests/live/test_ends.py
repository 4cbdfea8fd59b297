"""How a trace ends, what it loses, what it leaves behind."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.live import harness
from tests.live.harness import Net, tracer


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_well(number: signal.Signals) -> None:
    with tracer("connlat", "--summary") as running:
        harness.session()
        assert running.stop(number) == 0
    assert running.out.lines[0].split()[:2] == ["DADDR", "DPORT"]
    assert len(running.out.lines) > 1 and "Traceback" not in "".join(running.err.lines)


@pytest.mark.any_kernel
def test_a_second_signal_ends_it_at_once() -> None:
    """The first one waits for a pipe that nobody reads."""
    child = subprocess.Popen(
        [*harness.TCPCORE, "states", "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    fill(child)
    child.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert child.wait(harness.PATIENCE) == -signal.SIGINT
    assert child.stdout
    child.stdout.close()


def fill(child: subprocess.Popen[bytes]) -> None:
    """Sessions until the tracer sleeps in write() on a full pipe."""
    deadline = time.monotonic() + harness.PATIENCE
    while time.monotonic() < deadline:
        for _ in range(50):
            harness.session()
        if "pipe_write" in wait_channel(child.pid):
            return
    raise AssertionError("the pipe never filled")


def wait_channel(pid: int) -> str:
    """Where it sleeps, or a name for the state that says the same."""
    channel = Path(f"/proc/{pid}/wchan").read_text()
    if channel not in ("", "0"):
        return channel
    call = Path(f"/proc/{pid}/syscall").read_text().split()
    return "pipe_write" if call[:2] == ["1", "0x1"] else ""


@pytest.mark.any_kernel
def test_head_ends_it() -> None:
    """The reader goes after the header; no event comes that would tell us."""
    command = " ".join([*harness.TCPCORE, "states", "-D", "1"])
    script = f"{command} 2>err | head -n 1; echo ${{PIPESTATUS[0]}}; cat err"
    done = subprocess.run(
        ["bash", "-c", f"cd $(mktemp -d) && {script}"],
        capture_output=True,
        text=True,
        timeout=harness.PATIENCE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    header, code, *errors = done.stdout.splitlines()
    assert header.startswith("SKADDR") and code == "0" and errors == []


@pytest.mark.any_kernel
def test_count_and_duration() -> None:
    with tracer("states", "--json", "-n", "3") as running:
        harness.session()
        assert running.wait() == 0
    assert len(running.records()) == 3
    done = harness.run("states", "-d", "0.2", "-D", "1")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)


@pytest.mark.any_kernel
def test_output_file(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with tracer("connlat", "--csv", "-o", str(path)) as running:
        harness.session()
        assert running.stop() == 0
    assert running.out.lines == []
    header, *rows = path.read_text().splitlines()
    assert header.startswith("time,ts_ns,pid,comm") and rows
    done = harness.run("connlat", "-o", "/nowhere/out", "-d", "0.1")
    assert done.returncode == 1
    assert done.stderr == "tcpcore: --output: /nowhere/out: No such file or directory\n"


@pytest.mark.any_kernel
def test_text_lines_up() -> None:
    with tracer("connlat", "-t") as stamped, tracer("connlat") as running:
        for _ in range(3):
            harness.session()
        assert stamped.stop() == 0 and running.stop() == 0
    header, *rows = running.out.lines
    assert header.split() == ["PID", "COMM", "IP", "SADDR", "DADDR", "DPORT", "LAT(ms)", "RESULT"]
    assert all(row.index("ok") == header.index("RESULT") for row in rows if row.endswith("ok"))
    assert max(map(len, running.out.lines)) <= 80
    assert stamped.out.lines[0].startswith("TIME(s)")
    assert re.match(r"\d+\.\d{3} ", stamped.out.lines[1])


def burst(count: int) -> None:
    with harness.listener() as server:
        port = server.getsockname()[1]
        for _ in range(count):
            client = harness.connect("127.0.0.1", port)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            server.accept()[0].close()
            client.close()


def test_a_burst_beyond_the_buffer_is_counted() -> None:
    """Events read and events lost are all there were, and --fail-on-loss says so."""
    arguments = ("states", "--json", "--buffer", "4K", "--fail-on-loss", "-p", str(os.getpid()))
    with tracer(*arguments) as running:
        running.send(signal.SIGSTOP)
        burst(200)
        running.send(signal.SIGCONT)
        assert running.stop() == 5
    records = running.records()
    read = [r for r in records if r["type"] == "event"]
    lost = [r for r in records if r["type"] == "lost"][-1]
    assert lost["ring"] > 0 and (lost["map"], lost["malformed"]) == (0, 0)
    # What the process itself did: each connect has two changes of its own at least.
    assert len(read) + lost["ring"] >= 200 * 2
    (line,) = {x for x in running.errors() if x.startswith("tcpcore: states")}
    assert f"{lost['ring']} events: buffer full" in line


def test_a_full_map_is_counted(net: Net) -> None:
    here = net[0]
    arguments = ("connlat", "--json", "--map-size", "4", "--netns", here.name)
    with tracer(*arguments) as running:
        with here.entered():
            hanging = [harness.start_hanging(here.nobody, 2000 + i) for i in range(40)]
        for client in hanging:
            client.close()
        assert running.stop() == 0
    records = running.records()
    events = [r for r in records if r["type"] == "event"]
    lost = [r for r in records if r["type"] == "lost"][-1]
    assert 0 < len(events) < 40 and len(events) + lost["map"] == 40
    assert any("a larger --map-size" in line for line in running.errors())


def bpf_objects() -> set[tuple[str, int]]:
    """The programs, maps and links that the kernel holds."""
    return {
        (kind, each["id"])
        for kind in ("prog", "map", "link")
        for each in json.loads(harness.sh(f"bpftool -j {kind} list")) or []
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_in_the_kernel(number: signal.Signals) -> None:
    with tracer("states") as running:
        mine = running.objects()
        running.stop(number)
    assert {kind for kind, _ in mine} >= {"prog", "map"}
    # The kernel frees programs and maps after a grace period.
    harness.until(lambda: not mine & bpf_objects())


@pytest.mark.parametrize(
    "options", [{}, {"attach": "nothing"}, {"buffer": "256M"}, {"map_size": "4194304"}]
)
def test_nothing_is_left_open_on_any_path(options: dict[str, str]) -> None:
    """Opened and closed, refused, out of room: the same file descriptors before and after."""
    import tcpcore
    from tcpcore import api

    def descriptors() -> list[str]:
        gc.collect()  # what other tests left to it
        return sorted(fd.name for fd in Path("/proc/self/fd").iterdir())

    def attempt() -> None:
        try:
            with api.trace("states", **options):
                pass
        except tcpcore.TcpcoreError:
            pass

    attempt()
    before, objects = descriptors(), bpf_objects()
    for _ in range(3):
        attempt()
    assert descriptors() == before
    harness.until(lambda: not bpf_objects() - objects)


def test_works_without_tracefs(attach: str) -> None:
    hide = ("/sys/kernel/tracing", "/sys/kernel/debug")
    for tool in ("states", "connlat"):
        with tracer(tool, "--json", "--attach", attach, hide=hide) as running:
            harness.session()
            assert running.events()


def test_no_kernel_btf_and_btf_from_a_file(tmp_path: Path) -> None:
    """Without it CO-RE has nothing to go by; with --btf the variants without BTF types work."""
    copy = tmp_path / "vmlinux.btf"
    copy.write_bytes(Path("/sys/kernel/btf/vmlinux").read_bytes())
    hide = ("/sys/kernel/btf", "/boot", "/lib/modules")  # where libbpf looks for it
    for tool in ("states", "connlat"):
        without = harness.Tracer(tool, hide=hide)
        assert without.wait() == 3 and not without.attached
        (line,) = without.errors()
        assert "no kernel BTF" in line and "--btf takes" in line
        with tracer(tool, "--json", "--btf", str(copy), hide=hide) as running:
            harness.session()
            assert running.events()
