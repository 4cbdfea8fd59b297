"""The perf-buffer reader: few wakeups, whole batches, decoded straight from the rings.

One wakeup per event costs the traced task about 10 us. So the kernel wakes us per watermark, and
the caller looks at the rings at least every 100 ms anyway.
"""

from __future__ import annotations

import ctypes
import errno
import math
import mmap
import re
import select
import struct
import threading
from typing import Any

from tcpcore.errors import LibbpfError, PrivilegeError, TcpcoreError
from tcpcore.loader import ffi
from tcpcore.loader.ffi import libbpf
from tcpcore.loader.lifetime import Lifetime
from tcpcore.value import Value

Record = tuple[Any, ...]

# include/uapi/linux/perf_event.h
_PERF_TYPE_SOFTWARE, _PERF_COUNT_SW_BPF_OUTPUT = 1, 10
_PERF_SAMPLE_RAW = 1 << 10
_ATTR_WATERMARK = 1 << 14
_RECORD_LOST, _RECORD_SAMPLE = 2, 9
_DATA_HEAD, _DATA_TAIL, _DATA_OFFSET, _DATA_SIZE = 1024, 1032, 1040, 1048

_HEADER = struct.Struct("=IHH")  # struct perf_event_header: type, misc, size
_MISC = 0xFFFF << 32  # its `misc` when the header is read as one little-endian number
_LOST = struct.Struct("=QQ")  # id, lost
_RAW = struct.Struct("=I")  # the size of a raw sample


def aligned(codes: str) -> str:
    """struct format codes with the holes that C leaves: each number at a multiple of its size."""
    found, end = [], 0
    for code in re.findall(r"\d*\D", codes):
        size = struct.calcsize("=" + code)
        hole = 0 if code.endswith("s") else -end % size
        found += [f"{hole}x"] * (hole > 0) + [code]
        end += hole + size
    return "".join(found)


class Layout:
    """The layout of one event, from struct format codes of its fields in order.

    Every field lies where its C member does (tests compare them). size: of the C struct, in bytes.
    stride: of its record in the ring.
    """

    def __init__(self, codes: str) -> None:
        codes = aligned(codes)
        packed = struct.Struct("=" + codes)
        self.size = -(-packed.size // 8) * 8
        self.stride = -(-(_HEADER.size + _RAW.size + self.size) // 8) * 8
        self.event = struct.Struct(f"={codes}{self.size - packed.size}x")
        lead, rest = _HEADER.size + _RAW.size, self.stride - packed.size
        self.record = struct.Struct(f"={lead}x{codes}{rest - lead}x")


class Batch:
    """What one drain brought: events, and what was not an event."""

    def __init__(self, records: list[Record], lost: int = 0, malformed: int = 0) -> None:
        self.records = records
        self.lost = lost
        self.malformed = malformed


def decode(data: bytes, layout: Layout) -> Batch:
    """Decode whole perf records that lie back to back.

    Records too short for the layout and headers that make no sense are counted as malformed.
    """
    stride = layout.stride
    if len(data) % stride == 0:
        headers = memoryview(data).cast("Q")[:: stride // 8]
        if {header & ~_MISC for header in set(headers)} == {_RECORD_SAMPLE | stride << 48}:
            return Batch(list(layout.record.iter_unpack(data)))
    return _decode_each(data, layout)


def _decode_each(data: bytes, layout: Layout) -> Batch:
    batch, position = Batch([]), 0
    while position + _HEADER.size <= len(data):
        kind, _, size = _HEADER.unpack_from(data, position)
        if size < _HEADER.size or position + size > len(data):
            break
        _decode_record(kind, data[position + _HEADER.size : position + size], layout, batch)
        position += size
    batch.malformed += position < len(data)
    return batch


def _decode_record(kind: int, body: bytes, layout: Layout, batch: Batch) -> None:
    if kind == _RECORD_SAMPLE:
        long_enough = len(body) >= _RAW.size + layout.size
        if long_enough and _RAW.unpack_from(body)[0] >= layout.size:
            batch.records.append(layout.event.unpack_from(body, _RAW.size))
        else:
            batch.malformed += 1
    elif kind == _RECORD_LOST and len(body) >= _LOST.size:
        batch.lost += _LOST.unpack_from(body)[1]
    else:
        batch.malformed += 1


class _Ring:
    """One CPU's ring: struct perf_event_mmap_page, then the data area."""

    def __init__(self, base: int) -> None:
        self._head = ctypes.c_uint64.from_address(base + _DATA_HEAD)
        self._tail = ctypes.c_uint64.from_address(base + _DATA_TAIL)
        offset = ctypes.c_uint64.from_address(base + _DATA_OFFSET).value
        self._size = ctypes.c_uint64.from_address(base + _DATA_SIZE).value
        area = (ctypes.c_char * self._size).from_address(base + offset)
        self._data = memoryview(area).cast("B")
        self._lock = threading.Lock()
        self._lock.acquire()

    def _fence(self) -> None:
        """No load or store moves across: a release, then an acquire (needed on arm64)."""
        self._lock.release()
        self._lock.acquire()

    def take(self) -> bytes:
        """Copy what the kernel wrote since the last call, and give the room back."""
        tail, head = self._tail.value, self._head.value
        if head == tail:
            return b""
        self._fence()
        start, length = tail % self._size, head - tail
        data = bytes(self._data[start : start + length])
        data += bytes(self._data[: length - len(data)])
        self._fence()
        self._tail.value = head
        return data


class PerfBuffer:
    """The rings of all CPUs. size: of each, in bytes.

    Every method raises TcpcoreError once the object that they belong to is closed.
    """

    def __init__(self, handle: ffi.RingsHandle, size: int, life: Lifetime) -> None:
        self.size = size
        self._handle, self._life = handle, life
        count = libbpf().perf_buffer__buffer_cnt(handle)
        self._rings = [_Ring(_base(handle, cpu)) for cpu in range(count)]
        self._fd: int = libbpf().perf_buffer__epoll_fd(handle)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def fileno(self) -> int:
        """A descriptor that is readable when a ring is filled to its watermark, epoll(7)."""
        self._life.check()
        return self._fd

    def wake_on(self, descriptor: int) -> None:
        """wait() ends as well once this is readable."""
        self._poll.register(descriptor, select.POLLIN)

    def wait(self, seconds: float) -> None:
        """Until a ring is filled to its watermark, or the time is over."""
        self._life.check()
        self._poll.poll(math.ceil(seconds * 1000))

    def take(self, layout: Layout) -> Batch:
        """All records that are there now, in time order: an event's first field is its time."""
        whole = Batch([])
        for data in self._copies():
            batch = decode(data, layout)
            whole.records += batch.records
            whole.lost += batch.lost
            whole.malformed += batch.malformed
        whole.records.sort()
        return whole

    def _copies(self) -> list[bytes]:
        with self._life:
            return [data for ring in self._rings if (data := ring.take())]

    def close(self) -> None:
        """Unmap the rings. The end of their Lifetime comes first, so that nobody is at them."""
        self._rings.clear()
        libbpf().perf_buffer__free(self._handle)


def _base(handle: ffi.RingsHandle, cpu: int) -> int:
    base, size = ctypes.c_void_p(), ctypes.c_size_t()
    libbpf().perf_buffer__buffer(handle, cpu, ctypes.byref(base), ctypes.byref(size))
    assert base.value
    return base.value


def pages(size: int) -> int:
    """How many pages hold `size` bytes: a power of two, as the kernel wants it."""
    needed = max(1, -(-size // mmap.PAGESIZE))
    return 1 << (needed - 1).bit_length()


# perf_buffer__new_raw wants a callback; only perf_buffer__poll would call it.
_UNUSED = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(
    lambda context, cpu, event: None
)


class RingSize(Value):
    """Bytes per CPU, rounded up to a power of two pages. least: what will do as well."""

    wanted: int
    least: int


def perf_buffer(map_fd: int, size: RingSize, life: Lifetime) -> PerfBuffer:
    """Rings for a PERF_EVENT_ARRAY map: of the wanted size, or of the largest half, quarter and
    so on of it that the kernel gives, down to the least.

    Raises PrivilegeError where more privilege would help, TcpcoreError where memory is short, and
    LibbpfError.
    """
    count = pages(size.wanted)
    while True:
        try:
            return PerfBuffer(_open(map_fd, count), count * mmap.PAGESIZE, life)
        except LibbpfError as e:
            if e.errno not in _REFUSALS:
                raise
            if e.errno == errno.EACCES or count <= pages(size.least):
                kind, remedy = _REFUSALS[e.errno]
                kilobytes = count * mmap.PAGESIZE >> 10
                raise kind(f"no rings of {kilobytes} KiB per CPU: {remedy} ({e})") from None
        count //= 2


_REFUSALS: dict[int, tuple[type[TcpcoreError], str]] = {
    # Debian's kernels know a kernel.perf_event_paranoid of 3, and have it by default.
    errno.EACCES: (
        PrivilegeError,
        "this kernel opens perf events with CAP_SYS_ADMIN only: run as root, or lower "
        "kernel.perf_event_paranoid (sysctl) to 2",
    ),
    # From perf_mmap(), where perf_event_mlock_kb and RLIMIT_MEMLOCK together are exceeded.
    errno.EPERM: (
        PrivilegeError,
        "that much memory is locked with CAP_IPC_LOCK only: run as root, raise 'ulimit -l' or "
        "kernel.perf_event_mlock_kb (sysctl), or ask for a smaller `buffer`",
    ),
    errno.ENOMEM: (TcpcoreError, "out of memory: ask for a smaller `buffer`"),
}


def _open(map_fd: int, count: int) -> ffi.RingsHandle:
    attributes = ffi.PerfEventAttr(
        type=_PERF_TYPE_SOFTWARE,
        size=ctypes.sizeof(ffi.PerfEventAttr),
        config=_PERF_COUNT_SW_BPF_OUTPUT,
        sample_type=_PERF_SAMPLE_RAW,
        sample_period=1,
        flags=_ATTR_WATERMARK,
        # At half the ring a busy host overtakes the reader; beyond 64 KiB nothing is saved.
        wakeup_watermark=min(count * mmap.PAGESIZE // 8, 64 << 10),
    )
    handle: ffi.RingsHandle = libbpf().perf_buffer__new_raw(
        map_fd, count, attributes, _UNUSED, None, None
    )
    return handle
