"""Counters in BPF that are taken out while programs add to them, on all CPUs and in interrupts."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tcpcore.errors import LibbpfError, TcpcoreError
from tcpcore.loader import Attached, Settings, Slot, Way, aggregate, attached, ffi, map
from tcpcore.loader.aggregate import Aggregate, Counters
from tcpcore.loader.ffi import libbpf
from tcpcore.session import privilege
from tests.live import harness

ROOT = Path(__file__).parents[2]
OBJECT = "build/tests/aggregate.bpf.o"
CALLED = "raw_tp"
ROUNDS = 256  # additions of one run: tests/bpf/aggregate.bpf.c
NUMBERS = 64
REPORTS = 100
REST = 0


@pytest.fixture(scope="module")
def path() -> Path:
    """The test's object. A virtual machine cannot write where it is: `make setup-test` built it."""
    subprocess.run(["make", "-s", OBJECT], cwd=ROOT, check=True)
    return ROOT / OBJECT


@contextmanager
def loaded(path: Path, keys: int = 2 * NUMBERS) -> Iterator[Attached]:
    slots = [Slot("timers", (Way(("raw_tp/hrtimer_expire_entry",)),))]
    settings = Settings(aggregates={"numbers": keys}, called=(CALLED,))
    with attached(path, slots, settings) as program:
        yield program


@pytest.fixture
def program(path: Path) -> Iterator[Attached]:
    with loaded(path) as program:
        yield program


def numbers(of: Counters) -> Counter[int]:
    """How often each number was counted; the other counter has to fit."""
    for key, (times, sum_) in of.items():
        value = int.from_bytes(key, "little")
        assert value == REST or sum_ == value * times
    return Counter({int.from_bytes(key, "little"): times for key, (times, _) in of.items()})


def counters(program: Attached) -> list[int]:
    return program.counters("added", "refused")


@contextmanager
def counting_on_all_cpus(program: Attached, most: int) -> Iterator[None]:
    """Processes, one pinned to each CPU, which do nothing but run the program."""
    (handle,) = program._programs[CALLED]
    fd = libbpf().bpf_program__fd(handle)
    arguments = (ctypes.c_uint64 * 2)(most, True)
    options = ffi.TestRunOptions(
        sz=ctypes.sizeof(ffi.TestRunOptions),
        ctx_in=ctypes.addressof(arguments),
        ctx_size_in=ctypes.sizeof(arguments),
    )
    with mmap.mmap(-1, 1) as is_over:

        def run(cpu: int) -> None:
            os.sched_setaffinity(0, {cpu})
            with harness.task_name(b"tcpcore-counter"):
                while not is_over[0]:
                    libbpf().bpf_prog_test_run_opts(fd, ctypes.byref(options))

        children = [harness.fork(lambda cpu=cpu: run(cpu)) for cpu in os.sched_getaffinity(0)]  # type: ignore[misc]
        try:
            yield
        finally:
            is_over[0] = 1
            codes = [harness.reap(child) for child in children]
        assert codes == [0] * len(children)


@pytest.mark.each_variant
def test_the_reports_add_up(program: Attached) -> None:
    """To what BPF added, for each number: nothing is lost, nothing comes twice."""
    of = program.aggregates["numbers"]
    reports: list[Counter[int]] = []
    with counting_on_all_cpus(program, NUMBERS):
        while len(reports) < REPORTS:
            time.sleep(0.01)
            reports.append(numbers(of.take()))
    reports.append(numbers(of.take()))
    total = sum(reports, Counter())
    assert [total.total(), 0] == counters(program)
    # An interrupt of an update may count among the rest: see counters_of().
    assert set(total) - {REST} == {*range(1, NUMBERS + 1)}
    assert len([report for report in reports if report]) > REPORTS / 2
    assert program.counters("interrupted") > [0]
    assert of.take() == {}


@pytest.mark.each_variant
def test_without_keys_all_is_the_rest(path: Path) -> None:
    """In an array, then; its reports add up, too."""
    with loaded(path, keys=0) as program:
        of = program.aggregates["numbers"]
        reports: list[Counter[int]] = []
        with counting_on_all_cpus(program, NUMBERS):
            while len(reports) < REPORTS / 4:
                time.sleep(0.01)
                reports.append(numbers(of.take()))
        reports.append(numbers(of.take()))
        total = sum(reports, Counter())
        assert total == {REST: total.total()}
        assert [total.total(), 0] == counters(program)
        assert of.take() == {}


def test_a_full_map_is_counted(path: Path) -> None:
    """By the program, or among the rest; the next report has room again, for other numbers, too."""
    with loaded(path, keys=4) as program:
        of = program.aggregates["numbers"]
        program.call(CALLED, 8, False)
        first = numbers(of.take())
        assert set(first) == {1, 2, 3, 4}
        assert [first.total(), ROUNDS - first.total()] == counters(program)
        program.call(CALLED, 8, True)
        second = numbers(of.take())
        assert set(second) == {REST, 1, 2, 3, 4}
        assert second.total() == ROUNDS and second[REST] == ROUNDS / 2
        program.call(CALLED, 2, True)
        assert set(numbers(of.take())) == {1, 2}


def test_a_number_that_comes_again_begins_at_nothing(program: Attached) -> None:
    """On every CPU: its place in the map had other counters before."""
    of = program.aggregates["numbers"]
    cpus = os.sched_getaffinity(0)
    for most in (2, 4, 8, 8):
        run_on_each(cpus, lambda most=most: program.call(CALLED, most, False))  # type: ignore[misc]
        assert numbers(of.take()) == dict.fromkeys(range(1, most + 1), ROUNDS // most * len(cpus))


def run_on_each(cpus: set[int], act: Callable[[], object]) -> None:
    try:
        for cpu in cpus:
            os.sched_setaffinity(0, {cpu})
            act()
    finally:
        os.sched_setaffinity(0, cpus)


def refusing(number: int) -> object:
    """A kernel's call that is not there."""

    def call(*arguments: object) -> None:
        raise LibbpfError("bpf_map_lookup_batch", number)

    return call


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSPC, errno.EINVAL])
@pytest.mark.parametrize("calls", [["bpf_map_lookup_batch"], ["bpf_map_delete_batch"], []])
def test_without_batches_it_is_the_same(
    program: Attached, monkeypatch: pytest.MonkeyPatch, calls: Sequence[str], number: int
) -> None:
    of = program.aggregates["numbers"]
    with monkeypatch.context() as patch:
        for call in calls:
            patch.setattr(libbpf(), call, refusing(number))
        for most in (NUMBERS, 3, NUMBERS):
            program.call(CALLED, most, False)
            expected = Counter(i % most + 1 for i in range(ROUNDS))
            assert numbers(of.take()) == expected


def test_many_keys_take_several_batches(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map, "_BATCH", 0)
    monkeypatch.setattr(map, "_FEWEST", 16)
    monkeypatch.setattr(aggregate, "_read_each", None)
    with loaded(path) as program:
        program.call(CALLED, NUMBERS, False)
        counted = numbers(program.aggregates["numbers"].take())
    assert counted == dict.fromkeys(range(1, NUMBERS + 1), ROUNDS // NUMBERS)


@pytest.mark.each_variant
def test_reports_go_on_when_the_rights_are_gone(path: Path) -> None:
    """With no more than reading a map takes: CAP_BPF before Linux 5.19, nothing since."""

    def act() -> None:
        with loaded(path) as program:
            of = program.aggregates["numbers"]
            program.call(CALLED, 2, False)
            privilege.drop(lambda: program.counters("added"))
            assert numbers(of.take()) == {1: ROUNDS / 2, 2: ROUNDS / 2}
            assert [of.take(), of.take()] == [{}, {}]

    assert harness.reap(harness.fork(act)) == 0


def test_nothing_is_taken_after_the_end(path: Path) -> None:
    with loaded(path) as program:
        of: Aggregate = program.aggregates["numbers"]
    with pytest.raises(TcpcoreError, match="has ended"):
        of.take()
