"""Where the time of a start goes: run as a program, prints JSON of milliseconds by phase.

Its arguments are a tool and the time.monotonic() of the exec. The numbers come from the command
itself, with clocks around the calls that take time; it ends where it would print the header.
"""

from __future__ import annotations

import importlib
import sys
import time

STARTED = time.monotonic()

# ruff: noqa: E402 - the imports are what is measured
import gc

gc.disable()  # as the command does
from tcpcore import cli, options  # noqa: F401 - the command imports it with the tool
from tcpcore.loader import elf, ffi, object
from tcpcore.loader.ffi import libbpf
from tcpcore.sinks.table import Table

importlib.import_module(f"tcpcore.tools.{sys.argv[1]}")  # as the command would
IMPORTED = time.monotonic()

import json
from collections.abc import Callable
from typing import Any

CALLS = {
    "btf__load_vmlinux_btf": "kernel BTF",
    "bpf_object__open_file": "open",
    "bpf_object__load": "load",
    "perf_buffer__new_raw": "rings",
    "bpf_program__attach": "attach",
    "bpf_program__attach_perf_event": "attach",
}
spent: dict[str, float] = {
    "interpreter": STARTED - float(sys.argv[2]),
    "imports": IMPORTED - STARTED,
}


def clocked(phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, its time added to the phase."""

    def measured(*arguments: Any) -> Any:
        begin = time.monotonic()
        try:
            return call(*arguments)
        finally:
            spent[phase] = spent.get(phase, 0) + time.monotonic() - begin

    return measured


def report(table: Table) -> str:
    """In the place of Table.header: tell, and end."""
    total = time.monotonic() - begin + sum(spent[name] for name in ("interpreter", "imports"))
    spent["rest"] = total - sum(spent.values())
    print(json.dumps({name: value * 1e3 for name, value in spent.items()}))
    raise SystemExit


def install() -> None:
    """Put clocks around the calls of CALLS and the object file's symbols."""
    library = libbpf()
    for name, phase in CALLS.items():
        setattr(library, name, clocked(phase, getattr(library, name)))
    setattr(ffi, "open_tracepoint", clocked("attach", ffi.open_tracepoint))  # noqa: B010
    setattr(object, "ObjectFile", clocked("object file", elf.ObjectFile))  # noqa: B010
    setattr(Table, "header", report)  # noqa: B010


install()
begin = time.monotonic()
del sys.argv[2]
cli.main()
