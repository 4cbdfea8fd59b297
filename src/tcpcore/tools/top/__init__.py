"""Show the busiest TCP sessions, and what holds their senders back.

KB and rates are of the last interval: payload, each byte once. LIMIT is what the sender waited
for longest: the receiver's window (rwnd), room in its send buffer (sndbuf), the network (cwnd), or
its application (app).
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated

from tcpcore.errors import OptionError
from tcpcore.model import columns as col
from tcpcore.model.counted import Counted
from tcpcore.model.option import Argument, Option
from tcpcore.model.slots import ACCEPTING, TRANSITIONS, WALK, optional
from tcpcore.model.tool import Column, Lines, Ranking, Table, Tool
from tcpcore.request.values import number, seconds
from tcpcore.tools.top.sessions import ORDERS, Counters, Key, Session, Traffic, busiest

_TRAFFIC = (
    col.optional_kilobytes("RX_KB", "rx_bytes"),
    col.optional_kilobytes("TX_KB", "tx_bytes"),
)
_HELD_BACK = (
    Column("RETRANS", "retransmits", 7),
    Column("OOO", "out_of_order", 5),
    Column("SRTT(us)", "srtt_us", 8),
    Column("CWND", "cwnd", 5),
    Column(
        "MB/s", "delivery_rate", 8, text=lambda rate: "-" if rate is None else f"{rate / 1e6:.2f}"
    ),
    Column("LIMIT", "limit", 6),
)


def _summary(traffic: Traffic) -> str:
    load = Path("/proc/loadavg").read_text().strip()
    return f"{time.strftime('%H:%M:%S')} loadavg: {load}\n{traffic}"


def _table(order: str, rows: int, summary: bool) -> Table:
    ranking, traffic = Ranking(list(ORDERS), order), Traffic()
    lines = Lines(
        Session,
        columns=(col.pid(7), col.comm(12), *col.local_remote(15), *_TRAFFIC),
        wide=(*col.WIDE_OWNER[:2], *col.local_remote(39), *_TRAFFIC, *_HELD_BACK, col.NETNS),
        title=partial(_summary, traffic) if summary else None,
        ranking=ranking,
    )
    finish = partial(busiest, ranking=ranking, most=rows, traffic=traffic)
    counted = Counted("sessions", Key, "session", timed=True, finish=finish, counters=Counters)
    return Table(lines, counted)


TOOL = Tool(
    name="top",
    kinds=(_table("all", 20, summary=True),),
    slots=TRANSITIONS + optional(ACCEPTING) + WALK,
    sockets=("sockets",),
    seed="iter/task_file",
    interval=1.0,
)

EXAMPLES = (
    ("top", "the busiest, every second"),
    ("top 5 12 --sort tx", "for a minute, by what they send"),
    ("top -C --wide -L 443", "of a server, one block below the other"),
)

_MOST_ROWS = 4096


def tool(
    period: Annotated[str, Argument("Seconds between two looks.", "INTERVAL")] = "1",
    reports: Annotated[str, Argument("End after so many.", "COUNT")] = "",
    sort: Annotated[str, Option("By all, tx or rx.", ("--sort", "-s"))] = "all",
    rows: Annotated[str, Option("So many rows.", ("--rows", "-r"), metavar="N")] = "20",
    noclear: Annotated[bool, Option("Block below block.", ("--noclear", "-C"))] = False,
    nosummary: Annotated[
        bool, Option("Without load average and sums.", ("--nosummary", "-S"))
    ] = False,
) -> Tool:
    """period: seconds between two reports, as `interval`. reports: how many. sort: all, tx or rx.
    rows: how many sessions; the others are added up in one. noclear, nosummary: of the text."""
    if sort not in ORDERS:
        raise OptionError("sort", f"'{sort}' is none of {', '.join(ORDERS)}")
    most = number("rows", rows, "a number of rows", 1, _MOST_ROWS)
    table = _table(sort, most, not nosummary)
    if noclear:
        table = table._replace(lines=table.lines._replace(ranking=None))
    return TOOL._replace(
        kinds=(table,),
        interval=seconds("period", period),
        reports=number("reports", reports, "a number of reports", 1, 1 << 31) if reports else None,
    )
