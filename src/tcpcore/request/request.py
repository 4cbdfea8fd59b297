"""What is asked of a trace, typed: which sockets, for how long, and how.

Both the command line and the Python API build it, from what a caller wrote.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from tcpcore.errors import OptionError
from tcpcore.request import places, values
from tcpcore.request.filters import Filters
from tcpcore.request.machinery import Machinery
from tcpcore.value import Value

MAX_PID = 1 << 22  # include/linux/threads.h, PID_MAX_LIMIT

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    PathLike = str | os.PathLike[str]
    Ports = int | tuple[int, int] | range | str
    Prefix = str | IPv4Address | IPv6Address | IPv4Network | IPv6Network


class Options(TypedDict, total=False):
    """The options that every tool has, and the types of their values in Python.

    Of a list any value will do. None is as if the option was not there.
    """

    pid: int | Sequence[int] | None
    pidns: int | None
    uid: int | Sequence[int] | None
    comm: str | bytes | Sequence[str | bytes] | None
    cgroup: PathLike | Sequence[PathLike] | None
    container: str | Sequence[str] | None
    cgroupmap: PathLike | None
    mntnsmap: PathLike | None
    ipv4: bool
    ipv6: bool
    lport: Ports | Sequence[Ports] | None
    rport: Ports | Sequence[Ports] | None
    laddr: Prefix | Sequence[Prefix] | None
    raddr: Prefix | Sequence[Prefix] | None
    netns: int | PathLike | Sequence[int | PathLike] | None
    duration: float | None
    count: int | None
    interval: float | None
    attach: str | Sequence[str] | None
    btf: PathLike | None
    compat: bool
    buffer: int | str | None
    map_size: int | None


OPTIONS = tuple(Options.__annotations__)


class Limits(Value):
    """When to stop: after so many seconds, or events. interval: seconds between two reports. None
    is never."""

    duration: float | None = None
    count: int | None = None
    interval: float | None = None


class Request(Value):
    """filters: which sockets. limits: when to stop. machinery: how to trace."""

    filters: Filters = Filters()
    limits: Limits = Limits()
    machinery: Machinery = Machinery()


def request(options: Mapping[str, Any]) -> Request:
    """From the Options that a caller gave, as Python values or as text.

    Raises OptionError, which names the option that makes no sense.
    """
    given = {name: value for name, value in options.items() if value is not None}
    return Request(_filters(given), _limits(given), _machinery(given))


_Given = Mapping[str, Any]


def _filters(given: _Given) -> Filters:
    """Keyword arguments that are left out have Filters' own defaults."""
    converters: dict[str, Callable[[str, Any], Any]] = {
        "uid": lambda name, value: values.numbers(name, value, "a user id", 0, (1 << 32) - 2),
        "comm": values.comms,
        "lport": values.ports,
        "rport": values.ports,
        "laddr": _networks,
        "raddr": _networks,
        "netns": _namespaces,
        "cgroupmap": values.path,
        "mntnsmap": values.path,
    }
    found = {n: convert(n, given[n]) for n, convert in converters.items() if n in given}
    ipv4, ipv6 = (values.checked(x, given.get(x, False), bool) for x in ("ipv4", "ipv6"))
    cgroups = values.limited("cgroup", _cgroups(given))
    return Filters(pid=_pids(given), family=values.family(ipv4, ipv6), cgroup=cgroups, **found)


def _networks(option: str, value: Any) -> list[IPv6Network]:
    from tcpcore.request import prefixes

    return prefixes.networks(option, value)


def _namespaces(option: str, value: Any) -> list[int]:
    found = [places.namespace(option, text) for text in values.texts(option, value)]
    return values.limited(option, found)


def _pids(given: _Given) -> list[int]:
    pids = values.numbers("pid", given.get("pid", []), "a process id", 1, MAX_PID)
    namespace = given.get("pidns")
    if not pids:
        if namespace is not None:
            raise OptionError("pidns", "without process ids it says nothing")
        return []
    from tcpcore.request import containers

    inside = None if namespace is None else values.text("pidns", namespace)
    return [containers.host_pid(pid, inside) for pid in pids]


def _cgroups(given: _Given) -> list[Path]:
    found = [places.cgroup("cgroup", x) for x in values.texts("cgroup", given.get("cgroup", []))]
    names = values.texts("container", given.get("container", []))
    if names:
        from tcpcore.request import containers

        found += [containers.cgroup("container", name) for name in names]
    return found


def _limits(given: _Given) -> Limits:
    count = given.get("count")
    return Limits(
        duration=_seconds("duration", given),
        count=None
        if count is None
        else values.number("count", count, "a number of events", 1, 1 << 62),
        interval=_seconds("interval", given),
    )


def _seconds(name: str, given: _Given) -> float | None:
    return values.seconds(name, given[name]) if name in given else None


def _machinery(given: _Given) -> Machinery:
    buffer, size = given.get("buffer"), given.get("map_size")
    return Machinery(
        buffer=None
        if buffer is None
        else values.affordable("buffer", values.size("buffer", buffer)),
        map_size=None
        if size is None
        else values.number("map_size", size, "a number of sockets", 1, 1 << 22),
        attach=tuple(values.parts(values.texts("attach", given.get("attach", [])))),
        btf=_file("btf", given["btf"]) if "btf" in given else None,
        compat=values.checked("compat", given.get("compat", False), bool),
    )


def _file(option: str, value: Any) -> Path:
    found = values.path(option, value)
    try:
        is_file = found.is_file()
    except OSError:  # a name too long, a folder that is not ours to search
        is_file = False
    if not is_file:
        raise OptionError(option, f"{found} is not a file")
    return found
