"""A command on a terminal: how long it takes to say something, and to end when it is told to."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bench.tracer import TracerError

_LIMIT = 30.0
_SETTLED = 0.2
"""Seconds in which what follows the first output is over."""


class Life(NamedTuple):
    """start: seconds from exec to the first output. end: from SIGINT to the exit."""

    start: float
    end: float


def live(command: Sequence[str], awaited: bytes, environment: Mapping[str, str]) -> Life:
    """Run it until it has said this, and end it. A terminal, since into a pipe libbpf-tools would
    write their header only with the first 4 KiB."""
    ours, theirs = pty.openpty()
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    try:
        _wait(ours, awaited, command)
        start = time.monotonic() - begin
        # A terminal that nobody reads takes a few KiB, and then holds up who writes.
        reader = threading.Thread(target=_drain, args=(ours,))
        reader.start()
        time.sleep(_SETTLED)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        _await_exit(process)
        end = time.monotonic() - begin
        reader.join()
        return Life(start, end)
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()
        os.close(ours)


def _wait(terminal: int, awaited: bytes, command: Sequence[str]) -> None:
    said = b""
    deadline = time.monotonic() + _LIMIT
    while awaited not in said:
        left = max(0.0, deadline - time.monotonic())
        more = _read(terminal) if select.select([terminal], [], [], left)[0] else b""
        if not more:
            raise TracerError(f"{' '.join(command)} did not say {awaited!r}, but {said!r}")
        said += more


def _await_exit(process: subprocess.Popen[bytes]) -> None:
    """Popen.wait() with a limit looks every 50 ms only."""
    handle = os.pidfd_open(process.pid)
    try:
        if not select.select([handle], [], [], _LIMIT)[0]:
            raise TracerError(f"{process.args!r} did not end")
    finally:
        os.close(handle)
    process.wait()


def _drain(terminal: int) -> None:
    while _read(terminal):
        pass


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # EIO: nobody has the other end any more
        return b""
