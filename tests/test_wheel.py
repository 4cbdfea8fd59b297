"""The wheel: complete, reproducible, usable on a host that has neither a compiler nor libbpf."""

from __future__ import annotations

import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).parents[1]
LIBS = "tcpcore/libs/"
# What a wheel may expect of any host.
GLIBC = {"libc.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}

SHOW_BUNDLED = """
import ctypes, pathlib, tcpcore
libs = pathlib.Path(tcpcore.__file__).parent / "libs"
ctypes.CDLL(str(libs / "libbpf.so.1"))
loaded = {line.split()[-1] for line in open("/proc/self/maps")}
print(*(path.name for path in libs.glob("*.so.*") if str(path) in loaded))
"""

Wheel = dict[str, tuple[int, bytes]]


def build(
    kind: str, source: Path, out: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Build with the tools of this environment: no network needed."""
    unset = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "TCPCORE_BUNDLE_LIBBPF")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", out, source],
        cwd=out,
        env=env | environment,
        capture_output=True,
        text=True,
    )


def built(kind: str, source: Path, out: Path, **environment: str) -> Path:
    """The one file that a build leaves in out."""
    done = build(kind, source, out, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.iterdir()
    return path


def contents(path: Path) -> Wheel:
    """Mode and bytes of each file in a wheel."""
    with zipfile.ZipFile(path) as archive:
        return {
            info.filename: (info.external_attr, archive.read(info)) for info in archive.infolist()
        }


def libraries(files: Wheel) -> dict[str, bytes]:
    """The bundled libraries, by soname."""
    return {
        name.removeprefix(LIBS): data
        for name, (_, data) in files.items()
        if name.startswith(LIBS) and ".so." in name
    }


def dynamic_entries(library: bytes, tag: str) -> list[str]:
    """The strings of one kind in a library's dynamic section."""
    section = ELFFile(io.BytesIO(library)).get_section_by_name(".dynamic")
    assert isinstance(section, DynamicSection)
    return [getattr(entry, tag.removeprefix("DT_").lower()) for entry in section.iter_tags(tag)]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist's source tree, without any object yet."""
    folder = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["tar", "-xzf", sdist, "-C", folder, "--strip-components=1"], check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def files(wheel: Path) -> Wheel:
    return contents(wheel)


def test_the_sdist_has_the_sources_and_nothing_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = ["Makefile", "hatch_build.py", "pyproject.toml", "LICENSE", "tests/test_wheel.py"]
    wanted += [str(path.relative_to(ROOT)) for path in ROOT.glob("bpf/**/*.[ch]")]
    wanted += [str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md")]
    assert not set(wanted) - names
    assert not [name for name in names if name.endswith((".o", ".so", ".pyc"))]


def test_no_clang_names_the_packages(unpacked: Path, tmp_path: Path) -> None:
    """Before any other build in that folder: objects that are there already need no compiler."""
    source = shutil.copytree(unpacked, tmp_path / "source", ignore=shutil.ignore_patterns("*.o"))
    programs, out = tmp_path / "programs", tmp_path / "out"
    out.mkdir()
    programs.mkdir()
    (programs / "make").symlink_to(shutil.which("make") or "make")
    done = build("wheel", source, out, PATH=str(programs))
    assert done.returncode != 0
    assert "install the Debian packages clang-19 and llvm-19" in done.stderr
    assert not list(out.iterdir())


def test_no_patchelf_names_the_package(tmp_path: Path) -> None:
    programs, out = tmp_path / "programs", tmp_path / "out"
    out.mkdir()
    programs.mkdir()
    for name in ("make", "mkdir", "sh"):
        (programs / name).symlink_to(shutil.which(name) or name)
    done = build("wheel", ROOT, out, PATH=str(programs))
    assert done.returncode != 0
    assert "install the Debian package patchelf" in done.stderr


def test_the_same_wheel_from_tree_and_sdist(wheel: Path, unpacked: Path, tmp_path: Path) -> None:
    other = built("wheel", unpacked, tmp_path)
    assert other.name == wheel.name
    ours, theirs = contents(wheel), contents(other)
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert wheel.read_bytes() == other.read_bytes()


def test_the_objects_of_every_tool(files: Wheel) -> None:
    tools = [path.name.removesuffix(".bpf.c") for path in ROOT.glob("bpf/*.bpf.c")]
    wanted = {f"tcpcore/objects/{tool}.{arch}.bpf.o" for tool in tools for arch in ("x86", "arm64")}
    assert wanted
    assert wanted == {name for name in files if name.endswith(".o")}


def test_no_sources_of_objects(files: Wheel) -> None:
    assert not [name for name in files if name.endswith((".c", ".h", ".d"))]


def test_the_libraries_find_each_other(files: Wheel) -> None:
    bundled = libraries(files)
    assert "libbpf.so.1" in bundled
    for library in bundled.values():
        assert dynamic_entries(library, "DT_RUNPATH") == ["$ORIGIN"]
        assert set(dynamic_entries(library, "DT_NEEDED")) <= set(bundled) | GLIBC


def test_the_tag_says_which_glibc(wheel: Path, files: Wheel) -> None:
    minors = [
        int(minor)
        for library in libraries(files).values()
        for minor in re.findall(rb"GLIBC_2\.(\d+)", library)
    ]
    tag = f"py3-none-manylinux_2_{max(minors)}_{platform.machine()}"
    assert wheel.name.endswith(f"-{tag}.whl")
    (metadata,) = (data for name, (_, data) in files.items() if name.endswith("/WHEEL"))
    assert message_from_bytes(metadata)["Tag"] == tag


def test_the_licences_come_along(files: Wheel) -> None:
    names = [name for name in files if name.startswith(f"{LIBS}licenses/")]
    for start in ("libbpf", "libelf", "zlib", "LGPL-3", "GPL-2"):
        assert [name for name in names if Path(name).name.startswith(start)], start
    for name in ("LICENSE", "BSD-2-Clause.txt", "GPL-2.0-only.txt"):
        assert [path for path in files if ".dist-info/licenses/" in path and path.endswith(name)]


def test_without_libbpf(files: Wheel, tmp_path: Path) -> None:
    path = built("wheel", ROOT, tmp_path, TCPCORE_BUNDLE_LIBBPF="0")
    assert path.name.endswith("-py3-none-any.whl")
    assert set(contents(path)) == {name for name in files if not name.startswith(LIBS)}


def test_the_switch_is_0_or_1(tmp_path: Path) -> None:
    done = build("wheel", ROOT, tmp_path, TCPCORE_BUNDLE_LIBBPF="no")
    assert done.returncode != 0
    assert "TCPCORE_BUNDLE_LIBBPF=no: neither 0 nor 1" in done.stderr


def test_an_editable_install_bundles_nothing(tmp_path: Path) -> None:
    code = f"import hatchling.build; hatchling.build.build_editable({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("-py3-none-any.whl")
    assert not libraries(contents(path))


def test_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python = venv / "bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True)
    said = subprocess.check_output([venv / "bin/tcpcore", "--version"], text=True)
    assert wheel.name.split("-")[1] in said.split()
    loaded = subprocess.check_output([python, "-c", SHOW_BUNDLED], text=True, cwd=tmp_path)
    # Not libz: Debian's Python is linked with the host's, and one soname is loaded once.
    assert {"libbpf.so.1", "libelf.so.1"} <= set(loaded.split())
