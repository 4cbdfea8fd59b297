"""`make bpf`: what it builds, when, with which compiler."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).parents[1]
OBJECTS = Path("src/tcpcore/objects")
SOURCE = '#include "number.h"\nint number = NUMBER;\n'


def make(
    folder: Path, *arguments: str, path: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run make as a user would, whatever make or compiler runs these tests."""
    unset = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "CLANG", "LLVM_STRIP")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    if path is not None:
        env["PATH"] = path
    return subprocess.run(
        [shutil.which("make") or "make", *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
    )


def built(folder: Path) -> dict[str, bytes]:
    """The objects, by file name."""
    return {path.name: path.read_bytes() for path in (folder / OBJECTS).iterdir()}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A checkout with two tools of one line, which share a header."""
    (tmp_path / "bpf").mkdir()
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "bpf/number.h").write_text("#define NUMBER 1\n")
    for tool in ("one", "two"):
        (tmp_path / f"bpf/{tool}.bpf.c").write_text(SOURCE)
    return tmp_path


@pytest.fixture(scope="module")
def checkouts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The project's own objects, built in two folders of different depth."""
    base = tmp_path_factory.mktemp("checkouts")
    folders = base / "a", base / "some/where/deeper"
    for folder in folders:
        shutil.copytree(ROOT / "bpf", folder / "bpf")
        shutil.copy(ROOT / "Makefile", folder)
        done = make(folder, f"-j{os.cpu_count()}", "bpf")
        assert done.returncode == 0, done.stderr
    return folders


def test_every_tool_has_an_object_for_each_architecture(checkouts: tuple[Path, Path]) -> None:
    tools = [path.name.removesuffix(".bpf.c") for path in ROOT.glob("bpf/*.bpf.c")]
    assert tools
    assert sorted(built(checkouts[0])) == sorted(
        f"{tool}.{arch}.bpf.o" for tool in tools for arch in ("arm64", "x86")
    )


def test_the_folder_does_not_matter(checkouts: tuple[Path, Path]) -> None:
    here, there = map(built, checkouts)
    assert here == there
    assert not [name for name, data in here.items() if str(checkouts[0]).encode() in data]


def test_the_objects_have_btf_and_no_dwarf(checkouts: tuple[Path, Path]) -> None:
    for path in (checkouts[0] / OBJECTS).iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        with path.open("rb") as file:
            elf = ELFFile(file)
            sections = {section.name for section in elf.iter_sections()}
            assert elf["e_machine"] == "EM_BPF"
        assert ".BTF" in sections
        assert not [name for name in sections if name.startswith(".debug")]


def test_nothing_changed_nothing_built(small: Path) -> None:
    assert "two.arm64" in make(small, "bpf").stdout
    assert make(small, "bpf").stdout == ""


def test_a_header_rebuilds_the_objects(small: Path) -> None:
    make(small, "bpf")
    before = built(small)
    (small / "bpf/number.h").write_text("#define NUMBER 2\n")
    assert make(small, "bpf").returncode == 0
    after = built(small)
    assert sorted(after) == sorted(before)
    assert not [name for name in after if after[name] == before[name]]


def test_the_objects_of_a_removed_tool_go(small: Path) -> None:
    make(small, "bpf")
    (small / "bpf/two.bpf.c").unlink()
    assert make(small, "bpf").returncode == 0
    assert sorted(built(small)) == ["one.arm64.bpf.o", "one.x86.bpf.o"]


def test_a_broken_source_leaves_no_object(small: Path) -> None:
    (small / "bpf/one.bpf.c").write_text("int f(void) { int unused; return 0; }\n")
    done = make(small, "-k", "bpf")
    assert done.returncode != 0
    assert "unused" in done.stderr
    assert sorted(built(small)) == ["two.arm64.bpf.o", "two.x86.bpf.o"]


def test_no_clang_names_the_packages(small: Path) -> None:
    done = make(small, "bpf", path="/nonexistent")
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert "install the Debian packages clang-19 and llvm-19" in line


def test_no_llvm_strip_names_the_package(small: Path) -> None:
    done = make(small, "CLANG=clang-19", "bpf", path="/nonexistent")
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert "install the Debian package llvm-19" in line


def test_the_newest_clang_is_taken(small: Path) -> None:
    """Each stand-in writes its name where it was told to write an object."""
    programs = small / "programs"
    programs.mkdir()
    for version in (9, 18, 19, 21):
        for name in (f"clang-{version}", f"llvm-strip-{version}"):
            program = programs / name
            program.write_text(
                f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho {name} > "$2"\n'
            )
            program.chmod(0o755)
    done = make(small, "bpf", path=f"{programs}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    assert set(built(small).values()) == {b"llvm-strip-21\n"}
    assert (small / "build/bpf/one.x86.bpf.o").read_text() == "clang-21\n"


def test_make_alone_prints_help(small: Path) -> None:
    done = make(small)
    assert done.returncode == 0
    for target in ("demo", "test", "bpf", "wheel", "clean"):
        assert f"  {target} " in done.stdout
    assert not (small / "src").exists()


def test_the_quick_start_brings_what_its_commands_need(small: Path) -> None:
    """`connect --dns` is one of them."""
    (small / "pyproject.toml").touch()
    done = make(small, "-n", "small-venv/.ready", "VENV=small-venv")
    assert done.returncode == 0
    assert "pip install --quiet --editable '.[dns]'" in done.stdout
