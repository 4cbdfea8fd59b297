"""Containers, from what the kernel and the runtimes leave in files; no runtime is asked.

A container's cgroup carries its id in its name. Names stand in the runtimes' own state files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from tcpcore import filters
from tcpcore.errors import UsageError

PROC = Path("/proc")

# Relative to the root of the file system.
DOCKER = ("var/lib/docker/containers/*/config.v2.json",)
# Podman and CRI-O: `overlay` is the storage driver; `volatile-` are those made with --rm.
STORAGE = (
    "var/lib/containers/storage/*-containers/*containers.json",
    "home/*/.local/share/containers/storage/*-containers/*containers.json",
)
CONTAINERD = (
    "run/containerd/io.containerd.runtime.v2.task/*/*/config.json",
    "run/k3s/containerd/io.containerd.runtime.v2.task/*/*/config.json",
)
_NAME_ANNOTATIONS = ("io.kubernetes.cri.container-name", "nerdctl/name")

# systemd's scopes, and bare ids where the runtime makes the cgroup itself. libpod-conmon-<id> and
# crio-conmon-<id> are the monitors.
_CGROUP = re.compile(r"(?:(?:docker|nerdctl|cri-containerd|crio|libpod)-)?([0-9a-f]{64})(\.scope)?")
_ID_PREFIX = re.compile(r"[0-9a-f]{4,64}")
_SHOWN = 10  # candidates in an error message


def outer_pid(option: str, namespace: str, pid: int, proc: Path = PROC) -> int:
    """The pid out here of the process that has `pid` in a pid namespace.

    namespace: the pid of a process in it, or its inode. Raises UsageError.
    """
    wanted = _pid_namespace(option, namespace, proc)
    for process in proc.iterdir():
        if process.name.isdigit() and _link(process) == wanted and _innermost(process) == pid:
            return int(process.name)
    raise UsageError(f"{option}: there is no process {pid} in the pid namespace {wanted}")


def _pid_namespace(option: str, text: str, proc: Path) -> str:
    """A pid namespace as /proc writes it: pid:[4026531836]."""
    bare = text.removeprefix("inode:").removeprefix("pid:[").removesuffix("]")
    if not re.fullmatch(r"[0-9]{1,10}", bare):
        raise UsageError(f"{option}: '{text}' is neither a process id nor a namespace inode")
    if int(bare) > filters.MAX_PID:
        return f"pid:[{bare}]"
    found = _link(proc / str(int(bare)))
    if found is None:
        raise UsageError(f"{option}: there is no process {bare}, or no right to look at it")
    return found


def _link(process: Path) -> str | None:
    try:
        return str((process / "ns/pid").readlink())
    except OSError:
        return None


def _innermost(process: Path) -> int | None:
    """The pid of a process in its own pid namespace: the last of NSpid, proc(5)."""
    try:
        status = (process / "status").read_text(errors="replace")
    except OSError:
        return None
    pids = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
    return int(pids[-1]) if pids else None


def cgroup(option: str, text: str, hierarchy: Path | None = None, root: Path = Path("/")) -> Path:
    """The cgroup of a running container, by its id, the begin of its id, or its name.

    hierarchy: where cgroup v2 is mounted. root: of the runtimes' files. Raises UsageError.
    """
    running = _running(hierarchy or filters.cgroup_root(option))
    names = _names(root)
    found = _matching(text, running, names)
    if len(found) == 1:
        return running[found[0]]
    if found:
        raise UsageError(f"{option}: '{text}' is ambiguous: {_list(found, names)}")
    there = f"there are: {_list(running, names)}" if running else "none runs here"
    raise UsageError(f"{option}: '{text}' is no running container's id or name; {there}")


def _running(hierarchy: Path) -> dict[str, Path]:
    """The cgroups of all containers by id; the outermost where a runtime nests several."""
    found: dict[str, Path] = {}
    for folder, below, _ in os.walk(hierarchy):
        for name in below:
            match = _CGROUP.fullmatch(name)
            if match:
                found.setdefault(match[1], Path(folder, name))
    return found


def _matching(
    text: str, running: Collection[str], names: Mapping[str, Collection[str]]
) -> list[str]:
    """As Docker does: a name goes before the begin of an id."""
    named = [key for key in running if text in names.get(key, ())]
    if named or not _ID_PREFIX.fullmatch(text):
        return named
    return [key for key in running if key.startswith(text)]


def _list(keys: Collection[str], names: Mapping[str, Collection[str]]) -> str:
    shown = [" ".join([key[:12], *sorted(names.get(key, ()))]) for key in sorted(keys)]
    more = [f"and {len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
    return ", ".join(shown[:_SHOWN] + more)


def _names(root: Path) -> dict[str, set[str]]:
    """The names of all containers that a runtime knows, by id."""
    readers = (DOCKER, _docker), (STORAGE, _storage), (CONTAINERD, _containerd)
    names: dict[str, set[str]] = {}
    for patterns, reader in readers:
        for pattern in patterns:
            for path in root.glob(pattern):
                for key, name in reader(path):
                    names.setdefault(key, set()).add(name)
    return names


def _docker(path: Path) -> Iterator[tuple[str, str]]:
    match _read(path):
        case {"ID": str(key), "Name": str(name)}:
            yield key, name.removeprefix("/")


def _storage(path: Path) -> Iterator[tuple[str, str]]:
    content = _read(path)
    for entry in content if isinstance(content, list) else ():
        match entry:
            case {"id": str(key), "names": [*names]}:
                yield from ((key, str(name)) for name in names)


def _containerd(path: Path) -> Iterator[tuple[str, str]]:
    match _read(path):
        case {"annotations": dict(annotations)}:
            for annotation in _NAME_ANNOTATIONS:
                if annotation in annotations:
                    yield path.parent.name, str(annotations[annotation])


def _read(path: Path) -> Any:
    """A state file; None where it is not ours to read, or half written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
