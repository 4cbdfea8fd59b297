"""What the common filter options mean, and their form in .rodata. Mirror: bpf/filter.bpf.h."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tcpcore.errors import OptionError
from tcpcore.loader import Slot
from tcpcore.model.slots import THREAD_EXITS
from tcpcore.model.tool import Rodata
from tcpcore.value import Value

if TYPE_CHECKING:
    from ipaddress import IPv6Network


class Filters(Value):
    """Only sockets that match. Empty: no such filter.

    pid, uid: numbers. comm: task names. family: AF_INET, AF_INET6 or 0. lport, rport: ports.
    laddr, raddr: networks. netns: namespace inodes. cgroup: directories in a cgroup v2 hierarchy.
    cgroupmap, mntnsmap: pinned maps whose keys are ids of cgroups, inodes of mount namespaces.
    """

    pid: Sequence[int] = ()
    uid: Sequence[int] = ()
    comm: Sequence[bytes] = ()
    family: int = 0
    lport: Sequence[int] = ()
    rport: Sequence[int] = ()
    laddr: Sequence[IPv6Network] = ()
    raddr: Sequence[IPv6Network] = ()
    netns: Sequence[int] = ()
    cgroup: Sequence[Path] = ()
    cgroupmap: Path | None = None
    mntnsmap: Path | None = None

    def rodata(self) -> Rodata:
        """The .rodata variables of filter.bpf.h."""
        lists: dict[str, list[bytes]] = {
            "pid": [struct.pack("=I", x) for x in self.pid],
            "uid": [struct.pack("=I", x) for x in self.uid],
            "netns": [struct.pack("=I", x) for x in self.netns],
            "comm": [struct.pack("16s", x) for x in self.comm],
            "cgroup": [struct.pack("=Q", _inode(x)) for x in self.cgroup],
            "laddr": _ranges(self.laddr),
            "raddr": _ranges(self.raddr),
        }
        rodata: Rodata = {}
        for name in self.pins():
            rodata[f"{name}_set"] = 1
        if self.family:
            rodata["target_family"] = self.family
        for name, targets in lists.items():
            if targets:
                rodata[f"target_{name}"] = b"".join(targets)
                rodata[f"target_{name}_count"] = len(targets)
        for name, ports in (("lport", self.lport), ("rport", self.rport)):
            if ports:
                rodata[f"target_{name}"] = _bitmap(ports)
                rodata[f"target_{name}_set"] = 1
        return rodata

    def asks_for_owner(self) -> bool:
        """Whether the owner of a socket has to be known; its user always is. Mirror:
        want_unknown_task()."""
        return any((self.pid, self.comm, self.cgroup, self.cgroupmap, self.mntnsmap))

    def slots(self) -> tuple[Slot, ...]:
        """What the filters themselves have to see."""
        return (THREAD_EXITS,) if self.mntnsmap else ()

    def pins(self) -> dict[str, Path]:
        """The pinned maps, by the name of the map of filter.bpf.h whose place they take."""
        pins = {"target_cgroupmap": self.cgroupmap, "target_mntnsmap": self.mntnsmap}
        return {name: path for name, path in pins.items() if path is not None}


def _inode(path: Path) -> int:
    """A cgroup's id is its directory's inode (kernfs, on 64-bit hosts)."""
    try:
        return path.stat().st_ino
    except OSError as e:
        raise OptionError("cgroup", f"{path}: {e.strerror}") from None


_MAPPED = 0xFFFF << 32, (0xFFFF << 32) + 0xFFFFFFFF  # ::ffff:0:0/96, RFC 4291, 2.5.5.2


def _ranges(networks: Iterable[IPv6Network]) -> list[bytes]:
    """In ascending order, and apart."""
    apart: list[tuple[int, int]] = []
    for first, last in sorted(bounds for network in networks for bounds in _bounds(network)):
        if apart and first <= apart[-1][1] + 1:
            first, last = apart[-1][0], max(last, apart.pop()[1])
        apart.append((first, last))
    half = (1 << 64) - 1
    return [struct.pack("=4Q", a >> 64, a & half, b >> 64, b & half) for a, b in apart]


def _bounds(network: IPv6Network) -> Iterable[tuple[int, int]]:
    """The first and the last address. IPv4 addresses are no part of ::/0 and its like."""
    first, last = int(network.network_address), int(network.broadcast_address)
    if network.prefixlen < 96 and first <= _MAPPED[0] and _MAPPED[1] <= last:
        return (first, _MAPPED[0] - 1), (_MAPPED[1] + 1, last)
    return ((first, last),)


def _bitmap(ports: Iterable[int]) -> bytes:
    words = [0] * (65536 // 64)
    for port in ports:
        words[port // 64] |= 1 << port % 64
    return struct.pack(f"={len(words)}Q", *words)
