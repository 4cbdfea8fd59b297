"""open, adjust, load, attach, close: one context manager, nothing left behind on any path."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from tcpcore.errors import LibbpfError, TcpcoreError, UsageError
from tcpcore.loader import ffi, kernel
from tcpcore.loader.elf import ObjectFile
from tcpcore.loader.ffi import libbpf
from tcpcore.loader.map import Map
from tcpcore.loader.perf import PerfBuffer, perf_buffer
from tcpcore.loader.plan import Choice, Refusal, Variant, candidates, select, unsupported
from tcpcore.loader.tracefs import tracepoint_id

# What a kernel answers when it does not take a program: anything else is our own mistake, but
# the reasons are too many to list. Out of memory is not one: the next variant needs as much.
NOT_REFUSALS = {errno.ENOMEM, errno.EMFILE, errno.ENFILE}

_MAP_TYPE_HASH, _MAP_TYPE_LRU_HASH = 1, 9  # include/uapi/linux/bpf.h


@dataclass(frozen=True)
class Settings:
    """What the caller sets between open and load.

    rodata: values of .rodata variables by name: an int (or bool) for a scalar, bytes for an array
        (shorter ones leave zeros behind them).
    map_entries: max_entries by map name. map_values: entries to write before the attach, by name.
    pins: paths of pinned hash maps that take the place of the object's own, by the own one's name.
        Keys must have the same size; the values' size is theirs.
    rings: bytes per CPU of the perf buffer to open before the attach, by the name of its map.
    called: sections to load and not to attach: user space runs them (Attached.call and .iterate).
    attach: force the variants of this name. btf: path of BTF to relocate against.
    """

    rodata: Mapping[str, int | bytes] = field(default_factory=dict)
    map_entries: Mapping[str, int] = field(default_factory=dict)
    map_values: Mapping[str, Mapping[bytes, bytes]] = field(default_factory=dict)
    pins: Mapping[str, Path] = field(default_factory=dict)
    rings: Mapping[str, int] = field(default_factory=dict)
    called: tuple[str, ...] = ()
    attach: str | None = None
    btf: Path | None = None


Programs = Mapping[str, Sequence[int]]
"""libbpf's handles of the loaded programs, by section: several functions may share one."""


class _Maps(dict[str, int]):
    """libbpf's handles of the object's maps by name.

    Found once, before a pinned map brings its own name along (bpf_map__reuse_fd).
    """

    def __missing__(self, name: str) -> int:
        raise TcpcoreError(f"the object has no map '{name}'")


class _MapInfo(ctypes.Structure):
    """struct bpf_map_info up to the last field that we read."""

    _fields_ = [("type", ctypes.c_uint32), ("id", ctypes.c_uint32), ("key_size", ctypes.c_uint32)]


class _ProgramInfo(ctypes.Structure):
    """struct bpf_prog_info up to recursion_misses (Linux 5.12; shorter before: zeros)."""

    _fields_ = [
        ("_before", ctypes.c_uint8 * 192),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
        ("recursion_misses", ctypes.c_uint64),
    ]


@dataclass(frozen=True)
class Attached:
    """A loaded object whose programs are attached.

    variant: the one in use. refusals: those tried before it. rings: the opened perf buffers.
    absent: optional hooks that are not attached, each with the reason.
    """

    file: ObjectFile
    variant: Variant
    refusals: tuple[Refusal, ...]
    absent: tuple[str, ...]
    rings: Mapping[str, PerfBuffer]
    _maps: _Maps
    _programs: Programs

    def map(self, name: str) -> Map:
        """A map by its name in the object, pinned or not."""
        return _map(self._maps[name])

    def counters(self, *names: str) -> list[int]:
        """Global u64 variables (.bss) by name, as they are now."""
        image = self.map(".bss").get(bytes(4)) or b""
        variables = self.file.variables(".bss")
        return [struct.unpack_from("=Q", image, variables[name].offset)[0] for name in names]

    def missed(self) -> int:
        """Events that the kernel did not show because a program was running on the CPU already."""
        return sum(self._info(one).recursion_misses for one in chain(*self._programs.values()))

    def _info(self, program: int) -> _ProgramInfo:
        info = _ProgramInfo()
        _fill(info, libbpf().bpf_program__fd(program))
        return info

    def call(self, section: str, *arguments: int) -> None:
        """Run a raw_tp program once with u64 arguments (BPF_PROG_TEST_RUN, Linux 5.10)."""
        context = (ctypes.c_uint64 * len(arguments))(*arguments)
        options = ffi.TestRunOptions(
            sz=ctypes.sizeof(ffi.TestRunOptions),
            ctx_in=ctypes.addressof(context),
            ctx_size_in=ctypes.sizeof(context),
        )
        (called,) = self._programs[section]
        program = libbpf().bpf_program__fd(called)
        libbpf().bpf_prog_test_run_opts(program, ctypes.byref(options))

    def iterate(self, section: str) -> None:
        """Run a BPF iterator once to its end; what it writes is dropped (Linux 5.8).

        Raises LibbpfError.
        """
        (iterator,) = self._programs[section]
        with ExitStack() as stack:
            link = libbpf().bpf_program__attach(iterator)
            stack.callback(libbpf().bpf_link__destroy, link)
            fd = libbpf().bpf_iter_create(libbpf().bpf_link__fd(link))
            stack.callback(os.close, fd)
            _read_to_end(fd)


def _read_to_end(fd: int) -> None:
    while True:
        try:
            if not os.read(fd, 65536):
                return
        except BlockingIOError:  # a million objects without output: the next read goes on
            continue
        except OSError as e:
            raise LibbpfError("read", e.errno or 0) from None


def _fill(info: ctypes.Structure, fd: int) -> None:
    """What the kernel says of a program or a map, as much as `info` has room for."""
    size = ctypes.c_uint32(ctypes.sizeof(info))
    libbpf().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), size)


@contextmanager
def attached(path: Path, variants: Sequence[Variant], settings: Settings) -> Iterator[Attached]:
    """The object at `path`, loaded and attached by the first variant that this kernel takes.

    Raises UsageError (unknown variant, a pinned map that cannot be used), UnsupportedError (none
    works; has every reason), and TcpcoreError where the object and the settings do not fit.
    """
    file = ObjectFile(path)
    refusals: list[Refusal] = []
    errors: list[LibbpfError] = []
    for choice in candidates(select(variants, settings.attach), refusals):
        with ExitStack() as stack:
            try:
                program = _bring_up(stack, file, choice, settings, tuple(refusals))
            except LibbpfError as e:
                if e.errno in NOT_REFUSALS:
                    raise
                errors.append(e)
                refusals.append(Refusal(choice.variant, str(e)))
                continue
            yield program
            return
    raise unsupported(refusals, errors)


def _bring_up(
    stack: ExitStack,
    file: ObjectFile,
    choice: Choice,
    settings: Settings,
    refusals: tuple[Refusal, ...],
) -> Attached:
    kernel.forget()  # libbpf reads it for itself
    ffi.log.clear()
    handle = _open(stack, file.path, settings.btf)
    programs = _select_programs(handle, choice, settings.called)
    maps = _find_maps(handle, file)
    _write_rodata(handle, file, {**settings.rodata, **choice.variant.rodata})
    for name, entries in settings.map_entries.items():
        libbpf().bpf_map__set_max_entries(maps[name], entries)
    for name, path in settings.pins.items():
        _reuse(maps[name], path)
    libbpf().bpf_object__load(handle)
    for name, values in settings.map_values.items():
        for key, value in values.items():
            _map(maps[name]).set(key, value)
    # Before the attach: events that find no ring are lost.
    rings = {
        name: stack.enter_context(perf_buffer(_map(maps[name]).fd, size))
        for name, size in settings.rings.items()
    }
    for section in choice.attach:
        _attach(stack, section, programs[section])
    tried = [_attach_optional(stack, section, programs[section]) for section in choice.optional]
    absent = (*choice.absent, *filter(None, tried))
    return Attached(file, choice.variant, refusals, absent, rings, maps, programs)


def _find_maps(handle: int, file: ObjectFile) -> _Maps:
    internal = [section for section in (".rodata", ".bss") if file.variables(section)]
    return _Maps(
        (name, libbpf().bpf_object__find_map_by_name(handle, name.encode()))
        for name in (*file.variables(".maps"), *internal)
    )


def _map(found: int) -> Map:
    return Map(
        libbpf().bpf_map__fd(found),
        libbpf().bpf_map__key_size(found),
        libbpf().bpf_map__value_size(found),
    )


def _reuse(own: int, path: Path) -> None:
    """Put the map pinned at `path` in the place of the object's own, before the load."""
    try:
        fd = libbpf().bpf_obj_get(os.fsencode(path))
    except LibbpfError as e:
        why = "not a pinned map, or not ours to open" if e.errno == errno.EACCES else ""
        raise UsageError(f"{path}: {why or os.strerror(e.errno)}") from None
    try:
        _check_pinned(path, fd, own)
        libbpf().bpf_map__reuse_fd(own, fd)  # has a descriptor of its own
    finally:
        os.close(fd)


def _check_pinned(path: Path, fd: int, own: int) -> None:
    """UsageError unless it is a hash with keys like those of the object's own map."""
    keys = libbpf().bpf_map__key_size(own)
    what = Path(f"/proc/self/fd/{fd}").readlink().name.partition(":")[2]
    if what == "bpf-map":
        info = _MapInfo()
        _fill(info, fd)
        if info.type in (_MAP_TYPE_HASH, _MAP_TYPE_LRU_HASH) and info.key_size == keys:
            return
        what = f"map of type {info.type} with {info.key_size}-byte keys"
    raise UsageError(
        f"{path}: a {what}; a hash with {keys}-byte keys is expected (bpftool map create {path} "
        f"type hash key {keys} value {libbpf().bpf_map__value_size(own)} entries 128 name x)"
    )


def _open(stack: ExitStack, path: Path, btf: Path | None) -> int:
    options = ffi.OpenOptions(
        sz=ctypes.sizeof(ffi.OpenOptions), btf_custom_path=str(btf).encode() if btf else None
    )
    handle: int = libbpf().bpf_object__open_file(str(path).encode(), ctypes.byref(options))
    stack.callback(libbpf().bpf_object__close, handle)
    return handle


def _select_programs(handle: int, choice: Choice, called: Sequence[str]) -> Programs:
    """Load the variant's programs only: the others' relocations are never resolved."""
    wanted = {*choice.attach, *choice.optional, *called}
    programs: dict[str, list[int]] = {}
    program = libbpf().bpf_object__next_program(handle, None)
    while program:
        section = libbpf().bpf_program__section_name(program).decode()
        libbpf().bpf_program__set_autoload(program, section in wanted)
        if section in wanted:
            programs.setdefault(section, []).append(program)
        program = libbpf().bpf_object__next_program(handle, program)
    absent = wanted - programs.keys()
    if absent:
        raise TcpcoreError(f"no program in section {', '.join(sorted(absent))}")
    return programs


def _attach(stack: ExitStack, section: str, programs: Sequence[int]) -> None:
    kind, _, target = section.partition("/")
    for program in programs:
        is_tp = kind == "tp"
        link = _attach_tp(program, target) if is_tp else libbpf().bpf_program__attach(program)
        stack.callback(libbpf().bpf_link__destroy, link)


def _attach_tp(program: int, tracepoint: str) -> int:
    """Attach to the classic tracepoint group/name, for which libbpf wants tracefs mounted."""
    fd = ffi.open_tracepoint(tracepoint_id(*tracepoint.split("/")))
    try:
        link: int = libbpf().bpf_program__attach_perf_event(program, fd)
    except LibbpfError:
        os.close(fd)  # the link owns it only if there is one
        raise
    return link


def _attach_optional(stack: ExitStack, section: str, programs: Sequence[int]) -> str | None:
    """Why the kernel does not take it; None if it did."""
    ffi.log.clear()
    try:
        _attach(stack, section, programs)
    except LibbpfError as e:
        return f"{section}: {e}"
    return None


def _write_rodata(handle: int, file: ObjectFile, values: Mapping[str, int | bytes]) -> None:
    known = file.variables(".rodata")
    image, size = _rodata_image(handle) if values else (0, 0)
    for name, value in values.items():
        symbol = known.get(name)
        if symbol is None:
            raise TcpcoreError(
                f"{file.path.name} has no .rodata variable '{name}'; it has: "
                + ", ".join(sorted(known))
            )
        encoded = encode(name, value, symbol.size)
        assert symbol.offset + len(encoded) <= size
        ctypes.memmove(image + symbol.offset, encoded, len(encoded))


def _rodata_image(handle: int) -> tuple[int, int]:
    """libbpf's copy of .rodata, which load writes into the map: its address and size."""
    found = libbpf().bpf_object__find_map_by_name(handle, b".rodata")
    size = ctypes.c_size_t()
    return libbpf().bpf_map__initial_value(found, ctypes.byref(size)), size.value


def encode(name: str, value: int | bytes, width: int) -> bytes:
    """A .rodata value in the host's byte order; TcpcoreError when it does not fit its variable."""
    if isinstance(value, bytes):
        if len(value) > width:
            raise TcpcoreError(f".rodata '{name}' has {width} bytes, not {len(value)}")
        return value.ljust(width, b"\0")
    if width not in (1, 2, 4, 8):
        raise TcpcoreError(f".rodata '{name}' is {width} bytes wide: give it bytes, not a number")
    if not 0 <= value < 1 << 8 * width:
        raise TcpcoreError(f".rodata '{name}' is {8 * width} bits wide: {value} does not fit")
    return value.to_bytes(width, sys.byteorder)
