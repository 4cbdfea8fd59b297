"""tcpcore inside a pid namespace, and addresses of a network namespace."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.live import harness
from tests.live.harness import TCPCORE, tracer

CLONE_NEWPID = 0x20000000  # include/uapi/linux/sched.h


def in_a_pid_namespace(act: Callable[[], object]) -> None:
    """Process 1 of a new one does it; /proc is still the host's."""
    assert ctypes.CDLL(None).unshare(CLONE_NEWPID) == 0
    assert harness.reap(harness.fork(act)) == 0


def trace_myself() -> None:
    assert os.getpid() == 1
    with tracer("connlat", "--json", "--pid", "1") as running:
        harness.session()
        assert {e["pid"] for e in running.events()} == {int(Path("/proc/self").readlink().name)}


def test_a_pid_of_our_own_namespace() -> None:
    """It is meant as the caller sees it, and shown as the host does."""
    assert harness.reap(harness.fork(lambda: in_a_pid_namespace(trace_myself))) == 0


def test_where_the_hosts_pids_are_not_known() -> None:
    inside = ["unshare", "--pid", "--fork", "--mount-proc"]
    for options in (["-p", "1"], ["-p", "1", "--pidns", "1"]):
        done = subprocess.run(
            [*inside, *TCPCORE, "connlat", "-d", "0.1", *options],
            capture_output=True,
            text=True,
            timeout=harness.PATIENCE,
        )
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "in this pid namespace the host's process ids are not known" in line
