"""What the live tests rely on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.live import harness


def test_a_killed_test_leaves_nothing_that_runs() -> None:
    """As when it takes too long. A tracer that became another user notices it by its pipes."""
    heard, say = os.pipe()

    def act() -> None:
        running = harness.Tracer("states")
        assert running.attached
        pids = running.pid, harness.fork(signal.pause)
        os.write(say, "{} {}".format(*pids).encode())
        signal.pause()

    child = harness.fork(act)
    pids = os.read(heard, 100).split()
    os.close(heard)
    os.close(say)
    os.kill(child, signal.SIGKILL)
    assert harness.reap(child) == -signal.SIGKILL
    assert len(pids) == 2
    harness.until(lambda: not any(is_running(int(pid)) for pid in pids))


def is_running(pid: int) -> bool:
    """A zombie, which waits for whoever inherited it, does not run (proc(5), stat)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")
