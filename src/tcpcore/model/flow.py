"""What connections are counted by."""

from __future__ import annotations

from tcpcore.model import fields
from tcpcore.value import Value


class Flow(Value):
    """A source and a destination. Mirror of struct flow, bpf/lib/flow.bpf.h. lport: None where it
    does not tell flows apart. raddr: `other`, and nothing else known, in the row of the rest."""

    laddr: fields.KeyHost
    raddr: fields.KeyAddress
    netns: fields.KeyNetns
    lport: fields.Port
    rport: fields.Port
    family: fields.KeyFamily
