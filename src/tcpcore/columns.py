"""Columns and conversions that several tools' tables share."""

from __future__ import annotations

from tcpcore import fields
from tcpcore.tool import Column


def pid(width: int = 6) -> Column:
    return Column("PID", "pid", width)


def comm(width: int) -> Column:
    return Column("COMM", "comm", width, cut=True)


IP = Column("IP", "family", 2, text=lambda family: family.removeprefix("ipv"))
UID = Column("UID", "uid", 6)
NETNS = Column("NETNS", "netns", 10)


def address(title: str, field: str, width: int) -> Column:
    return Column(title, field, width)


def port(title: str, field: str) -> Column:
    return Column(title, field, 5)


def millis(title: str, field: str, width: int, digits: int) -> Column:
    return Column(title, field, width, cells=fields.millis(width, digits))
