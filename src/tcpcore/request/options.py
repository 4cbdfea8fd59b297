"""The common vocabulary: options that every tool has, and what becomes of them.

A tool's command takes `common: Common` beside its own parameters; `with_common` puts the fields of
Common into the signature that typer reads, so that the vocabulary stands here once.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from tcpcore.errors import UsageError
from tcpcore.request import filters
from tcpcore.request.filters import Filters
from tcpcore.request.machinery import Machinery

_WHO, _WHERE, _SHOW, _WHEN, _HOW = "Who", "Where", "Output", "When", "Machinery"
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

Texts = list[str]


def _option(panel: str, help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


@dataclass(frozen=True)
class Common:
    """The common options as the user wrote them."""

    pid: Annotated[
        Texts, _option(_WHO, "Owner's process id; repeatable.", "--pid", "-p", metavar="PID")
    ] = field(default_factory=list)
    pidns: Annotated[
        str | None,
        _option(_WHO, "--pid is as seen in this pid namespace.", "--pidns", metavar="PID|INODE"),
    ] = None
    uid: Annotated[
        Texts, _option(_WHO, "Owner's user id; repeatable.", "--uid", "-u", metavar="UID")
    ] = field(default_factory=list)
    comm: Annotated[
        Texts, _option(_WHO, "Owner's task name; repeatable.", "--comm", metavar="NAME")
    ] = field(default_factory=list)
    cgroup: Annotated[
        Texts,
        _option(_WHO, "Owner in this cgroup v2 or below; repeatable.", "--cgroup", metavar="PATH"),
    ] = field(default_factory=list)
    container: Annotated[
        Texts,
        _option(_WHO, "Owner in this container; repeatable.", "--container", metavar="ID|NAME"),
    ] = field(default_factory=list)
    cgroupmap: Annotated[
        Path | None,
        _option(
            _WHO, "Owner's cgroup id is a key of this pinned map.", "--cgroupmap", metavar="PATH"
        ),
    ] = None
    mntnsmap: Annotated[
        Path | None,
        _option(
            _WHO,
            "Owner's mount namespace is a key of this pinned map.",
            "--mntnsmap",
            metavar="PATH",
        ),
    ] = None
    ipv4: Annotated[bool, _option(_WHERE, "IPv4 only, v4-mapped sockets too.", "--ipv4", "-4")] = (
        False
    )
    ipv6: Annotated[bool, _option(_WHERE, "IPv6 only.", "--ipv6", "-6")] = False
    lport: Annotated[
        Texts, _option(_WHERE, "Local ports, as 80,8000-8099.", "--lport", "-L", metavar="PORTS")
    ] = field(default_factory=list)
    rport: Annotated[
        Texts, _option(_WHERE, "Remote ports, as 80,8000-8099.", "--rport", "-D", metavar="PORTS")
    ] = field(default_factory=list)
    laddr: Annotated[
        Texts, _option(_WHERE, "Local address or prefix.", "--laddr", metavar="ADDR[/LEN]")
    ] = field(default_factory=list)
    raddr: Annotated[
        Texts, _option(_WHERE, "Remote address or prefix.", "--raddr", metavar="ADDR[/LEN]")
    ] = field(default_factory=list)
    netns: Annotated[
        Texts,
        _option(_WHERE, "Network namespace; repeatable.", "--netns", metavar="NAME|PID|INODE"),
    ] = field(default_factory=list)
    timestamp: Annotated[bool, _option(_SHOW, "Seconds since start.", "--timestamp", "-t")] = False
    time: Annotated[bool, _option(_SHOW, "Time of day.", "--time", "-T")] = False
    wide: Annotated[
        bool, _option(_SHOW, "More columns, room for IPv6 addresses.", "--wide", "-w")
    ] = False
    json: Annotated[bool, _option(_SHOW, "One JSON object a line.", "--json")] = False
    csv: Annotated[bool, _option(_SHOW, "CSV with a header.", "--csv")] = False
    output: Annotated[
        Path | None, _option(_SHOW, "Write to FILE.", "--output", "-o", metavar="FILE")
    ] = None
    duration: Annotated[
        str | None, _option(_WHEN, "Stop after so many seconds.", "--duration", "-d", metavar="SEC")
    ] = None
    count: Annotated[
        str | None, _option(_WHEN, "Stop after N events.", "--count", "-n", metavar="N")
    ] = None
    interval: Annotated[
        str | None,
        _option(_WHEN, "Seconds between two reports.", "--interval", "-i", metavar="SEC"),
    ] = None
    attach: Annotated[
        Texts,
        _option(
            _HOW,
            "Force fentry, kprobe, tracepoint, tp_btf or raw_tp, where there is such a way.",
            "--attach",
            metavar="WAY",
        ),
    ] = field(default_factory=list)
    btf: Annotated[
        Path | None, _option(_HOW, "Kernel BTF from a file.", "--btf", metavar="FILE")
    ] = None
    buffer: Annotated[
        str | None,
        _option(_HOW, "Ring per CPU, as 512K; 2M, less on many CPUs.", "--buffer", metavar="SIZE"),
    ] = None
    map_size: Annotated[
        str, _option(_HOW, "Sockets that can be followed at once.", "--map-size", metavar="N")
    ] = "65536"
    fail_on_loss: Annotated[
        bool, _option(_HOW, "Exit with 5 when anything was lost.", "--fail-on-loss")
    ] = False
    keep_privileges: Annotated[
        bool, _option(_HOW, "Stay root, with all capabilities.", "--keep-privileges")
    ] = False
    verbose: Annotated[
        int,
        _option(
            _HOW,
            "What was tried and why; -vv: all that libbpf says.",
            "--verbose",
            "-v",
            count=True,
            metavar="",
            show_default=False,
        ),
    ] = 0

    def filters(self) -> Filters:
        """The filters among the options; UsageError names the option that makes no sense."""
        return Filters(
            pid=self._pids(),
            uid=_numbers("--uid", "a user id", 0, (1 << 32) - 2, self.uid),
            comm=filters.comms("--comm", self.comm),
            family=filters.family(self.ipv4, self.ipv6),
            lport=filters.ports("--lport", self.lport),
            rport=filters.ports("--rport", self.rport),
            laddr=filters.networks("--laddr", self.laddr),
            raddr=filters.networks("--raddr", self.raddr),
            netns=filters.limited("--netns", [filters.namespace("--netns", x) for x in self.netns]),
            cgroup=filters.limited("--cgroup", self._cgroups()),
            cgroupmap=self.cgroupmap,
            mntnsmap=self.mntnsmap,
        )

    def _pids(self) -> list[int]:
        pids = _numbers("--pid", "a process id", 1, filters.MAX_PID, self.pid)
        if not pids:
            if self.pidns is not None:
                raise UsageError("--pidns: needs --pid")
            return []
        from tcpcore.request import containers

        return [containers.host_pid(pid, self.pidns) for pid in pids]

    def _cgroups(self) -> list[Path]:
        found = [filters.cgroup("--cgroup", text) for text in self.cgroup]
        if self.container:
            from tcpcore.request import containers

            found += [containers.cgroup("--container", text) for text in self.container]
        return found

    def _buffer(self) -> int | None:
        if self.buffer is None:
            return None
        return affordable("--buffer", size("--buffer", self.buffer))

    def machinery(self) -> Machinery:
        """How to trace; UsageError names the option that makes no sense."""
        if self.btf is not None and not _is_file(self.btf):
            raise UsageError(f"--btf: {self.btf} is not a file")
        return Machinery(
            buffer=self._buffer(),
            map_size=filters.number("--map-size", "a number of sockets", 1, 1 << 22)(self.map_size),
            attach=tuple(filters.parts(self.attach)),
            btf=self.btf,
        )


def _numbers(option: str, what: str, low: int, high: int, texts: Texts) -> list[int]:
    parse = filters.number(option, what, low, high)
    return filters.limited(option, [parse(text) for text in texts])


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long, a folder that is not ours to search
        return False


def size(option: str, text: str) -> int:
    """`512K`, `4M` in bytes, up to 1 GiB."""
    match = re.fullmatch(r"([0-9]{1,10})([KMG]?)(i?B)?", text, re.IGNORECASE | re.ASCII)
    bytes_ = int(match[1]) * _SIZES[match[2].upper()] if match else 0
    if not 1 <= bytes_ <= 1 << 30:
        raise UsageError(f"{option}: '{text}' is not a size like 512K or 4M (up to 1G)")
    return bytes_


def affordable(option: str, per_cpu: int) -> int:
    """The size itself; UsageError when rings of it would take a quarter of the free memory.

    The kernel fills them before the first event, and rather kills processes than refuses.
    """
    whole = per_cpu * (os.cpu_count() or 1)
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable"))
    if whole > free // 4:
        raise UsageError(f"{option}: {whole >> 20} MiB on all CPUs, {free >> 20} MiB are free")
    return per_cpu


def seconds(option: str, text: str | None) -> float | None:
    """A positive number of seconds, fractions allowed."""
    return None if text is None else decimal(option, text, "a number of seconds", positive=True)


def decimal(option: str, text: str, what: str, positive: bool = False) -> float:
    """A plain decimal number from 0 (or above it) to a billion."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{0,9})?|\.[0-9]{1,9}", text) or (
        positive and float(text) == 0
    ):
        raise UsageError(f"{option}: '{text}' is not {what}")
    return float(text)


def _declared(annotation: Any) -> Any:
    """typer's description of an option; None for anything else."""
    found = getattr(annotation, "__metadata__", ())
    return next((x for x in found if isinstance(x, typer.models.OptionInfo)), None)


def _names(option: Any) -> list[str]:
    """The names of an option; in an annotation, typer has the first one as the default."""
    return [option.default, *option.param_decls]


def _without(annotation: Any, taken: set[str]) -> Any:
    """A common option without the names that the tool has for options of its own."""
    option = copy.copy(_declared(annotation))
    if not taken & set(_names(option)):
        return annotation
    option.default, *option.param_decls = (x for x in _names(option) if x not in taken)
    return Annotated[annotation.__origin__, option]


def with_common(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose `common: Common` parameter is spread into options of its own."""
    names = [f.name for f in dataclasses.fields(Common)]
    hints = get_type_hints(Common, include_extras=True)

    def spread(**arguments: Any) -> None:
        common = Common(**{name: arguments.pop(name) for name in names})
        command(common=common, **arguments)

    own_hints = get_type_hints(command, include_extras=True)
    own = [
        p.replace(kind=p.KEYWORD_ONLY, annotation=own_hints[p.name])
        for p in inspect.signature(command).parameters.values()
        if p.name != "common"
    ]
    declared = filter(None, map(_declared, own_hints.values()))
    taken = {name for option in declared for name in _names(option)}
    shared = [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=_without(hints[f.name], taken),
            default=[] if f.default is dataclasses.MISSING else f.default,
        )
        for f in dataclasses.fields(Common)
    ]
    vars(spread)["__signature__"] = inspect.Signature([*own, *shared])
    spread.__annotations__ = {p.name: p.annotation for p in (*own, *shared)}
    spread.__doc__ = _paragraphs(sys.modules[command.__module__].__doc__ or "")
    return spread


def _paragraphs(text: str) -> str:
    """A line each, for the terminal to break."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
