"""What every event has, whatever the tool."""

from __future__ import annotations

from tcpcore.model import fields
from tcpcore.value import Value


class ConnectionEvent(Value):
    """The head of every event. Mirror of EVENT_HEAD, bpf/lib/event.h.

    ts_ns: CLOCK_MONOTONIC in ns. pid, comm: of the socket's owner. uid: the socket's user. netns:
    inode of its network namespace. What is not known is None.
    """

    ts_ns: fields.Time
    laddr: fields.Address
    raddr: fields.Address
    pid: fields.Pid
    uid: fields.Uid
    netns: fields.U32
    comm: fields.Comm
    lport: fields.Port
    rport: fields.Port
    family: fields.Family
