"""Ids of classic tracepoints, from a folder that stands for tracefs and from none at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tcpcore.errors import LibbpfError
from tcpcore.loader import tracefs
from tcpcore.loader.tracefs import TracefsError, tracepoint_id


@pytest.fixture
def roots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
    """Two folders where tracefs may be mounted; it is at neither."""
    found = tmp_path / "tracing", tmp_path / "debug" / "tracing"
    monkeypatch.setattr(tracefs, "ROOTS", found)
    found[0].mkdir()  # empty, as the kernel makes it
    return found


def mounted(root: Path, number: int) -> Path:
    folder = root / "events" / "syscalls" / "sys_exit_accept4"
    folder.mkdir(parents=True)
    (folder / "id").write_text(f"{number}\n")
    return folder / "id"


def refusing(call: str, number: int) -> Callable[..., int]:
    def fails(name: str, *arguments: object) -> int:
        assert name == call
        raise LibbpfError(name, number)

    return fails


def descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def test_a_mounted_one_tells(roots: tuple[Path, Path]) -> None:
    mounted(roots[0], 2233)
    before = descriptors()
    assert tracepoint_id("syscalls", "sys_exit_accept4") == 2233
    assert descriptors() == before


def test_debugfs_has_one_too(roots: tuple[Path, Path]) -> None:
    mounted(roots[1], 17)
    assert tracepoint_id("syscalls", "sys_exit_accept4") == 17


def test_no_such_tracepoint(roots: tuple[Path, Path]) -> None:
    mounted(roots[0], 1)
    before = descriptors()
    with pytest.raises(TracefsError) as e:
        tracepoint_id("syscalls", "sys_exit_frobnicate")
    assert e.value.errno == errno.ENOENT
    assert str(e.value) == (
        "open: No such file or directory: tracepoint syscalls/sys_exit_frobnicate: "
        "this kernel has no such tracepoint"
    )
    assert descriptors() == before


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EPERM, "run as root, or mount it: mount -t tracefs"),
        (errno.ENOSYS, "run as root, or mount it: mount -t tracefs"),
        (errno.ENODEV, "built without tracefs"),
        (errno.EMFILE, "Too many open files: tracepoint a/b"),
    ],
)
def test_none_that_could_be_read(
    roots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    monkeypatch.setattr(tracefs, "syscall", refusing("fsopen", number))
    with pytest.raises(TracefsError) as e:
        tracepoint_id("a", "b")
    assert (e.value.call, e.value.errno) == ("fsopen", number)
    assert "tracepoint a/b" in str(e.value)
    assert says in str(e.value)
    assert "\n" not in str(e.value)


def test_a_mount_that_fails_half_way_leaves_nothing(
    roots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = descriptors()

    def fails(name: str, *arguments: object) -> int:
        if name == "fsopen":
            return os.open(tmp_path, os.O_RDONLY)
        raise LibbpfError(name, errno.EPERM)

    monkeypatch.setattr(tracefs, "syscall", fails)
    with pytest.raises(TracefsError, match=r"^fsconfig: "):
        tracepoint_id("a", "b")
    assert descriptors() == before


def closing(monkeypatch: pytest.MonkeyPatch, *closed: Path) -> None:
    """These folders are root's alone, and we may not mount."""
    open_ = os.open

    def look(path: str | Path, *arguments: int, **more: int) -> int:
        if any(Path(path).is_relative_to(folder) for folder in closed):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return open_(path, *arguments, **more)

    monkeypatch.setattr(os, "open", look)
    monkeypatch.setattr(tracefs, "syscall", refusing("fsopen", errno.EPERM))


def test_one_that_is_closed_to_us(
    roots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    closing(monkeypatch, *roots)
    with pytest.raises(TracefsError) as e:
        tracepoint_id("a", "b")
    assert e.value.is_forbidden
    assert str(e.value) == (
        "open: Permission denied: tracepoint a/b: only root may look into tracefs: "
        "run as root, or with CAP_DAC_READ_SEARCH"
    )


def test_one_is_closed_and_the_other_is_not(
    roots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted(roots[1], 17)
    closing(monkeypatch, roots[0])
    assert tracepoint_id("syscalls", "sys_exit_accept4") == 17
