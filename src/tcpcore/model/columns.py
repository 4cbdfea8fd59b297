"""Columns and conversions that several tools' tables share."""

from __future__ import annotations

from tcpcore.model import fields
from tcpcore.model.tool import Column


def pid(width: int = 6) -> Column:
    return Column("PID", "pid", width)


def comm(width: int) -> Column:
    return Column("COMM", "comm", width, cut=True)


IP = Column("IP", "family", 2, text=lambda family: family.removeprefix("ipv"))
UID = Column("UID", "uid", 6)
SEQ = Column("SEQ", "seq", 10)
NETNS = Column("NETNS", "netns", 10)
TID = Column("TID", "tid", 7)


def address(title: str, field: str, width: int) -> Column:
    return Column(title, field, width)


def port(title: str, field: str) -> Column:
    return Column(title, field, 5)


# What most tables begin with; with --wide there is room for the whole name of a task.
OWNER = (pid(), comm(11), IP)
WIDE_OWNER = (pid(7), comm(16), IP)


def source_destination(width: int, *between: Column) -> tuple[Column, ...]:
    """Both addresses, as the one who connects sees them, with other columns between them."""
    source, destination = address("SADDR", "laddr", width), address("DADDR", "raddr", width)
    return (source, *between, destination)


def local_remote(width: int) -> tuple[Column, ...]:
    """Both ends with their ports, the local one first."""
    return (
        address("LADDR", "laddr", width),
        port("LPORT", "lport"),
        address("RADDR", "raddr", width),
        port("RPORT", "rport"),
    )


def insert(columns: tuple[Column, ...], column: Column, before: str) -> tuple[Column, ...]:
    """The columns with one more, in front of that of a field."""
    at = next(i for i, one in enumerate(columns) if one.field == before)
    return (*columns[:at], column, *columns[at:])


def kilobytes(title: str, field: str) -> Column:
    return Column(title, field, 6, cells=fields.scaled(6, 2, 1024))


def millis(title: str, field: str, width: int, digits: int) -> Column:
    return Column(title, field, width, cells=fields.millis(width, digits))


def optional_kilobytes(title: str, field: str) -> Column:
    """Of numbers that are made in user space."""
    return Column(title, field, 9, text=lambda size: f"{size / 1024:.1f}")
