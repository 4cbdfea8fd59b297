"""The names that addresses were asked by, and connects with those names."""

from __future__ import annotations

from collections.abc import Sequence

from tcpcore.enrich.dns.message import parse
from tcpcore.enrich.dns.recent import Recent
from tcpcore.enrich.dns.sniffer import Sniffer
from tcpcore.loader.perf import Record
from tcpcore.model import clock, net

_MS = 1_000_000

# Stamps of a packet and of a connect are of two clocks: an answer may seem to come too late.
_SLACK_NS = 1 * _MS
# One packet is seen on every interface that it crosses. The same answer within this time is a copy.
_COPY_NS = 10 * _MS
# How long a resolver that was given an alias without an address may take to ask for that alias: its
# timeout, resolv.conf(5).
_ALIAS_NS = 5 * clock.SECOND
# An older answer says nothing about a connect of now.
_STALE_NS = 86_400 * clock.SECOND

_MAX_ADDRESSES, _MAX_ALIASES = 65_536, 4_096
_MAX_ANSWERS = 4  # that are kept of one address


class Names:
    """Which name an address was asked by: the newest answer before a moment wins.

    Bounded: the addresses that were answered longest ago are forgotten first.
    """

    def __init__(self) -> None:
        self._answers: Recent[bytes, tuple[tuple[int, str], ...]] = Recent(_MAX_ADDRESSES)
        self._aliases: Recent[str, tuple[int, str]] = Recent(_MAX_ALIASES)

    def learn(self, message: bytes, at_ns: int) -> None:
        """Take in any DNS message, seen at at_ns (CLOCK_MONOTONIC)."""
        answer = parse(message)
        if answer is None:
            return
        name = self._asked(answer.question, at_ns)
        for address in answer.addresses:
            self._remember(address, at_ns, name)
        if not answer.addresses:  # the resolver will now ask for the alias
            for alias in answer.aliases:
                self._aliases.put(alias.lower(), (at_ns, name))

    def name(self, address: bytes, at_ns: int) -> tuple[str, int] | None:
        """The name that led to an address, and the answer's age in ns; None if not known.

        address: 16 bytes, IPv4 as v4-mapped. at_ns: when the connect began, CLOCK_MONOTONIC.
        """
        known = self._answers.get(address, ())
        before = [answer for answer in known if answer[0] <= at_ns + _SLACK_NS]
        if not before:
            return None
        seen, name = max(before, key=lambda answer: answer[0])
        age = max(0, at_ns - seen)
        return (name, age) if age <= _STALE_NS else None

    def _asked(self, question: str, at_ns: int) -> str:
        """The name that a process asked for; the resolver may now ask for an alias of it."""
        seen, name = self._aliases.get(question.lower(), (at_ns, question))
        return name if at_ns - seen <= _ALIAS_NS else question

    def _remember(self, address: bytes, at_ns: int, name: str) -> None:
        known = self._answers.get(address, ())
        if any(name == other and abs(at_ns - seen) < _COPY_NS for seen, other in known):
            return  # a copy: the first one tells best when the answer came
        self._answers.put(address, ((at_ns, name), *known[: _MAX_ANSWERS - 1]))


class Namer:
    """Appends `query` and `query_age_ns` to connects; None where they are not known.

    fields: what the records have, in their order; raddr, ts_ns and duration_ns are among them.
    """

    def __init__(self, sniffer: Sniffer, fields: Sequence[str]) -> None:
        self._sniffer = sniffer
        self._names = Names()
        self._raddr, self._ts_ns, self._duration_ns = map(
            fields.index, ("raddr", "ts_ns", "duration_ns")
        )

    def __call__(self, records: list[Record], last: bool = False) -> list[Record]:
        # Also when there are no records: the sockets have room for few packets.
        for message, seen in self._sniffer.read():
            self._names.learn(message, seen)
        return [(*record, *self._query(record)) for record in records]

    def lost(self) -> int:
        """Packets so far that were dropped unread."""
        return self._sniffer.dropped()

    def _query(self, record: Record) -> tuple[str | None, int | None]:
        if _is_loopback(record[self._raddr]):
            return "localhost", None
        begin = record[self._ts_ns] - record[self._duration_ns]
        name, age = self._names.name(record[self._raddr], begin) or (None, None)
        return name and net.printable(name), age


def _is_loopback(address: bytes) -> bool:
    return address.startswith(net.V4MAPPED + b"\x7f") or address == bytes(15) + b"\1"
