"""Where lines go: a descriptor that gets all of what is written to it, and messages to the user.

Python's own standard output drops what a short write leaves over when it is unbuffered
(PYTHONUNBUFFERED), and fails where the descriptor does not block. So this is write(2), repeated.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import select
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tcpcore.errors import TcpcoreError

_FLAGS = os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_LOOK = 0.05  # seconds between two looks for the reader of a FIFO


class Destination:
    """An open descriptor. name: in messages. Characters that the encoding lacks are escaped."""

    def __init__(self, fd: int, name: str, encoding: str = "utf-8") -> None:
        self._fd, self._name = fd, name
        self._encoder = codecs.getincrementalencoder(encoding)("backslashreplace")
        self._terminal = os.isatty(fd)
        self._poll = select.poll()
        self._poll.register(fd, 0)

    def write(self, text: str) -> None:
        """Write all of it, however long that takes.

        Raises BrokenPipeError when the reader has gone, else TcpcoreError, which tells how many
        lines are missing.
        """
        left = memoryview(self._encoder.encode(text))
        try:
            while left:
                left = left[_write(self._fd, left) :]
        except BrokenPipeError:
            raise
        except OSError as e:
            lines = bytes(left).count(b"\n")
            raise TcpcoreError(f"{self._name}: {e.strerror} (lines not written: {lines})") from None

    def gone(self) -> bool:
        """Whether the reader of a pipe has gone. A write would tell, but a quiet host has none.

        Raises TcpcoreError when a terminal has gone: unlike `| head`, it had not read enough.
        """
        if not self._poll.poll(0):
            return False
        if self._terminal:
            raise TcpcoreError(f"{self._name}: the terminal has gone")
        return True


def _write(fd: int, data: memoryview | bytes) -> int:
    """write(2); a descriptor that does not block is waited for."""
    while True:
        try:
            return os.write(fd, data)
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[_write(fd, left) :]


def tell(message: str) -> None:
    """A line on standard error. Where that is closed, full or gone, there is nobody to tell.

    Options stand in messages as the Python API has them, as `map_size`: here they are --map-size.
    """
    if sys.stderr is None:
        return
    spelled = re.sub(r"`(\w+)`", lambda match: f"--{match[1].replace('_', '-')}", message)
    with suppress(OSError):
        line = (spelled + "\n").encode(sys.stderr.encoding, "backslashreplace")
        _write_all(sys.stderr.fileno(), line)


def standard_output() -> Destination:
    """Raises TcpcoreError when there is none."""
    if sys.stdout is None:
        raise TcpcoreError("standard output is closed; --output FILE writes elsewhere")
    return Destination(sys.stdout.fileno(), "standard output", sys.stdout.encoding)


@contextmanager
def output_file(path: Path, secret: bool, stopped: Callable[[], bool]) -> Iterator[Destination]:
    """A file for --output, from its beginning. secret: only its owner may read it.

    A FIFO is waited for until it has a reader; once `stopped`, nobody is going to read.
    Raises TcpcoreError when it cannot be opened.
    """
    name = f"--output: {path}"
    with _file(name, secret, lambda mode: _open(path, mode, stopped)) as fd:
        yield Destination(fd, name)


@contextmanager
def private_file(path: Path, name: str) -> Iterator[Callable[[bytes], None]]:
    """A file that only its owner may read, from its beginning; what writes all of some bytes to it.

    name: in messages. Raises TcpcoreError, and so does a write.
    """

    def write(data: bytes) -> None:
        with _named(name):
            _write_all(fd, data)

    with _file(name, True, lambda mode: _open_now(path, mode)) as fd:
        yield write


@contextmanager
def _file(name: str, secret: bool, open_it: Callable[[int], int]) -> Iterator[int]:
    with _named(name):
        fd = open_it(0o600 if secret else 0o666)
    try:
        with _named(name):
            _prepare(fd, secret)
        yield fd
    finally:
        with _named(name):  # some file systems find out here that the disk is full
            os.close(fd)


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise TcpcoreError(f"{name}: {e.strerror}") from None


def _open(path: Path, mode: int, stopped: Callable[[], bool]) -> int:
    while not stopped():
        try:
            return _open_now(path, mode)
        except OSError as e:
            # A FIFO without a reader. A plain open(2) waits for one, and begins again after
            # each signal, so that Ctrl-C would not end it.
            if e.errno != errno.ENXIO or not path.is_fifo():
                raise
        time.sleep(_LOOK)
    return os.open(os.devnull, _FLAGS)


def _open_now(path: Path, mode: int) -> int:
    try:
        return os.open(path, _FLAGS | os.O_CREAT | os.O_NOFOLLOW, mode)
    except OSError as e:
        if e.errno != errno.ELOOP:
            raise
    return _open_link(path)


def _open_link(path: Path) -> int:
    """Through a symbolic link, but not one that somebody else has laid for root to follow.

    The kernel does the same in /tmp alone, and only where fs.protected_symlinks is set.
    """
    callers = _callers()
    fd = -1
    if path.lstat().st_uid in callers | {0}:
        fd = os.open(path, _FLAGS)
        if os.fstat(fd).st_uid in callers:
            return fd
        os.close(fd)
    raise OSError(errno.ELOOP, "a symbolic link that is not yours, or leads to what is not")


def _callers() -> set[int]:
    """Whose files are the caller's: with sudo, those of the user who called it as well."""
    uid, sudo = os.getuid(), os.environ.get("SUDO_UID", "")
    return {uid, int(sudo)} if uid == 0 and sudo.isdecimal() else {uid}


def _prepare(fd: int, secret: bool) -> None:
    """Empties a regular file. A secret one is closed to others, also if it was there before."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return
    os.ftruncate(fd, 0)
    if secret:
        with suppress(OSError):  # a file system without modes, or a file that is not ours
            os.fchmod(fd, 0o600)
