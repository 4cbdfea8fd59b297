"""Questions to the running kernel, asked of its BTF and of sysfs, never of its version."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from tcpcore.errors import LibbpfError, OptionError
from tcpcore.loader import ffi
from tcpcore.loader.ffi import libbpf

VMLINUX_BTF = Path("/sys/kernel/btf/vmlinux")
# Since Linux 4.17 (e12f03d7031a), wherever kprobes can be had as perf events.
KPROBE_PMU = Path("/sys/bus/event_source/devices/kprobe")

# include/uapi/linux/btf.h
_KIND_PTR, _KIND_ENUM, _KIND_TYPEDEF, _KIND_FUNC, _KIND_FUNC_PROTO = 2, 6, 8, 12, 13
_KIND_ENUM64 = 19
# struct btf_enum; struct btf_enum64, whose value is in two halves (Linux 6.0).
_ENUMERATORS = {_KIND_ENUM: struct.Struct("=II"), _KIND_ENUM64: struct.Struct("=IQ")}
_PARAMETER = struct.Struct("=II")  # struct btf_param
_TAGS = {4: "struct", 5: "union", 6: "enum", 7: "struct", 19: "enum"}
_QUALIFIERS = (9, 10, 11, 18)  # volatile, const, restrict, type tags
_TRACEPOINT = "btf_trace_"  # its typedef: include/trace/bpf_probe.h
_NO_FUNCTION = 1  # BTF's first type is a number
# include/uapi/linux/bpf.h; r0 = 0; exit
_PROG_TYPE_TRACING, _TRACE_FENTRY = 26, 24
_RETURN_0 = struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)
_MAP_TYPE_USER_RINGBUF = 31
_CAPABILITIES = {"CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}


class Btf:
    """The kernel's own type information. It is read when it is first asked, and not again: what was
    asked is remembered. file: the kernel's, where the kernel itself has none; with base, which is
    the kernel's, that of a module."""

    def __init__(self, file: Path | None = None, base: Btf | None = None) -> None:
        self._file, self._base = file, base
        self._handle: ffi.BtfHandle | None = None
        self._functions: dict[str, int | None] = {}
        self._types: dict[str, tuple[str, ...] | None] = {}

    def close(self) -> None:
        """Give back the memory, several MB; it is read again where something new is asked."""
        handle, self._handle = self._handle, None
        if handle:
            libbpf().btf__free(handle)

    def types(self, name: str) -> tuple[str, ...] | None:
        """The parameter types of a kernel function or a tracepoint, as C spells them; None if there
        is no such. Of a tracepoint alone where its name is given as btf_trace_NAME: kfree_skb is a
        function, too, in kernels before Linux 5.17.

        Raises LibbpfError where the kernel's BTF cannot be read.
        """
        if name not in self._types:
            prototype = self._prototype(name)
            self._types[name] = None if prototype is None else self._parameters(prototype)
        return self._types[name]

    def enumerators(self, name: str) -> dict[int, str] | None:
        """The names of an enum's values, negative ones as unsigned; None if there is no such enum.

        Of several names of a value the first one. Raises LibbpfError as types() does.
        """
        for kind, layout in _ENUMERATORS.items():
            if (found := self._find(name, kind)) is not None:
                return {value: self._name(at) for at, value in self._behind(found, layout)[::-1]}
        return None

    def modules(self) -> Iterator[Btf]:
        """Those of the kernel's modules, to be closed before this one. Raises OSError."""
        if not self._file:
            for path in VMLINUX_BTF.parent.iterdir():
                if path != VMLINUX_BTF:
                    yield Btf(path, base=self)

    def names(self, pattern: re.Pattern[str]) -> list[str]:
        """All its names that match as a whole, whatever they are of: BTF ends with its names.

        Raises LibbpfError as types() does.
        """
        size = ctypes.c_uint32()
        data = libbpf().btf__raw_data(self._read(), ctypes.byref(size))
        whole = re.compile(rb"(?<=\0)(?:%s)(?=\0)" % pattern.pattern.encode())
        return [name.decode() for name in whole.findall(ctypes.string_at(data, size.value))]

    def fentry_refusal(self, function: str) -> str | None:
        """Why the kernel takes no fentry or fexit program at a function; None if it does.

        It is asked to load one of two instructions: a whole object takes 20 ms to be refused.
        """
        error = _try_fentry(self._function(function) or 0)
        return f"no program at {function}: {error}" if error else None

    def _read(self) -> ffi.BtfHandle:
        if self._handle is None:
            file = os.fsencode(self._file) if self._file else None
            if self._base:
                self._handle = libbpf().btf__parse_split(file, self._base._read())
            elif file:
                self._handle = libbpf().btf__parse(file, None)
            else:
                self._handle = libbpf().btf__load_vmlinux_btf()
        return self._handle

    def _function(self, name: str) -> int | None:
        if name not in self._functions:
            self._functions[name] = self._find(name, _KIND_FUNC)
        return self._functions[name]

    def _find(self, name: str, kind: int) -> int | None:
        try:
            return int(libbpf().btf__find_by_name_kind(self._read(), name.encode(), kind))
        except LibbpfError as e:
            if e.errno == errno.ENOENT:
                return None
            raise

    def _prototype(self, name: str) -> int | None:
        """Of a function; of a tracepoint the pointer that its programs are called through."""
        found = self._function(name)
        if found is not None:
            return self._target(found)
        found = self._find(_TRACEPOINT + name.removeprefix(_TRACEPOINT), _KIND_TYPEDEF)
        return None if found is None else self._target(self._target(found))

    def _type(self, number: int) -> ffi.BtfType:
        found: ffi.BtfType = libbpf().btf__type_by_id(self._read(), number).contents
        return found

    def _target(self, number: int) -> int:
        return int(self._type(number).type)

    def _behind(self, number: int, layout: struct.Struct) -> list[tuple[int, int]]:
        """The parameters or values behind a type's struct btf_type, include/uapi/linux/btf.h."""
        kind = self._type(number)
        count = kind.info & 0xFFFF
        behind = ctypes.addressof(kind) + ctypes.sizeof(ffi.BtfType)
        return list(layout.iter_unpack(ctypes.string_at(behind, count * layout.size)))

    def _name(self, offset: int) -> str:
        return str(libbpf().btf__name_by_offset(self._read(), offset).decode())

    def _parameters(self, prototype: int) -> tuple[str, ...]:
        spelled = [self._spelled(type) for _, type in self._behind(prototype, _PARAMETER)]
        # A tracepoint's first one is the private data of who attached.
        return tuple(spelled[1:] if spelled[:1] == ["void *"] else spelled)

    def _spelled(self, number: int) -> str:
        """A type as C has it, without const and volatile. What a function takes and gives is left
        out: a pointer to one is `function *`."""
        if number == 0:
            return "void"
        found = self._type(number)
        kind = found.info >> 24 & 31
        if kind == _KIND_PTR:
            target = self._spelled(found.type)
            return target + ("*" if target.endswith("*") else " *")
        if kind in _QUALIFIERS:
            return self._spelled(found.type)
        if kind == _KIND_FUNC_PROTO:  # it has no name
            return "function"
        name = self._name(found.name_off)
        return f"{_TAGS[kind]} {name}" if kind in _TAGS else name


def _try_fentry(function: int) -> LibbpfError | None:
    """Load a program for a function by its BTF number: the kernel's objection, None if none."""
    options = ffi.LoadOptions(
        sz=ctypes.sizeof(ffi.LoadOptions),
        expected_attach_type=_TRACE_FENTRY,
        attach_btf_id=function,
    )
    arguments = (_RETURN_0, len(_RETURN_0) // 8, ctypes.byref(options))
    try:
        os.close(libbpf().bpf_prog_load(_PROG_TYPE_TRACING, b"probe", b"GPL", *arguments))
    except LibbpfError as e:
        return e
    return None


def _forbids_fentry() -> str | None:
    """Why the kernel takes no fentry program anywhere; None if it may.

    Asked with a number that is no function: who forbids all of them says EPERM before it looks. It
    saves reading the BTF, which takes a tenth of a start.
    """
    error = _try_fentry(_NO_FUNCTION)
    return f"no fentry programs: {error}" if error and error.errno == errno.EPERM else None


def no_btf() -> str | None:
    """Why the kernel's own BTF cannot be had; None if it can."""
    try:
        _try_open(VMLINUX_BTF)
    except FileNotFoundError:
        return f"no kernel BTF ({VMLINUX_BTF} is absent)"
    except OSError as e:
        return f"no kernel BTF ({VMLINUX_BTF}: {e.strerror})"
    return None


def check_btf(path: Path) -> None:
    """OptionError unless the file holds BTF: as it is, or in an ELF section (btf__parse)."""
    try:
        _try_open(path)
        types = libbpf().btf__parse(os.fsencode(path), None)
    except OSError as e:
        raise OptionError("btf", f"{path}: {e.strerror}") from None
    except LibbpfError:  # of many kinds: libbpf has error numbers of its own for other content
        raise OptionError("btf", f"{path}: no BTF in it") from None
    libbpf().btf__free(types)


def _try_open(path: Path) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))


def has_kprobes() -> bool:
    return os.access(KPROBE_PMU, os.F_OK)  # Path.exists() raises where it may not look


def can_fill_on_demand() -> bool:
    """Whether BPF programs may add to a hash whose memory is not set aside when it is made.

    They may since Linux 6.1, which has an allocator for them (7c8199e24fa0, fba1a1c6c912); before,
    the kernel warned of programs that do. Nothing tells of the allocator but the BTF, in which a
    search takes longer than what is to be saved. So this asks for a type of map that came with it
    (583c1f420173).
    """
    try:
        return bool(libbpf().libbpf_probe_bpf_map_type(_MAP_TYPE_USER_RINGBUF, None))
    except LibbpfError:  # an old libbpf, which does not know it either
        return False


def cannot(section: str, btf: Btf, types: Sequence[str] = ()) -> str | None:
    """Why a program of this section cannot attach; None if nothing speaks against a try.

    types: spellings of the parameter types that the program counts on, any of which will do; none
    where it does not matter.
    """
    kind, _, target = section.partition("/")
    if kind in ("kprobe", "kretprobe") and not has_kprobes():
        return "the kernel is built without kprobes"
    if kind in ("kprobe", "kretprobe") and types:
        return no_btf() or _other_types(target, btf, types)
    if kind == "tp_btf" and types:
        return no_btf() or _other_types(_TRACEPOINT + target, btf, types)
    if kind == "tp_btf":
        return no_btf()  # libbpf finds out what is missing: reading the BTF twice would cost 8 ms
    if kind == "raw_tp" and types and not no_btf():
        return _other_types(_TRACEPOINT + target, btf, types)
    if kind in ("fentry", "fexit"):
        return no_btf() or _forbids_fentry() or _not_traceable(target, btf, types)
    return None


def _other_types(name: str, btf: Btf, wanted: Sequence[str]) -> str | None:
    try:
        found = btf.types(name)
    except LibbpfError as e:
        return f"no kernel BTF ({e})"
    told = name.removeprefix(_TRACEPOINT)
    if found is None:
        return f"no {told} in kernel BTF"
    spelled = ", ".join(found)
    if wanted and spelled not in wanted:
        return f"{told} takes ({spelled}), not ({wanted[0]})"
    return None


def _not_traceable(function: str, btf: Btf, types: Sequence[str]) -> str | None:
    return _other_types(function, btf, types) or btf.fentry_refusal(function)


def missing_capabilities() -> list[str]:
    """What loading and attaching needs and this process lacks (capabilities(7)).

    CAP_SYS_ADMIN covers both; CAP_BPF and CAP_PERFMON exist since Linux 5.8.
    """
    status = Path("/proc/self/status").read_text()
    effective = int(next(x for x in status.splitlines() if x.startswith("CapEff")).split()[1], 16)
    held = {name for name, bit in _CAPABILITIES.items() if effective >> bit & 1}
    return [] if "CAP_SYS_ADMIN" in held else sorted({"CAP_BPF", "CAP_PERFMON"} - held)
