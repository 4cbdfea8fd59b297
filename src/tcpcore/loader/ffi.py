"""The only door to libbpf and libc: one table of signatures, three error checkers, the log."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_long, c_size_t, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from tcpcore.errors import LibbpfError, UnsupportedError

WARN = 0  # enum libbpf_print_level; INFO and DEBUG are 1 and 2

PACKAGE = "libbpf.so.1 (libbpf 1.0 or later): install libbpf1 (Debian, Ubuntu) or libbpf (Fedora)"


# libbpf's own structs. Nobody looks inside: a pointer to one is the handle, and as each has a type
# of its own, ctypes refuses a handle of another kind, and a bare number.


class BpfObject(ctypes.Structure):
    """struct bpf_object."""


class BpfProgram(ctypes.Structure):
    """struct bpf_program; it ends with its object."""


class BpfMap(ctypes.Structure):
    """struct bpf_map; it ends with its object."""


class BpfLink(ctypes.Structure):
    """struct bpf_link."""


class BtfTypes(ctypes.Structure):
    """struct btf."""


class Rings(ctypes.Structure):
    """struct perf_buffer."""


ObjectHandle: TypeAlias = "ctypes._Pointer[BpfObject]"
ProgramHandle: TypeAlias = "ctypes._Pointer[BpfProgram]"
MapHandle: TypeAlias = "ctypes._Pointer[BpfMap]"
LinkHandle: TypeAlias = "ctypes._Pointer[BpfLink]"
BtfHandle: TypeAlias = "ctypes._Pointer[BtfTypes]"
RingsHandle: TypeAlias = "ctypes._Pointer[Rings]"


class OpenOptions(ctypes.Structure):
    """struct bpf_object_open_opts up to the last field that we set."""

    _fields_ = [
        ("sz", c_size_t),
        ("object_name", c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", c_char_p),
        ("_attach_prog_fd", c_uint32),
        ("kconfig", c_char_p),
        ("btf_custom_path", c_char_p),
    ]


class TestRunOptions(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf 1.0."""

    _fields_ = [
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    ]


class IterOptions(ctypes.Structure):
    """struct bpf_iter_attach_opts."""

    _fields_ = [("sz", c_size_t), ("link_info", c_void_p), ("link_info_len", c_uint32)]


class LoadOptions(ctypes.Structure):
    """struct bpf_prog_load_opts up to the last field that we set."""

    _fields_ = [
        ("sz", c_size_t),
        ("attempts", c_int),
        ("expected_attach_type", c_int),
        ("prog_btf_fd", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_ifindex", c_uint32),
        ("kern_version", c_uint32),
        ("attach_btf_id", c_uint32),
    ]


class PerfEventAttr(ctypes.Structure):
    """struct perf_event_attr, PERF_ATTR_SIZE_VER5 (112 bytes), perf_event_open(2)."""

    _fields_ = [
        ("type", c_uint32),
        ("size", c_uint32),
        ("config", ctypes.c_uint64),
        ("sample_period", ctypes.c_uint64),
        ("sample_type", ctypes.c_uint64),
        ("read_format", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("wakeup_watermark", c_uint32),
        ("_rest", ctypes.c_uint8 * 60),
    ]


class BtfType(ctypes.Structure):
    """struct btf_type, include/uapi/linux/btf.h."""

    _fields_ = [("name_off", c_uint32), ("info", c_uint32), ("type", c_uint32)]


def _raise(call: str, number: int) -> None:
    # The kernel leaks its internal ENOTSUPP (524) here and there; strerror does not know it.
    said, log.lines = log.lines, []  # it is this call's: the next failure has another cause
    raise LibbpfError(call, errno.EOPNOTSUPP if number == 524 else number, said)


def negative(result: int, function: Any, arguments: object) -> int:
    """libbpf 1.0: a negative errno is a failure."""
    if result < 0:
        _raise(function.__name__, -result)
    return result


Pointer = TypeVar("Pointer")


def null(result: Pointer, function: Any, arguments: object) -> Pointer:
    """libbpf 1.0: NULL is a failure, the cause is in errno."""
    if not result:
        _raise(function.__name__, ctypes.get_errno())
    return result


_OBJECT, _PROGRAM, _MAP = POINTER(BpfObject), POINTER(BpfProgram), POINTER(BpfMap)
_LINK, _BTF, _RINGS = POINTER(BpfLink), POINTER(BtfTypes), POINTER(Rings)

SIGNATURES: dict[str, tuple[list[Any], Any, Callable[..., Any] | None]] = {
    # name                              arguments                        result     check
    "libbpf_set_print": ([c_void_p], c_void_p, None),
    "libbpf_version_string": ([], c_char_p, None),
    "bpf_object__open_file": ([c_char_p, c_void_p], _OBJECT, null),
    "bpf_object__load": ([_OBJECT], c_int, negative),
    "bpf_object__close": ([_OBJECT], None, None),
    "bpf_object__next_program": ([_OBJECT, _PROGRAM], _PROGRAM, None),
    "bpf_object__find_map_by_name": ([_OBJECT, c_char_p], _MAP, null),
    "bpf_program__section_name": ([_PROGRAM], c_char_p, None),
    "bpf_program__set_autoload": ([_PROGRAM, ctypes.c_bool], c_int, negative),
    "bpf_program__attach": ([_PROGRAM], _LINK, null),
    "bpf_program__attach_iter": ([_PROGRAM, POINTER(IterOptions)], _LINK, null),
    "bpf_program__attach_perf_event": ([_PROGRAM, c_int], _LINK, null),
    "bpf_program__fd": ([_PROGRAM], c_int, negative),
    "bpf_link__destroy": ([_LINK], c_int, negative),
    "bpf_link__fd": ([_LINK], c_int, negative),
    "bpf_iter_create": ([c_int], c_int, negative),
    "bpf_map__fd": ([_MAP], c_int, negative),
    "bpf_map__key_size": ([_MAP], c_uint32, None),
    "bpf_map__value_size": ([_MAP], c_uint32, None),
    "bpf_map__inner_map": ([_MAP], _MAP, null),
    "bpf_map__set_autocreate": ([_MAP, ctypes.c_bool], c_int, negative),
    "bpf_map__set_max_entries": ([_MAP, c_uint32], c_int, negative),
    "bpf_map__type": ([_MAP], c_int, None),
    "bpf_map__map_flags": ([_MAP], c_uint32, None),
    "bpf_map__set_map_flags": ([_MAP, c_uint32], c_int, negative),
    "bpf_map__set_type": ([_MAP, c_int], c_int, negative),
    "bpf_map__set_key_size": ([_MAP, c_uint32], c_int, negative),
    "bpf_map__reuse_fd": ([_MAP, c_int], c_int, negative),
    "bpf_map__initial_value": ([_MAP, POINTER(c_size_t)], c_void_p, null),
    "bpf_map_lookup_elem": ([c_int, c_char_p, c_void_p], c_int, negative),
    "bpf_map_update_elem": ([c_int, c_char_p, c_char_p, ctypes.c_uint64], c_int, negative),
    "bpf_map_delete_elem": ([c_int, c_char_p], c_int, negative),
    "bpf_map_get_next_key": ([c_int, c_char_p, c_void_p], c_int, negative),
    "bpf_map_lookup_batch": (
        [c_int, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_uint32), c_void_p],
        c_int,
        negative,
    ),
    "bpf_map_delete_batch": ([c_int, c_char_p, POINTER(c_uint32), c_void_p], c_int, negative),
    "libbpf_num_possible_cpus": ([], c_int, negative),
    "libbpf_probe_bpf_map_type": ([c_int, c_void_p], c_int, negative),
    "bpf_obj_get": ([c_char_p], c_int, negative),
    "bpf_obj_get_info_by_fd": ([c_int, c_void_p, POINTER(c_uint32)], c_int, negative),
    "bpf_prog_test_run_opts": ([c_int, POINTER(TestRunOptions)], c_int, negative),
    "bpf_prog_load": (
        [c_int, c_char_p, c_char_p, c_void_p, c_size_t, c_void_p],
        c_int,
        negative,
    ),
    "btf__load_vmlinux_btf": ([], _BTF, null),
    "btf__parse": ([c_char_p, c_void_p], _BTF, null),
    "btf__parse_split": ([c_char_p, _BTF], _BTF, null),
    "btf__raw_data": ([_BTF, POINTER(c_uint32)], c_void_p, null),
    "btf__find_by_name_kind": ([_BTF, c_char_p, c_uint32], c_int, negative),
    "btf__type_by_id": ([_BTF, c_uint32], POINTER(BtfType), None),
    "btf__name_by_offset": ([_BTF, c_uint32], c_char_p, null),
    "btf__free": ([_BTF], None, None),
    "perf_buffer__new_raw": (
        [c_int, c_size_t, POINTER(PerfEventAttr), c_void_p, c_void_p, c_void_p],
        _RINGS,
        null,
    ),
    "perf_buffer__free": ([_RINGS], None, None),
    "perf_buffer__epoll_fd": ([_RINGS], c_int, negative),
    "perf_buffer__buffer_cnt": ([_RINGS], c_size_t, None),
    "perf_buffer__buffer": (
        [_RINGS, c_int, POINTER(c_void_p), POINTER(c_size_t)],
        c_int,
        negative,
    ),
}

_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}  # asm/unistd.h
_PERF_TYPE_TRACEPOINT = 2  # include/uapi/linux/perf_event.h
_CLOEXEC = 8  # PERF_FLAG_FD_CLOEXEC


class _Log(threading.local):
    """What libbpf printed since the last clear(), a message a line: it prints in the thread that
    calls it, so that each thread has its own."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def clear(self) -> None:
        self.lines = []


log = _Log()

verbose = 0
"""Which of libbpf's messages go to standard error as they come: 1: warnings, 2: all."""


@cache
def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def syscall(name: str, number: int, *arguments: Any) -> int:
    """A system call that libc has no function for, syscall(2); LibbpfError where it fails.

    arguments: numbers, bytes, None or byref(), as the kernel wants them.
    """
    # A plain int would be passed as 32 bits; the kernel takes whole registers.
    whole = [c_long(x) if isinstance(x, int) else x for x in arguments]
    result = int(libc().syscall(c_long(number), *whole))
    if result < 0:
        raise LibbpfError(name, ctypes.get_errno())
    return result


def open_tracepoint(number: int) -> int:
    """A perf event of a classic tracepoint, perf_event_open(2): what libbpf opens for one.

    It stands on one CPU; a program on it runs on all.
    """
    attributes = PerfEventAttr(
        type=_PERF_TYPE_TRACEPOINT, size=ctypes.sizeof(PerfEventAttr), config=number
    )
    call = _PERF_EVENT_OPEN[os.uname().machine]
    any_pid, cpu, no_group = -1, 0, -1
    return syscall(
        "perf_event_open", call, ctypes.byref(attributes), any_pid, cpu, no_group, _CLOEXEC
    )


def _candidates() -> list[str]:
    chosen = os.environ.get("TCPCORE_LIBBPF")
    if chosen:
        return [chosen]
    bundled = Path(__file__).parent.parent / "libs" / "libbpf.so.1"
    return [str(bundled)] * bundled.exists() + ["libbpf.so.1"]


def _open() -> ctypes.CDLL:
    reasons = []
    for path in _candidates():
        try:
            return ctypes.CDLL(path, use_errno=True)
        except OSError as e:
            reasons.append(str(e))
    raise UnsupportedError(f"cannot load {PACKAGE} ({'; '.join(reasons)})")


@cache
def libbpf() -> ctypes.CDLL:
    """libbpf with the signatures above; UnsupportedError when there is none, or too old a one."""
    library = _open()
    for name, (arguments, result, check) in SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise UnsupportedError(f"{library._name} lacks {name}; need {PACKAGE}") from None
        function.argtypes, function.restype = arguments, result
        if check:
            function.errcheck = check
    library.libbpf_set_print(_PRINT)
    return library


def _print(level: int, template: bytes, arguments: int) -> int:
    """libbpf_print_fn_t. A va_list parameter is a pointer in every ABI we run on."""
    if level != WARN and verbose < 2:
        return 0
    # va_copy: formatting uses a va_list up. It has 24 bytes on x86-64, 32 on arm64.
    again = ctypes.create_string_buffer(ctypes.string_at(arguments, 32), 32)
    buffer = ctypes.create_string_buffer(4096)
    length = libc().vsnprintf(buffer, c_size_t(4096), c_char_p(template), c_void_p(arguments))
    # The verifier's log comes as one message of up to 16 MB, and its end is what matters.
    if length >= 4096 and level == WARN:
        buffer = ctypes.create_string_buffer(length + 1)
        libc().vsnprintf(buffer, c_size_t(length + 1), c_char_p(template), again)
    message = buffer.value.decode(errors="replace").rstrip()
    if level == WARN:
        log.lines.append(message)
    if verbose:
        print(message, file=sys.stderr)
    return len(message)


# The library keeps the pointer, so the callback must live as long as the module.
_PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)(_print)
