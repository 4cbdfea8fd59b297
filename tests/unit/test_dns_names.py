"""Which name an address was asked by, and what the user sees of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import pytest

from tcpcore.enrich.dns.message import Answer
from tcpcore.enrich.dns.names import Namer, Names
from tcpcore.enrich.dns.sniffer import Sighting, Sniffer
from tcpcore.model.tool import Tool
from tcpcore.sinks.form import Form
from tcpcore.tools import connect
from tests.unit.dns_samples import ADDRESS, V4, V6, answer, message, raw
from tests.unit.samples import address, as_csv, as_json, as_table, event, python

MS, SECOND = 1_000_000, 1_000_000_000
DAY = 86_400 * SECOND


def learned(*messages: bytes) -> Names:
    """A second apart, from 1 s on."""
    names = Names()
    for second, each in enumerate(messages, 1):
        names.learn(each, second * SECOND)
    return names


def name_of(names: Names, text: str, at_ns: int = 20 * SECOND) -> str | None:
    found = names.name(address(text), at_ns)
    return found[0] if found else None


def test_an_address_has_the_name_that_was_asked() -> None:
    names = learned(answer("www.example.com", V4), answer("six.example.com", V6))
    assert names.name(address(V4), 3 * SECOND) == ("www.example.com", 2 * SECOND)
    assert names.name(address(V6), 3 * SECOND) == ("six.example.com", 1 * SECOND)
    assert names.name(address("192.0.2.2"), 3 * SECOND) is None
    assert names.name(address("::"), 3 * SECOND) is None


def test_all_addresses_of_an_answer() -> None:
    names = learned(answer("example.com", V4, "192.0.2.2", V6))
    assert {name_of(names, text) for text in (V4, "192.0.2.2", V6)} == {"example.com"}


def test_a_chain_of_aliases_leads_back_to_the_question() -> None:
    names = learned(
        message(
            "www.example.com",
            ("www.example.com", "CNAME", "cdn.example.net"),
            ("cdn.example.net", "CNAME", "edge.example.org"),
            ("edge.example.org", "A", V4),
        )
    )
    assert name_of(names, V4) == "www.example.com"


def test_an_alias_that_the_resolver_asks_for_by_itself() -> None:
    names = learned(
        message("www.Example.com", ("www.example.com", "CNAME", "Cdn.example.net")),
        message("cdn.example.NET", ("cdn.example.net", "CNAME", "edge.example.org")),
        answer("edge.example.org", V4),
        answer("edge.example.org", V6),
    )
    assert name_of(names, V4) == name_of(names, V6) == "www.Example.com"


def test_an_alias_is_soon_forgotten() -> None:
    names = learned(message("www.example.com", ("www.example.com", "CNAME", "cdn.example.net")))
    names.learn(answer("cdn.example.net", V4), 60 * SECOND)
    assert name_of(names, V4, 61 * SECOND) == "cdn.example.net"


def test_an_alias_that_came_with_its_address_is_none() -> None:
    names = learned(
        message("a.example", ("a.example", "CNAME", "b.example"), ("b.example", "A", V4)),
        answer("b.example", V6),
    )
    assert name_of(names, V6) == "b.example"


def test_aliases_in_a_circle() -> None:
    names = learned(
        message("a.example", ("a.example", "CNAME", "b.example")),
        message("b.example", ("b.example", "CNAME", "a.example")),
        answer("a.example", V4),
    )
    assert name_of(names, V4) == "a.example"


# Which of several answers.


def test_the_newest_answer_before_the_moment() -> None:
    names = learned(answer("one.example", V4), answer("two.example", V4))
    for moment, expected in (
        (1 * SECOND - 2 * MS, None),
        (1 * SECOND, ("one.example", 0)),
        (2 * SECOND - 2 * MS, ("one.example", SECOND - 2 * MS)),
        (2 * SECOND, ("two.example", 0)),
        (3 * SECOND, ("two.example", SECOND)),
    ):
        assert names.name(address(V4), moment) == expected


def test_time_stamps_may_be_a_bit_off() -> None:
    names = learned(answer("one.example", V4))
    assert names.name(address(V4), SECOND - MS) == ("one.example", 0)
    assert names.name(address(V4), SECOND - MS - 1) is None


def test_answers_that_come_in_another_order() -> None:
    names = Names()
    for second in (3, 1, 2):
        names.learn(answer(f"{second}.example", V4), second * SECOND)
    assert [name_of(names, V4, s * SECOND) for s in (1, 2, 3)] == [
        "1.example", "2.example", "3.example",
    ]  # fmt: skip


def test_of_answers_at_one_time_the_last() -> None:
    names = Names()
    for name in ("b.example", "c.example", "a.example"):
        names.learn(answer(name, V4), SECOND)
    assert name_of(names, V4) == "a.example"


def test_a_packet_seen_on_several_interfaces_counts_once() -> None:
    names = learned(*(answer(f"{i}.example", V4) for i in range(3)))
    for copy in range(10):
        names.learn(answer("last.example", V4), 9 * SECOND + copy * 100_000)
    assert names.name(address(V4), 9 * SECOND) == ("last.example", 0)
    assert names.name(address(V4), 10 * SECOND) == ("last.example", SECOND)
    assert name_of(names, V4, 8 * SECOND) == "2.example"
    assert name_of(names, V4, 1 * SECOND) == "0.example"


def test_the_last_four_answers_are_kept() -> None:
    names = learned(*(answer(f"{i}.example", V4) for i in range(1, 7)))
    found = [name_of(names, V4, s * SECOND) for s in range(1, 7)]
    assert found == [None, None, "3.example", "4.example", "5.example", "6.example"]


def test_an_answer_of_yesterday_is_unknown() -> None:
    names = learned(answer("example.com", V4))
    assert name_of(names, V4, SECOND + DAY) == "example.com"
    assert name_of(names, V4, SECOND + DAY + 1) is None


def test_the_oldest_addresses_are_forgotten() -> None:
    names, limit = Names(), 65_536
    kept = answer("kept.example", V4)
    names.learn(answer("old.example", "192.0.2.2"), 0)
    names.learn(kept, 0)
    for block in range(limit // 1024):
        names.learn(kept, block * SECOND)
        texts = [f"10.{block}.{i >> 8}.{i & 255}" for i in range(1024)]
        names.learn(answer("many.example", *texts), block * SECOND)
    now = limit // 1024 * SECOND
    assert name_of(names, "192.0.2.2", now) is None
    assert name_of(names, "10.0.0.0", now) is None
    assert name_of(names, V4, now) == "kept.example"
    assert name_of(names, "10.0.0.1", now) == "many.example"


# What the user sees.


def shown(form: Callable[[Tool], Form], name: str | None, age: int | None) -> str:
    """A connect with this query, in a form."""
    whole = connect.tool(dns=True)
    record = event(whole, query=name, query_age_ns=age, result=0)
    return form(whole).rows([record]).rstrip("\n")


@pytest.mark.parametrize(
    ("age", "text"),
    [
        (0, "example.com"),
        (100 * MS, "example.com"),
        (100 * MS + 1, "example.com (100.000ms)"),
        (123_456_000, "example.com (123.456ms)"),
        (DAY, "example.com (86400000.000ms)"),
        (None, "example.com"),
    ],
)
def test_an_old_answer_shows_its_age(age: int | None, text: str) -> None:
    """In the table behind the name, elsewhere in a field of its own."""
    query = "example.com", age
    assert shown(as_table, *query).endswith(f" ok           {text}")
    found = json.loads(shown(as_json, *query))
    assert (found["query"], found["query_age_ns"]) == query
    assert shown(as_csv, *query).endswith(f",example.com,{'' if age is None else age}")


def test_an_unknown_name() -> None:
    assert shown(as_table, None, None).endswith(" ok           -")
    found = json.loads(shown(as_json, None, None))
    assert (found["query"], found["query_age_ns"]) == (None, None)
    assert shown(as_csv, None, None).endswith(",,")


class Source:
    """What stands in for a Sniffer: messages that came a second apart, from 1 s on."""

    def __init__(self, *messages: bytes) -> None:
        self._waiting = [(each, second * SECOND) for second, each in enumerate(messages, 1)]

    def read(self) -> list[Sighting]:
        read, self._waiting = self._waiting, []
        return read

    def dropped(self) -> int:
        return 7


def namer(*messages: bytes) -> Namer:
    return Namer(cast(Sniffer, Source(*messages)), ("ts_ns", "duration_ns", "raddr"))


def connected(raddr: str) -> tuple[int, int, bytes]:
    """The record of a connect that began at 3 s."""
    return (4 * SECOND, SECOND, address(raddr))


def queries(adding: Namer, *raddrs: str) -> list[Any]:
    """What is appended to connects to these addresses."""
    return [list(record[3:]) for record in adding([connected(raddr) for raddr in raddrs])]


def test_the_age_counts_from_the_begin_of_the_connect() -> None:
    found = queries(namer(answer("www", V4)), V4, "127.0.0.1", "192.0.2.77")
    assert found == [["www", 2 * SECOND], ["localhost", None], [None, None]]


def test_a_batch_without_connects_is_read_too() -> None:
    adding = namer(answer("www", V4))
    assert adding([]) == []
    assert queries(adding, V4) == [["www", 2 * SECOND]]


def test_what_the_sockets_dropped_is_lost() -> None:
    assert namer().lost() == 7


@pytest.mark.parametrize(
    "label", [b"\x1b[2J\x1b]0;x\x07", b"two\r\nlines", "\u202eevil\u200b".encode(), b"\x9b2J"[1:]]
)
@pytest.mark.parametrize("parser_escapes", [True, False])
def test_a_hostile_name_does_nothing_to_a_terminal(
    label: bytes, parser_escapes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not parser_escapes:
        as_it_is = Answer(label.decode(), [address(V4)])
        monkeypatch.setattr("tcpcore.enrich.dns.names.parse", lambda _: as_it_is)
    hostile = raw(bytes([len(label)]) + label + b"\0\0\1\0\1", ADDRESS)
    ((name, _),) = queries(namer(hostile), V4)
    assert name.isascii()
    assert name.isprintable()


# What is imported, and when.

SHOW = "\nimport sys; print(*sys.modules)"


def test_nothing_is_imported_without_the_option() -> None:
    loaded = python("import tcpcore.tools.connect" + SHOW).stdout.split()
    assert not [x for x in loaded if x.startswith(("dnslib", "tcpcore.enrich.dns"))]


USE = f"""
import sys
from tcpcore.enrich.dns import Namer

class Source:
    def read(self):
        return [({answer("www.example.com", V4, V6)!r}, 1), (b"\\xff" * 99, 2)]

before = set(sys.modules)
added = Namer(Source(), ("ts_ns", "duration_ns", "raddr"))([(4, 1, {address(V4)!r})])
print(added[0][3:], set(sys.modules) - before)
"""


def test_nothing_is_imported_later() -> None:
    """By then the process may not be allowed to read Python's files."""
    done = python(USE)
    assert (done.stdout, done.stderr) == ("('www.example.com', 2) set()\n", "")
