"""rtt --by: what has a histogram of its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from tcpcore.errors import OptionError
from tcpcore.model import fields
from tcpcore.model.tool import Rodata
from tcpcore.value import Value


class Key(Value):
    """What tells histograms apart. Mirror of struct rtt, bpf/rtt.h."""

    laddr: fields.KeyHost
    raddr: fields.KeyHost
    cgroup_id: fields.CgroupId
    pid: fields.Pid
    netns: fields.KeyNetns
    comm: fields.Comm
    lport: fields.Port
    rport: fields.Port
    found_room: Annotated[bool, fields.Kind("B", bool)]


_FIELDS = {
    "laddr": ("laddr",),
    "raddr": ("raddr",),
    "lport": ("lport",),
    "rport": ("rport",),
    "netns": ("netns",),
    "process": ("pid", "comm"),
    "container": ("container", "cgroup_id"),
}
_TEXTS = {"laddr", "raddr", "comm", "container"}
_VARIABLES = {"process": "by_owner_task", "container": "by_owner_cgroup"}
_PART = re.compile(r"([a-z]+)(?:/([0-9]{1,3})(?::([0-9]{1,3}))?)?")
_IPV4, _IPV6 = 32, 128  # bits
_SUBNET = 64  # bits of an IPv6 address that every host of a subnet has; RFC 4291, 2.5.1


class _Part(NamedTuple):
    """ipv4, ipv6: how long the prefixes are, if it is an address."""

    name: str
    ipv4: int = _IPV4
    ipv6: int = _IPV6


class Keys:
    """What --by asks for. Raises OptionError."""

    key = Key

    def __init__(self, text: str) -> None:
        # A comma is also between the two lengths of a prefix.
        parts = re.sub(r",(?=[0-9])", ":", text).split(",")
        self._parts = {part.name: part for part in map(_part, parts)}
        if len(self._parts) < len(parts):
            raise OptionError("by", f"'{text}' has something twice")
        self._fields = [field for name in self._parts for field in _FIELDS[name]]
        self._container = _containers() if "container" in self._parts else None

    @property
    def has_owners(self) -> bool:
        """The owner of a socket is part of the key."""
        return not self._parts.keys().isdisjoint(_VARIABLES)

    def rodata(self) -> Rodata:
        found: Rodata = {_VARIABLES.get(name, f"by_{name}"): True for name in self._parts}
        for name in self._parts.keys() & {"laddr", "raddr"}:
            _, ipv4, ipv6 = self._parts[name]
            found[f"{name}_prefix"] = _mask(_IPV6 - _IPV4 + ipv4) + _mask(ipv6)
        return found

    def show(self, key: dict[str, Any]) -> dict[str, Any]:
        """The fields that were asked for. Those of the values that found no room are `other`,
        numbers None."""
        if not key["found_room"]:
            return {name: fields.OTHER if name in _TEXTS else None for name in self._fields}
        if self._container:
            key["container"] = self._container(key["cgroup_id"])
        return {name: self._prefix(name, key[name]) for name in self._fields}

    def _prefix(self, name: str, value: Any) -> Any:
        """An address with the length of its prefix, where there is less than all of it."""
        part = self._parts.get(name)
        if part is None or part[1:] == (_IPV4, _IPV6):
            return value
        return f"{value}/{part.ipv6 if ':' in value else part.ipv4}"


def _part(text: str) -> _Part:
    match = _PART.fullmatch(text)
    if not match or match[1] not in _FIELDS:
        raise OptionError("by", f"'{text}' is none of {', '.join(_FIELDS)}")
    name, ipv4, ipv6 = match.groups()
    if ipv4 is None:
        return _Part(name)
    if name not in ("laddr", "raddr"):
        raise OptionError("by", f"'{text}': only addresses have prefixes")
    part = _Part(name, int(ipv4), int(ipv6 or _SUBNET))
    if part.ipv4 > _IPV4 or part.ipv6 > _IPV6:
        shape = f"{name}/24, or {name}/24,64 with that of IPv6"
        raise OptionError("by", f"'{text.replace(':', ',')}' is no prefix like {shape}")
    return part


def _mask(bits: int) -> bytes:
    """So many of 128."""
    return ((1 << _IPV6) - (1 << _IPV6 - bits)).to_bytes(_IPV6 // 8, "big")


def _containers() -> Callable[[int | None], str | None]:
    from tcpcore.request.containers import Named

    return Named("by")
