"""Where lines go: all of them, into whatever a shell may give us."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest

from tcpcore.errors import TcpcoreError
from tcpcore.sinks import destination
from tcpcore.sinks.destination import Destination, output_file, private_file, tell
from tests.unit.samples import PACKAGE

LINES = "".join(f'{{"number":{i}}}\n' for i in range(50_000))  # many times what a pipe holds


def never() -> bool:
    return False


class Reader(threading.Thread):
    """Reads a descriptor to its end, slowly at first."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd, self.data = fd, b""
        self.start()

    def run(self) -> None:
        while chunk := os.read(self._fd, 5000):
            self.data += chunk
            if len(self.data) < 50_000:
                time.sleep(0.005)


@dataclass
class Pipe:
    reader: BinaryIO
    writer: BinaryIO

    def destination(self, encoding: str = "utf-8") -> Destination:
        return Destination(self.writer.fileno(), "pipe", encoding)

    def read(self) -> bytes:
        return os.read(self.reader.fileno(), 1000)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", 0) as one, os.fdopen(writer, "wb", 0) as other:
        yield Pipe(one, other)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_slow_reader_gets_every_line(pipe: Pipe, blocking: bool) -> None:
    os.set_blocking(pipe.writer.fileno(), blocking)
    reader = Reader(pipe.reader.fileno())
    try:
        pipe.destination().write(LINES)
    finally:
        pipe.writer.close()
        reader.join()
    assert reader.data.decode() == LINES


def test_a_short_write_is_continued(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    pipe.destination().write("what a stop in the middle leaves over\n" * 3)
    assert pipe.read() == b"what a stop in the middle leaves over\n" * 3


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_standard_output_of_any_kind(unbuffered: str) -> None:
    """PYTHONUNBUFFERED is set in many container images."""
    code = (
        "import os; from tcpcore.sinks.destination import standard_output\n"
        "os.set_blocking(1, False)\n"
        f"standard_output().write({LINES[:1000]!r} * 400)\n"
    )
    environment = {"PYTHONPATH": str(PACKAGE.parent), "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | environment
    ) as child:
        assert child.stdout
        reader = Reader(child.stdout.fileno())
        reader.join()
    assert child.returncode == 0
    assert reader.data.decode() == LINES[:1000] * 400


def test_a_reader_that_has_gone(pipe: Pipe) -> None:
    there = pipe.destination()
    assert not there.gone()
    pipe.reader.close()
    assert there.gone()
    with pytest.raises(BrokenPipeError):
        there.write("line\n")


def test_a_full_disk_is_told_with_what_is_missing() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(TcpcoreError) as e:
        Destination(full, "--output: events.json").write("one\ntwo\n")
    os.close(full)
    says = "--output: events.json: No space left on device (lines not written: 2)"
    assert (str(e.value), e.value.exit_code) == (says, 1)


def test_a_terminal_that_goes_away_is_a_failure() -> None:
    master, terminal = os.openpty()
    there = Destination(terminal, "standard output")
    there.write("line\n")
    assert not there.gone()
    os.close(master)
    with pytest.raises(TcpcoreError, match="standard output: the terminal has gone"):
        there.gone()
    with pytest.raises(TcpcoreError, match="standard output: Input/output error"):
        there.write("line\n")
    os.close(terminal)


@pytest.mark.parametrize(
    ("encoding", "written"), [("utf-8", "é日".encode()), ("ascii", rb"\xe9\u65e5")]
)
def test_what_an_encoding_lacks_is_escaped(pipe: Pipe, encoding: str, written: bytes) -> None:
    pipe.destination(encoding).write("é日")
    assert pipe.read() == written


@pytest.mark.parametrize("end", ["", " 2>&-", " 2>/dev/full"])
def test_closed_and_full_descriptors(end: str) -> None:
    """One line where it can be told, and never another exit code."""
    code = (
        "import sys; sys.argv = ['tcpcore', 'no-such-tool']\nfrom tcpcore.cli import main; main()\n"
    )
    done = subprocess.run(
        ["sh", "-c", f'"$0" -c "$1"{end}', sys.executable, code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 0 if end else 1)


@pytest.mark.parametrize("end", ["2>&-", "2>/dev/full"])
def test_what_others_print_on_a_closed_or_full_standard_error(end: str) -> None:
    """It does not end up in the data, and does not change the exit code when Python ends."""
    code = (
        "import contextlib, sys\n"
        "from tcpcore import cli\n"
        "def called(*arguments, **options):\n"
        "    with contextlib.suppress(OSError):\n"
        "        print('libbpf said', file=sys.stderr)\n"
        "cli._call = lambda arguments: called() or 0\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" {end}', sys.executable, code],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent), "PYTHONUNBUFFERED": ""},
    )
    assert (done.returncode, done.stdout) == (0, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_help_on_a_full_disk(argument: str, unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tcpcore", argument],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(PACKAGE.parent), "PYTHONUNBUFFERED": unbuffered},
        )
    assert (done.returncode, done.stderr) == (1, "tcpcore: No space left on device\n")


def test_no_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptor 1 is then whatever was opened first."""
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(TcpcoreError, match="standard output is closed"):
        destination.standard_output()


def test_nobody_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        for stream in (None, full):
            monkeypatch.setattr(sys, "stderr", stream)
            tell("a message")


def written(path: Path, secret: bool = False) -> int:
    """Write a line; the file's mode."""
    with output_file(path, secret, never) as file:
        file.write("line\n")
    assert path.read_text() == "line\n"
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_text("yesterday's events\n")
    path.chmod(0o640)
    assert written(path) == 0o640


def test_kernel_addresses_are_for_the_owner_alone(tmp_path: Path) -> None:
    assert written(tmp_path / "new", secret=True) == 0o600
    before = tmp_path / "before"
    before.touch(0o644)
    assert written(before, secret=True) == 0o600


def test_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "packets"
    path.write_text("yesterday's packets\n")
    with private_file(path, "`pcapng`") as write:
        write(b"\0\1")
        write(b"\2")
    assert path.read_bytes() == b"\0\1\2"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with (
        pytest.raises(TcpcoreError, match=r"^`pcapng`: No space left on device$"),
        private_file(Path("/dev/full"), "`pcapng`") as write,
    ):
        write(b"\0")


def test_a_link_of_the_caller_is_followed(tmp_path: Path) -> None:
    path, link = tmp_path / "events", tmp_path / "link"
    path.write_text("yesterday's events\n")
    link.symlink_to(path)
    assert written(link) and link.is_symlink()


def test_a_link_to_what_is_not_the_callers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, link = tmp_path / "passwd", tmp_path / "link"
    path.write_text("root\n")
    link.symlink_to(path)
    monkeypatch.setattr(destination, "_callers", lambda: {4711})
    with pytest.raises(TcpcoreError, match=r"--output: .*/link: a symbolic link that is not yours"):
        written(link)
    assert path.read_text() == "root\n"


def test_a_link_to_nothing_makes_no_file(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "new")
    with pytest.raises(TcpcoreError, match="No such file"):
        written(link)
    assert not (tmp_path / "new").exists()


def test_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """SUDO_UID counts for root alone: anybody can set it."""
    for uid, sudo, found in ((0, "1000", {0, 1000}), (0, "x", {0}), (5, "1000", {5})):
        monkeypatch.setattr(os, "getuid", lambda uid=uid: uid)
        monkeypatch.setenv("SUDO_UID", sudo)
        assert destination._callers() == found
    monkeypatch.delenv("SUDO_UID")
    assert destination._callers() == {5}


@pytest.mark.parametrize(
    ("path", "says"), [("/nowhere/out", "No such file or directory"), ("/", "Is a directory")]
)
def test_what_cannot_be_opened(path: str, says: str) -> None:
    with pytest.raises(TcpcoreError) as e, output_file(Path(path), False, never):
        pass
    assert str(e.value) == f"--output: {path}: {says}"


@pytest.fixture
def patience() -> Iterator[None]:
    """An open() that blocks is a failure, not the end of all tests."""

    def give_up(*arguments: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("patience")
def test_a_fifo_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    looks: list[str] = []

    def look() -> bool:
        """The reader comes while we wait."""
        if len(looks) == 2:
            readers.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        looks.append("look")
        return False

    readers: list[int] = []
    with output_file(path, False, look) as file:
        file.write("line\n")
    assert os.read(readers[0], 100) == b"line\n" and len(looks) == 3
    os.close(readers[0])


@pytest.mark.usefixtures("patience")
def test_a_fifo_that_nobody_reads_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    looks = iter([False, False, True])
    with output_file(path, False, lambda: next(looks)) as file:
        file.write("line\n")
        assert not file.gone()


def test_what_fails_at_the_close_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota on a file system of the network."""
    close = os.close

    def fail(fd: int) -> None:
        close(fd)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    events = output_file(tmp_path / "events", False, never)
    with pytest.raises(TcpcoreError, match=r"--output: .*/events: Disk quota exceeded"), events:
        monkeypatch.setattr(os, "close", fail)
    monkeypatch.undo()
