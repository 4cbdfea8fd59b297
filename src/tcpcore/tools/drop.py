"""Trace TCP packets that the kernel drops: where and why.

All that are TCP, sent, received or forwarded, with a socket or without. REASON is the kernel's own
name; FUNCTION is what dropped the packet. STATE is `-` where no socket is known.
"""

from __future__ import annotations

import math
import struct
from typing import Annotated

from tcpcore.errors import LibbpfError, OptionError
from tcpcore.loader import Slot, Way
from tcpcore.model import columns as col
from tcpcore.model import drop_reasons, fields, net
from tcpcore.model.counted import Counted
from tcpcore.model.drop_reasons import DropReasons
from tcpcore.model.event import ConnectionEvent
from tcpcore.model.option import Option
from tcpcore.model.slots import ACCEPTING, TRANSITIONS, optional
from tcpcore.model.symbols import KernelSymbols
from tcpcore.model.tool import Column, Lines, Rodata, Stream, Table, Tool
from tcpcore.request import values
from tcpcore.value import Value

_NO_REASON = _UNKNOWN_LEN = (1 << 32) - 1
_UNKNOWN_FLAGS = 0xFFFF

_REASONS = DropReasons()
_SYMBOLS = KernelSymbols()


def _reason(raw: int) -> str | None:
    return None if raw == _NO_REASON else _REASONS(raw)


def _function(raw: int) -> str | None:
    found = _SYMBOLS(raw)
    return str(found) if found else None


def _place(raw: int) -> str:
    """Of a key; there is no 0 among them but the rest."""
    return (_function(raw) or "?") if raw else fields.OTHER


_STACK = struct.Struct("=17Q")  # the place of the drop, and the frames


def _stack(raw: bytes) -> str | None:
    """From the place of the drop on: what comes before is the tracepoint's and our program's."""
    place, *frames = _STACK.unpack(raw)
    frames = [frame for frame in frames if frame]
    if not frames:
        return None
    return ";".join(map(_place, frames[frames.index(place) if place in frames else 0 :]))


def _flags(raw: int) -> str | None:
    return None if raw == _UNKNOWN_FLAGS else net.flag_names(raw)


Reason = Annotated[str | None, fields.Kind("I", _reason, enums=(_REASONS,))]
Code = Annotated[int | None, fields.Kind("I", lambda raw: None if raw == _NO_REASON else raw)]
Function = Annotated[str | None, fields.Kind("Q", _function, enums=(_SYMBOLS,))]
Place = Annotated[str, fields.Kind("Q", _place, enums=(_SYMBOLS,))]
Stack = Annotated[
    str | None,
    fields.Kind(
        f"2x{_STACK.size}s",  # struct drop_event ends with two bytes that fill it up
        _stack,
        text=lambda stack: "".join(f"\n        {frame}" for frame in (stack or "-").split(";")),
        enums=(_SYMBOLS,),
    ),
]
Length = Annotated[
    int | None, fields.Kind("I", lambda raw: None if raw == _UNKNOWN_LEN else raw, few=False)
]
Flags = Annotated[str | None, fields.Kind("H", _flags, text=lambda flags: flags or "-")]


class Event(ConnectionEvent):
    """One dropped packet. Mirror of struct drop_event, bpf/drop.h.

    laddr, lport: of the receiver, if it was not sent here. function: what dropped it, and where in
    it. len: of its payload. flags: of TCP, with `|` between them. state: of its socket. pid, comm:
    only where owners are asked for. None: not known; ports are None, too, where the packet has no
    whole TCP header.
    """

    direction: fields.Direction
    state: fields.OptionalState
    reason: Reason
    function: Function
    seq: fields.SeqNumber
    ack: fields.SeqNumber
    len: Length
    ifindex: fields.Ifindex
    ifname: fields.Comm
    reason_code: Code
    flags: Flags


class WithStack(Event):
    """With --stack. Mirror of struct drop_with_stack. stack: places, the innermost first, with `;`
    between them."""

    stack: Stack


class Key(Value):
    """What drops are counted by. Mirror of struct drop, bpf/drop.h."""

    place: Place
    reason: Reason


class Drops(Key):
    """Drops for one reason in one place, `other` in the row of the rest."""

    drops: fields.Count


_WHY = (
    Column("STATE", "state", 11),
    Column("FLAGS", "flags", 11),
    Column("REASON", "reason", 20),
    Column("FUNCTION", "function", 28),
)

_LINES = Lines(
    Event,
    columns=(col.IP, Column("DIR", "direction", 8), *col.local_remote(15), *_WHY),
    wide=(
        col.IP,
        Column("DIR", "direction", 8),
        *col.local_remote(39),
        *_WHY,
        Column("CODE", "reason_code", 6),
        col.SEQ,
        Column("ACK", "ack", 10),
        Column("LEN", "len", 5),
        Column("IF", "ifname", 15),
        col.UID,
        col.NETNS,
    ),
    record="event",
)

_COLUMNS = (Column("DROPS", "drops", 9), Column("REASON", "reason", 24), Column("AT", "place", 0))
_COUNTS = Table(Lines(Drops, _COLUMNS, _COLUMNS), Counted("drops", Key, struct="drop"))

_PLAIN = "struct sk_buff *, void *"
_WITH_REASON = f"{_PLAIN}, enum skb_drop_reason"


def _freed(types: str, **rodata: int) -> Way:
    return Way(("raw_tp/kfree_skb",), types={"kfree_skb": (types,)}, rodata=rodata)


_DROPS = (
    Slot(
        "freed packets",
        (
            _freed(f"{_WITH_REASON}, struct sock *", has_reason=1, has_receiver=1),
            _freed(_WITH_REASON, has_reason=1),
            _freed(_PLAIN),
        ),
    ),
    Slot("drops by TCP without a reason", (Way(("kprobe/tcp_drop",)),), required=False),
)

# With all that it may have: most runs ask for no owner, and follow no socket.
TOOL = Tool(
    name="drop",
    event=Event,
    kinds=(Stream(_LINES),),
    slots=TRANSITIONS + optional(ACCEPTING) + _DROPS,
    sockets=("sockets", "connections"),
    seed="iter/task_file",
    needs_seed=False,
)

EXAMPLES = (
    ("drop --wide", "with numbers, length, interface"),
    ("drop -c -i 10", "by reason and place, every 10 s"),
    ("drop --reason NO_SOCKET -L 443", "for a reason, on a port"),
)


def tool(
    by_place: Annotated[
        bool, Option("Count by reason and place instead.", ("--count", "-c"))
    ] = False,
    reason: Annotated[
        str, Option("Only for these, as NO_SOCKET,TCP_CSUM.", metavar="REASONS")
    ] = "",
    stack: Annotated[bool, Option("Show where the kernel came from, a line a frame.")] = False,
    owner: Annotated[bool, Option("Show whose packets they are; follows all sockets.")] = False,
    rate: Annotated[
        float, Option("Show so many a second at most, and count the rest.", metavar="N")
    ] = 0,
) -> Tool:
    """by_place: counts by reason and place instead of each packet. reason: names of drop reasons,
    or numbers, with commas between them. stack: where the kernel came from. owner: whose packets
    they are, as with a filter that asks for it. rate: so many a second at most; the others are
    counted as with by_place. 0: all."""
    for option, given in {"rate": rate, "stack": stack, "owner": owner}.items():
        if by_place and given:
            raise OptionError(option, "there are no lines with `by_place`, which counts")
    rodata = {
        "count_drops": by_place,
        "most_a_second": math.ceil(values.decimal("rate", rate, "a number of packets")),
        "with_stack": stack,
        **_targets(_numbers(reason) if reason else []),
    }
    counts = (_COUNTS,) if by_place or rate else ()
    following = TOOL._replace(
        event=WithStack if stack else Event,
        kinds=counts if by_place else (Stream(_lines(stack, owner)), *counts),
        rodata=rodata | {"drop_has_owners": True},
    )
    if owner:
        return following
    return following._replace(
        slots=_DROPS, sockets=(), seed=None, rodata=rodata, with_owners=following
    )


def _lines(stack: bool, owner: bool) -> Lines:
    owners = (col.pid(7), col.comm(11)) if owner else ()
    # At the end of the line, so without padding.
    frames = (Column("STACK", "stack", 0),) if stack else ()
    return _LINES._replace(
        row=WithStack if stack else Event,
        columns=(*owners, *_LINES.columns, *frames),
        wide=(*owners, *_LINES.wide, *frames),
    )


def _targets(wanted: list[int]) -> Rodata:
    padded = wanted + [0] * (values.MAX_TARGETS - len(wanted))
    return {
        "target_reason": struct.pack(f"={values.MAX_TARGETS}I", *padded),
        "target_reason_count": len(wanted),
    }


def _numbers(given: str) -> list[int]:
    names = values.limited("reason", [part.strip() for part in given.split(",")])
    try:
        known = drop_reasons.numbers(names)
    except LibbpfError as e:
        raise OptionError("reason", f"no kernel BTF ({e})") from None
    return [_number(name, known) for name in names]


def _number(name: str, known: dict[str, int]) -> int:
    if name.isascii() and name.isdigit():
        return values.number("reason", name, "a drop reason", 0, _NO_REASON - 1)
    if name not in known:
        raise OptionError("reason", f"this kernel has no drop reason '{name}'")
    return known[name]
