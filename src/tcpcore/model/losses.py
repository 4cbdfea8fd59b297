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
        f"{losses.ring} events found the ring full (a larger --buffer helps)": losses.ring,
        f"{losses.map} sockets found a map full (a larger --map-size helps)": losses.map,
        f"{losses.missed} events came while the program ran already": losses.missed,
        f"{losses.malformed} records could not be decoded": losses.malformed,
        f"{losses.answers} DNS packets came too fast to be read": losses.answers,
        f"{losses.output} events had no ring to go to (a CPU that came after the start has none: "
        "start again)": losses.output,
    }
    return "lost so far: " + "; ".join(text for text, number in causes.items() if number)
