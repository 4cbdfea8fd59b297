"""What the common filter options mean, and their form in .rodata. Mirror: bpf/filter.bpf.h."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tcpcore.errors import UsageError
from tcpcore.loader import Slot
from tcpcore.model.net import AF_INET, AF_INET6
from tcpcore.model.slots import THREAD_EXITS
from tcpcore.model.tool import Rodata

MAX_TARGETS = 64
MAX_PID = 1 << 22  # include/linux/threads.h, PID_MAX_LIMIT
_NS_GET_NSTYPE, _CLONE_NEWNET = 0xB703, 0x40000000  # include/uapi/linux/nsfs.h, sched.h
_FIRST_NAMESPACE = 0xEFFFFFF8  # below it, a number names a process; include/uapi/linux/nsfs.h

Target = TypeVar("Target")


@dataclass(frozen=True)
class Filters:
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
    laddr: Sequence[ipaddress.IPv6Network] = ()
    raddr: Sequence[ipaddress.IPv6Network] = ()
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
            "cgroup": [struct.pack("=Q", _inode("--cgroup", x)) for x in self.cgroup],
            "laddr": [_prefix(x) for x in self.laddr],
            "raddr": [_prefix(x) for x in self.raddr],
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

    def slots(self) -> tuple[Slot, ...]:
        """What the filters themselves have to see."""
        return (THREAD_EXITS,) if self.mntnsmap else ()

    def pins(self) -> dict[str, Path]:
        """The pinned maps, by the name of the map of filter.bpf.h whose place they take."""
        pins = {"target_cgroupmap": self.cgroupmap, "target_mntnsmap": self.mntnsmap}
        return {name: path for name, path in pins.items() if path is not None}


def _inode(option: str, path: Path) -> int:
    """A cgroup's id is its directory's inode (kernfs, on 64-bit hosts)."""
    try:
        return path.stat().st_ino
    except OSError as e:
        raise UsageError(f"{option}: {path}: {e.strerror}") from None


def _prefix(network: ipaddress.IPv6Network) -> bytes:
    return network.network_address.packed + network.netmask.packed


def _bitmap(ports: Iterable[int]) -> bytes:
    words = [0] * (65536 // 64)
    for port in ports:
        words[port // 64] |= 1 << port % 64
    return struct.pack(f"={len(words)}Q", *words)


def number(option: str, what: str, low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers in low..high; UsageError names the option and the text."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,19}", text) or not low <= int(text) <= high:
            raise UsageError(f"{option}: '{text}' is not {what} ({low} to {high})")
        return int(text)

    return parse


def ports(option: str, texts: Iterable[str]) -> list[int]:
    """`80,443,8000-8099` as a list of ports."""
    port = number(option, "a port", 1, 65535)
    found: list[int] = []
    for part in parts(texts):
        first, dash, last = part.partition("-")
        low = port(first)
        high = port(last) if dash else low
        if high < low:
            raise UsageError(f"{option}: the range '{part}' runs backwards")
        found += range(low, high + 1)
    return found


def networks(option: str, texts: Iterable[str]) -> list[ipaddress.IPv6Network]:
    """Addresses and CIDR prefixes; IPv4 ones as their v4-mapped IPv6 form.

    A prefix of less than 96 bits is one of IPv6 alone: the kernel side takes no IPv4 address for a
    part of it.
    """
    return limited(option, [_network(option, part) for part in parts(texts)])


def _network(option: str, text: str) -> ipaddress.IPv6Network:
    try:
        given = ipaddress.ip_interface(text)
        if isinstance(given, ipaddress.IPv4Interface):
            return _mapped(given.ip, given.network.prefixlen)
        if given.ip.ipv4_mapped is None:
            return given.network
        length = given.network.prefixlen
        # ::ffff:10.0.0.0/8 can only be meant as 10.0.0.0/8: what it is by RFC 4291 is ::/8.
        return _mapped(given.ip.ipv4_mapped, length - 96 if length >= 96 else length)
    except ValueError:
        raise UsageError(
            f"{option}: '{text}' is not an address or a prefix like 10.0.0.0/8"
        ) from None


def _mapped(address: ipaddress.IPv4Address, length: int) -> ipaddress.IPv6Network:
    """length: of the IPv4 prefix; ValueError if it has more than 32 bits."""
    network = ipaddress.IPv4Network((address, length), strict=False)
    return ipaddress.IPv6Network((f"::ffff:{network.network_address}", 96 + network.prefixlen))


def comms(option: str, names: Iterable[str]) -> list[bytes]:
    """Task names, at most 15 bytes each, as the kernel keeps them."""
    encoded = [os.fsencode(name) for name in names]
    for name in encoded:
        if not 1 <= len(name) <= 15:
            raise UsageError(f"{option}: '{os.fsdecode(name)}' is not a task name (1 to 15 bytes)")
    return limited(option, encoded)


def limited(option: str, targets: list[Target]) -> list[Target]:
    """The list itself; UsageError when it is longer than the kernel side has room for."""
    if len(targets) > MAX_TARGETS:
        raise UsageError(f"{option}: {len(targets)} values, at most {MAX_TARGETS} fit")
    return targets


def family(ipv4: bool, ipv6: bool) -> int:
    """AF_INET or AF_INET6; 0 for both or none."""
    return 0 if ipv4 == ipv6 else AF_INET if ipv4 else AF_INET6


def namespace(option: str, text: str) -> int:
    """A network namespace's inode, from its name (ip-netns(8)), a pid, a path, or the inode."""
    bare = text.removeprefix("inode:").removeprefix("net:[").removesuffix("]")
    if re.fullmatch(r"[0-9]{1,19}", bare) and int(bare) >= _FIRST_NAMESPACE:
        return number(option, "a namespace inode", _FIRST_NAMESPACE, (1 << 32) - 1)(bare)
    if text.isascii() and text.isdigit():
        path = Path("/proc", text, "ns/net")
    elif text.startswith("/"):
        path = Path(text)
    else:
        path = Path("/run/netns", text)
    try:
        inode = _network_namespace(path)
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else e
        raise UsageError(f"{option}: '{text}' is no network namespace: {path}: {why}") from None
    if inode is None:
        raise UsageError(f"{option}: '{text}' is no network namespace: {path} is something else")
    return inode


def _network_namespace(path: Path) -> int | None:
    """The inode of a network namespace; None if the file is anything else (ioctl_nsfs(2))."""
    # Nothing but namespaces is on that device: no fifo and no tape drive is opened.
    if path.stat().st_dev != Path("/proc/self/ns/net").stat().st_dev:
        return None
    with path.open("rb") as file:
        kind = fcntl.ioctl(file, _NS_GET_NSTYPE)
        return os.fstat(file.fileno()).st_ino if kind == _CLONE_NEWNET else None


def cgroup(option: str, text: str) -> Path:
    """A cgroup directory, absolute or relative to the cgroup v2 mount."""
    below = cgroup_root(option) / text.lstrip("/")
    for path in (Path(text), below) if text.startswith("/") else (below,):
        if text and _is_cgroup(path):
            return path
    raise UsageError(f"{option}: '{text}' is not a cgroup v2 directory")


def _is_cgroup(path: Path) -> bool:
    """Version 1 has cgroup.procs as well, but not this file; cgroups(7)."""
    try:
        return (path / "cgroup.controllers").is_file()
    except (OSError, ValueError):
        return False


def cgroup_root(option: str = "--cgroup") -> Path:
    """Where cgroup v2 is mounted; UsageError where it is not."""
    found = mounted("cgroup2")
    if found is None:
        raise UsageError(f"{option}: no cgroup v2 hierarchy is mounted here, and it needs one")
    return found


def mounted(kind: str) -> Path | None:
    """Where a file system of this type is mounted first (proc(5), mounts); None: nowhere."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, found, *_ = line.split()
        if found == kind:
            return Path(where)
    return None


def parts(texts: Iterable[str]) -> list[str]:
    """Of comma-separated lists."""
    return [part.strip() for text in texts for part in text.split(",")]
