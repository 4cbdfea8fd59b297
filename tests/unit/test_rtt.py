"""rtt --by: what has a histogram of its own."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network
from typing import Any

import pytest

from tcpcore.errors import OptionError
from tcpcore.model import fields
from tcpcore.model.tool import Histograms, Tool
from tcpcore.request import containers
from tcpcore.tools import rtt
from tcpcore.tools.rtt.keys import Key, Keys

NOTHING = dict.fromkeys(fields.kinds(Key), None) | {"found_room": True}


def shown(by: str, **known: Any) -> dict[str, Any]:
    return Keys(by).show(NOTHING | known)


def shown_rest(by: str) -> dict[str, Any]:
    return Keys(by).show(NOTHING | {"found_room": False})


@pytest.mark.parametrize(
    ("by", "known", "key"),
    [
        ("raddr", {"raddr": "192.0.2.1", "laddr": "x"}, {"raddr": "192.0.2.1"}),
        ("raddr/24", {"raddr": "192.0.2.0"}, {"raddr": "192.0.2.0/24"}),
        ("raddr/24", {"raddr": "2001:db8::"}, {"raddr": "2001:db8::/64"}),
        ("raddr/24,48", {"raddr": "2001:db8::"}, {"raddr": "2001:db8::/48"}),
        ("laddr/0,0", {"laddr": "0.0.0.0"}, {"laddr": "0.0.0.0/0"}),
        ("rport,laddr", {"laddr": "::1", "rport": 443}, {"rport": 443, "laddr": "::1"}),
        ("raddr/24,64,lport", {"raddr": "::", "lport": 1}, {"raddr": "::/64", "lport": 1}),
        ("process", {"pid": 7, "comm": "curl"}, {"pid": 7, "comm": "curl"}),
        ("process", {}, {"pid": None, "comm": None}),
        ("netns", {"netns": 4026531840}, {"netns": 4026531840}),
    ],
)
def test_a_key_has_what_was_asked_for(by: str, known: dict[str, Any], key: dict[str, Any]) -> None:
    found = shown(by, **known)
    assert found == key and list(found) == list(key)


@pytest.mark.parametrize(
    ("by", "key"),
    [
        ("raddr/24", {"raddr": "other"}),
        ("process,lport", {"pid": None, "comm": "other", "lport": None}),
        ("rport", {"rport": None}),
    ],
)
def test_what_found_no_room_is_told_from_what_is_not_known(by: str, key: dict[str, Any]) -> None:
    assert shown_rest(by) == key


def test_containers_have_a_name_and_the_id_of_the_cgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "Named", lambda option: {7: "web", None: None}.get)
    assert shown("container", cgroup_id=7) == {"container": "web", "cgroup_id": 7}
    assert shown("container", cgroup_id=8) == {"container": None, "cgroup_id": 8}
    assert shown("container") == {"container": None, "cgroup_id": None}
    assert shown_rest("container") == {"container": "other", "cgroup_id": None}


@pytest.mark.parametrize(
    ("by", "says"),
    [
        ("peer", "'peer' is none of laddr, raddr"),
        ("", "'' is none"),
        ("raddr,", "'' is none"),
        ("RADDR", "'RADDR' is none"),
        ("raddr/", "'raddr/' is none"),
        ("raddr/33", "'raddr/33' is no prefix like raddr/24, or raddr/24,64"),
        ("laddr/24,129", "'laddr/24,129' is no prefix like laddr/24,"),
        ("raddr/24,64,64", "none of"),
        ("raddr/-1", "none of"),
        ("raddr/٣", "none of"),
        ("rport/16", "'rport/16': only addresses have prefixes"),
        ("raddr/24,raddr", "twice"),
        ("24", "none of"),
    ],
)
def test_what_is_no_key(by: str, says: str) -> None:
    with pytest.raises(OptionError) as e:
        Keys(by)
    assert e.value.name == "by" and says in e.value.problem


@pytest.mark.parametrize("ipv4", [0, 1, 24, 31, 32])
@pytest.mark.parametrize("ipv6", [0, 1, 63, 64, 65, 128])
def test_prefixes_as_masks(ipv4: int, ipv6: int) -> None:
    masks = Keys(f"raddr/{ipv4},{ipv6}").rodata()["raddr_prefix"]
    assert isinstance(masks, bytes)
    found = [IPv6Address(masks[:16]), IPv6Address(masks[16:])]
    assert found == [IPv6Network(f"::/{bits}").netmask for bits in (96 + ipv4, ipv6)]


def test_an_address_without_a_prefix_is_whole() -> None:
    assert Keys("laddr").rodata() == {"by_laddr": True, "laddr_prefix": b"\xff" * 32}


def measured(of: Tool) -> tuple[str, str]:
    (kind,) = of.kinds
    assert isinstance(kind, Histograms)
    (source,) = of.counted
    return source.measure, source.unit  # type: ignore[union-attr]


def test_measures_and_units() -> None:
    assert measured(rtt.tool()) == ("srtt", "us")
    assert measured(rtt.tool(min_rtt=True)) == ("min_rtt", "us")
    assert measured(rtt.tool(jitter=True, millisecond=True)) == ("jitter", "ms")
    with pytest.raises(OptionError, match="jitter: and `min_rtt`: one of them"):
        rtt.tool(min_rtt=True, jitter=True)


def followed(of: Tool) -> bool:
    """Whether sockets have entries."""
    slots = {slot.name for slot in of.slots}
    assert "segments received" in slots
    assert (of.sockets == ("sockets",)) == bool(of.seed) == bool(of.rodata.get("rtt_has_owners"))
    assert ({"end of sockets", "state changes", "accept()"} <= slots) == bool(of.sockets)
    return bool(of.sockets)


def test_sockets_are_followed_only_where_owners_are_asked_for() -> None:
    plain = rtt.tool(by="raddr,netns", min_rtt=True)
    assert not followed(plain)
    assert plain.with_owners and followed(plain.with_owners)
    assert plain.with_owners.kinds == plain.kinds
    assert plain.rodata.items() <= plain.with_owners.rodata.items()
    assert followed(rtt.tool(by="raddr,process"))


def test_connections_are_walked_over() -> None:
    walked = rtt.tool(weight="connection", by="process", jitter=True)
    assert "walk over the sockets" in {slot.name for slot in walked.slots}
    assert "segments received" not in {slot.name for slot in walked.slots}
    assert walked.sockets and walked.seed and walked.rodata["rtt_by_connection"]
    assert rtt.tool(weight="connection").with_owners is None
    assert rtt.tool(weight="segment") == rtt.tool()
    with pytest.raises(OptionError, match="weight: 'byte' is neither segment nor connection"):
        rtt.tool(weight="byte")


def test_short_options_of_the_original() -> None:
    both = rtt.tool(byladdr=True, byraddr=True)
    assert both.rodata == rtt.tool(by="laddr,raddr").rodata
    assert rtt.tool(byraddr=True, by="rport").rodata == rtt.tool(by="rport,raddr").rodata
