"""Count bytes that were sent to and received from subnets, over TCP.

What a peer sends and gets counts for the longest prefix that its address is in; `other` has what
is in none. Payload alone, each byte once.
"""

from __future__ import annotations

import struct
from ipaddress import IPv6Network
from pathlib import Path
from typing import Annotated

from tcpcore.errors import OptionError
from tcpcore.model import fields, net
from tcpcore.model.counted import Counted
from tcpcore.model.option import Option
from tcpcore.model.slots import ACCEPTING, TRANSITIONS, WALK, optional
from tcpcore.model.tool import Column, Lines, Table, Tool
from tcpcore.request import prefixes
from tcpcore.value import Value

_PRIVATE = (
    "127.0.0.0/8,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,0.0.0.0/0,::1,fc00::/7,fe80::/10,::/0"
)
_MOST_BYTES = 1 << 20  # of a file with prefixes
_UNITS = {"b": 1 / 8, "k": 128, "m": 1 << 17, "B": 1, "K": 1 << 10, "M": 1 << 20}


def _written(raw: bytes) -> str:
    """Of what _entry() made."""
    return f"{net.address_text(raw[:16])}/{raw[16]}" if any(raw) else fields.OTHER


Subnet = Annotated[str, fields.Kind("24s", _written)]


class Key(Value):
    """What is counted apart. Mirror of struct subnet, bpf/subnet.h."""

    subnet: Subnet


class Traffic(Key):
    """Bytes of one interval; mirror of struct subnet_count. subnet: `other` has no prefix."""

    tx_bytes: fields.Count
    rx_bytes: fields.Count
    interval_ns: fields.Interval


def _table(unit: str, subnets: int | None = None) -> Table:
    title = {"b": "BIT", "k": "KBIT", "m": "MBIT", "B": "B", "K": "KB", "M": "MB"}[unit]
    cells = fields.scaled(12, 0 if unit in "bB" else 2, _UNITS[unit])
    traffic = (
        Column(f"TX_{title}", "tx_bytes", 12, cells=cells),
        Column(f"RX_{title}", "rx_bytes", 12, cells=cells),
    )
    lines = Lines(
        Traffic,
        columns=(Column("SUBNET", "subnet", 21), *traffic),
        wide=(Column("SUBNET", "subnet", 43), *traffic),
    )
    return Table(lines, Counted("bytes", Key, struct="subnet", timed=True, keys=subnets))


TOOL = Tool(
    name="subnet",
    kinds=(_table("B"),),
    slots=TRANSITIONS + optional(ACCEPTING) + WALK,
    sockets=("sockets",),
    seed="iter/task_file",
    interval=1.0,
)

EXAMPLES = (
    ("subnet", "private networks, and the rest"),
    ("subnet --subnets 10.1.0.0/16 -i 60", "one network, every minute"),
    ("subnet -f m -L 443 --csv", "of a server, as CSV"),
)


def tool(
    subnets: Annotated[
        str, Option("Prefixes, as 10.0.0.0/8,::1; or @FILE.", metavar="PREFIXES")
    ] = _PRIVATE,
    unit: Annotated[
        str,
        Option("b, k, m: bits, Kbit, Mbit; B, K, M: bytes, KB, MB.", ("--format", "-f")),
    ] = "B",
) -> Tool:
    """subnets: prefixes with commas between them, or the name of a file behind an `@`, where they
    stand one a line. unit: of the text; JSON and CSV have bytes."""
    if unit not in _UNITS:
        raise OptionError("unit", f"'{unit}' is none of {', '.join(_UNITS)}")
    trie = _trie(_networks(subnets))
    return TOOL._replace(kinds=(_table(unit, len(trie)),), contents={"subnets": trie})


def _networks(given: str) -> list[IPv6Network]:
    if not given.startswith("@"):
        return [_network(part.strip(), "") for part in given.split(",")]
    lines = _text(Path(given[1:])).splitlines()
    numbered = ((n, line.partition("#")[0].strip()) for n, line in enumerate(lines, 1))
    return [_network(text, f"{given[1:]}:{n}: ") for n, text in numbered if text]


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(_MOST_BYTES + 1)
    except OSError as e:
        raise OptionError("subnets", f"{path}: {e.strerror}") from None
    if len(text) > _MOST_BYTES:
        raise OptionError("subnets", f"{path}: longer than {_MOST_BYTES >> 20} MB")
    return text


def _network(text: str, place: str) -> IPv6Network:
    try:
        return prefixes.network("subnets", net.printable(text))
    except OptionError as e:
        raise OptionError("subnets", f"{place}{e.problem}") from None


def _trie(networks: list[IPv6Network]) -> dict[bytes, bytes]:
    """The entries of the map `subnets` in bpf/subnet.bpf.h."""
    # In its v4-mapped form IPv4 is a part of ::/0. So that it is none, it has a prefix of its own.
    every_v4 = _entry(IPv6Network("::ffff:0:0/96"))[0]
    return {every_v4: bytes(24), **dict(map(_entry, networks))}


def _entry(network: IPv6Network) -> tuple[bytes, bytes]:
    """Key and value; the value is what _written() makes text of."""
    bits, address = network.prefixlen, network.network_address.packed
    shown = bits - 96 if network.network_address.ipv4_mapped else bits
    return struct.pack("=I16s", bits, address), struct.pack("=16sBB6x", address, shown, 1)
