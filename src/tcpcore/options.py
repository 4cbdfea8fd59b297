"""The command line's vocabulary: options that every tool has, and the command that a tool becomes.

typer reads a function's signature. A tool's is put together here: the parameters of its tool(), and
the fields of Common, so that the common vocabulary stands here once.
"""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args, get_type_hints

import typer

from tcpcore.errors import OptionError, UsageError
from tcpcore.model.option import Argument, Option
from tcpcore.request.request import OPTIONS, Request, request
from tcpcore.session.run import Output, run

_WHO, _WHERE, _SHOW, _WHEN, _HOW = "Who", "Where", "Output", "When", "Machinery"

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
        str | None,
        _option(
            _HOW,
            "Sockets that can be followed at once: 65536; flows to count apart: 16384.",
            "--map-size",
            metavar="N",
        ),
    ] = None
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

    def request(self) -> Request:
        """What is asked for; OptionError names the option that makes no sense."""
        return request({name: getattr(self, name) for name in OPTIONS})

    def shown(self) -> Output:
        """How it is shown; UsageError for two formats."""
        if self.json and self.csv:
            raise UsageError("--json and --csv: one of them")
        style = "json" if self.json else "csv" if self.csv else "table"
        return Output(
            style=style,
            wide=self.wide,
            timestamp=self.timestamp,
            time=self.time,
            path=self.output,
            fail_on_loss=self.fail_on_loss,
            keep_privileges=self.keep_privileges,
            verbose=self.verbose,
        )


def command(module: ModuleType) -> Callable[..., None]:
    """The command of a tool: its function has the signature that typer is to read."""
    own = dict(_own_parameters(module.tool))
    taken = {name for p in own.values() for name in _names(p.annotation)}
    aliases: Mapping[str, tuple[str, ...]] = getattr(module, "ALIASES", {})
    shared = {p.name: p for p in _common_parameters(taken, aliases) if p.name not in own}
    spelled = {name: _spelled(p) for name, p in {**shared, **own}.items()}

    def call(**arguments: Any) -> None:
        common = Common(**{name: arguments[name] for name in shared})
        values = {name: value for name, value in arguments.items() if name in own}
        try:
            run(module.tool(**values), common.request(), common.shown())
        except OptionError as e:
            raise UsageError(f"{spelled.get(e.name, e.name)}: {e.problem}") from None

    vars(call)["__signature__"] = inspect.Signature([*own.values(), *shared.values()])
    call.__annotations__ = {p.name: p.annotation for p in (*own.values(), *shared.values())}
    return call


def _own_parameters(tool: Callable[..., Any]) -> Iterator[tuple[str, inspect.Parameter]]:
    """The parameters of tool(), as typer wants them declared."""
    hints = get_type_hints(tool, include_extras=True)
    for name, parameter in inspect.signature(tool).parameters.items():
        kind, declared = get_args(hints[name])
        default = parameter.default
        if isinstance(declared, Argument):
            option = typer.Argument(help=declared.help, metavar=declared.metavar)
        else:
            option = typer.Option(*_flags(name, declared), help=declared.help)
        if kind is float:  # tool() tells what is no number
            kind, default = str, f"{default:g}"
        annotation = _annotated(kind, option)
        yield (
            name,
            parameter.replace(
                kind=inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            ),
        )


def _annotated(kind: Any, option: Any) -> Any:
    """Annotated[kind, option], of a kind that only the run knows."""
    special: Any = Annotated
    return special[kind, option]


def _flags(name: str, option: Option) -> tuple[str, ...]:
    return option.names or (f"--{name.replace('_', '-')}",)


def _common_parameters(
    taken: set[str], aliases: Mapping[str, tuple[str, ...]]
) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(Common, include_extras=True)
    for f in dataclasses.fields(Common):
        yield inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=_renamed(hints[f.name], taken, aliases.get(f.name, ())),
            default=[] if f.default is dataclasses.MISSING else f.default,
        )


def _declared(annotation: Any) -> Any:
    """typer's description of an option or an argument."""
    return annotation.__metadata__[0]


def _names(annotation: Any) -> list[str]:
    """The names of an option; in an annotation, typer has the first one as the default."""
    declared = _declared(annotation)
    return [x for x in (declared.default, *(declared.param_decls or ())) if isinstance(x, str)]


def _spelled(parameter: inspect.Parameter) -> str:
    """What a user calls it."""
    names = _names(parameter.annotation)
    return names[0] if names else str(_declared(parameter.annotation).metavar)


def _renamed(annotation: Any, taken: set[str], more: tuple[str, ...]) -> Any:
    """A common option with more names, and without those that the tool has for its own ones."""
    option = copy.copy(_declared(annotation))
    option.default, *option.param_decls = (
        name for name in (*_names(annotation), *more) if name not in taken
    )
    return _annotated(annotation.__origin__, option)
