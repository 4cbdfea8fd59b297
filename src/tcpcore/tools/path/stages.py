"""The stages of a packet, in the order in which it comes by them."""

from __future__ import annotations

STAGES = (
    "tcp_send",
    "ip_send",
    "ip_output",
    "dev_queue",
    "qdisc_in",
    "qdisc_out",
    "driver",
    "rx",
    "gro",
    "receive",
    "ip_receive",
    "ip_deliver",
    "tcp_receive",
    "tcp_process",
    "socket_queue",
    "copied",
    "dropped",
    "freed",
)
"""Mirror of enum stage, bpf/path.h."""

TCP_SEND, DRIVER, RX = map(STAGES.index, ("tcp_send", "driver", "rx"))
COPIED, DROPPED, FREED = map(STAGES.index, ("copied", "dropped", "freed"))
