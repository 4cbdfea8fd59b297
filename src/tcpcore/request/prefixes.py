"""Addresses and prefixes; few runs need them, and ipaddress with them."""

from __future__ import annotations

import ipaddress
from typing import Any

from tcpcore.errors import OptionError
from tcpcore.request import values

_KINDS = (
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
)


def networks(option: str, given: Any) -> list[ipaddress.IPv6Network]:
    """Addresses and CIDR prefixes, as text or as objects of the ipaddress module; IPv4 ones come in
    their v4-mapped IPv6 form.

    A prefix of less than 96 bits is one of IPv6 alone: the kernel side takes no IPv4 address for a
    part of it.
    """
    texts = [str(values.checked(option, value, str, *_KINDS)) for value in values.several(given)]
    return values.limited(option, [network(option, part) for part in values.parts(texts)])


def network(option: str, text: str) -> ipaddress.IPv6Network:
    """One address or prefix, as text; as networks()."""
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
        problem = f"'{text}' is not an address or a prefix like 10.0.0.0/8"
        raise OptionError(option, problem) from None


def _mapped(address: ipaddress.IPv4Address, length: int) -> ipaddress.IPv6Network:
    """length: of the IPv4 prefix; ValueError if it has more than 32 bits."""
    network = ipaddress.IPv4Network((address, length), strict=False)
    return ipaddress.IPv6Network((f"::ffff:{network.network_address}", 96 + network.prefixlen))
