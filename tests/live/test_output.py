"""What reaches the reader: whole lines, at once, with right times, whatever the output is."""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from tests.live import harness
from tests.live.harness import tracer

CLONE_NEWTIME = 0x80  # include/uapi/linux/sched.h
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


@contextmanager
def started(*command: str, stdout: int, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A command with tcpcore -v, in an interpreter of its own; it is attached."""
    child = subprocess.Popen(
        command,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | environment,
        start_new_session=True,
    )
    try:
        assert child.stderr
        said: list[str] = []
        while not (said and said[-1].startswith("attached: ")):
            said.append(child.stderr.readline())
            assert said[-1], said
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def attempts(number: int) -> int:
    """So many connects that are refused; their port."""
    port = harness.refused_port()
    for _ in range(number):
        harness.refuse("127.0.0.1", port)
    return port


def wait_until_full(pipe: int) -> None:
    """16 pages, pipe(7), each of them half full at least: then its level rises no more.

    FIONREAD, ioctl_pipe(2).
    """
    level, before, deadline = array.array("i", [0]), -1, time.monotonic() + harness.PATIENCE
    while level[0] < 32_000 or level[0] != before:
        assert time.monotonic() < deadline, "the pipe never filled"
        before = level[0]
        time.sleep(0.2)
        fcntl.ioctl(pipe, termios.FIONREAD, level)


@pytest.mark.any_kernel
@pytest.mark.parametrize("blocking", [True, False])
def test_every_line_is_whole_however_slow_the_reader(blocking: bool) -> None:
    """The reader sleeps until all is over; we are stopped, continued and told to end meanwhile."""
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)
    command = [*harness.TCPCORE, "connect", "--json", "-v", "-p", str(os.getpid())]
    with started(*command, stdout=writer, PYTHONUNBUFFERED="1") as child:
        os.close(writer)
        port = attempts(500)  # twice what the pipe holds
        wait_until_full(reader)
        child.send_signal(signal.SIGSTOP)
        child.send_signal(signal.SIGCONT)
        child.send_signal(signal.SIGINT)
        with os.fdopen(reader) as lines:
            records = [json.loads(line) for line in lines]
        assert child.wait(harness.PATIENCE) == 0
    ours = [r for r in records if r["type"] == "event" and r["rport"] == port]
    lost = sum(r["ring"] for r in records if r["type"] == "lost")
    assert (len(ours), lost) == (500, 0)


@pytest.mark.any_kernel
@pytest.mark.parametrize(
    ("end", "says"),
    [
        (">&-", "standard output is closed; --output FILE writes elsewhere"),
        ("> /dev/full", "standard output: No space left on device (lines not written: 1)"),
        ("-o /proc/version", "--output: /proc/version: "),
        ("1< /dev/null", "standard output: Bad file descriptor (lines not written: 1)"),
    ],
)
def test_an_output_that_takes_nothing(end: str, says: str) -> None:
    command = f"{' '.join(harness.TCPCORE)} connlat -D 1 -d 0.1 {end}"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, env=ENVIRONMENT, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"tcpcore: {says}")


@pytest.mark.any_kernel
def test_a_terminal_that_goes_away_ends_it() -> None:
    """No event comes that would tell: nothing is written after the header."""
    master, terminal = os.openpty()
    command = [*harness.TCPCORE, "connlat", "-D", "1", "-v"]
    with started(*command, stdout=terminal) as child:
        os.close(terminal)
        assert os.read(master, 1000).startswith(b"PID")
        os.close(master)
        _, errors = child.communicate(timeout=harness.PATIENCE)
    said = [line for line in errors.splitlines() if not line.startswith("attached: ")]
    assert (child.returncode, said) == (1, ["tcpcore: standard output: the terminal has gone"])


@pytest.mark.any_kernel
def test_a_hangup_is_an_end_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with tracer("connlat", "--json", "-p", str(os.getpid()), "-o", str(path)) as running:
        port = attempts(3)
        assert running.stop(signal.SIGHUP) == 0
    assert [json.loads(line)["rport"] for line in path.read_text().splitlines()] == [port] * 3


@pytest.mark.any_kernel
def test_a_link_that_another_user_has_laid(tmp_path: Path) -> None:
    """Root may write what it leads to; that is the trap."""
    target, link = tmp_path / "passwd", tmp_path / "link"
    target.write_text("root\n")
    link.symlink_to(target)
    os.lchown(link, 65534, 65534)
    done = harness.run("connlat", "-D", "1", "-d", "0.1", "-o", str(link))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "a symbolic link that is not yours" in done.stderr and target.read_text() == "root\n"
    os.lchown(link, 0, 0)
    assert harness.run("connlat", "-D", "1", "-d", "0.1", "-o", str(link)).returncode == 0
    assert target.read_text().startswith("PID")


# A child of the process that made the namespace is in it; and so is what it runs.
IN_TIME_NAMESPACE = """
import ctypes, os, sys
assert ctypes.CDLL(None).unshare({flag}) == 0
open("/proc/self/timens_offsets", "w").write("monotonic {seconds} 0")
pid = os.fork()
if pid:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
sys.argv = ["tcpcore", *{arguments}]
from tcpcore.__main__ import main
main()
"""


@pytest.mark.skipif(not Path("/proc/self/timens_offsets").exists(), reason="no CONFIG_TIME_NS")
@pytest.mark.parametrize("ahead", [True, False])
def test_in_a_time_namespace_events_come_at_once_with_right_times(ahead: bool) -> None:
    """Its clock is far ahead of the kernel's, or as far behind as can be."""
    seconds = 1_000_000 if ahead else 3 - int(time.monotonic())
    arguments = ["connect", "--json", "-t", "-v", "-n", "1", "-p", str(os.getpid())]
    code = IN_TIME_NAMESPACE.format(flag=CLONE_NEWTIME, seconds=seconds, arguments=arguments)
    with started(sys.executable, "-c", code, stdout=subprocess.PIPE) as child:
        before = time.time()
        attempts(1)
        out, _ = child.communicate(timeout=harness.PATIENCE)
        (event,) = map(json.loads, out.splitlines())
    at = datetime.fromisoformat(event["time"][:26] + "+00:00").timestamp()
    assert child.returncode == 0 and before - 1 < at < time.time() + 1
