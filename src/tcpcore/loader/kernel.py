"""Questions to the running kernel, asked of its BTF and of sysfs, never of its version."""

from __future__ import annotations

import ctypes
import os
import struct
from functools import cache
from pathlib import Path

from tcpcore.errors import LibbpfError
from tcpcore.loader import ffi
from tcpcore.loader.ffi import libbpf

VMLINUX_BTF = Path("/sys/kernel/btf/vmlinux")
KPROBE_PMU = Path("/sys/bus/event_source/devices/kprobe")
TRACEFS_KPROBES = (
    Path("/sys/kernel/tracing/kprobe_events"),
    Path("/sys/kernel/debug/tracing/kprobe_events"),
)

_BTF_KIND_FUNC = 12
# include/uapi/linux/bpf.h; r0 = 0; exit
_PROG_TYPE_TRACING, _TRACE_FENTRY = 26, 24
_RETURN_0 = struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)
_CAPABILITIES = {"CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}


class Btf:
    """The kernel's own type information; LibbpfError where there is none."""

    def __init__(self) -> None:
        self._btf = libbpf().btf__load_vmlinux_btf()

    def close(self) -> None:
        libbpf().btf__free(self._btf)

    def parameters(self, function: str) -> int | None:
        """How many parameters the kernel function has; None if there is no such function."""
        try:
            found = self._function(function)
        except LibbpfError:
            return None
        prototype = libbpf().btf__type_by_id(self._btf, found).contents.type
        return int(libbpf().btf__type_by_id(self._btf, prototype).contents.info & 0xFFFF)

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

    def _function(self, name: str) -> int:
        found: int = libbpf().btf__find_by_name_kind(self._btf, name.encode(), _BTF_KIND_FUNC)
        return found


@cache
def _read() -> Btf:
    return Btf()


def btf() -> Btf | None:
    """The running kernel's BTF, read once; None where the kernel carries none."""
    return _read() if VMLINUX_BTF.exists() else None


def forget() -> None:
    """Give back the BTF's memory, several MB; it is read again when it is asked."""
    if _read.cache_info().currsize:
        _read().close()
    _read.cache_clear()


def has_kprobes() -> bool:
    return KPROBE_PMU.exists() or any(path.exists() for path in TRACEFS_KPROBES)


def cannot(section: str, parameters: int | None = None) -> str | None:
    """Why a program of this section cannot attach; None if nothing speaks against a try.

    parameters: how many the kernel function must have, where the program counts on it.
    """
    kind, _, target = section.partition("/")
    if kind in ("kprobe", "kretprobe"):
        return None if has_kprobes() else "the kernel is built without kprobes"
    if kind not in ("fentry", "fexit", "tp_btf"):
        return None
    if not VMLINUX_BTF.exists():
        return f"no kernel BTF ({VMLINUX_BTF} is absent)"
    # A missing tracepoint libbpf finds itself: reading the BTF twice would cost 8 ms.
    types = None if kind == "tp_btf" else btf()
    if types is None:
        return None
    count = types.parameters(target)
    if count is None:
        return f"no function {target} in kernel BTF"
    if parameters is not None and count != parameters:
        return f"{target} has {count} parameters, not {parameters}"
    return types.fentry_refusal(target)


def missing_capabilities() -> list[str]:
    """What loading and attaching needs and this process lacks (capabilities(7)).

    CAP_SYS_ADMIN covers both; CAP_BPF and CAP_PERFMON exist since Linux 5.8.
    """
    status = Path("/proc/self/status").read_text()
    effective = int(next(x for x in status.splitlines() if x.startswith("CapEff")).split()[1], 16)
    held = {name for name, bit in _CAPABILITIES.items() if effective >> bit & 1}
    return [] if "CAP_SYS_ADMIN" in held else sorted({"CAP_BPF", "CAP_PERFMON"} - held)
