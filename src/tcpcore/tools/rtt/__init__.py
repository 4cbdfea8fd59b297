"""Show how the round-trip times of TCP connections are distributed.

Each segment that comes counts the smoothed round-trip time that its connection has by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from tcpcore.errors import OptionError
from tcpcore.loader import Slot, Way
from tcpcore.model.counted import Measured
from tcpcore.model.option import Option
from tcpcore.model.slots import ACCEPTING, TRANSITIONS, WALK, optional
from tcpcore.model.tool import Histograms, Rodata, Tool

if TYPE_CHECKING:
    from tcpcore.tools.rtt.keys import Keys


_TYPES = ("struct sock *, struct sk_buff *",)

# The tracepoint is the first thing that the function does, and costs less than a kprobe there.
SEGMENTS = (
    Slot(
        "segments received",
        (
            Way(("fentry/tcp_rcv_established",), types={"tcp_rcv_established": _TYPES}),
            Way(("tp_btf/tcp_probe",)),
            Way(("raw_tp/tcp_probe",)),
            Way(("kprobe/tcp_rcv_established",)),
        ),
    ),
)

_FOLLOWING = TRANSITIONS + optional(ACCEPTING)

_MEASURES = ("srtt", "min_rtt", "jitter")  # enum rtt_measure

TOOL = Tool(
    name="rtt",
    kinds=(Histograms(Measured("rtts", "srtt", "us")),),
    slots=_FOLLOWING + SEGMENTS + WALK,
    sockets=("sockets",),
    seed="iter/task_file",
    needs_seed=False,
)

EXAMPLES = (
    ("rtt --by raddr/24 -e -d 60", "per network, with percentiles"),
    ("rtt -L 443 -i 10 -T", "of a server, every ten seconds"),
    ("rtt --heatmap --weight connection", "each connection once a second"),
)

# Those of tcprtt; its -p and -D have another meaning in all tools of ours.
ALIASES = {"laddr": ("-a",), "raddr": ("-A",), "rport": ("-P",)}


def tool(
    by: Annotated[
        str,
        Option(
            "Apart by laddr, raddr (or raddr/24), lport, rport, process, container, netns.",
            metavar="KEY",
        ),
    ] = "",
    byladdr: Annotated[bool, Option("As --by laddr.", ("--byladdr", "-b"))] = False,
    byraddr: Annotated[bool, Option("As --by raddr.", ("--byraddr", "-B"))] = False,
    weight: Annotated[
        str,
        Option("What counts: each segment, or each connection once.", metavar="segment|connection"),
    ] = "segment",
    min_rtt: Annotated[bool, Option("The shortest round-trip time of late instead.")] = False,
    jitter: Annotated[bool, Option("How much the round-trip time varies instead.")] = False,
    millisecond: Annotated[
        bool, Option("In milliseconds.", ("--millisecond", "--milliseconds", "-m"))
    ] = False,
    extension: Annotated[
        bool, Option("The average, p50, p90 and p99 as well.", ("--extension", "-e"))
    ] = False,
) -> Tool:
    """by: what has a histogram of its own, as raddr, raddr/24 or raddr/24,64 (IPv4, IPv6), lport,
    rport, process, container, netns, or several with commas. byladdr, byraddr: short for two of
    them. weight: "segment", or "connection", of which each counts once a report. min_rtt, jitter:
    another measure than the smoothed round-trip time. millisecond: not microseconds. extension:
    text has the average and percentiles, too."""
    if min_rtt and jitter:
        raise OptionError("jitter", "and `min_rtt`: one of them")
    if weight not in ("segment", "connection"):
        raise OptionError("weight", f"'{weight}' is neither segment nor connection")
    number = _MEASURES.index("min_rtt" if min_rtt else "jitter" if jitter else "srtt")
    source = Measured("rtts", _MEASURES[number], "ms" if millisecond else "us")
    rodata: Rodata = {"rtt_measure": number, "rtt_in_ms": millisecond}
    asked = ",".join([by] * bool(by) + ["laddr"] * byladdr + ["raddr"] * byraddr)
    keys = _keys(asked) if asked else None
    if keys:
        source = source._replace(key=keys.key, struct="rtt", show=keys.show)
        rodata |= keys.rodata()
    whole = TOOL._replace(kinds=(Histograms(source, summary=extension),), rodata=rodata)
    if weight == "connection":
        return whole._replace(slots=_FOLLOWING + WALK, rodata=rodata | {"rtt_by_connection": True})
    return _of_segments(whole, has_owners=bool(keys and keys.has_owners))


def _of_segments(whole: Tool, has_owners: bool) -> Tool:
    """Most runs ask for no owner, and follow no socket."""
    following = whole._replace(
        slots=_FOLLOWING + SEGMENTS, rodata=whole.rodata | {"rtt_has_owners": True}
    )
    if has_owners:
        return following
    return whole._replace(slots=SEGMENTS, sockets=(), seed=None, with_owners=following)


def _keys(text: str) -> Keys:
    from tcpcore.tools.rtt.keys import Keys

    return Keys(text)
