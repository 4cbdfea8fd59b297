"""Filters: what each text means, and what the kernel side gets of it."""

from __future__ import annotations

import os
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tcpcore.errors import UsageError
from tcpcore.request import places, prefixes, values
from tcpcore.request.filters import Filters
from tcpcore.request.values import MAX_TARGETS


def bad(what: str, text: str) -> None:
    """What makes a <what> of a text refuses it, and names it and the option."""
    modules = (values, places, prefixes)
    parse = next(getattr(module, what) for module in modules if hasattr(module, what))
    with pytest.raises(UsageError) as e:
        parse("--option", [text] if what in ("ports", "networks", "comms") else text)
    assert str(e.value).startswith("--option: ")
    assert f"'{text}'" in str(e.value)


def bits(bitmap: bytes) -> list[int]:
    words = struct.unpack("=1024Q", bitmap)
    return [64 * i + bit for i, word in enumerate(words) for bit in range(64) if word >> bit & 1]


@pytest.mark.parametrize(
    "text", ["", "0", "65536", "-1", "+80", "80-", "-80", "8_0", "٨٠", "http", "1" * 5000]
)
def test_bad_ports(text: str) -> None:
    with pytest.raises(UsageError) as e:
        values.ports("--lport", [text])
    assert str(e.value).startswith("--lport: '")


def test_one_bad_port_in_a_list_is_named() -> None:
    with pytest.raises(UsageError, match=r"--lport: '70000' is not a port \(1 to 65535\)"):
        values.ports("--lport", ["80,70000,443"])
    with pytest.raises(UsageError, match="--lport: the range '90-80' runs backwards"):
        values.ports("--lport", ["90-80"])
    with pytest.raises(UsageError, match="--lport: ''"):
        values.ports("--lport", ["80,,443"])


def test_good_ports() -> None:
    assert values.ports("-L", ["80,443", "8000-8003", " 1 , 65535"]) == [
        80, 443, 8000, 8001, 8002, 8003, 1, 65535,
    ]  # fmt: skip
    assert values.ports("-L", []) == []


@given(st.lists(st.tuples(st.integers(1, 65535), st.integers(0, 300)), max_size=8))
def test_a_port_list_of_any_length_is_a_bitmap(ranges: list[tuple[int, int]]) -> None:
    pairs = [(low, min(65535, low + more)) for low, more in ranges]
    ports = values.ports("-D", [",".join(f"{a}-{b}" for a, b in pairs)] if pairs else [])
    rodata = Filters(rport=ports).rodata()
    if not pairs:
        assert "target_rport" not in rodata
        return
    bitmap = rodata["target_rport"]
    assert isinstance(bitmap, bytes)
    assert bits(bitmap) == sorted({port for a, b in pairs for port in range(a, b + 1)})
    assert rodata["target_rport_set"] == 1


@pytest.mark.parametrize(
    "text",
    ["", "10.0.0", "10.0.0.256", "10.0.0.0/33", "10.0.0.0/-1", "::1/129", ":::", "localhost",
     "1.2.3.4/x", "7", "10.0.0.0/", "::ffff:10.0.0.0/33", "::ffff:10.0.0.0/95"],
)  # fmt: skip
def test_bad_networks(text: str) -> None:
    with pytest.raises(UsageError) as e:
        prefixes.networks("--raddr", [text])
    assert str(e.value).startswith(f"--raddr: '{text.strip()}' is not an address or a prefix")


def test_good_networks() -> None:
    found = prefixes.networks(
        "--raddr", ["10.1.2.3/8,192.0.2.1", "2001:db8::/32, ::1", "0.0.0.0/0"]
    )
    assert found == [
        IPv6Network("::ffff:10.0.0.0/104"),
        IPv6Network("::ffff:192.0.2.1/128"),
        IPv6Network("2001:db8::/32"),
        IPv6Network("::1/128"),
        IPv6Network("::ffff:0.0.0.0/96"),
    ]


@given(st.ip_addresses(v=4), st.integers(0, 32), st.ip_addresses(v=4))
def test_a_v4_prefix_matches_what_it_matches_as_v4(
    base: IPv4Address, length: int, other: IPv4Address
) -> None:
    (mapped,) = prefixes.networks("--raddr", [f"{base}/{length}"])
    plain = IPv4Network((base, length), strict=False)
    assert (IPv6Address(f"::ffff:{other}") in mapped) == (other in plain)
    assert IPv6Address("::1") not in mapped


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
        ("::ffff:10.1.2.3/8", "10.0.0.0/8"),
        ("::ffff:10.1.2.3/32", "10.1.2.3"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::ffff:a01:203/112", "10.1.0.0/16"),
    ],
)
def test_a_v4_mapped_network_is_ipv4(text: str, plain: str) -> None:
    assert prefixes.networks("--raddr", [text]) == prefixes.networks("--raddr", [plain])


def ranges(*texts: str) -> list[tuple[int, int]]:
    rodata = Filters(laddr=prefixes.networks("--laddr", texts)).rodata()
    found = rodata["target_laddr"]
    assert isinstance(found, bytes)
    assert rodata["target_laddr_count"] == len(found) // 32
    halves = struct.iter_unpack("=4Q", found)
    return [(a << 64 | b, c << 64 | d) for a, b, c, d in halves]


V6 = st.tuples(st.ip_addresses(v=6), st.integers(0, 128))
V4 = st.tuples(st.ip_addresses(v=4), st.integers(0, 32))


@given(st.lists(st.one_of(V6, V4), min_size=1, max_size=8), st.ip_addresses(), st.data())
def test_ranges_hold_what_the_prefixes_match(
    bases: list[tuple[IPv4Address | IPv6Address, int]],
    other: IPv4Address | IPv6Address,
    data: st.DataObject,
) -> None:
    plain = [ip_network((base, length), strict=False) for base, length in bases]
    assume(all(n.version == 4 or n.network_address.ipv4_mapped is None for n in plain))
    chosen = data.draw(st.sampled_from(plain))
    for address in (other, chosen[0], chosen[-1], chosen[0] - 1 if int(chosen[0]) else other):
        assume(address.version == 4 or address.ipv4_mapped is None)
        number = int(address) if address.version == 6 else int(address) + (0xFFFF << 32)
        inside = any(a <= number <= b for a, b in ranges(*map(str, plain)))
        assert inside == any(address in network for network in plain)


def test_ranges_ascend_and_are_apart() -> None:
    assert ranges("0.0.0.2", "0.0.0.1", "0.0.0.4", "0.0.0.4/31", "0.0.0.0/31") == [
        (0xFFFF_0000_0000, 0xFFFF_0000_0002),
        (0xFFFF_0000_0004, 0xFFFF_0000_0005),
    ]
    assert ranges("::/0") == [
        (0, 0xFFFE_FFFF_FFFF),
        (0x1_0000_0000_0000, (1 << 128) - 1),
    ]


def test_task_names() -> None:
    assert values.comms("--comm", ["curl", "é", "a b", "a,b", "\udcff"]) == [
        b"curl", "é".encode(), b"a b", b"a,b", b"\xff",
    ]  # fmt: skip
    for text in ("", "x" * 16, "é" * 8):
        bad("comms", text)
    rodata = Filters(comm=[b"ab", b"c"]).rodata()
    assert rodata["target_comm"] == b"ab".ljust(16, b"\0") + b"c".ljust(16, b"\0")
    assert rodata["target_comm_count"] == 2


def test_lists_have_a_limit() -> None:
    full = ["::1"] * MAX_TARGETS
    assert len(prefixes.networks("--laddr", full)) == MAX_TARGETS
    for parse in (prefixes.networks, values.comms):
        with pytest.raises(UsageError, match=f"--x: {MAX_TARGETS + 1} values, at most"):
            parse("--x", [*full, "::1"])


def test_family() -> None:
    assert [values.family(v4, v6) for v4 in (False, True) for v6 in (False, True)] == [0, 10, 2, 0]
    assert Filters(family=10).rodata()["target_family"] == 10
    assert "target_family" not in Filters().rodata()


@given(st.text())
def test_numbers_are_in_range_or_refused(text: str) -> None:
    def parse(text: str) -> int:
        return values.number("--x", text, "a number", 5, 500)

    try:
        value = parse(text)
    except UsageError as e:
        assert f"--x: '{text}' is not a number (5 to 500)" in str(e)
    else:
        assert 5 <= value <= 500
        assert text.isascii() and text.isdigit()


def test_no_filter_is_no_rodata() -> None:
    assert Filters().rodata() == {}


def test_numbers_in_rodata() -> None:
    rodata = Filters(pid=[1, 4194304], uid=[0], netns=[4026531840]).rodata()
    assert rodata["target_pid"] == struct.pack("=2I", 1, 4194304)
    assert rodata["target_pid_count"] == 2
    assert rodata["target_uid"] == bytes(4)
    assert rodata["target_uid_count"] == 1
    assert rodata["target_netns"] == struct.pack("=I", 4026531840)


def test_network_namespaces() -> None:
    own = Path("/proc/self/ns/net").stat().st_ino
    for text in (str(os.getpid()), f"{own}", f"inode:{own}", f"net:[{own}]", "/proc/self/ns/net"):
        assert places.namespace("--netns", text) == own


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "0", "4194305", "4294967296", "-1", "no-such-namespace", "/absent", "a\0b",
     "/", "/dev/null", "/proc/self/ns/pid", "x" * 300, "/" + "x" * 300, "9" * 5000],
)  # fmt: skip
def test_bad_network_namespaces(text: str) -> None:
    bad("namespace", text)


def test_a_fifo_for_a_network_namespace_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    bad("namespace", str(tmp_path / "fifo"))


@pytest.fixture
def hierarchy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup v2 hierarchy: every directory has the two files."""
    for name in (".", "system.slice", "system.slice/web.service"):
        (tmp_path / name).mkdir(exist_ok=True)
        for file in ("cgroup.procs", "cgroup.controllers"):
            (tmp_path / name / file).touch()
    monkeypatch.setattr(places, "cgroup_root", lambda *_: tmp_path)
    return tmp_path


def test_cgroups(hierarchy: Path) -> None:
    web = hierarchy / "system.slice/web.service"
    for text in (str(web), "system.slice/web.service", "/system.slice/web.service"):
        assert places.cgroup("--cgroup", text).samefile(web)
    assert places.cgroup("--cgroup", "/").samefile(hierarchy)


@pytest.mark.parametrize(
    "text", ["", "absent", "/absent", "cgroup.procs", "..", "x" * 300, "/" + "x" * 300, "a\0b"]
)
def test_bad_cgroups(hierarchy: Path, text: str) -> None:
    bad("cgroup", text)


def test_a_cgroup_of_version_1_is_refused(hierarchy: Path, tmp_path: Path) -> None:
    """It has cgroup.procs too; only version 2 has cgroup.controllers, cgroups(7)."""
    old = tmp_path / "memory"
    old.mkdir()
    (old / "cgroup.procs").touch()
    bad("cgroup", str(old))


def test_a_cgroup_is_known_by_its_inode(hierarchy: Path) -> None:
    rodata = Filters(cgroup=[hierarchy, hierarchy / "system.slice"]).rodata()
    assert rodata["target_cgroup_count"] == 2
    inodes = [path.stat().st_ino for path in (hierarchy, hierarchy / "system.slice")]
    assert rodata["target_cgroup"] == struct.pack("=2Q", *inodes)


def test_a_cgroup_that_went_away() -> None:
    with pytest.raises(UsageError, match="cgroup: /absent: No such file"):
        Filters(cgroup=[Path("/absent")]).rodata()
