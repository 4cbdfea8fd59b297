"""CLOCK_MONOTONIC, which events carry, and the time of day that it stands for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from tcpcore.model.fields import Cache

SECOND = 1_000_000_000

_CLOCK_MONOTONIC_COARSE = 6  # include/uapi/linux/time.h; Python has no name for it

_HOST_NAMESPACE = 0xEFFFFFFA
"""Inode of the host's time namespace: PROC_TIME_INIT_INO, include/linux/proc_ns.h."""
_OFFSETS = Path("/proc/self/timens_offsets")


def _namespace() -> int:
    return Path("/proc/self/ns/time").stat().st_ino


@cache
def _ahead() -> int:
    """Nanoseconds that CLOCK_MONOTONIC of this time namespace is ahead of the host's.

    time_namespaces(7). timens_offsets is about the children's namespace: a process that has called
    unshare(2) is itself where it was.
    """
    try:
        if _namespace() == _HOST_NAMESPACE:
            return 0
        lines = map(str.split, _OFFSETS.read_text().splitlines())
    except OSError:  # a kernel without them: CONFIG_TIME_NS
        return 0
    offsets = {name: int(seconds) * SECOND + int(rest) for name, seconds, rest in lines}
    return offsets["monotonic"]


def monotonic_ns() -> int:
    """CLOCK_MONOTONIC as BPF reads it, which knows no time namespaces: that of the host."""
    return time.monotonic_ns() - _ahead()


def _offset() -> int:
    """What to add to a stamp; asked anew each time, since NTP may step the clock."""
    return time.time_ns() - monotonic_ns()


def _utc(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _local(second: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(second))


_UTC, _LOCAL = Cache(_utc), Cache(_local)


def rfc3339(stamps: Sequence[int]) -> list[str]:
    """Monotonic nanoseconds as RFC 3339 UTC with nanoseconds."""
    offset = _offset()
    second = (stamps[0] + offset) // SECOND
    shift = offset - second * SECOND
    # Batches are in time order, and mostly of one second.
    if stamps[-1] + shift < SECOND:
        template = f"{_UTC[second]}.%09dZ"
        return [template % (ns + shift) for ns in stamps]
    pairs = (divmod(ns + offset, SECOND) for ns in stamps)
    return [f"{_UTC[second]}.{rest:09d}Z" for second, rest in pairs]


def since_1970(stamp: int) -> int:
    """Monotonic nanoseconds as those of CLOCK_REALTIME."""
    return stamp + _offset()


def time_of_day(stamps: Iterable[int]) -> list[str]:
    """Monotonic nanoseconds as HH:MM:SS of the local time zone."""
    offset = _offset()
    return [_LOCAL[(ns + offset) // SECOND] for ns in stamps]


def since(start_ns: int, stamps: Iterable[int], width: int) -> list[str]:
    """Seconds since start_ns, with milliseconds, padded."""
    template = f"%-{width}.3f"
    return [template % ((ns - start_ns) / SECOND) for ns in stamps]


def jiffy_ns() -> int:
    """The kernel's tick: the coarse clocks go on with it, clock_getres(2)."""
    return round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e9)
