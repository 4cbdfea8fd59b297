"""path --pcapng: the blocks of a file, of packets that no test on real ones has."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tcpcore.model import fields
from tcpcore.tools.path import TOOL
from tcpcore.tools.path.event import WithBytes
from tcpcore.tools.path.packets import Packets
from tcpcore.tools.path.pcapng import Capture
from tcpcore.tools.path.stages import STAGES
from tests.unit.samples import event

IPV4 = bytes([0x45, 0, 5, 220, *bytes(16)])  # 1500 bytes
IPV6 = bytes([0x60, 0, 0, 0, 5, 160, *bytes(34)])  # 1440 behind its header
LONG = bytes([0x60, *bytes(39)])


def at(stage: str, ts_ns: int, data: bytes = b"", **more: Any) -> Any:
    usual: dict[str, Any] = {
        "ts_ns": ts_ns,
        "stage": STAGES.index(stage),
        "skb": 1,
        "ifname": b"eth0".ljust(16, b"\0"),
    }
    usual |= {"seq": 0, "len": 10, "flags": 16, "cpu": 3, "ifindex": 1, "netns": 7, "reason": 0}
    usual |= {"captured": len(data), "bytes": data.ljust(128, b"\0"), "pid": 0}
    return event(TOOL._replace(event=WithBytes), **usual | more)


def written(*events: Any) -> list[tuple[int, bytes]]:
    """The type and the body of each block."""
    file: list[bytes] = []
    Packets(list(fields.kinds(WithBytes)), 1, 0, Capture(file.append))(list(events), True)
    for block in file:
        assert len(block) % 4 == 0
        assert block[4:8] == block[-4:] == struct.pack("=I", len(block))
    return [(int.from_bytes(block[:4], "little"), block[8:-4]) for block in file]


@pytest.mark.parametrize(
    ("data", "length"), [(IPV4, 1500), (IPV6, 1480), (LONG, 40), (IPV4[:1], 1), (b"", 0)]
)
def test_how_long_a_packet_is(data: bytes, length: int) -> None:
    (_, body) = written(at("driver", 1, data))[-1]
    assert struct.unpack_from("=2I", body, 12) == (len(data), length)
    assert body[20 : 20 + len(data)] == data


def test_the_first_bytes_that_are_seen() -> None:
    """At an interface, if there is one: its direction goes with it."""
    nowhere: dict[str, Any] = {"ifname": bytes(16), "ifindex": 0}
    way = at("ip_send", 1, **nowhere), at("ip_output", 2, IPV6, **nowhere), at("driver", 3, IPV4)
    header, interface, packet = written(*way, at("receive", 4, LONG))
    assert [header[0], interface[0], packet[0]] == [0x0A0D0D0A, 1, 6]
    assert b"eth0" in interface[1] and b"netns 7" in interface[1]
    assert IPV4 in packet[1] and b"\2\0\4\0\2\0\0\0" in packet[1]
    assert b"-" in written(*way[:2])[1][1]


def test_an_interface_is_written_once() -> None:
    rows = [at("driver", i, IPV4, skb=i, seq=100 * i) for i in (1, 2)]
    rows += [at("receive", 3, IPV4, skb=3, seq=900, netns=8)]
    blocks = written(*rows)
    assert [kind for kind, _ in blocks[1:]] == [1, 6, 6, 1, 6]
    assert [body[:4] for kind, body in blocks if kind == 6] == [
        struct.pack("=I", number) for number in (0, 0, 1)
    ]


def test_a_comment_for_each_stage() -> None:
    way = at("dev_queue", 1000, IPV4), at("driver", 3500, skb=2, seq=5, len=5)
    (_, body) = written(*way, at("dropped", 5000, skb=2, seq=5, len=5, reason=40000))[-1]
    for text in (
        b"dev_queue +0.0 us, at 0.0 us, cpu 3, eth0, netns 7",
        b"driver +2.5 us, at 2.5 us, cpu 3, eth0, netns 7, seq 5 len 5",
        b"dropped +1.5 us, at 4.0 us, cpu 3, eth0, netns 7, seq 5 len 5, 40000",
    ):
        assert struct.pack("=HH", 1, len(text)) + text in body
