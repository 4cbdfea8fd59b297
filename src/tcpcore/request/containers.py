"""Containers, from what the kernel and the runtimes leave in files; no runtime is asked.

A container's cgroup carries its id in its name. Names stand in the runtimes' own state files. Those
in users' homes are read by root, and may be anything: a FIFO, a link, a device, made-up text.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from tcpcore.errors import OptionError
from tcpcore.request import places

PROC = Path("/proc")
_MAX_PID = 1 << 22  # include/linux/threads.h, PID_MAX_LIMIT
_HOST = "pid:[4026531836]"  # include/linux/proc_ns.h, PROC_PID_INIT_INO

# Relative to the root of the file system.
DOCKER = ("var/lib/docker/containers/*/config.v2.json",)
# Podman and CRI-O: `overlay` is the storage driver; `volatile-` are those made with --rm.
STORAGE = ("var/lib/containers/storage/*-containers/*containers.json",)
# The same in a user's home. No wildcards: folders there may be of any length.
IN_HOME = tuple(
    f".local/share/containers/storage/{driver}-containers/{file}.json"
    for driver in ("overlay", "vfs", "btrfs", "zfs")
    for file in ("containers", "volatile-containers")
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
# systemd's slice of all that a user runs, relative to the hierarchy; systemd.special(7).
_USER_SLICE = re.compile(r"user\.slice/user-([0-9]{1,10})\.slice/.*")
_SHOWN = 10  # candidates in an error message
_LARGEST = 4 << 20  # bytes of a state file: two thousand containers


def host_pid(pid: int, namespace: str | None = None, proc: Path = PROC) -> int:
    """The number of a process in the host's pid namespace, which is what the kernel side compares.

    namespace: the pid namespace in which it is `pid`, as for outer_pid(); None for our own. Raises
    OptionError, also where /proc does not tell the host's numbers.
    """
    own = _link(proc / "self") or _HOST  # absent in a kernel without pid namespaces
    option = "pid" if namespace is None else "pidns"
    if own != _HOST and not _shows_host(proc):
        raise OptionError(
            option,
            "in this pid namespace the host's process ids are not known; use `cgroup` "
            "or `comm`, or run tcpcore in the host's (docker run --pid=host, nsenter -t 1 -p)",
        )
    if namespace is None and own == _HOST:
        return pid
    return outer_pid(option, namespace or own, pid, proc)


def _shows_host(proc: Path) -> bool:
    """Whether it is the host's /proc. That of another pid namespace shows none of the host's."""
    return any(_link(process) == _HOST for process in proc.iterdir() if process.name.isdigit())


def outer_pid(option: str, namespace: str, pid: int, proc: Path = PROC) -> int:
    """The pid, as we see it, of the process that has `pid` in a pid namespace.

    namespace: the pid of a process in it, or its inode. Raises OptionError.
    """
    wanted = _pid_namespace(option, namespace, proc)
    for process in proc.iterdir():
        if process.name.isdigit() and _link(process) == wanted and _innermost(process) == pid:
            return int(process.name)
    raise OptionError(option, f"there is no process {pid} in the pid namespace {wanted}")


def _pid_namespace(option: str, text: str, proc: Path) -> str:
    """A pid namespace as /proc writes it: pid:[4026531836]."""
    bare = text.removeprefix("inode:").removeprefix("pid:[").removesuffix("]")
    if not re.fullmatch(r"[0-9]{1,10}", bare):
        raise OptionError(option, f"'{text}' is neither a process id nor a namespace inode")
    if int(bare) > _MAX_PID:
        return f"pid:[{bare}]"
    found = _link(proc / str(int(bare)))
    if found is None:
        raise OptionError(option, f"there is no process {bare}, or no right to look at it")
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


class _Container(NamedTuple):
    """user: in whose slice it runs; None for the system's."""

    key: str
    user: int | None
    path: Path


_Names = dict[tuple[str, int | None], set[str]]
"""By container id and user: what a user's files say counts for that user's containers alone."""


def cgroup(option: str, text: str, hierarchy: Path | None = None, root: Path = Path("/")) -> Path:
    """The cgroup of a running container, by its id, the begin of its id, or its name.

    hierarchy: where cgroup v2 is mounted. root: of the runtimes' files. Raises OptionError.
    """
    running = _running(hierarchy or places.cgroup_root(option))
    names = _names(root, {one.user for one in running})
    found = _matching(text, running, names)
    if len(found) == 1:
        return found[0].path
    if found:
        raise OptionError(option, f"'{text}' is ambiguous: {_list(found, names)}")
    raise OptionError(
        option,
        f"'{text}' is no running container's id or name; "
        + (f"there are: {_list(running, names)}" if running else _nothing_runs()),
    )


class Named:
    """The containers of cgroups, by the cgroups' ids.

    Their names are read at the start, while there are the rights to. A container that comes later
    has the begin of its id, unless the rights are still there. Raises OptionError where no cgroup
    v2 is mounted.
    """

    def __init__(self, option: str, hierarchy: Path | None = None, root: Path = Path("/")) -> None:
        self._hierarchy, self._root = hierarchy or places.cgroup_root(option), root
        self._known = _of_cgroups(self._hierarchy, root)

    def __call__(self, cgroup_id: int | None) -> str | None:
        """None: not known, or no container's."""
        if cgroup_id is None:
            return None
        if cgroup_id not in self._known:
            new = _of_cgroups(self._hierarchy, self._root)
            self._known = {cgroup_id: None, **new, **self._known}
        return self._known[cgroup_id]


def _of_cgroups(hierarchy: Path, root: Path) -> dict[int, str | None]:
    """The container that each cgroup is in, by the inode of its directory."""
    running = _running(hierarchy)
    names = _names(root, {one.user for one in running})
    inside: dict[str, str | None] = {str(one.path): _name(one, names) for one in running}
    found = {}
    for folder, below, _ in os.walk(hierarchy):
        for name in below:
            path = f"{folder}/{name}"
            inside.setdefault(path, inside.get(folder))
            with suppress(OSError):  # it is gone
                found[Path(path).stat().st_ino] = inside[path]
    return found


def _name(one: _Container, names: _Names) -> str:
    return min(names.get(one[:2], {one.key[:12]}))


def _nothing_runs() -> str:
    if places.mounted("cgroup"):
        return "none runs in cgroup v2, which is needed, and this host uses version 1 as well"
    return "none runs here"


def _running(hierarchy: Path) -> list[_Container]:
    """All containers; the outermost cgroup where a runtime nests several.

    A user may give a cgroup any name: one with the id of a system's container does not count.
    """
    found = []
    for folder, below, _ in os.walk(hierarchy):
        for name in below:
            match = _CGROUP.fullmatch(name)
            if match and match[1] not in folder:
                path = Path(folder, name)
                found.append(_Container(match[1], _user(path.relative_to(hierarchy)), path))
    of_system = {one.key for one in found if one.user is None}
    return [one for one in found if one.user is None or one.key not in of_system]


def _user(path: Path) -> int | None:
    match = _USER_SLICE.fullmatch(str(path))
    return int(match[1]) if match else None


def _matching(text: str, running: Sequence[_Container], names: _Names) -> list[_Container]:
    """As Docker does: an id, then a name, then the begin of an id.

    A name that a user gave hides no other container whose id begins with the same text.
    """
    exact = [one for one in running if one.key == text]
    named = [one for one in running if text in names.get(one[:2], ())]
    if exact or not _ID_PREFIX.fullmatch(text) or any(one.user is None for one in named):
        return exact or named
    return [one for one in running if one in named or one.key.startswith(text)]


def _list(found: Sequence[_Container], names: _Names) -> str:
    first = sorted(found, key=lambda one: (one.key, one.path))[:_SHOWN]
    shown = [_show(one, names.get(one[:2], set())) for one in first]
    more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return ", ".join(shown + more)


def _show(one: _Container, names: set[str]) -> str:
    """The begin of its id, its names if there is room, and whose it is."""
    whose = [] if one.user is None else [f"(user {one.user})"]
    return " ".join([one.key[:12], *[" ".join(sorted(names))[:60]] * bool(names), *whose])


def _names(root: Path, users: set[int | None]) -> _Names:
    """The names of all containers that a runtime knows.

    users: who has containers. A file in a home counts for containers of the file's owner.
    """
    of_system = (DOCKER, _docker), (STORAGE, _storage), (CONTAINERD, _containerd)
    names: _Names = {}
    for patterns, reader in of_system:
        for path, content, _ in _state(chain.from_iterable(map(root.glob, patterns))):
            for key, name in reader(path, content):
                names.setdefault((key, None), set()).add(name)
    homes = root.glob("home/*") if users - {None} else ()
    for path, content, owner in _state(home / file for home in homes for file in IN_HOME):
        for key, name in _storage(path, content):
            names.setdefault((key, owner), set()).add(name)
    return names


def _docker(_: Path, content: Any) -> Iterator[tuple[str, str]]:
    match content:
        case {"ID": str(key), "Name": str(name)}:
            yield key, name.removeprefix("/")


def _storage(_: Path, content: Any) -> Iterator[tuple[str, str]]:
    for entry in content if isinstance(content, list) else ():
        match entry:
            case {"id": str(key), "names": [*names]}:
                yield from ((key, str(name)) for name in names)


def _containerd(path: Path, content: Any) -> Iterator[tuple[str, str]]:
    match content:
        case {"annotations": dict(annotations)}:
            for annotation in _NAME_ANNOTATIONS:
                if annotation in annotations:
                    yield path.parent.name, str(annotations[annotation])


def _state(paths: Iterable[Path]) -> Iterator[tuple[Path, Any, int]]:
    """The state files that there are, what is in them, and whose they are."""
    for path in paths:
        try:
            text, owner = _read(path)
            yield path, json.loads(text), owner
        except (OSError, ValueError, RecursionError):  # not for us to read, or half written
            continue


def _read(path: Path) -> tuple[bytes, int]:
    """The content and the owner of a regular file; OSError, ValueError where it is no such file.

    O_NONBLOCK: neither a FIFO nor a device makes us wait. O_NOFOLLOW: no link leads us elsewhere.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError("too large")
    return content, status.st_uid
