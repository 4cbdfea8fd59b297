"""open, adjust, load, attach, close: one context manager, nothing left behind on any path."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import chain
from pathlib import Path

from tcpcore.errors import LibbpfError, TcpcoreError, UsageError
from tcpcore.loader import aggregate, ffi, kernel
from tcpcore.loader.aggregate import Aggregate
from tcpcore.loader.elf import ObjectFile
from tcpcore.loader.ffi import libbpf
from tcpcore.loader.lifetime import Lifetime
from tcpcore.loader.map import Map
from tcpcore.loader.perf import PerfBuffer, RingSize, perf_buffer
from tcpcore.loader.plan import Plan, Slot, Use, exhausted, narrowed
from tcpcore.loader.tracefs import tracepoint_id
from tcpcore.value import Value

# include/uapi/linux/bpf.h
_MAP_TYPE_HASH, _MAP_TYPE_LRU_HASH = 1, 9
_NO_PREALLOC = 1  # BPF_F_NO_PREALLOC
_LINK_TYPE_PERF_EVENT = 7
_PERF_EVENT_KPROBE, _PERF_EVENT_KRETPROBE = 3, 4


class Settings(Value):
    """What the caller sets between open and load.

    rodata: values of .rodata variables by name: an int (or bool) for a scalar, bytes for an array
        (shorter ones leave zeros behind them).
    map_entries: max_entries by map name.
    aggregates: the aggregates that are used, and how many keys each has room for.
    contents: keys and values of maps that are filled before the attach.
    pins: paths of pinned hash maps that take the place of the object's own, by the own one's name.
        Keys must have the same size; the values' size is theirs.
    rings: sizes of the perf buffers to open before the attach, by the name of their map.
    called: sections to load and not to attach: user space runs them (Attached.call and .iterate).
    attach: names of the ways to force, in every slot that has such. btf: path of BTF to relocate
        against.
    """

    rodata: Mapping[str, int | bytes] = {}
    map_entries: Mapping[str, int] = {}
    aggregates: Mapping[str, int] = {}
    contents: Mapping[str, Mapping[bytes, bytes]] = {}
    pins: Mapping[str, Path] = {}
    rings: Mapping[str, RingSize] = {}
    called: tuple[str, ...] = ()
    attach: Sequence[str] = ()
    btf: Path | None = None


Programs = Mapping[str, Sequence[ffi.ProgramHandle]]
"""The loaded programs, by section: several functions may share one."""


class _Maps(dict[str, ffi.MapHandle]):
    """The object's maps by name.

    Found once, before a pinned map brings its own name along (bpf_map__reuse_fd).
    """

    def __missing__(self, name: str) -> ffi.MapHandle:
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


class _LinkInfo(ctypes.Structure):
    """struct bpf_link_info up to perf_event.kprobe.missed (Linux 6.7; shorter before: zeros)."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("_hole", ctypes.c_uint32),
        ("event_type", ctypes.c_uint32),
        ("_pad", ctypes.c_uint32),
        ("func_name", ctypes.c_uint64),
        ("name_len", ctypes.c_uint32),
        ("offset", ctypes.c_uint32),
        ("addr", ctypes.c_uint64),
        ("missed", ctypes.c_uint64),
    ]


class Attached:
    """A loaded object whose programs are attached.

    uses: how each slot is seen. rings: the opened perf buffers. aggregates: those that the settings
    name.

    Every method raises TcpcoreError after the end of the block that attached it, and in a child
    process: see Lifetime.
    """

    def __init__(
        self,
        file: ObjectFile,
        uses: tuple[Use, ...],
        rings: Mapping[str, PerfBuffer],
        aggregates: Mapping[str, Aggregate],
        maps: _Maps,
        programs: Programs,
        links: Sequence[ffi.LinkHandle],
        walks: Mapping[str, ffi.LinkHandle],
        life: Lifetime,
    ) -> None:
        self.file, self.uses, self.rings, self.aggregates = file, uses, rings, aggregates
        self._maps, self._programs, self._links, self._life = maps, programs, links, life
        self._walks = walks

    def check(self) -> None:
        """TcpcoreError where it cannot be used any more."""
        self._life.check()

    def map(self, name: str) -> Map:
        """A map by its name in the object, pinned or not."""
        with self._life:
            return _map(self._maps[name], self._life)

    def counters(self, *names: str) -> list[int]:
        """Global u64 variables (.bss) by name, as they are now."""
        image = self.map(".bss").get(bytes(4)) or b""
        variables = self.file.variables(".bss")
        return [struct.unpack_from("=Q", image, variables[name].offset)[0] for name in names]

    def missed(self) -> int:
        """Events that the kernel did not show because a program was running on the CPU already,
        or because more tasks were in a function than its kretprobe follows at a time.

        Only as far as this kernel counts them: programs on trampolines and raw tracepoints since
        Linux 5.12 (9ed9e9ba2337), on kprobes and classic tracepoints since 6.7 (dd8657894c11),
        kprobes and kretprobes themselves since 6.7 (3acf8ace6823).
        """
        with self._life:
            programs = sum(map(_recursion_misses, chain(*self._programs.values())))
            return programs + sum(map(_probe_misses, self._links))

    def call(self, section: str, *arguments: int) -> None:
        """Run a raw_tp program once with u64 arguments (BPF_PROG_TEST_RUN, Linux 5.10)."""
        context = (ctypes.c_uint64 * len(arguments))(*arguments)
        options = ffi.TestRunOptions(
            sz=ctypes.sizeof(ffi.TestRunOptions),
            ctx_in=ctypes.addressof(context),
            ctx_size_in=ctypes.sizeof(context),
        )
        (called,) = self._programs[section]
        with self._life:
            program = libbpf().bpf_program__fd(called)
            libbpf().bpf_prog_test_run_opts(program, ctypes.byref(options))

    def iterate(self, section: str) -> None:
        """Run a BPF iterator once to its end; what it writes is dropped (Linux 5.8).

        Raises LibbpfError.
        """
        (iterator,) = self._programs[section]
        with self._life, ExitStack() as stack:
            link = libbpf().bpf_program__attach(iterator)
            stack.callback(libbpf().bpf_link__destroy, link)
            _iterate(link)

    def walk(self, use: Use) -> None:
        """Run a slot's programs on each key of the map that its way goes through.

        Raises LibbpfError.
        """
        assert use.way
        if use.way.name != "call":
            with self._life:
                _iterate(self._walks[use.slot.name])
            return
        for key in self.map(use.way.over).all_keys():
            self.call(use.way.sections[0], int.from_bytes(key, "little"))


def _recursion_misses(program: ffi.ProgramHandle) -> int:
    info = _ProgramInfo()
    _fill(info, libbpf().bpf_program__fd(program))
    return int(info.recursion_misses)


def _probe_misses(link: ffi.LinkHandle) -> int:
    info = _LinkInfo()
    try:
        _fill(info, libbpf().bpf_link__fd(link))
    except LibbpfError:
        return 0  # a program on a perf event is no link before Linux 5.15 (b89fbfbb854c)
    probes = (_PERF_EVENT_KPROBE, _PERF_EVENT_KRETPROBE)
    is_probe = info.type == _LINK_TYPE_PERF_EVENT and info.event_type in probes
    return int(info.missed) if is_probe else 0


def _iterate(link: ffi.LinkHandle) -> None:
    fd = libbpf().bpf_iter_create(libbpf().bpf_link__fd(link))
    try:
        _read_to_end(fd)
    finally:
        os.close(fd)


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
    """What the kernel says of a program, a map or a link, as much as `info` has room for."""
    size = ctypes.c_uint32(ctypes.sizeof(info))
    libbpf().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), size)


@contextmanager
def attached(
    path: Path, slots: Sequence[Slot], settings: Settings, btf: kernel.Btf | None = None
) -> Iterator[Attached]:
    """The object at `path`, loaded and attached: each slot by the best way that this kernel takes.

    btf: the kernel's, if the caller has asked it something already; it is closed here.

    Raises UsageError (no way of the name that is forced, a pinned map or a BTF file that cannot be
    used), UnsupportedError (a required slot has no way; has every reason), PrivilegeError (the
    same, and more privilege would help), and TcpcoreError where memory or descriptors run out, or
    the object and the settings do not fit.
    """
    with ExitStack() as stack:
        program = _first_that_works(stack, path, slots, settings, btf or kernel.Btf())
        try:
            yield program
        finally:
            _end(stack, program._life)


def _end(stack: ExitStack, life: Lifetime) -> None:
    """Before anything is freed nobody uses it any more. A child after fork(2) frees nothing.

    It has copies of descriptors and addresses: with them it would switch off its parent's hooks
    and rings, and unmap what may be in the rings' place by now.
    """
    if life.is_ours():
        life.end()
    else:
        stack.pop_all()


def _first_that_works(
    stack: ExitStack, path: Path, slots: Sequence[Slot], settings: Settings, btf: kernel.Btf
) -> Attached:
    with closing(btf):
        if settings.btf:
            kernel.check_btf(settings.btf)
        file = ObjectFile(path)
        plan = Plan(narrowed(slots, settings.attach), btf, settings.btf)
        while True:
            uses = plan.choose()
            btf.close()  # libbpf reads it for itself
            with ExitStack() as attempt:
                try:
                    found = _bring_up(attempt, file, uses, settings, plan)
                except LibbpfError as e:
                    _unless_exhausted(e)
                    raise
                if found:
                    stack.enter_context(attempt.pop_all())
                    return found


def _bring_up(
    stack: ExitStack, file: ObjectFile, uses: Sequence[Use], settings: Settings, plan: Plan
) -> Attached | None:
    """None where the kernel refused something: the plan knows what, and what is next."""
    ffi.log.clear()
    life = Lifetime()
    handle = _open(stack, file.path, settings.btf)
    programs = _select_programs(handle, uses, settings.called)
    maps = _find_maps(handle, file)
    _adjust(handle, file, maps, uses, settings)
    try:
        libbpf().bpf_object__load(handle)
    except LibbpfError as e:
        _unless_exhausted(e)
        plan.refuse_load(e, file.programs)
        return None
    # Before the attach: events that find no ring are lost.
    rings = {}
    for name, size in settings.rings.items():
        rings[name] = perf_buffer(_map(maps[name], life).fd, size, life)
        stack.callback(rings[name].close)
    aggregates = {name: _aggregate(maps, name, life) for name in settings.aggregates}
    for name, content in settings.contents.items():
        for key, value in content.items():
            _map(maps[name], life).set(key, value)
    attached: list[Use] = []
    links: list[ffi.LinkHandle] = []
    walks: dict[str, ffi.LinkHandle] = {}
    for use in uses:
        try:
            if use.way and use.way.over:
                walks |= _attach_walk(stack, use, programs, maps)
                attached.append(use)
                continue
            done, more = _attach_slot(stack, use, programs)
        except LibbpfError as e:
            _unless_exhausted(e)
            plan.refuse(use.slot, e)
            return None
        attached.append(done)
        links += more
    return Attached(file, tuple(attached), rings, aggregates, maps, programs, links, walks, life)


def _unless_exhausted(error: LibbpfError) -> None:
    """What has run out is no refusal: another way would need as much."""
    if spent := exhausted(error):
        raise spent from None


def _adjust(
    handle: ffi.ObjectHandle, file: ObjectFile, maps: _Maps, uses: Sequence[Use], settings: Settings
) -> None:
    """Everything that is set between open and load."""
    of_ways = {name: value for use in uses if use.way for name, value in use.way.rodata.items()}
    _write_rodata(handle, file, {**settings.rodata, **of_ways})
    filled = {name: max(1, len(content)) for name, content in settings.contents.items()}
    for name, entries in {**settings.map_entries, **filled}.items():
        libbpf().bpf_map__set_max_entries(maps[name], entries)
    for name in aggregate.names(maps):
        turns = [maps[each] for each in aggregate.maps(name)]
        if name in settings.aggregates:
            aggregate.make_room(settings.aggregates[name], maps[name], turns)
        else:
            aggregate.leave_out([maps[name], *turns])
    if not kernel.can_fill_on_demand():
        _set_memory_aside(maps.values())
    for name, path in settings.pins.items():
        _reuse(maps[name], path)


def _set_memory_aside(maps: Iterable[ffi.MapHandle]) -> None:
    """All that a hash can fill, when it is made. Other types cannot: a trie must not (EINVAL)."""
    for each in maps:
        if libbpf().bpf_map__type(each) == _MAP_TYPE_HASH:
            flags = libbpf().bpf_map__map_flags(each)
            libbpf().bpf_map__set_map_flags(each, flags & ~_NO_PREALLOC)


def _attach_slot(
    stack: ExitStack, use: Use, programs: Programs
) -> tuple[Use, list[ffi.LinkHandle]]:
    """What came of it: an optional section that the kernel refuses is absent."""
    if use.way is None:
        return use, []
    links = [link for s in use.way.sections for link in _attach(stack, s, programs[s])]
    attached, absent = [], list(use.absent)
    for section in use.optional:
        more, refused = _attach_optional(stack, section, programs[section])
        links += more
        absent += refused
        attached += [] if refused else [section]
    return use._replace(optional=tuple(attached), absent=tuple(absent)), links


def _attach_walk(
    stack: ExitStack, use: Use, programs: Programs, maps: _Maps
) -> dict[str, ffi.LinkHandle]:
    """An iterator's link to its map, by the slot's name: later there may be no right to make it.

    What user space calls socket by socket needs none.
    """
    assert use.way
    if use.way.name == "call":
        return {}
    info = ctypes.c_uint32(libbpf().bpf_map__fd(maps[use.way.over]))  # union bpf_iter_link_info
    options = ffi.IterOptions(
        sz=ctypes.sizeof(ffi.IterOptions),
        link_info=ctypes.addressof(info),
        link_info_len=ctypes.sizeof(info),
    )
    (iterator,) = programs[use.way.sections[0]]
    link = libbpf().bpf_program__attach_iter(iterator, ctypes.byref(options))
    stack.callback(libbpf().bpf_link__destroy, link)
    return {use.slot.name: link}


def _find_maps(handle: ffi.ObjectHandle, file: ObjectFile) -> _Maps:
    internal = [section for section in (".rodata", ".bss") if file.variables(section)]
    return _Maps(
        (name, libbpf().bpf_object__find_map_by_name(handle, name.encode()))
        for name in (*file.variables(".maps"), *internal)
    )


def _map(found: ffi.MapHandle, life: Lifetime) -> Map:
    return Map(
        libbpf().bpf_map__fd(found),
        libbpf().bpf_map__key_size(found),
        libbpf().bpf_map__value_size(found),
        life,
    )


def _aggregate(found: _Maps, name: str, life: Lifetime) -> Aggregate:
    place, used, spare = (_map(found[each], life) for each in (name, *aggregate.maps(name)))
    return Aggregate(place, used, spare, life)


def _reuse(own: ffi.MapHandle, path: Path) -> None:
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


def _check_pinned(path: Path, fd: int, own: ffi.MapHandle) -> None:
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


def _open(stack: ExitStack, path: Path, btf: Path | None) -> ffi.ObjectHandle:
    options = ffi.OpenOptions(
        sz=ctypes.sizeof(ffi.OpenOptions), btf_custom_path=os.fsencode(btf) if btf else None
    )
    opened = libbpf().bpf_object__open_file(os.fsencode(path), ctypes.byref(options))
    handle: ffi.ObjectHandle = opened
    stack.callback(libbpf().bpf_object__close, handle)
    return handle


def _select_programs(
    handle: ffi.ObjectHandle, uses: Sequence[Use], called: Sequence[str]
) -> Programs:
    """Load the programs in use only: the others' relocations are never resolved."""
    wanted = {*called, *(section for use in uses for section in use.sections)}
    programs: dict[str, list[ffi.ProgramHandle]] = {}
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


def _attach(
    stack: ExitStack, section: str, programs: Sequence[ffi.ProgramHandle]
) -> list[ffi.LinkHandle]:
    links = []
    for program in programs:
        for link in _links(program, section):
            stack.callback(libbpf().bpf_link__destroy, link)
            links.append(link)
    return links


def _links(program: ffi.ProgramHandle, section: str) -> Iterator[ffi.LinkHandle]:
    kind, _, target = section.partition("/")
    if kind == "tp":
        yield from _attach_tp(program, target)
    else:
        yield libbpf().bpf_program__attach(program)


def _attach_tp(program: ffi.ProgramHandle, target: str) -> Iterator[ffi.LinkHandle]:
    """Attach to classic tracepoints, group/name or group/name,name: one program for all of them.

    libbpf itself takes one, and wants tracefs mounted.
    """
    group, _, names = target.partition("/")
    for name in names.split(","):
        yield _attach_tracepoint(program, group, name)


def _attach_tracepoint(program: ffi.ProgramHandle, group: str, name: str) -> ffi.LinkHandle:
    fd = ffi.open_tracepoint(tracepoint_id(group, name))
    try:
        link: ffi.LinkHandle = libbpf().bpf_program__attach_perf_event(program, fd)
    except LibbpfError:
        os.close(fd)  # the link owns it only if there is one
        raise
    return link


def _attach_optional(
    stack: ExitStack, section: str, programs: Sequence[ffi.ProgramHandle]
) -> tuple[list[ffi.LinkHandle], list[str]]:
    """The links, or why the kernel does not take it."""
    ffi.log.clear()
    try:
        return _attach(stack, section, programs), []
    except LibbpfError as e:
        return [], [f"{section}: {e}"]


def _write_rodata(
    handle: ffi.ObjectHandle, file: ObjectFile, values: Mapping[str, int | bytes]
) -> None:
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


def _rodata_image(handle: ffi.ObjectHandle) -> tuple[int, int]:
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
