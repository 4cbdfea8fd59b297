"""What the kernel part tells of a packet at a stage."""

from __future__ import annotations

from typing import Annotated

from tcpcore.model import fields, net
from tcpcore.model.drop_reasons import DropReasons
from tcpcore.model.event import ConnectionEvent
from tcpcore.tools.path.stages import STAGES

Stage = Annotated[str, fields.Kind("B", STAGES.__getitem__)]
Flags = Annotated[str, fields.Kind("B", net.flag_names)]
Skb = Annotated[str, fields.Kind("Q", lambda raw: f"{raw:x}")]
Seq = Annotated[int, fields.Kind("I", int, few=False)]
_REASONS = DropReasons()
Reason = Annotated[
    str | None,
    fields.Kind("I", lambda raw: _REASONS(raw) if raw else None, enums=(_REASONS,)),
]
SNAP = 128
"""PATH_SNAP in bpf/path.h."""
Captured = Annotated[int, fields.Kind("Q", int)]
Bytes = Annotated[bytes, fields.Kind(f"{SNAP}s", bytes, few=False)]


class Event(ConnectionEvent):
    """A packet at a stage. Mirror of struct path_event, bpf/path.h."""

    stage: Stage
    flags: Flags
    seq: Seq
    len: Seq
    cpu: fields.U32
    skb: Skb
    ifname: fields.Comm
    ifindex: fields.U32
    reason: Reason


class WithBytes(Event):
    """With --pcapng. Mirror of struct path_with_bytes, bpf/path.h. bytes: the packet's first ones,
    from its IP header on. captured: how many there are."""

    captured: Captured
    bytes: Bytes
