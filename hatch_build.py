"""What a wheel holds besides Python: the BPF objects, and libbpf with the libraries it needs.

The objects are compiled by the Makefile. The libraries are the build host's own, so that a traced
host needs none; TCPCORE_BUNDLE_LIBBPF=0 (or bundle-libbpf = false in pyproject.toml) leaves them
out, for distributions that have libbpf as a package.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBBPF = "libbpf.so.1"
BUNDLE_FOLDER = "tcpcore/libs"  # where src/tcpcore/loader/ffi.py looks first
# Every host has glibc, and a second copy of it in one process does not work.
GLIBC = re.compile(r"(lib(c|m|dl|rt|pthread)|ld-linux[-\w]*)\.so\.")
COMMON_LICENSES = Path("/usr/share/common-licenses")


class CustomBuildHook(BuildHookInterface[BuilderConfig]):
    """Run by hatchling before it packs a wheel, and for `pip install -e`."""

    copies: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; then, unless the install is editable or told otherwise, bundle."""
        run("make", f"-j{os.cpu_count()}", "bpf", cwd=self.root, package="make")
        summarise(Path(self.root, "src"))
        if version == "editable" or not self.bundles():
            return
        self.copies = tempfile.TemporaryDirectory()
        libraries = list(bundle(Path(self.copies.name)))
        build_data["force_include"][self.copies.name] = BUNDLE_FOLDER
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag(libraries)}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel is packed: drop the copies that went into it."""
        if self.copies:
            self.copies.cleanup()

    def bundles(self) -> bool:
        """The environment decides, else pyproject.toml."""
        switch = os.environ.get("TCPCORE_BUNDLE_LIBBPF")
        if switch not in (None, "0", "1"):
            sys.exit(f"tcpcore: TCPCORE_BUNDLE_LIBBPF={switch}: neither 0 nor 1")
        return bool(self.config.get("bundle-libbpf", True)) if switch is None else switch == "1"


def summarise(source: Path) -> None:
    """A summary beside each object, with which tcpcore starts faster; and the types of trace()."""
    sys.path.insert(0, str(source))
    from tcpcore import overloads
    from tcpcore.loader import elf

    for path in sorted(source.glob("tcpcore/objects/*.bpf.o")):
        elf.store(path)
    overloads.store()


def run(*command: str, package: str, cwd: str | None = None) -> str:
    """Standard output of a command; its failure ends the build without a traceback."""
    try:
        done = subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        sys.exit(f"tcpcore: no {command[0]}: install the Debian package {package}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"tcpcore: {' '.join(command)}: exit code {error.returncode}")
    return done.stdout


def bundle(folder: Path) -> Iterator[Path]:
    """Copy libbpf, all it needs but glibc, and their licences into folder; the copies."""
    installed = installed_libraries()
    names = [LIBBPF]
    for name in names:
        if name not in installed:
            sys.exit(
                f"tcpcore: no {name} to bundle: install the Debian package libbpf1, "
                "or set TCPCORE_BUNDLE_LIBBPF=0 to use the traced host's"
            )
        copy = folder / name
        shutil.copyfile(installed[name], copy)
        names += [n for n in needed(copy) if n not in names and not GLIBC.match(n)]
        run("patchelf", "--set-rpath", "$ORIGIN", str(copy), package="patchelf")
        copy_licences(installed[name], folder / "licenses")
        yield copy


def installed_libraries() -> dict[str, Path]:
    """This architecture's libraries as the dynamic linker finds them, by soname."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/sbin", "/usr/sbin"])
    ldconfig = shutil.which("ldconfig", path=path) or "ldconfig"
    lines = run(ldconfig, "-p", package="libc-bin")
    found: dict[str, Path] = {}
    for name, target in re.findall(r"^\s+(\S+) \(.*\) => (\S+)$", lines, re.MULTILINE):
        if name not in found and name.startswith("lib") and is_ours(Path(target)):
            found[name] = Path(target)
    return found


def is_ours(library: Path) -> bool:
    """A host can have libraries of several architectures."""
    ours = {"x86_64": "x64", "aarch64": "AArch64"}
    with library.open("rb") as file:
        return file.read(4) == b"\x7fELF" and ELFFile(file).get_machine_arch() == ours.get(
            platform.machine()
        )


def needed(library: Path) -> list[str]:
    """The sonames of the libraries it is linked with."""
    with library.open("rb") as file:
        dynamic = ELFFile(file).get_section_by_name(".dynamic")
        assert isinstance(dynamic, DynamicSection)
        # pyelftools names the attribute after the tag, at run time.
        return [tag.needed for tag in dynamic.iter_tags("DT_NEEDED")]  # type: ignore[attr-defined]


def platform_tag(libraries: list[Path]) -> str:
    """The oldest glibc (PEP 600) that has all the symbols that the libraries need."""
    minor = max(minor for library in libraries for minor in glibc_minors(library))
    return f"manylinux_2_{minor}_{platform.machine()}"


def glibc_minors(library: Path) -> Iterator[int]:
    """Minor version of each GLIBC_2.N that the library needs."""
    with library.open("rb") as file:
        for section in ELFFile(file).iter_sections("SHT_GNU_verneed"):
            assert isinstance(section, GNUVerNeedSection)
            for _, versions in section.iter_versions():
                yield from map(glibc_minor, (version.name for version in versions))


def glibc_minor(version: str) -> int:
    """17 for GLIBC_2.17; 0 for another library's version."""
    if version == "GLIBC_ABI_DT_RELR":  # relative relocations, understood since glibc 2.36
        return 36
    found = re.match(r"GLIBC_2\.(\d+)", version)
    return int(found[1]) if found else 0


def copy_licences(library: Path, folder: Path) -> None:
    """The copyright file of the library's package, and the licence texts that it points to."""
    if not shutil.which("dpkg-query"):
        sys.exit(f"tcpcore: no licence of {library} without dpkg: set TCPCORE_BUNDLE_LIBBPF=0")
    pattern = f"*/{library.resolve().name}"
    package = run("dpkg-query", "--search", pattern, package="dpkg").split(":")[0]
    text = Path(f"/usr/share/doc/{package}/copyright").read_text(encoding="utf-8")
    folder.mkdir(exist_ok=True)
    (folder / f"{package}.txt").write_text(text, encoding="utf-8")
    for name in re.findall(rf"{COMMON_LICENSES}/([\w.-]*\w)", text):
        shutil.copyfile(COMMON_LICENSES / name, folder / f"{name}.txt")
