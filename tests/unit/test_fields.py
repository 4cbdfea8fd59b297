"""Field kinds: one raw value, three forms."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpcore.model import fields, net
from tcpcore.sinks import ndjson
from tcpcore.value import Value
from tests.unit.samples import ROOT, address, comm


def forms(annotation: Any, raw: Any) -> tuple[Any, str, str]:
    """Value, text, and JSON of one raw value."""
    kind = get_args(annotation)[1]
    value = kind.value(raw)
    return value, kind.text(value), ndjson.as_json(kind, raw)


@pytest.mark.parametrize(
    ("annotation", "raw", "expected"),
    [
        (fields.Time, 1 << 63, (1 << 63, str(1 << 63), str(1 << 63))),
        (fields.U32, 0, (0, "0", "0")),
        (fields.Duration, 1_500_000, (1_500_000, "1500000", "1500000")),
        (fields.Duration, 0, (0, "0", "0")),
        (fields.Duration, fields.UNKNOWN_NS, (None, "-", "null")),
        (fields.Pointer, 0xFFFF8881, ("ffff8881", "ffff8881", '"ffff8881"')),
        (fields.Pid, 42, (42, "42", "42")),
        (fields.Pid, 0, (None, "-", "null")),
        (fields.Uid, 0, (0, "0", "0")),
        (fields.Uid, fields.NO_USER, (None, "-", "null")),
        (fields.SeqNumber, 0, (0, "0", "0")),
        (fields.SeqNumber, fields.UNKNOWN_SEQ, (None, "-", "null")),
        (fields.Port, 443, (443, "443", "443")),
        (fields.Port, 0, (None, "0", "null")),
        (fields.Address, address("192.0.2.1"), ("192.0.2.1", "192.0.2.1", '"192.0.2.1"')),
        (fields.Address, address("::1"), ("::1", "::1", '"::1"')),
        (fields.Address, bytes(16), ("::", "::", '"::"')),
        (fields.Comm, comm(b"curl"), ("curl", "curl", '"curl"')),
        (fields.Comm, bytes(16), (None, "-", "null")),
        (fields.Family, 2, ("ipv4", "ipv4", '"ipv4"')),
        (fields.Family, 10, ("ipv6", "ipv6", '"ipv6"')),
        (fields.State, 1, ("ESTABLISHED", "ESTABLISHED", '"ESTABLISHED"')),
        (fields.State, 12, ("NEW_SYN_RECV", "NEW_SYN_RECV", '"NEW_SYN_RECV"')),
        (fields.State, 99, ("99", "99", '"99"')),
        (fields.Result, 0, ("ok", "ok", '"ok"')),
        (fields.Result, 111, ("ECONNREFUSED", "ECONNREFUSED", '"ECONNREFUSED"')),
        (fields.Result, 110, ("ETIMEDOUT", "ETIMEDOUT", '"ETIMEDOUT"')),
        (fields.Result, 512, ("E512", "E512", '"E512"')),
    ],
)
def test_forms(annotation: Any, raw: Any, expected: tuple[Any, str, str]) -> None:
    assert forms(annotation, raw) == expected


@given(st.binary(min_size=16, max_size=16))
def test_any_task_name_is_safe_on_a_terminal(raw: bytes) -> None:
    value, text, as_json = forms(fields.Comm, raw)
    assert text.isprintable()
    assert json.loads(as_json) == value
    assert (value is None) == (raw[0] == 0)


@given(st.binary(min_size=1, max_size=15), st.binary(min_size=1, max_size=15))
def test_different_task_names_stay_different(one: bytes, other: bytes) -> None:
    one, other = one.split(b"\0")[0], other.split(b"\0")[0]
    assert (net.escape(one) == net.escape(other)) == (one == other)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"a b", "a b"),
        (b"\x1b[31mred", r"\x1b[31mred"),
        (b"a\nb\tc\rd", r"a\nb\tc\rd"),
        (b"a\\nb", r"a\\nb"),
        (b"\xff\xfe", r"\xff\xfe"),
        (b"\x9b31m", r"\x9b31m"),
        ("\u0085".encode(), r"\x85"),
        ("é日".encode(), "é日"),
        ("\u202e".encode(), r"\u202e"),
        (b"\xe6\x97", r"\xe6\x97"),  # cut in the middle of a character, as the kernel cuts
        (b'"q"', '"q"'),
        (b"end\0rest", "end"),
    ],
)
def test_escapes(raw: bytes, text: str) -> None:
    assert net.escape(raw) == text


def test_states_have_the_kernels_names() -> None:
    source = (ROOT / "bpf/vmlinux.h").read_text()
    names = re.findall(r"^\s*TCP_(?!CA_)([A-Z_0-9]+)(?: = 1)?,$", source, re.MULTILINE)
    assert [net.state_name(i) for i in range(15)] == ["UNKNOWN", *names, "13", "14"]
    ca_names = re.findall(r"^\s*TCP_CA_(\w+),$", source, re.MULTILINE)
    assert [name.lower() for name in ca_names] == list(net.CA_STATES)


@given(st.binary(min_size=16, max_size=16))
def test_any_address_has_a_text(raw: bytes) -> None:
    text = net.address_text(raw)
    assert address(text) == raw
    assert len(text) <= 39
    assert (":" not in text) == raw.startswith(bytes(10) + b"\xff\xff")


def test_the_cache_forgets_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields.Cache, "LIMIT", 4)
    asked: list[int] = []

    def double(x: int) -> int:
        asked.append(x)
        return 2 * x

    cache = fields.Cache(double)
    assert [cache[x] for x in (1, 1, 2, 3, 4, 5, 5)] == [2, 2, 4, 6, 8, 10, 10]
    assert asked == [1, 2, 3, 4, 5]
    assert len(cache) <= 4


class Small(Value):
    ts_ns: fields.Time
    lport: fields.Port
    comm: fields.Comm


def test_records_become_events() -> None:
    records = [(1, 80, comm(b"a")), (2, 0, bytes(16))]
    assert list(fields.values(Small, records)) == [Small(1, 80, "a"), Small(2, None, None)]


def test_the_layout_of_an_event() -> None:
    assert list(fields.kinds(Small)) == ["ts_ns", "lport", "comm"]
    assert fields.layout(Small).size == 32
    packed = fields.layout(Small).event.pack(7, 80, comm(b"a"))
    assert fields.layout(Small).event.unpack(packed) == (7, 80, comm(b"a"))


def test_millis() -> None:
    assert list(fields.millis(5, 2)([1_234_567, fields.UNKNOWN_NS])) == ["1.23 ", "-    "]
