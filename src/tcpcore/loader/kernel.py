"""Questions to the running kernel, asked of its BTF and of sysfs, never of its version."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path

from tcpcore.errors import LibbpfError, UsageError
from tcpcore.loader import ffi
from tcpcore.loader.ffi import libbpf

VMLINUX_BTF = Path("/sys/kernel/btf/vmlinux")
# Since Linux 4.17 (e12f03d7031a), wherever kprobes can be had as perf events.
KPROBE_PMU = Path("/sys/bus/event_source/devices/kprobe")

_BTF_KIND_FUNC = 12
# include/uapi/linux/bpf.h; r0 = 0; exit
_PROG_TYPE_TRACING, _TRACE_FENTRY = 26, 24
_RETURN_0 = struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)
_CAPABILITIES = {"CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}


class Btf:
    """The kernel's own type information. It is read when it is first asked."""

    def __init__(self) -> None:
        self._handle: ffi.BtfHandle | None = None

    def close(self) -> None:
        """Give back the memory, several MB; it is read again when it is asked again."""
        handle, self._handle = self._handle, None
        if handle:
            libbpf().btf__free(handle)

    def parameters(self, function: str) -> int | None:
        """How many parameters the kernel function has; None if there is no such function.

        Raises LibbpfError where the kernel's BTF cannot be read.
        """
        try:
            found = self._function(function)
        except LibbpfError as e:
            if e.errno == errno.ENOENT:
                return None
            raise
        prototype = libbpf().btf__type_by_id(self._read(), found).contents.type
        return int(libbpf().btf__type_by_id(self._read(), prototype).contents.info & 0xFFFF)

    def fentry_refusal(self, function: str) -> str | None:
        """Why the kernel takes no fentry or fexit program at a function; None if it does.

        It is asked to load one of two instructions: a whole object takes 20 ms to be refused.
        """
        options = ffi.LoadOptions(
            sz=ctypes.sizeof(ffi.LoadOptions),
            expected_attach_type=_TRACE_FENTRY,
            attach_btf_id=self._function(function),
        )
        arguments = (_RETURN_0, len(_RETURN_0) // 8, ctypes.byref(options))
        try:
            os.close(libbpf().bpf_prog_load(_PROG_TYPE_TRACING, b"probe", b"GPL", *arguments))
        except LibbpfError as e:
            return f"no program at {function}: {e}"
        return None

    def _read(self) -> ffi.BtfHandle:
        if self._handle is None:
            self._handle = libbpf().btf__load_vmlinux_btf()
        return self._handle

    def _function(self, name: str) -> int:
        found: int = libbpf().btf__find_by_name_kind(self._read(), name.encode(), _BTF_KIND_FUNC)
        return found


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
    """UsageError unless the file holds BTF: as it is, or in an ELF section (btf__parse)."""
    try:
        _try_open(path)
        types = libbpf().btf__parse(os.fsencode(path), None)
    except OSError as e:
        raise UsageError(f"--btf: {path}: {e.strerror}") from None
    except LibbpfError:  # of many kinds: libbpf has error numbers of its own for other content
        raise UsageError(f"--btf: {path}: no BTF in it") from None
    libbpf().btf__free(types)


def _try_open(path: Path) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))


def has_kprobes() -> bool:
    return os.access(KPROBE_PMU, os.F_OK)  # Path.exists() raises where it may not look


def cannot(section: str, btf: Btf, parameters: int | None = None) -> str | None:
    """Why a program of this section cannot attach; None if nothing speaks against a try.

    parameters: how many the kernel function must have, where the program counts on it.
    """
    kind, _, target = section.partition("/")
    if kind in ("kprobe", "kretprobe"):
        return None if has_kprobes() else "the kernel is built without kprobes"
    if kind not in ("fentry", "fexit", "tp_btf"):
        return None
    # A missing tracepoint libbpf finds itself: reading the BTF twice would cost 8 ms.
    return no_btf() or (None if kind == "tp_btf" else _not_traceable(target, btf, parameters))


def _not_traceable(function: str, btf: Btf, parameters: int | None) -> str | None:
    try:
        count = btf.parameters(function)
    except LibbpfError as e:
        return f"no kernel BTF ({e})"
    if count is None:
        return f"no function {function} in kernel BTF"
    if parameters is not None and count != parameters:
        return f"{function} has {count} parameters, not {parameters}"
    return btf.fentry_refusal(function)


def missing_capabilities() -> list[str]:
    """What loading and attaching needs and this process lacks (capabilities(7)).

    CAP_SYS_ADMIN covers both; CAP_BPF and CAP_PERFMON exist since Linux 5.8.
    """
    status = Path("/proc/self/status").read_text()
    effective = int(next(x for x in status.splitlines() if x.startswith("CapEff")).split()[1], 16)
    held = {name for name, bit in _CAPABILITIES.items() if effective >> bit & 1}
    return [] if "CAP_SYS_ADMIN" in held else sorted({"CAP_BPF", "CAP_PERFMON"} - held)
