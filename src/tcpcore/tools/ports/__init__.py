"""Show how near the local ports are to exhaustion, by destination.

A connect() needs a port of ip_local_port_range that is not in use to the same destination; RADDR
`any` are those that bind() has taken for all. `!` marks a share to warn of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated

from tcpcore.errors import AlarmError, OptionError, TcpcoreError
from tcpcore.loader import Attached
from tcpcore.model import columns as col
from tcpcore.model import fields
from tcpcore.model.counted import Counted
from tcpcore.model.option import Option
from tcpcore.model.slots import TRANSITIONS
from tcpcore.model.tool import Column, Lines, Table, Tool
from tcpcore.request.values import decimal, number
from tcpcore.tools.ports.passes import FILES, SOCKETS, Passes
from tcpcore.tools.ports.places import Place, places
from tcpcore.tools.ports.rows import Counters, Key, Use

_MOST_ROWS = 4096


def _columns(width: int) -> tuple[Column, ...]:
    return (
        col.address("LADDR", "laddr", width),
        col.address("RADDR", "raddr", width),
        Column("RPORT", "rport", 5, text=fields.text),
        Column("IN_USE", "in_use", 6),
        Column("TIMEWAIT", "time_wait", 8),
        Column("BOUND", "bound", 5),
        Column("RANGE", "range", 5),
        Column("SHARE%", "share", 6, text=lambda x: "-" if x is None else f"{x * 100:.1f}"),
        Column("TAKEN", "taken", 6),
        Column("GIVEN", "given_back", 6),
        Column("FAILED", "failed", 6),
    )


_MARK = Column("!", "warn", 1, text=lambda warn: "!" if warn else "")
_STATES = (
    Column("SYNSENT", "syn_sent", 7),
    Column("ESTAB", "established", 6),
    Column("CLOSEWAIT", "close_wait", 9),
    Column("CLOSING", "closing", 7),
)
_OWNER = (col.pid(7), col.comm(12))


def _lines(owners: bool) -> Lines:
    of_owner = _OWNER if owners else ()
    wide = (*col.WIDE_OWNER[:2], col.UID) if owners else ()
    return Lines(
        Use,
        columns=(*of_owner, *_columns(15), _MARK),
        wide=(*wide, *_columns(39), *_STATES, col.NETNS, _MARK),
    )


_COUNTED = Counted("destinations", Key, struct="ports", counters=Counters)


class _Watch:
    """A trace of these namespaces, and what it finds to warn of."""

    def __init__(self, found: Sequence[Place], rates: bool, warn: float, most: int) -> None:
        self._of = found, rates, warn, most
        self._passes: Passes | None = None

    def begin(self, program: Attached) -> Passes:
        self._passes = Passes(program, *self._of)
        return self._passes

    def alarm(self) -> TcpcoreError | None:
        if self._passes is None or self._passes.worst is None:
            return None
        (worst,) = fields.values(Use, [self._passes.worst])
        return AlarmError(f"ports: {worst.share * 100:.1f} % are in use to {_where(worst)}")


def _where(use: Use) -> str:
    if use.rport is None:
        return "any destination"
    failed = f"; {use.failed} connects found none" if use.failed else ""
    return f"{use.raddr} port {use.rport} from {use.laddr}{failed}"


@contextmanager
def _looking(
    tool: Tool, inodes: Sequence[int], *, rates: bool, warn: float, most: int, fail: bool
) -> Iterator[Tool]:
    """The tool of these network namespaces."""
    with places(inodes) as found:
        watch = _Watch(found, rates, warn, most)
        (kind,) = tool.kinds
        yield tool._replace(
            kinds=(kind._replace(counts=_COUNTED._replace(begin=watch.begin)),),
            contents={"namespaces": {place.key: place.sets() for place in found}},
            alarm=watch.alarm if fail else None,
        )


_END, _CHANGES = TRANSITIONS

TOOL = Tool(
    name="ports",
    kinds=(Table(_lines(owners=False), _COUNTED),),
    slots=(_END, _CHANGES),
    sockets=("sockets", "connecting"),
    rodata={"with_owners": True, "count_owners": False},
    iterators=(FILES, SOCKETS),
    in_namespaces=partial(_looking, rates=True, warn=80, most=20, fail=False),
    interval=5.0,
)


def _without_owners(following: Tool) -> Tool:
    """Most runs ask for no owner. They follow no socket, and have none to forget."""
    return following._replace(
        slots=tuple(slot for slot in following.slots if slot is not _END),
        sockets=("connecting",),
        rodata={"with_owners": False, "count_owners": False},
        with_owners=following,
    )


EXAMPLES = (
    ("ports", "the nearest ones, every 5 seconds"),
    ("ports --now --json", "as it is now, as JSON"),
    ("ports --now --fail --warn 90", "for scripts: exit code 6 from 90 % on"),
)


def tool(
    warn: Annotated[float, Option("Mark what has so much of the range.", metavar="PERCENT")] = 80,
    fail: Annotated[bool, Option("End with exit code 6 as soon as something is marked.")] = False,
    now: Annotated[bool, Option("As it is now, and no more.")] = False,
    owners: Annotated[bool, Option("A row for each owner.")] = False,
    rows: Annotated[str, Option("So many rows.", ("--rows", "-r"), metavar="N")] = "20",
) -> Tool:
    """warn: the share of the range, in percent, from which on a row is marked. fail: AlarmError
    after the first report with such a row. now: one report at once, without what is taken and given
    back. owners: count each process apart. rows: how many; the others are added up in one."""
    share = decimal("warn", warn, "a share in percent", positive=True)
    if share > 100:
        raise OptionError("warn", f"'{warn}' is more than 100 percent")
    most = number("rows", rows, "a number of rows", 1, _MOST_ROWS)
    following = TOOL._replace(
        kinds=(Table(_lines(owners), _COUNTED),),
        slots=() if now else TOOL.slots,
        rodata={"with_owners": True, "count_owners": owners},
        in_namespaces=partial(_looking, rates=not now, warn=share, most=most, fail=fail),
        at_once=now,
    )
    return following if owners else _without_owners(following)
