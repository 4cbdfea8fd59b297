"""The command line's vocabulary: options that every tool has, and what the words behind a tool's
name mean.

typer explains the options, and tells what is wrong with a command line (explain.py). One that is
all right is read here: typer's import alone would take a third of a start.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_type_hints

from tcpcore.errors import OptionError, UsageError
from tcpcore.model.option import Argument, Option
from tcpcore.request.request import OPTIONS, Request, request
from tcpcore.session.run import Output, run
from tcpcore.value import Value

_WHO, _WHERE, _SHOW, _WHEN, _HOW = "Who", "Where", "Output", "When", "Machinery"

Texts = list[str]
_NONE: Texts = []


class Common(Value):
    """The common options as the user wrote them."""

    pid: Annotated[
        Texts, Option("Owner's process id; repeatable.", ("--pid", "-p"), _WHO, "PID")
    ] = _NONE
    pidns: Annotated[
        str | None,
        Option("--pid is as seen in this pid namespace.", ("--pidns",), _WHO, "PID|INODE"),
    ] = None
    uid: Annotated[Texts, Option("Owner's user id; repeatable.", ("--uid", "-u"), _WHO, "UID")] = (
        _NONE
    )
    comm: Annotated[Texts, Option("Owner's task name; repeatable.", ("--comm",), _WHO, "NAME")] = (
        _NONE
    )
    cgroup: Annotated[
        Texts,
        Option("Owner in this cgroup v2 or below; repeatable.", ("--cgroup",), _WHO, "PATH"),
    ] = _NONE
    container: Annotated[
        Texts,
        Option("Owner in this container; repeatable.", ("--container",), _WHO, "ID|NAME"),
    ] = _NONE
    cgroupmap: Annotated[
        Path | None,
        Option("Owner's cgroup id is a key of this pinned map.", ("--cgroupmap",), _WHO, "PATH"),
    ] = None
    mntnsmap: Annotated[
        Path | None,
        Option(
            "Owner's mount namespace is a key of this pinned map.", ("--mntnsmap",), _WHO, "PATH"
        ),
    ] = None
    ipv4: Annotated[bool, Option("IPv4 only, v4-mapped sockets too.", ("--ipv4", "-4"), _WHERE)] = (
        False
    )
    ipv6: Annotated[bool, Option("IPv6 only.", ("--ipv6", "-6"), _WHERE)] = False
    lport: Annotated[
        Texts, Option("Local ports, as 80,8000-8099.", ("--lport", "-L"), _WHERE, "PORTS")
    ] = _NONE
    rport: Annotated[
        Texts, Option("Remote ports, as 80,8000-8099.", ("--rport", "-D"), _WHERE, "PORTS")
    ] = _NONE
    laddr: Annotated[
        Texts, Option("Local address or prefix.", ("--laddr",), _WHERE, "ADDR[/LEN]")
    ] = _NONE
    raddr: Annotated[
        Texts, Option("Remote address or prefix.", ("--raddr",), _WHERE, "ADDR[/LEN]")
    ] = _NONE
    netns: Annotated[
        Texts,
        Option("Network namespace; repeatable.", ("--netns",), _WHERE, "NAME|PID|INODE"),
    ] = _NONE
    timestamp: Annotated[bool, Option("Seconds since start.", ("--timestamp", "-t"), _SHOW)] = False
    time: Annotated[bool, Option("Time of day.", ("--time", "-T"), _SHOW)] = False
    wide: Annotated[
        bool, Option("More columns, room for IPv6 addresses.", ("--wide", "-w"), _SHOW)
    ] = False
    json: Annotated[bool, Option("One JSON object a line.", ("--json",), _SHOW)] = False
    csv: Annotated[bool, Option("CSV with a header.", ("--csv",), _SHOW)] = False
    heatmap: Annotated[
        bool, Option("Histograms as a picture, a line an interval.", ("--heatmap",), _SHOW)
    ] = False
    output: Annotated[Path | None, Option("Write to FILE.", ("--output", "-o"), _SHOW, "FILE")] = (
        None
    )
    duration: Annotated[
        str | None, Option("Stop after so many seconds.", ("--duration", "-d"), _WHEN, "SEC")
    ] = None
    count: Annotated[str | None, Option("Stop after N events.", ("--count", "-n"), _WHEN, "N")] = (
        None
    )
    interval: Annotated[
        str | None,
        Option("Seconds between two reports.", ("--interval", "-i"), _WHEN, "SEC"),
    ] = None
    attach: Annotated[
        Texts,
        Option(
            "Force fentry, kprobe, tracepoint, tp_btf or raw_tp, where there is such a way.",
            ("--attach",),
            _HOW,
            "WAY",
        ),
    ] = _NONE
    btf: Annotated[Path | None, Option("Kernel BTF from a file.", ("--btf",), _HOW, "FILE")] = None
    compat: Annotated[
        bool,
        Option(
            "32-bit programs, too, where tracepoints leave them out; slows every system call.",
            ("--compat",),
            _HOW,
        ),
    ] = False
    buffer: Annotated[
        str | None,
        Option("Ring per CPU, as 512K; 2M, less on many CPUs.", ("--buffer",), _HOW, "SIZE"),
    ] = None
    map_size: Annotated[
        str | None,
        Option(
            "Sockets that can be followed at once: 65536; flows to count apart: 16384.",
            ("--map-size",),
            _HOW,
            "N",
        ),
    ] = None
    fail_on_loss: Annotated[
        bool, Option("Exit with 5 when anything was lost.", ("--fail-on-loss",), _HOW)
    ] = False
    keep_privileges: Annotated[
        bool, Option("Stay root, with all capabilities.", ("--keep-privileges",), _HOW)
    ] = False
    verbose: Annotated[
        int,
        Option("What was tried and why; -vv: all that libbpf says.", ("--verbose", "-v"), _HOW),
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
            heatmap=self.heatmap,
            path=self.output,
            fail_on_loss=self.fail_on_loss,
            keep_privileges=self.keep_privileges,
            verbose=self.verbose,
        )


class Parameter(Value):
    """Something that can be said to a tool. kind: bool, int (how often it was said), Path, str or
    list[str]; a float comes as text, as tool() tells what is no number."""

    name: str
    kind: Any
    declared: Option | Argument
    default: Any

    @property
    def spelled(self) -> str:
        """What a user calls it."""
        of = self.declared
        return of.names[0] if isinstance(of, Option) else of.metavar


class Command:
    """A tool as a command.

    parameters: those of its tool(), then the common ones but for names that the tool has for its
    own.
    """

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        own = list(_own(module.tool))
        self._own = {p.name for p in own}
        taken = {name for p in own if isinstance(p.declared, Option) for name in p.declared.names}
        aliases: Mapping[str, tuple[str, ...]] = getattr(module, "ALIASES", {})
        shared = [p for p in _common(taken, aliases) if p.name not in self._own]
        self.parameters = {p.name: p for p in (*own, *shared)}

    def run(self, **arguments: Any) -> None:
        """With these values; what is left out is as if nothing was said."""
        own = {name: value for name, value in arguments.items() if name in self._own}
        common = Common(**{n: value for n, value in arguments.items() if n not in self._own})
        try:
            run(self.module.tool(**own), common.request(), common.shown())
        except OptionError as e:
            spelled = {p.name: p.spelled for p in self.parameters.values()}
            problem = re.sub(r"`(\w+)`", lambda match: spelled.get(match[1], match[0]), e.problem)
            raise UsageError(f"{spelled.get(e.name, e.name)}: {problem}") from None

    def read(self, words: Sequence[str]) -> dict[str, Any] | None:
        """The values that a command line gives; None where it has anything but `--name VALUE`,
        `--name=VALUE`, `-x VALUE` and flags that are known: typer knows what to say."""
        options = {name: p for p in self.parameters.values() for name in _names(p.declared)}
        places = [p for p in self.parameters.values() if isinstance(p.declared, Argument)]
        found: dict[str, Any] = {}
        left = iter(words)
        for word in left:
            name, given, text = word.partition("=") if word.startswith("--") else (word, "", "")
            parameter = options.get(name)
            if parameter is None:
                if word.startswith("-") or not places:
                    return None
                found[places.pop(0).name] = word
                continue
            is_flag = parameter.kind in (bool, int)
            value = text if given else None if is_flag else next(left, None)
            if (value is None) != is_flag:
                return None
            found[parameter.name] = _value(parameter.kind, value, found.get(parameter.name))
        return found


def _value(kind: Any, text: str | None, before: Any) -> Any:
    """text: None of a flag. before: of the same option."""
    if kind is bool:
        return True
    if kind is int:
        return (before or 0) + 1
    if kind == Texts:
        return [*(before or []), text]
    return Path(str(text)) if kind in (Path, Path | None) else text


def _names(declared: Option | Argument) -> tuple[str, ...]:
    return declared.names if isinstance(declared, Option) else ()


def _own(tool: Callable[..., Any]) -> Iterator[Parameter]:
    """The parameters of tool(), which are keywords with defaults all."""
    hints = get_type_hints(tool, include_extras=True)
    hints.pop("return")
    for (name, hint), default in zip(hints.items(), tool.__defaults__ or (), strict=True):
        kind, declared = hint.__origin__, hint.__metadata__[0]
        if isinstance(declared, Option) and not declared.names:
            declared = declared._replace(names=(f"--{name.replace('_', '-')}",))
        if kind is float:
            kind, default = str, f"{default:g}"
        yield Parameter(name, kind, declared, default)


def _common(taken: set[str], aliases: Mapping[str, tuple[str, ...]]) -> Iterator[Parameter]:
    for name, hint in Common.__annotations__.items():
        option: Option = hint.__metadata__[0]
        names = (word for word in (*option.names, *aliases.get(name, ())) if word not in taken)
        declared = option._replace(names=tuple(names))
        yield Parameter(name, hint.__origin__, declared, getattr(Common, name))
