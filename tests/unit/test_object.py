"""What is written into an object between open and load; the load itself needs privilege."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpcore.errors import LibbpfError, TcpcoreError, UnsupportedError, UsageError
from tcpcore.loader import ObjectFile, Slot, Way, ffi, kernel, plan
from tcpcore.loader import object as loader
from tcpcore.loader.ffi import libbpf
from tcpcore.loader.lifetime import Lifetime
from tcpcore.loader.object import (
    _find_maps,
    _rodata_image,
    _write_rodata,
    encode,
)
from tests.unit.samples import ARCHITECTURES, TOOLS, object_file

Built = tuple[str, ObjectFile]


def program(number: int) -> ffi.ProgramHandle:
    """A handle that no library has given."""
    return ctypes.cast(number, ctypes.POINTER(ffi.BpfProgram))


OWN_MAP = ctypes.cast(4096, ctypes.POINTER(ffi.BpfMap))


def number(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


@given(st.sampled_from([1, 2, 4, 8]), st.data())
def test_numbers_have_the_width_of_their_variable(width: int, data: st.DataObject) -> None:
    value = data.draw(st.integers(0, (1 << 8 * width) - 1))
    encoded = encode("x", value, width)
    assert len(encoded) == width
    assert int.from_bytes(encoded, sys.byteorder) == value


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_numbers_out_of_range(width: int) -> None:
    for value in (-1, 1 << 8 * width):
        with pytest.raises(TcpcoreError, match=f"'x' is {8 * width} bits wide: {value} does not"):
            encode("x", value, width)


def test_flags_are_numbers() -> None:
    assert encode("x", True, 1) == b"\1"
    assert encode("x", False, 1) == b"\0"


def test_bytes_fill_an_array_from_its_start() -> None:
    assert encode("x", b"ab", 4) == b"ab\0\0"
    assert encode("x", b"abcd", 4) == b"abcd"
    with pytest.raises(TcpcoreError, match="'x' has 4 bytes, not 5"):
        encode("x", b"abcde", 4)


def test_a_number_for_an_array() -> None:
    with pytest.raises(TcpcoreError, match="'x' is 256 bytes wide: give it bytes"):
        encode("x", 1, 256)


@pytest.fixture
def handle(built: Built) -> Iterator[ffi.ObjectHandle]:
    """Opened, never loaded."""
    opened = libbpf().bpf_object__open_file(bytes(built[1].path), None)
    yield opened
    libbpf().bpf_object__close(opened)


def test_values_stand_where_the_symbols_say(built: Built, handle: ffi.ObjectHandle) -> None:
    file = built[1]
    _write_rodata(handle, file, {"target_family": 10, "target_pid": b"\1\2\3\4\5"})
    address, size = _rodata_image(handle)
    image = ctypes.string_at(address, size)
    for name, value in {"target_family": b"\x0a\0", "target_pid": b"\1\2\3\4\5\0"}.items():
        offset = file.variables(".rodata")[name].offset
        assert image[offset : offset + len(value)] == value
    changed = sum(byte != 0 for byte in image)
    assert changed <= 6 + sum(
        s.size for n, s in file.variables(".rodata").items() if not n.startswith("targ")
    )


def test_an_unknown_variable_lists_the_known(built: Built, handle: ffi.ObjectHandle) -> None:
    file = built[1]
    with pytest.raises(TcpcoreError) as e:
        _write_rodata(handle, file, {"target_famliy": 10})
    assert file.path.name in str(e.value)
    assert "'target_famliy'" in str(e.value)
    for name in file.variables(".rodata"):
        assert name in str(e.value)


def test_every_map_is_found_by_its_own_name(built: Built, handle: ffi.ObjectHandle) -> None:
    file = built[1]
    maps = _find_maps(handle, file)
    assert maps.keys() == {*file.variables(".maps"), ".rodata", ".bss"}
    assert len(set(map(number, maps.values()))) == len(maps)
    with pytest.raises(TcpcoreError, match="no map 'evnets'"):
        maps["evnets"]


def fails(call: str, number: int) -> Callable[..., int]:
    def function(*arguments: Any) -> int:
        raise LibbpfError(call, number)

    return function


class FakePins:
    """libbpf with pinned objects that are descriptors of the test's own; nothing is loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reused: list[tuple[int, int]] = []
        self.opened: list[int] = []
        self._monkeypatch = monkeypatch

    def use(self, kind: str, info: tuple[int, int, int] = (0, 0, 0), reuse: Any = None) -> None:
        def get(path: bytes) -> int:
            self.opened.append(os.open("/dev/null", os.O_RDONLY))
            return self.opened[-1]

        def fill(fd: int, into: Any, size: Any) -> None:
            into._obj.type, into._obj.id, into._obj.key_size = info

        library = SimpleNamespace(
            bpf_obj_get=get,
            bpf_obj_get_info_by_fd=fill,
            bpf_map__key_size=lambda own: 8,
            bpf_map__value_size=lambda own: 4,
            bpf_map__reuse_fd=reuse or (lambda own, fd: self.reused.append((number(own), fd))),
        )
        self._monkeypatch.setattr(loader, "libbpf", lambda: library)
        self._monkeypatch.setattr(Path, "readlink", lambda path: Path(f"anon_inode:{kind}"))

    def is_closed(self) -> bool:
        return not any(Path(f"/proc/self/fd/{fd}").exists() for fd in self.opened)


@pytest.fixture
def pins(monkeypatch: pytest.MonkeyPatch) -> FakePins:
    return FakePins(monkeypatch)


@pytest.mark.parametrize("kind", [1, 9])
def test_a_pinned_hash_takes_the_place(pins: FakePins, kind: int) -> None:
    pins.use("bpf-map", (kind, 77, 8))
    loader._reuse(OWN_MAP, Path("/sys/fs/bpf/x"))
    assert pins.reused == [(4096, pins.opened[0])]
    assert pins.is_closed()


@pytest.mark.parametrize(
    ("kind", "info", "what"),
    [
        ("bpf-map", (2, 77, 4), "a map of type 2 with 4-byte keys"),
        ("bpf-map", (1, 77, 4), "a map of type 1 with 4-byte keys"),
        ("bpf-map", (5, 77, 8), "a map of type 5 with 8-byte keys"),
        ("bpf-prog", (1, 77, 8), "a bpf-prog"),
    ],
)
def test_another_pinned_object_is_refused(
    pins: FakePins, kind: str, info: tuple[int, int, int], what: str
) -> None:
    pins.use(kind, info)
    with pytest.raises(UsageError) as e:
        loader._reuse(OWN_MAP, Path("/sys/fs/bpf/x"))
    assert str(e.value) == (
        f"/sys/fs/bpf/x: {what}; a hash with 8-byte keys is expected (bpftool map create "
        "/sys/fs/bpf/x type hash key 8 value 4 entries 128 name x)"
    )
    assert pins.reused == []
    assert pins.is_closed()


def test_a_pinned_map_that_libbpf_refuses_leaves_nothing(pins: FakePins) -> None:
    pins.use("bpf-map", (1, 77, 8), reuse=fails("bpf_map__reuse_fd", errno.EINVAL))
    with pytest.raises(LibbpfError):
        loader._reuse(OWN_MAP, Path("/sys/fs/bpf/x"))
    assert pins.is_closed()


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.ENOENT, "No such file or directory"),
        (errno.EPERM, "Operation not permitted"),
        (errno.EACCES, "not a pinned map, or not ours to open"),
    ],
)
def test_no_pinned_map(monkeypatch: pytest.MonkeyPatch, number: int, why: str) -> None:
    library = SimpleNamespace(bpf_obj_get=fails("bpf_obj_get", number))
    monkeypatch.setattr(loader, "libbpf", lambda: library)
    with pytest.raises(UsageError) as e:
        loader._reuse(OWN_MAP, Path("/sys/fs/bpf/x"))
    assert str(e.value) == f"/sys/fs/bpf/x: {why}"


class FakeLinks:
    """libbpf that attaches: program n gives link n + 100. What happens is kept in order.

    missed: what the kernel says of a link; an error where it says nothing.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.libbpf = SimpleNamespace(
            bpf_program__attach=lambda program: self._link("attach", program),
            bpf_program__attach_perf_event=lambda program, fd: self._link(
                "attach_perf_event", program
            ),
            bpf_link__destroy=lambda link: self._note(0, "destroy", number(link)),
            bpf_link__fd=number,
            bpf_program__fd=number,
            bpf_iter_create=self._iterator,
            bpf_obj_get_info_by_fd=self._fill,
        )
        self.output: list[bytes | OSError] = []
        self.infos: dict[int, dict[str, int]] = {}
        monkeypatch.setattr(loader, "libbpf", lambda: self.libbpf)
        monkeypatch.setattr(loader, "tracepoint_id", lambda group, name: len(group + name))
        monkeypatch.setattr(ffi, "open_tracepoint", self._open)

    def _note(self, result: int, *event: Any) -> int:
        self.events.append(event)
        return result

    def _link(self, event: str, program: ffi.ProgramHandle) -> ffi.LinkHandle:
        self._note(0, event, number(program))
        return ctypes.cast(number(program) + 100, ctypes.POINTER(ffi.BpfLink))

    def _fill(self, fd: int, into: Any, size: Any) -> None:
        if fd not in self.infos:
            raise LibbpfError("bpf_obj_get_info_by_fd", errno.EINVAL)
        for name, value in self.infos[fd].items():
            setattr(into._obj, name, value)

    def _open(self, number: int) -> int:
        self.fd = os.open("/dev/null", os.O_RDONLY)
        return self._note(self.fd, "open", number)

    def _iterator(self, link: int) -> int:
        self.fd = os.open("/dev/null", os.O_RDONLY)
        return self._note(self.fd, "iter", link)

    def read(self, fd: int, size: int) -> bytes:
        assert fd == self.fd
        given = self.output.pop(0)
        if isinstance(given, OSError):
            raise given
        return given

    def is_open(self) -> bool:
        return Path(f"/proc/self/fd/{self.fd}").exists()


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> FakeLinks:
    return FakeLinks(monkeypatch)


def test_libbpf_attaches_what_is_no_classic_tracepoint(links: FakeLinks) -> None:
    with ExitStack() as stack:
        for n, section in enumerate(("tp_btf/t", "raw_tp/t", "kprobe/f"), 1):
            loader._attach(stack, section, [program(n)])
    assert links.events == [
        ("attach", 1), ("attach", 2), ("attach", 3),
        ("destroy", 103), ("destroy", 102), ("destroy", 101),
    ]  # fmt: skip


def test_a_classic_tracepoint_goes_through_a_perf_event(links: FakeLinks) -> None:
    with ExitStack() as stack:
        loader._attach(stack, "tp/group/name", [program(7)])
        assert links.events == [("open", 9), ("attach_perf_event", 7)]
        os.close(links.fd)  # as the link does, whose it is now; a second close would raise
    assert links.events[2:] == [("destroy", 107)]


def test_one_program_at_two_classic_tracepoints(links: FakeLinks) -> None:
    with ExitStack() as stack:
        assert len(loader._attach(stack, "tp/group/name,other", [program(7)])) == 2
    assert links.events == [
        ("open", 9), ("attach_perf_event", 7), ("open", 10), ("attach_perf_event", 7),
        ("destroy", 107), ("destroy", 107),
    ]  # fmt: skip


def test_a_perf_event_that_takes_no_program_is_closed(links: FakeLinks) -> None:
    links.libbpf.bpf_program__attach_perf_event = fails("attach_perf_event", errno.EINVAL)
    with pytest.raises(LibbpfError), ExitStack() as stack:
        loader._attach(stack, "tp/group/name", [program(7)])
    assert links.events == [("open", 9)]
    assert not links.is_open()


def test_an_optional_hook_that_fails_is_told(links: FakeLinks) -> None:
    links.libbpf.bpf_program__attach = fails("bpf_program__attach", errno.EBUSY)
    with ExitStack() as stack:
        told = loader._attach_optional(stack, "kprobe/f", [program(1)])
        more, refused = loader._attach_optional(stack, "tp/group/name", [program(2)])
        os.close(links.fd)
    assert told == ([], ["kprobe/f: bpf_program__attach: Device or resource busy"])
    assert (list(map(number, more)), refused) == ([102], [])
    assert links.events[-1] == ("destroy", 102)


def attached(*links: int, **programs: int) -> loader.Attached:
    """An object of these links and programs, by section (with __ for /)."""
    nothing: Any = None
    return loader.Attached(
        nothing, (), {}, {}, loader._Maps(),
        {name.replace("__", "/"): [program(n)] for name, n in programs.items()},
        [ctypes.cast(n, ctypes.POINTER(ffi.BpfLink)) for n in links],
        {},
        Lifetime(),
    )  # fmt: skip


def test_an_iterator_is_read_to_its_end(links: FakeLinks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "read", links.read)
    links.output = [b"some", BlockingIOError(errno.EAGAIN, ""), b"more", b""]
    attached(iter__task_file=7).iterate("iter/task_file")
    assert links.output == []
    assert links.events == [("attach", 7), ("iter", 107), ("destroy", 107)]
    assert not links.is_open()


def test_an_iterator_that_fails_leaves_nothing(
    links: FakeLinks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "read", links.read)
    links.output = [OSError(errno.ENOMEM, "")]
    with pytest.raises(LibbpfError, match=r"^read: Cannot allocate memory"):
        attached(iter__task_file=7).iterate("iter/task_file")
    assert links.events[-1] == ("destroy", 107)
    assert not links.is_open()


def test_every_use_after_the_end_is_refused(links: FakeLinks) -> None:
    """Descriptors and handles may be somebody else's by then."""
    links.libbpf.bpf_map__fd = links.libbpf.bpf_map__key_size = number
    links.libbpf.bpf_map__value_size = number
    one = attached(raw_tp=7)
    one._maps["m"] = OWN_MAP
    there = one.map("m")
    one._life.end()
    for use in (
        one.check, one.missed,
        lambda: one.map("m"), lambda: one.counters("lost_map"), lambda: one.call("raw_tp", 1),
        lambda: one.iterate("raw_tp"),
        lambda: there.get(b"k"), lambda: there.set(b"k", b"v"), lambda: list(there.keys()),
    ):  # fmt: skip
        with pytest.raises(TcpcoreError, match="this trace has ended"):
            use()
    assert links.events == []


def test_the_end_waits_for_who_is_at_work() -> None:
    life, order = Lifetime(), list[str]()

    def end() -> None:
        life.end()
        order.append("end")

    def work() -> None:
        with life:
            begun.set()
            go_on.wait(60)
            order.append("work")

    begun, go_on = threading.Event(), threading.Event()
    worker = threading.Thread(target=work)
    worker.start()
    begun.wait(60)
    ender = threading.Thread(target=end)
    ender.start()
    ender.join(0.05)
    go_on.set()
    worker.join(60)
    ender.join(60)
    assert order == ["work", "end"]


NOTHING_SET = loader.Settings()


class FakeAttempts:
    """Bringing up succeeds or fails as `outcomes` say. `freed`: which ones were freed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.outcomes: list[Callable[[], None]] = []
        self.tried: list[str] = []
        self.freed: list[str] = []
        monkeypatch.setattr(loader, "_bring_up", self._bring_up)
        monkeypatch.setattr(kernel, "has_kprobes", lambda: True)
        monkeypatch.setattr(plan, "_lockdown", lambda: "none")

    def _bring_up(
        self, stack: ExitStack, file: Any, uses: Any, settings: Any, plan: plan.Plan
    ) -> loader.Attached | None:
        (name,) = uses[0].sections
        self.tried.append(name)
        stack.callback(self.freed.append, name)
        try:
            self.outcomes.pop(0)()
        except LibbpfError as e:
            loader._unless_exhausted(e)
            plan.refuse(uses[0].slot, e)
            return None
        return attached()

    def run(
        self, settings: loader.Settings = NOTHING_SET
    ) -> AbstractContextManager[loader.Attached]:
        path = object_file(TOOLS[0], ARCHITECTURES[0]).path
        slot = Slot("a slot", tuple(Way((f"raw_tp/{name}",)) for name in "ab"))
        return loader.attached(path, [slot], settings)


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> FakeAttempts:
    return FakeAttempts(monkeypatch)


def refuse(number: int) -> Callable[[], None]:
    """As a call of libbpf's that fails: the error takes libbpf's log along."""

    def fail() -> None:
        ffi.negative(-number, refuse, ())

    return fail


def test_what_was_brought_up_is_freed_at_the_blocks_end(attempts: FakeAttempts) -> None:
    attempts.outcomes = [refuse(errno.EINVAL), lambda: None]
    with attempts.run() as one:
        assert attempts.tried == ["raw_tp/a", "raw_tp/b"]
        assert attempts.freed == ["raw_tp/a"]
        one.check()
    assert attempts.freed == ["raw_tp/a", "raw_tp/b"]
    with pytest.raises(TcpcoreError, match="has ended"):
        one.check()


def test_a_child_frees_nothing(attempts: FakeAttempts, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would switch off its parent's rings and hooks (PERF_EVENT_IOC_DISABLE)."""
    attempts.outcomes = [lambda: None]
    with attempts.run():
        monkeypatch.setattr(os, "getpid", lambda: 1 << 30)
    assert attempts.freed == []


def test_out_of_memory_is_no_refusal(attempts: FakeAttempts) -> None:
    """The next way needs as much; and the remedy is told."""
    attempts.outcomes = [refuse(errno.ENOMEM)]
    with pytest.raises(TcpcoreError, match="ulimit -l") as e, attempts.run():
        pass
    assert e.value.exit_code == 1
    assert attempts.tried == attempts.freed == ["raw_tp/a"]


def test_what_libbpf_said_before_does_not_name_the_cause(
    attempts: FakeAttempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def says(what: str, number: int) -> Callable[[], None]:
        def fail() -> None:
            ffi.log.lines.append(f"libbpf: {what}")
            refuse(number)()

        return fail

    attempts.outcomes = [says("one cause", errno.EINVAL), refuse(errno.EBUSY)]
    with pytest.raises(UnsupportedError) as e, attempts.run():
        pass
    assert "Invalid argument: one cause;" in str(e.value)
    assert str(e.value).endswith("Device or resource busy")


def test_each_attempt_begins_with_an_empty_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings of what went well do not count either."""
    monkeypatch.setattr(loader, "_open", lambda *arguments: refuse(errno.EINVAL)())
    ffi.log.lines.append("libbpf: old news")
    path = object_file(TOOLS[0], ARCHITECTURES[0]).path
    slot = Slot("a slot", (Way(("raw_tp/a",)),))
    with pytest.raises(TcpcoreError) as e, loader.attached(
        path, [slot], loader.Settings()
    ):  # fmt: skip
        pass
    assert "old news" not in str(e.value)


def test_an_optional_hook_is_not_refused_with_old_news(links: FakeLinks) -> None:
    links.libbpf.bpf_program__attach = lambda program: refuse(errno.EBUSY)()
    ffi.log.lines.append("libbpf: old news")
    with ExitStack() as stack:
        _, told = loader._attach_optional(stack, "kprobe/f", [program(1)])
    assert told == ["kprobe/f: refuse: Device or resource busy"]


def test_misses_of_programs_and_of_probes_are_added_up(links: FakeLinks) -> None:
    links.infos = {
        1: {"recursion_misses": 1},
        2: {"recursion_misses": 20},
        101: {"type": 7, "event_type": 3, "missed": 300},
        102: {"type": 7, "event_type": 4, "missed": 4000},
        # A classic tracepoint's link has something else there; and a raw tracepoint's.
        103: {"type": 7, "event_type": 5, "missed": 9 << 40},
        104: {"type": 1, "event_type": 3, "missed": 9 << 40},
    }
    one = attached(101, 102, 103, 104, 105, kprobe__f=1, kretprobe__f=2)
    assert one.missed() == 4321


def test_the_kernels_structs_have_their_layout() -> None:
    """include/uapi/linux/bpf.h"""
    assert loader._LinkInfo.event_type.offset == 16
    assert loader._LinkInfo.missed.offset == 48
    assert loader._ProgramInfo.recursion_misses.offset == 208


def test_a_btf_file_that_is_none_is_told_before_anything_is_tried(
    attempts: FakeAttempts, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.write_text("no BTF")
    with pytest.raises(UsageError) as e, attempts.run(loader.Settings(btf=text)):
        pass
    assert str(e.value) == f"btf: {text}: no BTF in it"
    assert attempts.tried == []
