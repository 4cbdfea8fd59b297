"""From CLOCK_MONOTONIC, which events carry, to the time of day."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from tcpcore.fields import Cache

SECOND = 1_000_000_000


def _offset() -> int:
    """What to add to CLOCK_MONOTONIC; asked anew each time, since NTP may step the clock."""
    return time.time_ns() - time.monotonic_ns()


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


def time_of_day(stamps: Iterable[int]) -> list[str]:
    """Monotonic nanoseconds as HH:MM:SS of the local time zone."""
    offset = _offset()
    return [_LOCAL[(ns + offset) // SECOND] for ns in stamps]


def since(start_ns: int, stamps: Iterable[int], width: int) -> list[str]:
    """Seconds since start_ns, with milliseconds, padded."""
    template = f"%-{width}.3f"
    return [template % ((ns - start_ns) / SECOND) for ns in stamps]
