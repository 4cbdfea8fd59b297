"""The perf-buffer reader on made-up rings."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import struct
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpcore.errors import LibbpfError, PrivilegeError, TcpcoreError
from tcpcore.loader import ffi, perf
from tcpcore.loader.lifetime import Lifetime
from tcpcore.loader.perf import (
    Layout,
    PerfBuffer,
    RingSize,
    _decode_each,
    _Ring,
    decode,
    pages,
)

LAYOUT = Layout("QI16s")  # 28 bytes, 32 with padding
SAMPLE, LOST = 9, 2

Event = tuple[int, int, bytes]
events = st.tuples(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 32) - 1),
    st.binary(min_size=16, max_size=16),
)


def record(kind: int, body: bytes, misc: int = 0) -> bytes:
    return struct.pack("=IHH", kind, misc, 8 + len(body)) + body


def sample(event: Event, misc: int = 0, extra: int = 0) -> bytes:
    """As the kernel writes it: the size counts the padding; extra: bytes that C sent more."""
    data = struct.pack("=QI16s", *event).ljust(LAYOUT.size + extra, b"\xee")
    size = (4 + len(data) + 7) // 8 * 8 - 4
    return record(SAMPLE, struct.pack("=I", size) + data.ljust(size, b"\xff"), misc)


def lost(number: int) -> bytes:
    return record(LOST, struct.pack("=QQ", 1, number))


def short() -> bytes:
    return record(SAMPLE, struct.pack("=I", 12) + bytes(12))


class FakeRing:
    """What the kernel shares: struct perf_event_mmap_page, and a data area behind it."""

    PAGE = 4096

    def __init__(self, size: int, position: int = 0) -> None:
        self.size = size
        self.memory = ctypes.create_string_buffer(self.PAGE + size)
        self.put(1024, position)
        self.put(1032, position)
        self.put(1040, self.PAGE)
        self.put(1048, size)
        self.ring = _Ring(ctypes.addressof(self.memory))

    def put(self, offset: int, value: int) -> None:
        struct.pack_into("=Q", self.memory, offset, value)

    def get(self, offset: int) -> int:
        return int(struct.unpack_from("=Q", self.memory, offset)[0])

    def write(self, data: bytes) -> None:
        head = self.get(1024)
        assert head - self.get(1032) + len(data) <= self.size, "the test overfills the ring"
        for i, byte in enumerate(data):
            struct.pack_into("=B", self.memory, self.PAGE + (head + i) % self.size, byte)
        self.put(1024, head + len(data))


def test_a_layout_has_the_size_of_the_c_struct() -> None:
    assert (LAYOUT.size, LAYOUT.stride) == (32, 48)
    assert (Layout("Q").size, Layout("Q").stride) == (8, 24)
    assert (Layout("QI").size, Layout("QI").stride) == (16, 32)


@given(st.binary(max_size=500))
def test_any_bytes_are_decoded_or_counted(data: bytes) -> None:
    batch = decode(data, LAYOUT)
    assert len(batch.records) * LAYOUT.stride <= len(data)
    assert batch.malformed <= len(data) // 8 + 1


@given(st.lists(events, max_size=20))
def test_both_paths_agree(sent: list[Event]) -> None:
    data = b"".join(map(sample, sent))
    assert vars(decode(data, LAYOUT)) == vars(_decode_each(data, LAYOUT))
    assert decode(data, LAYOUT).records == sent


@given(st.lists(events, min_size=1), st.integers(0, 0xFFFF))
def test_misc_bits_do_not_matter(sent: list[Event], misc: int) -> None:
    data = b"".join(sample(event, misc) for event in sent)
    assert decode(data, LAYOUT).records == sent


@given(
    st.lists(
        st.one_of(
            events.map(lambda e: (sample(e), [e], 0, 0)),
            st.tuples(events, st.integers(1, 40)).map(
                lambda x: (sample(x[0], extra=x[1]), [x[0]], 0, 0)
            ),
            st.integers(0, 1000).map(lambda n: (lost(n), [], n, 0)),
            st.just((short(), [], 0, 1)),
            st.just((record(LOST, bytes(8)), [], 0, 1)),
            st.just((record(77, bytes(16)), [], 0, 1)),
        )
    )
)
def test_a_mix_is_told_apart(mix: list[tuple[bytes, list[Event], int, int]]) -> None:
    batch = decode(b"".join(data for data, *_ in mix), LAYOUT)
    assert batch.records == [event for _, sent, _, _ in mix for event in sent]
    assert batch.lost == sum(number for *_, number, _ in mix)
    assert batch.malformed == sum(bad for *_, bad in mix)


def test_a_header_that_makes_no_sense_ends_the_batch() -> None:
    good = (1, 2, bytes(16))
    for bad in (bytes(48), struct.pack("=IHH", SAMPLE, 0, 4096), b"\x09\0\0"):
        batch = decode(sample(good) + bad, LAYOUT)
        assert (batch.records, batch.malformed) == ([good], 1)


def test_the_ring_wraps_at_every_offset() -> None:
    choose = random.Random(1)
    for position in range(0, 256, 8):
        fake = FakeRing(256, position + 256 * choose.randrange(1 << 40))
        sent = [(i, position, bytes([i]) * 16) for i in range(5)]
        fake.write(b"".join(map(sample, sent)))
        assert decode(fake.ring.take(), LAYOUT).records == sent


@given(st.lists(st.lists(events, max_size=5), max_size=12))
def test_the_ring_gives_each_record_once(batches: list[list[Event]]) -> None:
    fake = FakeRing(256)
    for sent in batches:
        fake.write(b"".join(map(sample, sent)))
        assert decode(fake.ring.take(), LAYOUT).records == sent
        assert fake.get(1032) == fake.get(1024), "the tail is published"
        assert fake.ring.take() == b""


def test_a_full_ring_is_read_whole() -> None:
    fake = FakeRing(256, 104)
    data = bytes(range(256))
    fake.write(data)
    assert fake.ring.take() == data
    fake.write(data)
    assert fake.ring.take() == data


def test_what_was_taken_is_a_copy() -> None:
    fake = FakeRing(256)
    fake.write(b"A" * 8)
    data = fake.ring.take()
    fake.write(b"B" * 256)
    assert data == b"A" * 8


class FakeLibrary:
    """libbpf with these rings. opened: the pages and the attributes of each perf_buffer__new_raw.

    refusals: what it answers first. freed: how often.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *rings: FakeRing) -> None:
        self.rings = rings
        self.opened: list[tuple[int, ffi.PerfEventAttr]] = []
        self.refusals: list[int] = []
        self.freed = 0
        self.ready, self.make_ready = os.pipe()
        library = SimpleNamespace(
            perf_buffer__new_raw=self._new,
            perf_buffer__buffer_cnt=lambda handle: len(rings),
            perf_buffer__buffer=self._buffer,
            perf_buffer__epoll_fd=lambda handle: self.ready,
            perf_buffer__free=self._free,
        )
        monkeypatch.setattr(perf, "libbpf", lambda: library)

    def _new(self, fd: int, count: int, attributes: ffi.PerfEventAttr, *rest: Any) -> Any:
        self.opened.append((count, attributes))
        if self.refusals:
            raise LibbpfError("perf_buffer__new_raw", self.refusals.pop(0))
        return ctypes.pointer(ffi.Rings())

    def _buffer(self, handle: Any, cpu: int, base: Any, size: Any) -> None:
        base._obj.value = ctypes.addressof(self.rings[cpu].memory)

    def _free(self, handle: Any) -> None:
        self.freed += 1
        for fake in self.rings:  # they are unmapped: who looks there has nothing but noise
            ctypes.memset(fake.memory, 0xA5, len(fake.memory))

    def open(self, wanted: int = 4096, least: int = 4096) -> tuple[PerfBuffer, Lifetime]:
        life = Lifetime()
        return perf.perf_buffer(3, RingSize(wanted, least), life), life


def test_all_rings_come_merged_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rings = FakeRing(256), FakeRing(256), FakeRing(256)
    buffer, _ = FakeLibrary(monkeypatch, *rings).open()
    rings[0].write(sample((1, 0, bytes(16))) + sample((5, 0, bytes(16))))
    rings[2].write(sample((2, 2, bytes(16))) + lost(7) + short() + sample((4, 2, bytes(16))))
    batch = buffer.take(LAYOUT)
    assert [event[0] for event in batch.records] == [1, 2, 4, 5]
    assert (batch.lost, batch.malformed) == (7, 1)
    assert buffer.take(LAYOUT).records == []


def test_closed_rings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary(monkeypatch, FakeRing(256))
    buffer, life = library.open()
    library.rings[0].write(sample((1, 0, bytes(16))))
    life.end()
    buffer.close()
    assert library.freed == 1
    for use in (lambda: buffer.take(LAYOUT), lambda: buffer.wait(0)):
        with pytest.raises(TcpcoreError, match="has ended"):
            use()


def test_rings_are_a_childs_no_more_than_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel maps perf rings for the process that opened them (VM_DONTCOPY)."""
    buffer, _ = FakeLibrary(monkeypatch, FakeRing(256)).open()
    monkeypatch.setattr(os, "getpid", lambda: 1 << 30)
    for use in (lambda: buffer.take(LAYOUT), lambda: buffer.wait(0)):
        with pytest.raises(TcpcoreError, match="parent process's"):
            use()


def test_waiting_ends_when_a_ring_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary(monkeypatch, FakeRing(256))
    buffer, _ = library.open()
    os.write(library.make_ready, b"x")
    buffer.wait(3600)


def test_waiting_ends_when_something_else_is_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, _ = FakeLibrary(monkeypatch, FakeRing(256)).open()
    read, write = os.pipe()
    buffer.wake_on(read)
    os.write(write, b"x")
    buffer.wait(3600)
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(
    ("count", "watermark"), [(1, 512), (64, 32 << 10), (128, 64 << 10), (1024, 64 << 10)]
)
def test_the_rings_are_opened_with_these_attributes(
    monkeypatch: pytest.MonkeyPatch, count: int, watermark: int
) -> None:
    """perf_event_open(2): PERF_COUNT_SW_BPF_OUTPUT, raw samples, woken per watermark of bytes."""
    library = FakeLibrary(monkeypatch, FakeRing(256))
    buffer, _ = library.open(count * mmap.PAGESIZE)
    (pages, given), *others = library.opened
    assert (pages, buffer.size, others) == (count, count * mmap.PAGESIZE, [])
    set_ = {name: getattr(given, name) for name, *_ in given._fields_ if name != "_rest"}
    assert set_ == {
        "type": 1, "size": 112, "config": 10, "sample_period": 1, "sample_type": 1 << 10,
        "read_format": 0, "flags": 1 << 14, "wakeup_watermark": watermark,
    }  # fmt: skip


PAGE = mmap.PAGESIZE


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOMEM])
def test_rings_that_are_too_large_are_halved(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    library = FakeLibrary(monkeypatch, FakeRing(256))
    library.refusals = [number, number]
    buffer, _ = library.open(wanted=8 * PAGE, least=1)
    assert [count for count, _ in library.opened] == [8, 4, 2]
    assert buffer.size == 2 * PAGE


@pytest.mark.parametrize(
    ("least", "tried"), [(8 * PAGE, [8]), (3 * PAGE, [8, 4]), (1, [8, 4, 2, 1])]
)
@pytest.mark.parametrize(("number", "code", "says"), [
    (errno.EPERM, 4, "CAP_IPC_LOCK"), (errno.ENOMEM, 1, "out of memory"),
])  # fmt: skip
def test_rings_are_not_made_smaller_than_asked_for(
    monkeypatch: pytest.MonkeyPatch, number: int, code: int, says: str, least: int, tried: list[int]
) -> None:
    library = FakeLibrary(monkeypatch, FakeRing(256))
    library.refusals = [number] * 9
    with pytest.raises(TcpcoreError) as e:
        library.open(wanted=8 * PAGE, least=least)
    assert [count for count, _ in library.opened] == tried
    assert e.value.exit_code == code
    assert f"no rings of {tried[-1] * PAGE >> 10} KiB per CPU" in str(e.value)
    assert says in str(e.value)
    assert "`buffer`" in str(e.value)


def test_perf_events_for_root_only_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary(monkeypatch, FakeRing(256))
    library.refusals = [errno.EACCES] * 9
    with pytest.raises(PrivilegeError, match=r"CAP_SYS_ADMIN.*perf_event_paranoid"):
        library.open(wanted=8 * PAGE, least=1)
    assert len(library.opened) == 1


def test_another_failure_is_not_about_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary(monkeypatch, FakeRing(256))
    library.refusals = [errno.EMFILE]
    with pytest.raises(LibbpfError) as e:
        library.open(wanted=8 * PAGE, least=1)
    assert (e.value.errno, len(library.opened)) == (errno.EMFILE, 1)


@given(st.integers(1, 1 << 32))
def test_pages_are_the_least_power_of_two_that_is_enough(size: int) -> None:
    count = pages(size)
    assert count & count - 1 == 0
    assert size <= count * PAGE
    assert count == 1 or size > count // 2 * PAGE
