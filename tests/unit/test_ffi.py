"""The door to libbpf. Opening an object needs no privilege."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from pathlib import Path

import pytest

from tcpcore.errors import LibbpfError
from tcpcore.loader import ffi
from tests.unit.samples import TOOLS, object_file, python


def a_call() -> None:
    """Stands for a function of libbpf."""


def test_libbpf_has_every_function() -> None:
    library = ffi.libbpf()
    for name, (arguments, result, check) in ffi.SIGNATURES.items():
        function = getattr(library, name)
        assert (function.argtypes, function.restype) == (arguments, result)
        assert check is None or function.errcheck is check


def test_calls_that_can_fail_are_checked() -> None:
    """int and pointers carry errors; those without a checker are the ones that cannot fail."""
    unchecked = {name for name, (_, _, check) in ffi.SIGNATURES.items() if check is None}
    assert unchecked <= {
        "libbpf_set_print", "libbpf_version_string", "bpf_object__close", "bpf_map__type",
        "bpf_object__next_program", "bpf_program__section_name", "bpf_map__key_size",
        "bpf_map__value_size", "bpf_map__map_flags", "btf__type_by_id", "btf__free",
        "perf_buffer__free", "perf_buffer__buffer_cnt",
    }  # fmt: skip


def test_a_negative_result_raises() -> None:
    assert [ffi.negative(n, a_call, ()) for n in (0, 3)] == [0, 3]
    with pytest.raises(LibbpfError) as e:
        ffi.negative(-errno.EPERM, a_call, ())
    assert (e.value.call, e.value.errno) == ("a_call", errno.EPERM)


def test_null_raises_with_the_errno() -> None:
    assert ffi.null(4096, a_call, ()) == 4096
    for nothing in (0, None):
        ctypes.set_errno(errno.EINVAL)
        with pytest.raises(LibbpfError) as e:
            ffi.null(nothing, a_call, ())
        assert (e.value.call, e.value.errno) == ("a_call", errno.EINVAL)


def test_the_kernels_own_enotsupp_has_a_name() -> None:
    with pytest.raises(LibbpfError) as e:
        ffi.negative(-524, a_call, ())
    assert e.value.errno == errno.EOPNOTSUPP
    assert "Unknown error" not in str(e.value)


def test_the_attribute_of_perf_event_open_has_its_layout() -> None:
    assert ctypes.sizeof(ffi.PerfEventAttr) == 112
    assert ffi.PerfEventAttr.flags.offset == 40
    assert ffi.PerfEventAttr.wakeup_watermark.offset == 48


def test_an_error_has_call_errno_and_what_libbpf_said(tmp_path: Path) -> None:
    ffi.log.clear()
    with pytest.raises(LibbpfError) as e:
        ffi.libbpf().bpf_object__open_file(bytes(tmp_path / "absent.bpf.o"), None)
    assert (e.value.call, e.value.errno) == ("bpf_object__open_file", errno.ENOENT)
    assert "absent.bpf.o" in e.value.telling
    assert not e.value.telling.startswith("libbpf")
    assert str(e.value).startswith("bpf_object__open_file: No such file or directory: ")


def test_a_path_that_is_no_text_is_told_all_the_same(tmp_path: Path) -> None:
    ffi.log.clear()
    with pytest.raises(LibbpfError) as e:
        ffi.libbpf().bpf_object__open_file(bytes(tmp_path / "absent") + b"\xff.bpf.o", None)
    assert "absent\ufffd.bpf.o" in e.value.telling


def test_an_error_takes_the_log_along(tmp_path: Path) -> None:
    """Another failure, which libbpf is silent about, is not told with this one's cause."""
    with pytest.raises(LibbpfError):
        ffi.libbpf().bpf_object__open_file(bytes(tmp_path / "absent.bpf.o"), None)
    with pytest.raises(LibbpfError) as e:
        ffi.libbpf().bpf_map_get_next_key(-1, None, ctypes.create_string_buffer(8))
    assert e.value.log == ()


def test_each_thread_has_a_log_of_its_own(tmp_path: Path) -> None:
    """Two traces may start at once: neither empties, nor tells, what libbpf said to the other."""
    ffi.log.clear()
    ffi.log.lines.append("ours")
    found: list[list[str]] = []

    def elsewhere() -> None:
        ffi.log.lines.append("theirs")
        found.append(ffi.log.lines)
        ffi.log.clear()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert (ffi.log.lines, found) == (["ours"], [["theirs"]])


def test_a_handle_has_a_type_of_its_own() -> None:
    """A number, or a handle of another kind, does not get as far as libbpf."""
    a_map = ctypes.pointer(ffi.BpfMap())
    for wrong in (4096, a_map):
        with pytest.raises(ctypes.ArgumentError):
            ffi.libbpf().bpf_program__section_name(wrong)


def test_an_error_that_libbpf_is_silent_about(tmp_path: Path) -> None:
    ffi.log.clear()
    with pytest.raises(LibbpfError) as e:
        ffi.libbpf().bpf_map_get_next_key(-1, None, ctypes.create_string_buffer(8))
    assert str(e.value) == "bpf_map_get_next_key: " + "Bad file descriptor"


def test_the_end_of_a_long_message_is_kept() -> None:
    """The verifier's log is one message of up to 16 MB, and its end tells the cause."""
    ffi.log.clear()
    with pytest.raises(LibbpfError) as e:
        ffi.libbpf().bpf_object__open_file(b"/" + b"x" * 300_000, None)
    assert len(e.value.log[0]) > 300_000
    assert not e.value.log[0].endswith("x")


def test_a_library_that_is_not_there_names_the_package() -> None:
    done = python(
        "from tcpcore.errors import UnsupportedError\n"
        "from tcpcore.loader import ffi\n"
        "try: ffi.libbpf()\n"
        "except UnsupportedError as e: print(e.exit_code, e)\n",
        TCPCORE_LIBBPF="/nowhere/libbpf.so.1",
    )
    assert done.stderr == ""
    assert done.stdout.startswith("3 ")
    assert "/nowhere/libbpf.so.1" in done.stdout
    assert "install libbpf1" in done.stdout


def test_a_library_that_is_too_old_names_the_package() -> None:
    """libc has none of the functions."""
    done = python(
        "from tcpcore.errors import UnsupportedError\n"
        "from tcpcore.loader import ffi\n"
        "try: ffi.libbpf()\n"
        "except UnsupportedError as e: print(e)\n",
        TCPCORE_LIBBPF="libc.so.6",
    )
    assert done.stderr == ""
    assert "libc.so.6 lacks libbpf_set_print" in done.stdout
    assert "install libbpf1" in done.stdout


@pytest.mark.parametrize(("level", "warns", "debugs"), [(0, 0, 0), (1, 1, 0), (2, 1, 1)])
def test_verbose_copies_messages_to_stderr(level: int, warns: bool, debugs: bool) -> None:
    built = object_file(TOOLS[0], "x86").path
    done = python(
        "from tcpcore.errors import LibbpfError\n"
        "from tcpcore.loader import ffi\n"
        f"ffi.verbose = {level}\n"
        f"ffi.libbpf().bpf_object__open_file({bytes(built)!r}, None)\n"
        "try: ffi.libbpf().bpf_object__open_file(b'/absent.bpf.o', None)\n"
        "except LibbpfError as e: print(e)\n",
    )
    assert "/absent.bpf.o" in done.stdout  # it is in the log at any level
    assert ("failed to open /absent.bpf.o" in done.stderr) == warns
    assert (f"loading object from {built}" in done.stderr) == debugs
    assert all(line.startswith("libbpf: ") for line in done.stderr.splitlines())


def test_a_system_call_by_number(tmp_path: Path) -> None:
    """Numbers are passed whole, other arguments as they are; failures have name and errno."""
    number = {"x86_64": 257, "aarch64": 56}[os.uname().machine]  # openat(2)
    fd = ffi.syscall("openat", number, -100, bytes(tmp_path), os.O_PATH)
    assert Path(f"/proc/self/fd/{fd}").readlink() == tmp_path
    os.close(fd)
    with pytest.raises(LibbpfError) as e:
        ffi.syscall("openat", number, -100, bytes(tmp_path / "absent"), os.O_PATH)
    assert (e.value.call, e.value.errno) == ("openat", errno.ENOENT)
    assert str(e.value) == "openat: No such file or directory"
