"""What several unit tests take: the tools, their objects, raw events, child processes."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

import tcpcore
from tcpcore.loader import ObjectFile
from tcpcore.model import fields
from tcpcore.model.tool import Histograms, Lines, Tool
from tcpcore.sinks import csv, ndjson, table
from tcpcore.tools import names

ROOT = Path(__file__).parents[2]
PACKAGE = Path(tcpcore.__file__).parent
TOOLS = names()
ARCHITECTURES = ("x86", "arm64")


def tool(name: str) -> Tool:
    return cast(Tool, importlib.import_module(f"tcpcore.tools.{name}").TOOL)


def with_each_flag(name: str) -> list[Tool]:
    """The tool as it is, and with each of its flags set alone."""
    make = importlib.import_module(f"tcpcore.tools.{name}").tool
    parameters = inspect.signature(make).parameters
    flags = [flag for flag, parameter in parameters.items() if parameter.default is False]
    return [tool(name), *(make(**{flag: True}) for flag in flags)]


def all_lines(name: str) -> list[Lines]:
    """What the tool shows, whatever its options."""
    kinds = [kind for each in with_each_flag(name) for kind in each.kinds]
    return [kind.lines for kind in kinds if not isinstance(kind, Histograms)]


def lines(of: Tool) -> Lines:
    """Those of its stream."""
    assert of.stream
    return of.stream.lines


def as_table(
    of: Tool, wide: bool = False, timestamp: bool = False, wall: bool = False
) -> table.Table:
    return table.Table(lines(of), wide, table.stamps(timestamp, wall))


def as_json(of: Tool) -> ndjson.Objects:
    return ndjson.Objects(of.name, lines(of))


def as_csv(of: Tool) -> csv.Cells:
    return csv.Cells(lines(of))


def object_file(name: str, architecture: str) -> ObjectFile:
    return ObjectFile(PACKAGE / "objects" / f"{name}.{architecture}.bpf.o")


def address(text: str) -> bytes:
    """16 bytes as on the wire; IPv4 is v4-mapped."""
    packed = ip_address(text).packed
    return packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed


def comm(name: bytes) -> bytes:
    return name.ljust(16, b"\0")


def event(of: Tool, **values: Any) -> tuple[Any, ...]:
    """A raw record of a tool's event; fields that are not given have a usual value."""
    usual = {
        "ts_ns": time.monotonic_ns(),
        "laddr": address("192.0.2.1"),
        "raddr": address("198.51.100.7"),
        "pid": 4711,
        "uid": 1000,
        "netns": 4026531840,
        "lport": 40000,
        "rport": 443,
        "family": 2,
        "comm": comm(b"curl"),
    }
    kinds = fields.kinds(of.event)
    blank = {name: bytes(16) if kind.code == "16s" else 1 for name, kind in kinds.items()}
    whole = blank | {k: v for k, v in usual.items() if k in kinds} | values
    assert whole.keys() == kinds.keys()
    return tuple(whole[name] for name in kinds)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, which finds the tcpcore that this one uses."""
    return child("-c", code, **environment)


def tcpcore_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return child("-m", "tcpcore", *arguments)


def child(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)} | environment,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=60,
    )
