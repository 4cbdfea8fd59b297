"""path: which stages are of one packet."""

from __future__ import annotations

from typing import Any

import pytest

from tcpcore.model import clock, fields
from tcpcore.tools.path import Step
from tcpcore.tools.path import packets as module
from tcpcore.tools.path.event import Event
from tcpcore.tools.path.packets import Packets
from tcpcore.tools.path.stages import STAGES
from tcpcore.tools.path.summary import Stages
from tests.unit.samples import event, tool

NAMES = list(fields.kinds(Event))
STEP = list(fields.kinds(Step))
SECOND = 1_000_000_000
TOP = (1 << 32) - 100  # sequence numbers go on at 0


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    """All is long ago, unless a test says otherwise."""
    monkeypatch.setattr(clock, "monotonic_ns", lambda: 1000 * SECOND)


def at(stage: str, ts_ns: int, skb: int = 1, seq: int = 0, len: int = 100, **more: Any) -> Any:
    usual = {"ifindex": 1, "netns": 7, "flags": 16, "reason": 0, "cpu": 0, "lport": 1, "rport": 2}
    number = STAGES.index(stage)
    whole = usual | {"stage": number, "ts_ns": ts_ns, "skb": skb, "seq": seq, "len": len} | more
    return event(tool("path"), **whole)


def together(*events: Any, last: bool = True, quiet: int = 10, least: int = 0) -> list[list[str]]:
    """The stages of each packet that is shown."""
    rows = Packets(NAMES, quiet * SECOND, least)(list(events), last)
    found: dict[int, list[str]] = {}
    for row in rows:
        step = dict(zip(STEP, row, strict=True))
        found.setdefault(step["packet"], []).append(STAGES[step["stage"][0]])
    return list(found.values())


def test_a_buffer_through_devices_and_namespaces() -> None:
    way = (
        at("dev_queue", 1, netns=1),
        at("driver", 2, netns=1),
        at("receive", 3, netns=2),
        at("dev_queue", 4, netns=2, ifindex=2),
        at("receive", 5, netns=3),
        at("copied", 6, skb=9, netns=3, ifindex=0),
    )
    assert [len(packet) for packet in together(*way)] == [6]


def test_a_buffer_that_is_used_again() -> None:
    """By another connection, by later bytes, and for an acknowledgement like the one before."""
    one, other = at("dev_queue", 1), at("dev_queue", 2, lport=3)
    later = at("driver", 3, seq=100)
    assert len(together(one, other, later)) == 3
    acks = [at(stage, ts, len=0) for ts, stage in enumerate(("dev_queue", "driver") * 2)]
    assert together(*acks) == [["dev_queue", "driver"]] * 2


def test_a_retransmission_of_a_part() -> None:
    whole = at("dev_queue", 1, len=300)
    again = at("dev_queue", 2, skb=2, seq=100), at("driver", 3, skb=2, seq=100)
    assert together(whole, *again) == [["dev_queue"], ["dev_queue", "driver"]]


@pytest.mark.parametrize("begin", [0, TOP])
def test_segments(begin: int) -> None:
    """The whole is freed when it is split, and the last segment ends the packet."""
    parts = [((begin + i * 100) % (1 << 32), 10 + i) for i in range(3)]
    way = [at("tcp_send", 1, skb=5, seq=begin, len=300), at("dev_queue", 2, seq=begin, len=300)]
    way += [at("freed", 3, seq=begin, len=300)]
    way += [at("driver", skb, skb=skb, seq=seq) for seq, skb in parts]
    way += [at("freed", skb + 10, skb=skb, seq=seq) for seq, skb in parts]
    rows = Packets(NAMES, SECOND, 0)(way, True)
    steps = [dict(zip(STEP, row, strict=True)) for row in rows]
    assert {step["packet"] for step in steps} == {1}
    assert [step["stage"][1] for step in steps] == [0, 0, 0, *[1] * 6]
    assert [step["delta_ns"] for step in steps] == [0, 1, 1, 7, 8, 9, 10, 10, 10]


def test_merged_packets() -> None:
    way = [at("gro", i, skb=i, seq=i * 100) for i in range(3)]
    way += [at("receive", 5, skb=0, len=300), at("copied", 6, skb=0, len=300)]
    assert together(*way) == [["gro", "receive", "copied"]] * 3


def test_what_was_read() -> None:
    """Its last byte tells, in pieces or at once; in this namespace, and not what is to be sent."""
    one, two = at("receive", 1), at("receive", 2, skb=2, seq=100)
    first, rest = at("copied", 3, len=50), at("copied", 4, seq=50, len=100)
    assert together(one, two, first, rest) == [["receive", "copied"], ["receive"]]
    assert together(at("dev_queue", 1), at("copied", 2)) == [["dev_queue"]]
    assert together(one, at("copied", 2, netns=8)) == [["receive"]]


def test_a_copy_that_others_have() -> None:
    assert together(at("driver", 1), at("freed", 2, skb=9), at("freed", 3)) == [["driver", "freed"]]
    assert together(at("freed", 1)) == together(at("copied", 1)) == []
    assert together(at("dropped", 1)) == [["dropped"]]


def test_when_a_packet_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "monotonic_ns", lambda: 5 * SECOND)
    ms = SECOND // 1000

    def shown(*stages: str, ago_ms: int, len: int = 100) -> bool:
        begin = 5 * SECOND - ago_ms * ms
        return bool(together(*(at(x, begin, len=len) for x in stages), last=False, quiet=2))

    assert shown("receive", "copied", ago_ms=0)
    assert shown("driver", "freed", ago_ms=11) and not shown("driver", "freed", ago_ms=9)
    assert shown("receive", ago_ms=2001) and not shown("receive", ago_ms=1999)
    assert shown("receive", len=0, ago_ms=101) and not shown("receive", len=0, ago_ms=99)
    assert not shown("dev_queue", len=0, ago_ms=1999)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "monotonic_ns", lambda: 0)
    made = Packets(NAMES, 10 * SECOND, 0)
    many = [at("dev_queue", i, skb=i, seq=i * 100) for i in range(module.MOST_PACKETS + 5)]
    assert len(made(many, False)) == 5
    assert len(made([], True)) == module.MOST_PACKETS
    assert not made._open and not made._by_skb and not made._by_flow


def test_the_slow_ones_only() -> None:
    way = at("dev_queue", 0), at("freed", 999), at("dev_queue", 2000, skb=2, seq=500)
    assert together(*way, at("freed", 3000, skb=2, seq=500), least=1000) == [["dev_queue", "freed"]]


def test_times_by_stage() -> None:
    """None of a packet's first stage."""
    way = [at("dev_queue", 0), at("driver", 1), at("receive", 2), at("copied", 6)]
    way += [at("dev_queue", 9, skb=2, seq=500), at("driver", 13, skb=2, seq=500)]
    made = Stages(STEP)
    assert made.take() == []
    made.add(Packets(NAMES, SECOND, 0)(way, True))
    found = [(x.key, x.counts, x.sum, x.unit) for x in made.take()]
    assert found == [
        ({"stage": "driver"}, {0: 1, 2: 1}, 5, "ns"),
        ({"stage": "receive"}, {0: 1}, 1, "ns"),
        ({"stage": "copied"}, {2: 1}, 4, "ns"),
    ]
    assert made.take() == []
