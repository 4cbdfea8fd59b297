"""What is read out of DNS messages, of which some are hostile."""

from __future__ import annotations

import importlib
import struct
import sys

import pytest
from dnslib import EDNS0, QTYPE, RR, A, DNSHeader, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from tcpcore.enrich.dns.message import Answer, parse
from tcpcore.errors import UsageError
from tests.unit.dns_samples import (
    ADDRESS,
    EXAMPLE,
    POINTER,
    QUESTION,
    V4,
    V6,
    answer,
    message,
    raw,
    resource,
)
from tests.unit.samples import address

FOUND = Answer("example.com", [address(V4)])


def test_the_aliases_of_a_chain_in_their_order() -> None:
    found = parse(
        message(
            "www.example.com",
            ("www.example.com", "CNAME", "cdn.example.net"),
            ("cdn.example.net", "CNAME", "edge.example.org"),
            ("edge.example.org", "A", V4),
        )
    )
    aliases = ["cdn.example.net", "edge.example.org"]
    assert found == Answer("www.example.com", [address(V4)], aliases)


def test_more_aliases_than_a_resolver_follows() -> None:
    chain = [(f"{i}.example", "CNAME", f"{i + 1}.example") for i in range(100)]
    found = parse(message("0.example", *chain, ("100.example", "A", V4)))
    assert found and found.addresses == [address(V4)]
    assert found.aliases == [f"{i}.example" for i in range(1, 17)]


@pytest.mark.parametrize("number", [1, 40, 4000])
def test_answers_of_any_size(number: int) -> None:
    texts = [f"10.0.{i >> 8}.{i & 255}" for i in range(number)]
    large = answer("large.example.com", *texts)
    assert len(large) > 512 or number == 1
    assert parse(large) == Answer("large.example.com", [address(text) for text in texts])


def test_the_other_sections_do_not_matter() -> None:
    whole = DNSRecord.parse(answer("example.com", V4))
    whole.add_auth(RR("example.com", QTYPE.A, rdata=A("192.0.2.66")))
    whole.add_ar(EDNS0(flags="do", udp_len=4096))
    assert parse(whole.pack() + b"\xff\xff") == FOUND


def test_other_records_are_passed_over() -> None:
    records = (
        resource(POINTER, 46, b"\0\1\xff\xff"),  # RRSIG, as nobody writes it
        resource(b"\xc1\xff", 15, b"\xff"),  # MX; its owner points nowhere
        resource(POINTER, 16, b""),
        resource(POINTER, 1, bytes(4), family=3),  # CHAOS
        resource(POINTER, 1, bytes(5)),
        resource(POINTER, 28, bytes(4)),
        ADDRESS,
    )
    assert parse(raw(QUESTION, *records)) == FOUND


@pytest.mark.parametrize("owner", [POINTER, EXAMPLE, b"\x03www\xc0\x0c", b"\x03www\xc0\x14", b"\0"])
def test_owners_compressed_and_not(owner: bytes) -> None:
    assert parse(raw(QUESTION, resource(owner, 1, bytes([192, 0, 2, 1])))) == FOUND


def test_a_v4_mapped_answer_is_ipv4() -> None:
    mapped = resource(POINTER, 28, address(V4))
    assert parse(raw(QUESTION, mapped)) == FOUND


def test_what_came_before_a_cut_holds() -> None:
    """As in the first fragment of a datagram."""
    other = resource(POINTER, 1, bytes([192, 0, 2, 2]))
    for cut in range(len(other)):
        assert parse(raw(QUESTION, ADDRESS, other[:cut])) == FOUND


@pytest.mark.parametrize(
    "useless",
    [
        answer("example.com", V4, qr=0),
        answer("example.com", V4, rcode=3),  # NXDOMAIN
        answer("example.com", V4, rcode=2),  # SERVFAIL
        answer("example.com", V4, opcode=5),  # UPDATE
        DNSRecord.question("example.com").pack(),
        DNSRecord(DNSHeader(qr=1), rr=[RR("example.com", rdata=A(V4))]).pack(),
        raw(QUESTION + QUESTION, ADDRESS, questions=2),
        raw(QUESTION, resource(POINTER, 15, b"\0\x0a\4mail\xc0\x0c")),  # MX
        raw(QUESTION, ADDRESS, answers=0),
        raw(b"\xc0\x0c\0\1\0\1", ADDRESS),  # points at itself
        raw(b"\x04aaaa\xc0\x0e\0\1\0\1", ADDRESS),  # into its own label
        raw(b"\xc0\x20\0\1\0\1", ADDRESS),  # forwards
        raw(b"\1a" * 128 + b"\0\0\1\0\1", ADDRESS),  # 257 bytes
        raw(b"\1a" * 32_000 + b"\0\0\1\0\1", ADDRESS),
        raw(b"\2\xff\xfe\0\0\1\0\1", ADDRESS),  # not UTF-8
        b"",
        bytes(12),
        b"\xff" * 600,
    ],
)
def test_what_is_no_use(useless: bytes) -> None:
    found = parse(useless)
    assert found is None or (found.addresses, found.aliases) == ([], [])


def test_the_longest_name() -> None:
    found = parse(raw(b"\1a" * 127 + b"\0\0\1\0\1", ADDRESS))  # 255 bytes
    assert found == Answer(".".join("a" * 127), [address(V4)])


@pytest.mark.parametrize("depth", [10, 5000])
def test_pointers_to_pointers(depth: int) -> None:
    """Each to the one before: deeper than Python's stack, and no alias comes of it."""
    base = 12 + len(QUESTION + ADDRESS) + 11
    links = b"\0\0" + b"".join(struct.pack("!H", 0xC000 | base + 2 * i) for i in range(depth))
    end = struct.pack("!H", 0xC000 | base + 2 * depth)
    hostile = raw(QUESTION, ADDRESS, resource(b"\0", 99, links), resource(POINTER, 5, end))
    aliases = ["."] if depth == 10 else []
    assert parse(hostile) == Answer("example.com", [address(V4)], aliases)


def test_the_root_has_a_name() -> None:
    assert parse(raw(b"\0\0\1\0\1", ADDRESS)) == Answer(".", [address(V4)])


@given(st.binary(max_size=300))
def test_any_bytes_are_no_harm(garbage: bytes) -> None:
    for each in (garbage, b"\0\7\x81\x80\0\1\0\1" + garbage, raw(QUESTION, garbage, answers=9)):
        parse(each)


@given(st.binary(max_size=200), st.data())
def test_broken_messages_are_no_harm(noise: bytes, data: st.DataObject) -> None:
    whole = message("www.example.com", ("www.example.com", "CNAME", "b.c"), ("b.c", "AAAA", V6))
    at = data.draw(st.integers(0, len(whole)))
    parse(whole[:at] + noise + whole[at + len(noise) :])


def test_without_dnslib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dnslib", None)
    for name in ("tcpcore.enrich.dns", "tcpcore.enrich.dns.names", "tcpcore.enrich.dns.message"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UsageError, match=r"^dns: needs dnslib: pip install 'tcpcore\[dns\]'$"):
        importlib.import_module("tcpcore.enrich.dns")
