"""Values of options, from what a caller has: text of a command line, or Python's own types.

Each raises OptionError, which names the option and what was wrong with its value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from tcpcore.errors import OptionError
from tcpcore.model.net import AF_INET, AF_INET6

MAX_TARGETS = 64
"""How long the lists in bpf/lib/filter.bpf.h are."""

_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_Target = TypeVar("_Target")


def several(value: Any) -> list[Any]:
    """One value, or several in a list, tuple, set or range, as a list."""
    if isinstance(value, (list, tuple, set, frozenset, range)):
        return list(value)
    return [value]


def checked(option: str, value: Any, *kinds: type) -> Any:
    """The value, if it is of one of the kinds. A flag is not a number."""
    if isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)):
        return value
    expected = " or ".join(kind.__name__ for kind in kinds)
    raise OptionError(option, f"{value!r} is of type {type(value).__name__}, not {expected}")


def number(option: str, value: int | str, what: str, low: int, high: int) -> int:
    """A whole number in low..high."""
    text = str(checked(option, value, int, str))
    if not re.fullmatch(r"[0-9]{1,19}", text) or not low <= int(text) <= high:
        raise OptionError(option, f"'{text}' is not {what} ({low} to {high})")
    return int(text)


def numbers(option: str, values: Any, what: str, low: int, high: int) -> list[int]:
    return limited(option, [number(option, value, what, low, high) for value in several(values)])


def decimal(option: str, value: float | str, what: str, positive: bool = False) -> float:
    """A plain decimal number from 0 (or above it) to a billion."""
    text = checked(option, value, int, float, str)
    if isinstance(text, str) and not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{0,9})?|\.[0-9]{1,9}", text):
        raise OptionError(option, f"'{text}' is not {what}")
    # Written so that it is false of NaN.
    if not 0 <= float(text) < 1e9 or (positive and float(text) == 0):
        raise OptionError(option, f"'{text}' is not {what}")
    return float(text)


def seconds(option: str, value: float | str) -> float:
    """A positive number of seconds, fractions allowed."""
    return decimal(option, value, "a number of seconds", positive=True)


def size(option: str, value: int | str) -> int:
    """Bytes, up to 1 GiB: a number, or text like `512K`, `4M`."""
    text = str(checked(option, value, int, str))
    match = re.fullmatch(r"([0-9]{1,10})([KMG]?)(i?B)?", text, re.IGNORECASE | re.ASCII)
    bytes_ = int(match[1]) * _SIZES[match[2].upper()] if match else 0
    if not 1 <= bytes_ <= 1 << 30:
        raise OptionError(option, f"'{text}' is not a size like 512K or 4M (up to 1G)")
    return bytes_


def affordable(option: str, per_cpu: int) -> int:
    """The size itself, unless rings of it would take a quarter of the free memory.

    The kernel fills them before the first event, and rather kills processes than refuses.
    """
    whole = per_cpu * (os.cpu_count() or 1)
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable"))
    if whole > free // 4:
        raise OptionError(option, f"{whole >> 20} MiB on all CPUs, {free >> 20} MiB are free")
    return per_cpu


def ports(option: str, values: Any) -> list[int]:
    """80, (8000, 8099), range(8000, 8100) and `80,443,8000-8099`, alone or several, as ports."""
    return [port for value in several(values) for port in _some_ports(option, value)]


def _some_ports(option: str, value: Any) -> Iterable[int]:
    match value:
        case str():
            return [port for part in parts([value]) for port in _text_ports(option, part)]
        case (low, high):
            return _port_range(option, value, _port(option, low), _port(option, high))
        case range():
            return [_port(option, port) for port in value]
        case bool():
            raise OptionError(option, f"{value!r} is of type bool, not int, pair or text")
        case int():
            return [_port(option, value)]
    kind = type(value).__name__
    raise OptionError(option, f"{value!r} is of type {kind}, not int, pair or text")


def _text_ports(option: str, part: str) -> Iterable[int]:
    first, dash, last = part.partition("-")
    low = _port(option, first)
    return _port_range(option, part, low, _port(option, last) if dash else low)


def _port(option: str, value: int | str) -> int:
    return number(option, value, "a port", 1, 65535)


def _port_range(option: str, written: Any, low: int, high: int) -> range:
    if high < low:
        raise OptionError(option, f"the range '{written}' runs backwards")
    return range(low, high + 1)


def comms(option: str, names: Any) -> list[bytes]:
    """Task names, at most 15 bytes each, as the kernel keeps them."""
    encoded = [os.fsencode(checked(option, name, str, bytes)) for name in several(names)]
    for name in encoded:
        if not 1 <= len(name) <= 15:
            problem = f"'{os.fsdecode(name)}' is not a task name (1 to 15 bytes)"
            raise OptionError(option, problem)
    return limited(option, encoded)


def path(option: str, value: Any) -> Path:
    return Path(os.fsdecode(checked(option, value, str, bytes, os.PathLike)))


def text(option: str, value: Any) -> str:
    """A name, a number or a path, as a command line would have it."""
    kinds = (str, bytes, int, os.PathLike)
    found = checked(option, value, *kinds)
    return str(found) if isinstance(found, int) else os.fsdecode(found)


def texts(option: str, values: Any) -> list[str]:
    return [text(option, value) for value in several(values)]


def limited(option: str, targets: list[_Target]) -> list[_Target]:
    """The list itself, unless it is longer than the kernel side has room for."""
    if len(targets) > MAX_TARGETS:
        raise OptionError(option, f"{len(targets)} values, at most {MAX_TARGETS} fit")
    return targets


def family(ipv4: bool, ipv6: bool) -> int:
    """AF_INET or AF_INET6; 0 for both or none."""
    return 0 if ipv4 == ipv6 else AF_INET if ipv4 else AF_INET6


def parts(texts: Iterable[str]) -> list[str]:
    """Of comma-separated lists."""
    return [part.strip() for text in texts for part in text.split(",")]
