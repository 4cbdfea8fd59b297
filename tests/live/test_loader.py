"""What the loader asks of the kernel beside its BTF: ids of classic tracepoints."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.live import harness

TRACING, DEBUG = "/sys/kernel/tracing", "/sys/kernel/debug"
TRACEPOINT = '"sched", "sched_switch"'  # every kernel with tracepoints has it

# Prints the id, and whether descriptors and mounts are those of before.
ASK = f"""
import os
from pathlib import Path
from tcpcore.loader.tracefs import tracepoint_id

def traces():
    return len(os.listdir("/proc/self/fd")), Path("/proc/self/mountinfo").read_text()

before = traces()
print(tracepoint_id({TRACEPOINT}), traces() == before)
"""


def ask(*mounts: str, code: str = ASK) -> subprocess.CompletedProcess[str]:
    """Python in a mount namespace of its own, where only these mounts are at both places."""
    return apart(*mounts, 'exec "$@"', arguments=[sys.executable, "-c", code])


def apart(*commands: str, arguments: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    hidden = [f"mount -t tmpfs none {folder}" for folder in (TRACING, DEBUG)]
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", " && ".join([*hidden, *commands]), "sh", *arguments],
        capture_output=True,
        text=True,
        timeout=harness.PATIENCE,
    )


@pytest.fixture(scope="module")
def number() -> int:
    """The id as its file says, with nothing of ours in between."""
    mount = f"mount -t tracefs none {TRACING}"
    return int(apart(mount, f"cat {TRACING}/events/sched/sched_switch/id").stdout)


@pytest.mark.parametrize(
    "mount",
    ["true", f"mount -t tracefs none {TRACING}", f"mount -t debugfs none {DEBUG}"],
    ids=["unmounted", "tracefs", "debugfs"],
)
def test_the_id_is_the_same_wherever_tracefs_is(number: int, mount: str) -> None:
    done = ask(mount)
    assert done.stderr == ""
    # debugfs mounts tracefs by itself once somebody looks.
    assert done.stdout.split()[0] == str(number)
    assert done.stdout.split()[1] == "True" or "debugfs" in mount


def test_a_tracepoint_that_is_not_there() -> None:
    done = ask(code=ASK.replace("sched_switch", "sched_frobnicate"))
    assert done.returncode != 0
    assert "this kernel has no such tracepoint" in done.stderr.splitlines()[-1]


def test_without_the_right_to_mount() -> None:
    """A root without CAP_SYS_ADMIN, as in a container, learns what to do."""
    done = apart(
        'exec setpriv --bounding-set=-sys_admin "$@"', arguments=[sys.executable, "-c", ASK]
    )
    assert done.returncode != 0
    assert "mount -t tracefs tracefs /sys/kernel/tracing" in done.stderr.splitlines()[-1]
