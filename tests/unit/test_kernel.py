"""Questions to the kernel, answered by files and by a libbpf of the test's own."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from tcpcore.errors import LibbpfError, UsageError
from tcpcore.loader import ffi, kernel
from tcpcore.model.enums import KernelEnum, look_up
from tests.unit.samples import ARCHITECTURES, TOOLS, object_file


class Parameter(ctypes.Structure):
    """struct btf_param, include/uapi/linux/btf.h."""

    _fields_: ClassVar = [("name_off", ctypes.c_uint32), ("type", ctypes.c_uint32)]


class FakeTypes:
    """libbpf with the function f(const struct sock *, int), the tracepoint t of the same, and the
    function h, whose second parameter points to a function.

    read, freed: how often. asked: names.
    """

    # kind, name, type
    TYPES: ClassVar = [
        *((0, "", 0), (1, "int", 0), (4, "sock", 0), (10, "", 2), (2, "", 3)),
        *((13, "", 0), (12, "f", 5), (13, "", 0), (2, "", 7), (8, "btf_trace_t", 8), (2, "", 0)),
        *((13, "", 0), (12, "h", 11)),
    ]
    PARAMETERS: ClassVar = {5: [4, 1], 7: [10, 4, 1], 11: [4, 8]}

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read = self.freed = 0
        self.unreadable = 0
        self.asked: list[str] = []
        self._made = [self._make(i, *each) for i, each in enumerate(self.TYPES)]
        library = SimpleNamespace(
            btf__load_vmlinux_btf=self._load,
            btf__free=self._free,
            btf__find_by_name_kind=self._find,
            btf__type_by_id=lambda handle, number: SimpleNamespace(contents=self._made[number]),
            btf__name_by_offset=lambda handle, number: self.TYPES[number][1].encode(),
        )
        monkeypatch.setattr(kernel, "libbpf", lambda: library)

    def _make(self, number: int, kind: int, name: str, type: int) -> ffi.BtfType:
        """A type with its parameters behind it, as in the kernel's BTF."""
        parameters = self.PARAMETERS.get(number, [])

        class Made(ctypes.Structure):
            _fields_ = [("head", ffi.BtfType), ("tail", Parameter * len(parameters))]

        made = Made((number, kind << 24 | len(parameters), type))
        for i, parameter in enumerate(parameters):
            made.tail[i].type = parameter
        self._keep = [*getattr(self, "_keep", []), made]
        head: ffi.BtfType = made.head
        return head

    def _load(self) -> object:
        if self.unreadable:
            raise LibbpfError("btf__load_vmlinux_btf", self.unreadable)
        self.read += 1
        return object()

    def _free(self, handle: object) -> None:
        self.freed += 1

    def _find(self, handle: object, name: bytes, kind: int) -> int:
        self.asked.append(name.decode())
        for number, (its_kind, its_name, _) in enumerate(self.TYPES):
            if (its_kind, its_name) == (kind, name.decode()):
                return number
        raise LibbpfError("btf__find_by_name_kind", errno.ENOENT)


@pytest.fixture
def types(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTypes:
    monkeypatch.setattr(kernel, "VMLINUX_BTF", tmp_path)
    monkeypatch.setattr(kernel, "_try_fentry", lambda function: None)
    return FakeTypes(monkeypatch)


PARAMETERS = ("struct sock *", "int")


def test_parameters_of_functions_and_of_tracepoints(types: FakeTypes) -> None:
    """Without const, and without what a tracepoint hands to its programs first."""
    btf = kernel.Btf()
    assert [btf.types(name) for name in ("f", "t", "g")] == [PARAMETERS, PARAMETERS, None]


def test_a_pointer_to_a_function(types: FakeTypes) -> None:
    """It has no name, at which libbpf fails."""
    assert kernel.Btf().types("h") == ("struct sock *", "function *")


def test_the_types_are_read_once_and_freed_once(types: FakeTypes) -> None:
    btf = kernel.Btf()
    btf.close()
    assert (types.read, types.freed) == (0, 0)
    assert [btf.types("f"), btf.types("g")] == [PARAMETERS, None]
    assert (types.read, types.freed) == (1, 0)
    btf.close()
    btf.close()
    assert (types.read, types.freed) == (1, 1)


def test_what_was_asked_is_remembered(types: FakeTypes) -> None:
    btf = kernel.Btf()
    for _ in range(2):
        assert [btf.types("f"), btf.types("g")] == [PARAMETERS, None]
        assert btf.fentry_refusal("f") is None
        btf.close()
    assert types.asked == ["f", "g", "btf_trace_g"]
    assert types.read == 1


def test_each_trace_has_types_of_its_own(types: FakeTypes) -> None:
    """What one gives back, another one, in another thread, may be reading."""
    one, other = kernel.Btf(), kernel.Btf()
    one.types("f")
    other.types("f")
    one.close()
    assert (types.read, types.freed) == (2, 1)


def test_types_that_cannot_be_read_are_a_reason(types: FakeTypes) -> None:
    types.unreadable = errno.EINVAL
    assert kernel.cannot("fentry/f", kernel.Btf(), ["int"]) == (
        "no kernel BTF (btf__load_vmlinux_btf: Invalid argument)"
    )


def btf_file(path: Path, *enums: tuple[str, str, dict[str, int]]) -> Path:
    """BTF with these enums: the values' format, the name, the values by name."""
    names, types = b"\0", b""

    def place(name: str) -> int:
        nonlocal names
        at, names = len(names), names + name.encode() + b"\0"
        return at

    for value_format, name, values in enums:
        kind, size = {"I": (6, 4), "Q": (19, 8)}[value_format]
        types += struct.pack("=III", place(name), kind << 24 | len(values), size)
        for each, value in values.items():
            types += struct.pack(f"=I{value_format}", place(each), value)
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
    path.write_bytes(header + types + names)
    return path


def test_names_of_an_enum(tmp_path: Path) -> None:
    """Of two names of a value the first one, which is no mark of an end (`FEW_MAX = FEW_B`)."""
    few = {"FEW_A": 0, "FEW_B": 7, "FEW_MAX": 7, "FEW_LAST": (1 << 32) - 1}
    file = btf_file(tmp_path / "btf", ("I", "few", few), ("Q", "wide", {"WIDE": 1 << 40 | 2}))
    with contextlib.closing(kernel.Btf(file)) as btf:
        assert btf.enumerators("few") == {0: "FEW_A", 7: "FEW_B", (1 << 32) - 1: "FEW_LAST"}
        assert btf.enumerators("wide") == {1 << 40 | 2: "WIDE"}
        assert btf.enumerators("absent") is None


def test_a_kernel_enum_shows_a_number_that_has_no_name(tmp_path: Path) -> None:
    reasons, absent = KernelEnum("reason", "REASON_"), KernelEnum("absent")
    assert reasons(1) == "1"
    file = btf_file(tmp_path / "btf", ("I", "reason", {"REASON_NONE": 0, "REASON_FLAGS": 1}))
    look_up([reasons, absent, reasons], kernel.Btf(), file)
    assert [reasons(raw) for raw in range(3)] == ["NONE", "FLAGS", "2"]
    assert absent(1) == "1"
    # Another trace with another file, of which nothing may be left from the first one.
    other = btf_file(tmp_path / "other", ("I", "reason", {"REASON_OTHER": 1}))
    look_up([reasons], kernel.Btf(other), None)
    assert [reasons(raw) for raw in range(2)] == ["0", "OTHER"]


def test_without_btf_there_are_numbers(types: FakeTypes) -> None:
    types.unreadable = errno.ENOENT
    reasons = KernelEnum("reason")
    look_up([reasons], kernel.Btf(), None)
    assert reasons(1) == "1"


def test_a_tool_without_enums_reads_no_types(types: FakeTypes) -> None:
    look_up((), kernel.Btf(), None)
    assert types.read == 0


def test_a_function_is_not_taken_for_a_tracepoint(types: FakeTypes) -> None:
    """Before Linux 5.17 there was a function by the name of the tracepoint kfree_skb."""
    btf = kernel.Btf()
    assert [btf.types("btf_trace_t"), btf.types("btf_trace_f")] == [PARAMETERS, None]
    wanted = [", ".join(PARAMETERS)]
    assert kernel.cannot("raw_tp/f", btf, wanted) == "no f in kernel BTF"
    assert kernel.cannot("tp_btf/f", btf, wanted) == "no f in kernel BTF"


@pytest.mark.parametrize("kind", ["kprobe", "kretprobe", "raw_tp"])
def test_a_way_of_another_shape_is_refused_where_btf_tells(
    types: FakeTypes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    """A probe would read an argument that is not there. Of a raw tracepoint the kernel itself tells
    that, where there is no BTF."""
    monkeypatch.setattr(kernel, "has_kprobes", lambda: True)
    name = "t" if kind == "raw_tp" else "f"
    other = f"{name} takes (struct sock *, int), not (int)"
    assert kernel.cannot(f"{kind}/{name}", kernel.Btf(), [", ".join(PARAMETERS)]) is None
    assert kernel.cannot(f"{kind}/{name}", kernel.Btf(), ["int"]) == other
    assert kernel.cannot(f"{kind}/{name}", kernel.Btf()) is None
    monkeypatch.setattr(kernel, "VMLINUX_BTF", tmp_path / "absent")
    without = kernel.cannot(f"{kind}/{name}", kernel.Btf(), ["int"])
    assert without == (None if kind == "raw_tp" else kernel.no_btf())
    assert kernel.cannot(f"{kind}/{name}", kernel.Btf()) is None


def refusing(number: int) -> Any:
    def look(path: Any, *arguments: Any) -> Any:
        raise OSError(number, os.strerror(number), path)

    return look


def test_what_may_not_be_looked_at_is_a_reason(
    types: FakeTypes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with CAP_BPF and CAP_PERFMON alone, in folders of mode 0700."""
    btf, told = kernel.Btf(), list[str | None]()
    with monkeypatch.context() as only_here:
        for name in ("open", "stat"):
            only_here.setattr(os, name, refusing(errno.EACCES))
        only_here.setattr(os, "access", lambda path, mode: False)
        # Nothing else: pytest itself opens files, also to tell of a failure.
        with contextlib.suppress(PermissionError):
            told = [
                kernel.cannot(section, btf)
                for section in ("fentry/f", "fexit/f", "tp_btf/t", "kprobe/f", "raw_tp/t")
            ]
    closed = f"no kernel BTF ({kernel.VMLINUX_BTF}: Permission denied)"
    assert told == [closed] * 3 + ["the kernel is built without kprobes", None]


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as e:
        kernel.check_btf(path)
    return str(e.value)


def test_a_file_without_btf_is_a_usage_error_that_names_it(tmp_path: Path) -> None:
    text, empty = tmp_path / "text", tmp_path / "empty"
    text.write_text("no BTF at all, but long enough to be taken for a header of it")
    empty.touch()
    cut = tmp_path / "cut"
    cut.write_bytes(b"\x9f\xeb\x01\0\x18\0\0\0" + bytes(12) + b"\xff\xff\0\0")
    for path in (text, empty, cut):
        assert refused(path) == f"btf: {path}: no BTF in it"
    elf = Path("/proc/self/exe").resolve()
    assert refused(elf) == f"btf: {elf}: no BTF in it"
    assert refused(tmp_path / "absent") == f"btf: {tmp_path}/absent: No such file or directory"


def test_btf_in_an_elf_file_will_do() -> None:
    kernel.check_btf(object_file(TOOLS[0], ARCHITECTURES[0]).path)


@pytest.mark.parametrize(
    ("effective", "missing"),
    [
        (0, ["CAP_BPF", "CAP_PERFMON"]),
        (1 << 21, []),
        (1 << 38, ["CAP_BPF"]),
        (1 << 39, ["CAP_PERFMON"]),
        (3 << 38, []),
        (~(1 << 21 | 3 << 38) & (1 << 41) - 1, ["CAP_BPF", "CAP_PERFMON"]),
    ],
)
def test_missing_capabilities(
    monkeypatch: pytest.MonkeyPatch, effective: int, missing: list[str]
) -> None:
    status = f"Name:\tx\nCapPrm:\t{-1 & 0xFFFF:016x}\nCapEff:\t{effective:016x}\n"
    monkeypatch.setattr(Path, "read_text", lambda path: status)
    assert kernel.missing_capabilities() == missing


def test_who_forbids_fentry_altogether_is_not_asked_for_a_function(
    types: FakeTypes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(number: int) -> Any:
        return lambda function: LibbpfError("bpf_prog_load", number)

    monkeypatch.setattr(kernel, "_try_fentry", forbidden(errno.EPERM))
    assert kernel.cannot("fentry/f", kernel.Btf(), [", ".join(PARAMETERS)]) == (
        "no fentry programs: bpf_prog_load: Operation not permitted"
    )
    assert types.read == 0
    # What the kernel says elsewhere to a number that is no function.
    monkeypatch.setattr(kernel, "_try_fentry", forbidden(errno.EINVAL))
    assert kernel.cannot("fentry/f", kernel.Btf(), [", ".join(PARAMETERS)]) == (
        "no program at f: bpf_prog_load: Invalid argument"
    )
