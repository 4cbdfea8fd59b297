"""A tool at work, on rings and programs that the test plays."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tcpcore.errors import LibbpfError
from tcpcore.loader import Attached, RingSize, Slot
from tcpcore.loader.perf import Batch
from tcpcore.model import fields
from tcpcore.model.counted import Counted, Measured
from tcpcore.model.event import ConnectionEvent
from tcpcore.model.histogram import Histogram
from tcpcore.model.losses import Losses, describe
from tcpcore.model.tool import Histograms, Snapshot, Sweep, Table, Tool
from tcpcore.request.filters import Filters
from tcpcore.request.machinery import Machinery
from tcpcore.request.request import Request
from tcpcore.session import session
from tcpcore.session.session import SLACK_NS, Session
from tests.unit.samples import event, lines, tool

TOOL = tool("connlat")
NOW = 10**12


class FakeProgram:
    """batches: what the rings bring, one a drain. keys: of each map that is swept."""

    def __init__(self, *batches: Batch) -> None:
        self.batches = list(batches)
        self.rings = {"events": SimpleNamespace(take=self._take, wait=self._wait)}
        self.keys: dict[str, list[bytes]] = {}
        self.called: list[tuple[Any, ...]] = []
        self.waited: list[float] = []
        self.refuses_calls = False
        self.counts = {"lost_ring": 0, "lost_map": 0, "lost_output": 0, "made_up_for": 0}
        self.misses = 0
        self.seen = [bytes(40), bytes(40)]  # struct seen_changes, shortened, of two CPUs
        self.file = SimpleNamespace(variables=lambda section: {"seen_changes": None})

    def _take(self, layout: Any) -> Batch:
        self.called.append(("take",))
        return self.batches.pop(0) if self.batches else Batch([])

    def _wait(self, seconds: float) -> None:
        self.waited.append(seconds)

    def map(self, name: str) -> Any:
        if name == "seen_changes":
            return SimpleNamespace(get_of_each_cpu=lambda key: self.seen)
        return SimpleNamespace(all_keys=lambda: self.keys[name])

    def call(self, section: str, key: int) -> None:
        if self.refuses_calls:
            raise LibbpfError("bpf_prog_test_run_opts", errno.EOPNOTSUPP)
        self.called.append((section, key))

    def counters(self, *names: str) -> list[int]:
        return [self.counts[name] for name in names]

    def missed(self) -> int:
        return self.misses


def trace(program: FakeProgram, of: Tool = TOOL, **more: Any) -> Session:
    return Session(of, cast(Attached, program), **more)


def batch(*times: int, **more: int) -> Batch:
    return Batch([event(TOOL, ts_ns=ts) for ts in times], **more)


def times(records: list[Any]) -> list[int]:
    return [record[0] for record in records]


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic_ns", lambda: NOW)


def test_a_young_event_waits_for_an_older_one_of_another_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program takes its time stamp some while before its event is in the ring."""
    old, young = NOW - 2 * SLACK_NS, NOW - SLACK_NS // 2
    at_work = trace(FakeProgram(batch(old, young), batch(young - 7, young + SLACK_NS)))
    assert times(at_work.read()) == [old]
    monkeypatch.setattr(time, "monotonic_ns", lambda: NOW + SLACK_NS)
    assert times(at_work.read()) == [young - 7, young]
    assert times(at_work.read(last=True)) == [young + SLACK_NS]


def test_an_event_is_young_for_a_millisecond() -> None:
    horizon = NOW - 1_000_000
    at_work = trace(FakeProgram(batch(horizon - 1, horizon + 1)))
    assert times(at_work.read()) == [horizon - 1]
    assert times(at_work.read(last=True)) == [horizon + 1]
    assert at_work.read(last=True) == []


def test_the_last_batch_has_everything_that_there_is() -> None:
    at_work = trace(FakeProgram(batch(NOW - 5), batch(NOW - 9, NOW + 3)))
    assert at_work.read() == []
    assert times(at_work.read(last=True)) == [NOW - 9, NOW - 5, NOW + 3]


HELD = Sweep("sockets", "raw_tp", changed="last_held_ns")
SWEEPING = TOOL._replace(held=HELD, pending=Sweep("others", "raw_tp/end"))
KEY = (7).to_bytes(8, "little")


def holding() -> FakeProgram:
    """A socket whose row waits, and two that are asked for at the end."""
    program = FakeProgram()
    program.keys = {"sockets": [KEY], "others": [KEY, KEY]}
    program.counts["last_held_ns"] = 5
    return program


def read(at_work: Session, program: FakeProgram, last: bool = False) -> list[tuple[Any, ...]]:
    """What a drain calls."""
    program.called.clear()
    at_work.read(last)
    return program.called


def test_held_rows_are_asked_for_before_the_rings_are_emptied(clock: list[float]) -> None:
    program = holding()
    assert read(trace(program, SWEEPING), program) == [("raw_tp", 7), ("take",)]


def test_sockets_are_looked_through_only_when_a_row_was_held(clock: list[float]) -> None:
    program = holding()
    at_work = trace(program, SWEEPING)
    program.counts["last_held_ns"] = 0
    assert read(at_work, program) == [("take",)]
    program.counts["last_held_ns"] = 6
    assert len(read(at_work, program)) == 2
    clock[0] += 99
    assert read(at_work, program) == [("take",)]


def test_a_look_that_takes_long_is_rare(clock: list[float]) -> None:
    """In a storm rows are held all the time."""
    program = holding()

    def keys() -> Any:
        clock[0] += 0.01
        yield KEY

    at_work = trace(program, SWEEPING)
    program.map = lambda name: SimpleNamespace(all_keys=keys)  # type: ignore[method-assign]
    looks = 0
    for i in range(100):
        program.counts["last_held_ns"] = i + 1
        looks += len(read(at_work, program)) == 2
        clock[0] += 0.05
    assert looks == 2


def test_a_look_at_many_sockets_goes_on_later(clock: list[float]) -> None:
    """And the rings are read in between."""
    program = holding()
    program.keys["sockets"] = [(n).to_bytes(8, "little") for n in range(5)]
    real = program.call

    def call(section: str, key: int) -> None:
        real(section, key)
        clock[0] += 0.0006

    program.call = call  # type: ignore[method-assign]
    at_work = trace(program, SWEEPING)
    found = []
    for _ in range(3):
        found.append([key for key, *_ in (call[1:] for call in read(at_work, program)[:-1])])
        clock[0] += 1
    assert found == [[4, 3], [2, 1], [0]]


def test_the_last_look_offers_and_sends(clock: list[float]) -> None:
    """And pending rows come with it."""
    program = holding()
    at_work = trace(program, SWEEPING)
    real = program.call

    def call(section: str, key: int) -> None:
        real(section, key)
        program.counts["last_held_ns"] += 1  # offered

    program.call = call  # type: ignore[method-assign]
    end = ("raw_tp/end", 7)
    assert read(at_work, program, last=True) == [("raw_tp", 7)] * 2 + [end] * 2 + [("take",)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return now


def test_a_kernel_that_cannot_be_asked_is_asked_once() -> None:
    program = holding()
    program.keys["others"] = []
    program.refuses_calls = True
    at_work = trace(program, SWEEPING)
    at_work.read()
    program.refuses_calls = False
    program.counts["last_held_ns"] += 1
    assert read(at_work, program) == [("take",)]


def test_every_loss_is_told() -> None:
    program = FakeProgram(batch(lost=5, malformed=3), batch(lost=6))
    program.counts = {"lost_ring": 9, "lost_map": 2, "lost_output": 4, "made_up_for": 20}
    program.misses = 28
    at_work = trace(program)
    assert at_work.losses() == Losses(ring=9, map=2, missed=8, malformed=0, output=4)
    at_work.read()
    at_work.read()
    # The kernel's own record of a full ring counts the same events, or more: the larger is right.
    assert at_work.losses() == Losses(ring=11, map=2, missed=8, malformed=3, output=4)


def test_a_second_program_that_was_skipped_is_no_loss_before_the_cpu_counts_it() -> None:
    """A CPU notices that at its next change of state, which a trace that ends never sees."""
    program = FakeProgram()
    program.counts["made_up_for"] = 20
    program.misses = 24
    # A program that runs is no change; none: a state is left, of no socket.
    none, one = bytes(8) + b"\x07" + bytes(7), bytes(7) + b"\x88" + bytes(8)
    program.seen = [b"\1" + bytes(7) + x for x in (one + one, none + one)]
    assert trace(program).losses() == Losses(missed=1)
    program.misses = 20
    assert not trace(program).losses()


def test_a_tool_without_state_changes_tells_every_skipped_program() -> None:
    program = FakeProgram()
    program.file = SimpleNamespace(variables=lambda section: {})
    program.misses = 2
    assert trace(program).losses() == Losses(missed=2)


@pytest.mark.parametrize("kind", ["ring", "map", "missed", "malformed", "output"])
def test_any_loss_is_one(kind: str) -> None:
    assert Losses(**{kind: 1})
    assert not Losses()


def test_a_refused_event_is_not_told_as_a_full_ring() -> None:
    said = describe(Losses(output=3))
    assert said.startswith("lost so far: 3 events: their CPU has no buffer")
    assert "buffer full" not in said
    assert "--buffer" not in said
    assert "has no buffer" not in describe(Losses(ring=3))


def test_what_is_derived_is_behind_each_record() -> None:
    at_work = trace(FakeProgram(batch(1, 2)), derive=lambda rows, last: [(*r, "x") for r in rows])
    assert [(record[0], record[-1]) for record in at_work.read()] == [(1, "x"), (2, "x")]


def test_waiting_is_no_longer_than_a_period_or_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    program = FakeProgram()
    at_work = trace(program)
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    for until in (float("inf"), 1000.02, 1000.0, 999.0):
        at_work.wait(until)
    assert program.waited == pytest.approx([0.05, 0.02, 0, 0])


@pytest.mark.parametrize(
    ("cpus", "bytes_"),
    [(1, 2 << 20), (16, 2 << 20), (32, 1 << 20), (64, 512 << 10), (999, 512 << 10)],
)
def test_a_ring_is_smaller_where_there_are_many(
    monkeypatch: pytest.MonkeyPatch, cpus: int, bytes_: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    assert Machinery().ring() == RingSize(bytes_, least=1)


def test_a_size_that_was_asked_for_is_not_made_smaller() -> None:
    assert Machinery(buffer=12345).ring() == RingSize(12345, least=12345)


def test_the_loader_gets_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reached(Exception):
        pass

    def attached(path: Any, slots: Any, settings: Any, btf: Any) -> None:
        assert settings.rings == {"events": RingSize(8192, least=8192)}
        raise Reached

    monkeypatch.setattr(session, "attached", attached)
    monkeypatch.setattr("tcpcore.session.privilege.require", lambda tool: None)
    request = Request(machinery=Machinery(buffer=8192))
    with pytest.raises(Reached), session.opened(TOOL, request):
        pass


OPEN = Snapshot(lines(TOOL), Sweep("sockets", "raw_tp/open"))


def test_slots_that_cost_every_system_call_are_for_who_asks() -> None:
    beside = Slot("32-bit calls", (), beside="calls")
    assert Machinery().slots((*TOOL.slots, beside)) == Machinery().slots(TOOL.slots)
    assert Machinery(compat=True).slots((*TOOL.slots, beside)) == (*TOOL.slots, beside)


def test_a_snapshot_is_asked_for_and_comes_whole() -> None:
    program = FakeProgram(batch(NOW - 5), batch(NOW + 1, NOW + 2))
    program.keys = {"sockets": [KEY]}
    at_work = trace(program, TOOL._replace(kinds=(*TOOL.kinds, OPEN)))
    at_work.read(last=True)
    ((of, records),) = at_work.snapshots()
    assert (of, times(list(records))) == (OPEN.lines, [NOW + 1, NOW + 2])
    assert program.called == [("take",), ("raw_tp/open", 7), ("take",)]


def test_what_is_asked_for_comes_in_parts_that_fit_into_a_ring() -> None:
    program = FakeProgram(*(batch(i) for i in (2, 1, 3)))
    size = 2 * fields.layout(TOOL.event).stride
    program.rings["events"].size = 2 * size  # half of it is two records
    program.keys["listeners"] = [bytes([i]) for i in range(5)]
    records = trace(program).swept(Sweep("listeners", "raw_tp/tell"))
    assert times(records) == [2, 1, 3]
    asked = [x if x == "take" else int(*rest) for x, *rest in program.called]
    assert [x for x in asked if x != "take"] == [1, 0, 3, 2, 4]
    assert [i for i, x in enumerate(asked) if x == "take"] == [2, 5, 7]


class FakeCounts:
    """Rows of what it was given."""

    def __init__(self, program: Any) -> None:
        self.records: list[Any] = []

    def add(self, records: Any) -> None:
        self.records += records

    def take(self) -> list[Any]:
        found, self.records = self.records, []
        return found


def test_tables_are_fed_and_taken() -> None:
    at_work = trace(FakeProgram(), TOOL._replace(kinds=(Table(lines(TOOL), FakeCounts),)))
    at_work.count([(1,), (2,)])
    assert list(at_work.tables()) == [(lines(TOOL), [(1,), (2,)])]
    assert list(at_work.tables()) == [(lines(TOOL), [])]


def test_histograms_are_taken() -> None:
    whole = Histogram("srtt", "us", None, {3: 1}, 9)
    kind = Histograms(lambda program: SimpleNamespace(take=lambda: [whole]))
    at_work = trace(FakeProgram(), TOOL._replace(kinds=(kind,)))
    assert list(at_work.histograms()) == [[whole]]


def test_owners_are_followed_where_a_filter_asks_for_them() -> None:
    following = TOOL._replace(name="following")
    plain = TOOL._replace(name="plain", with_owners=following)
    of_user = Request(Filters(uid=[1], lport=[2], netns=[3], family=2))
    assert session._for(plain, of_user) is plain
    assert session._for(TOOL, Request(Filters(pid=[1]))) is TOOL
    by_task = [
        Filters(pid=[1]), Filters(comm=[b"x"]), Filters(cgroup=[Path("/")]),
        Filters(cgroupmap=Path("/")), Filters(mntnsmap=Path("/")),
    ]  # fmt: skip
    assert [session._for(plain, Request(each)) for each in by_task] == [following] * len(by_task)


def test_an_iterator_is_left_out_without_the_kernels_own_btf() -> None:
    """Unless the trace is nothing without it."""
    from_file = Request(machinery=Machinery(btf=Path("/x")))
    wanted = TOOL._replace(seed="iter/task_file")
    wished = wanted._replace(needs_seed=False)
    assert [session._for(each, from_file).seed for each in (wanted, wished)] == [wanted.seed, None]
    assert session._for(wished, Request()).seed == wanted.seed


def test_room_for_keys() -> None:
    """Histograms take much, on every possible CPU."""
    flows, sizes = Counted("x", ConnectionEvent, "x"), Measured("x", "x", key=ConnectionEvent)
    for machinery, room in ((Machinery(), (16384, 2048, 0)), (Machinery(map_size=9), (9, 9, 0))):
        found = [session._room(each, machinery) for each in (flows, sizes, Measured("x", "x"))]
        assert tuple(found) == room
