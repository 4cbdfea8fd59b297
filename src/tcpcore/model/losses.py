"""What was not seen, and how that is told."""

from __future__ import annotations

from typing import NamedTuple


class Losses(NamedTuple):
    """What was not seen, in events or sockets.

    ring: a full ring. map: a full map. missed: programs that the kernel skipped since one ran on
    the CPU already, or since too many tasks were in a function with a return probe. malformed:
    records that could not be decoded. output: events that the kernel took for no ring, such as
    those on a CPU that came after the start. answers: DNS packets that came too fast to be read,
    whose names are not known.
    """

    ring: int = 0
    map: int = 0
    missed: int = 0
    malformed: int = 0
    output: int = 0
    answers: int = 0

    def __bool__(self) -> bool:
        return any(tuple(self))


def describe(losses: Losses) -> str:
    """One line: how much was lost, why, and what helps."""
    causes = {
        f"{losses.ring} events: buffer full (try a larger `buffer`)": losses.ring,
        f"{losses.map} sockets: map full (try a larger `map_size`)": losses.map,
        f"{losses.missed} events: skipped, as the same program was running": losses.missed,
        f"{losses.malformed} records: not decodable": losses.malformed,
        f"{losses.answers} DNS packets: not read in time": losses.answers,
        f"{losses.output} events: their CPU has no buffer, it is new (start again)": losses.output,
    }
    return "lost so far: " + "; ".join(text for text, number in causes.items() if number)
