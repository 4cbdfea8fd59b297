"""Fetch Debian's kernels and keep them: one image for each series the tracer promises to run on.

Run it as a program to fetch all of them ahead of the tests: ``python -m tests.kernels.images``.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "newest": "sid"}
"""The label of each kernel, and the Debian suite which carries it."""

METAPACKAGE = "linux-image-amd64"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
APT_TIME_LIMIT = 900

# What apt's resolver says it would install: `Inst linux-image-6.1.0-50-amd64 (6.1.176-1 Debian...`.
# Since 7.x the kernel, its modules and its configuration lie in packages of their own.
_KERNEL_PACKAGE = re.compile(
    r"^Inst (linux-(?:base|binary|image|modules)-\d\S*) \((\S+)", re.MULTILINE
)


class Unavailable(Exception):
    """A kernel image is neither in the cache nor to be had from the mirror; says why."""


@dataclass(frozen=True)
class Image:
    """One unpacked kernel in the cache."""

    label: str
    folder: Path

    @property
    def vmlinuz(self) -> Path:
        """The bootable kernel."""
        return self.folder / "vmlinuz"

    @property
    def config(self) -> Path:
        """What it was built with; libbpf looks for it in /boot."""
        return self.folder / "config"

    @property
    def version(self) -> str:
        """The upstream version, as 6.1.176 (`uname -r` may say no more than 6.1.0-50-amd64)."""
        return (self.folder / "version").read_text().strip()

    @property
    def modules(self) -> Path:
        """The folder of this kernel's modules; its name is what `uname -r` says."""
        (folder,) = (self.folder / "lib/modules").iterdir()
        return folder

    @property
    def release(self) -> str:
        """What `uname -r` says on this kernel."""
        return self.modules.name


def fetch(label: str, *, refresh: bool = False) -> Image:
    """Return the image of a kernel, from the cache when it is there and no refresh is asked for."""
    cache = _cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    image = Image(label, cache / label)
    with _locked(cache / ".lock"):
        if refresh or not image.folder.is_dir():
            # Built aside and renamed into place: a half-fetched image never carries the name.
            with TemporaryDirectory(prefix=f".{label}-", dir=cache) as scratch:
                built = _build(label, Path(scratch))
                shutil.rmtree(image.folder, ignore_errors=True)
                built.rename(image.folder)
    return image


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tcpcore" / "kernels"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep two runs from fetching the same image at the same time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(label: str, scratch: Path) -> Path:
    tree = scratch / "tree"
    version = _download(SUITES[label], scratch)
    for package in sorted(scratch.glob("*.deb")):
        _run(["dpkg", "-x", str(package), str(tree)], scratch)
    return _arrange(tree, version, scratch)


def _arrange(tree: Path, version: str, scratch: Path) -> Path:
    """Bring the parts, which lie in other places from suite to suite, into one layout."""
    built = scratch / "image"
    modules = _only(tree, "lib/modules/*", "usr/lib/modules/*")
    vmlinuz = _only(tree, "boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz")
    config = _only(tree, "boot/config-*", "usr/lib/modules/*/config")
    (built / "lib/modules").mkdir(parents=True)
    vmlinuz.rename(built / "vmlinuz")
    config.rename(built / "config")
    modules.rename(built / "lib/modules" / modules.name)
    (built / "version").write_text(version + "\n")
    _run(["depmod", "-b", str(built), modules.name], scratch)
    return built


def _only(tree: Path, *patterns: str) -> Path:
    found = [path for pattern in patterns for path in tree.glob(pattern)]
    if len(found) != 1:
        raise Unavailable(f"expected one of {', '.join(patterns)} in the packages: {found}")
    return found[0]


def _download(suite: str, scratch: Path) -> str:
    """Download the packages of a suite's kernel into a folder and return the upstream version."""
    apt = _private_apt(suite, scratch)
    _run([*apt, "update"], scratch)
    plan = _run([*apt, "--simulate", "--no-install-recommends", "install", METAPACKAGE], scratch)
    packages = _KERNEL_PACKAGE.findall(plan)
    if not packages:
        raise Unavailable(f"{METAPACKAGE} of {suite} brings no kernel package")
    _run([*apt, "download", *(f"{name}={version}" for name, version in packages)], scratch)
    return str(packages[0][1]).partition("-")[0]


def _private_apt(suite: str, scratch: Path) -> list[str]:
    """Return an apt-get command which sees one suite only, and nothing of the host's packages."""
    source = f"deb [arch=amd64 signed-by={KEYRING}] {_mirror()} {suite} main\n"
    (scratch / "sources.list").write_text(source)
    for folder in ("lists/partial", "cache/archives/partial"):  # apt does not make all of them
        (scratch / folder).mkdir(parents=True)
    settings = {
        "APT::Sandbox::User": "root",  # the scratch folder is closed to apt's own user
        "APT::Update::Error-Mode": "any",  # otherwise an unreachable suite is a mere warning
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Acquire::http::Timeout": "30",
        "Dir::Cache": scratch / "cache",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::Etc::sourcelist": scratch / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": scratch / "lists",
        "Dir::State::status": "/dev/null",
    }
    return ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]


def _mirror() -> str:
    """Return the address of the Debian mirror which this host is configured to use."""
    filters = ["Created-By: Packages", "Origin: Debian", "Label: Debian"]
    found = _run(["apt-get", "indextargets", *filters, "--format", "$(REPO_URI)"], Path("/"))
    if not found:
        raise Unavailable("apt knows no Debian mirror here (has apt-get update been run?)")
    return found.split()[0]


def _run(command: list[str], folder: Path) -> str:
    """Run a command in a folder and return what it printed."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=APT_TIME_LIMIT,
        )
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{command[0]}: {' '.join(str(error.stderr).split())}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]}: {error}") from error
    return done.stdout


def main() -> int:
    """Fetch the kernels which are not in the cache yet and print a line about each."""
    parser = argparse.ArgumentParser(description="Fetch the kernels of the kernel tests.")
    parser.add_argument("--refresh", action="store_true", help="fetch those in the cache again")
    parser.add_argument("label", nargs="*", help=f"of {', '.join(SUITES)}; default: all")
    arguments = parser.parse_args()
    missing = 0
    for label in arguments.label or SUITES:
        try:
            image = fetch(label, refresh=arguments.refresh)
        except Unavailable as error:
            missing += 1
            print(f"{label}: not available: {error}", flush=True)
        else:
            print(f"{label}: {image.version} ({image.release}) in {image.folder}", flush=True)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
