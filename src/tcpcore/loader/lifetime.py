"""How long what libbpf gave may be used: until it is freed, and in the process that made it."""

from __future__ import annotations

import os
import threading

from tcpcore.errors import TcpcoreError


class Lifetime:
    """Of everything that one attached object owns; each part holds it while it is at work.

    As a context manager it puts the end off until the block is over, for other threads, too.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._has_ended = False

    def is_ours(self) -> bool:
        """False in a child after fork(2)."""
        return os.getpid() == self._process

    def check(self) -> None:
        """TcpcoreError unless what is owned can be used here and now."""
        # First of all, as another thread may have had the lock when the child was made. The rings
        # are not even mapped there (VM_DONTCOPY).
        if not self.is_ours():
            raise TcpcoreError("this trace is its parent process's: a child begins one of its own")
        if self._has_ended:
            raise TcpcoreError("this trace has ended: what it owned is gone with its block")

    def __enter__(self) -> None:
        self.check()
        self._lock.acquire()
        if self._has_ended:
            self._lock.release()
            self.check()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def end(self) -> None:
        """From now on nobody uses it. Waits for who does."""
        with self._lock:
            self._has_ended = True
