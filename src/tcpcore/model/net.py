"""Addresses, TCP states, errno names."""

from __future__ import annotations

import errno
from _socket import inet_ntop

AF_INET, AF_INET6 = 2, 10  # Linux's values, whatever host reads a recorded trace
FAMILIES = {AF_INET: "ipv4", AF_INET6: "ipv6"}

# include/net/tcp_states.h; RFC 9293 3.3.2 has the meaning.
STATES = (
    "UNKNOWN",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
)

# Of congestion control: enum tcp_ca_state, include/uapi/linux/tcp.h.
CA_STATES = ("open", "disorder", "cwr", "recovery", "loss")

# Of a segment, from the lowest bit on: RFC 9293, 3.1; RFC 3168, 6.1.
TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")

V4MAPPED = bytes(10) + b"\xff\xff"


def state_name(state: int) -> str:
    return STATES[state] if state < len(STATES) else str(state)


def flag_names(flags: int) -> str:
    """Those that are set, as SYN|ACK."""
    return "|".join(name for bit, name in enumerate(TCP_FLAGS) if flags >> bit & 1)


def result_name(number: int) -> str:
    """ "ok" for 0, else the errno's name."""
    return errno.errorcode.get(number, f"E{number}") if number else "ok"


def address_text(raw: bytes) -> str:
    """The text of a 16-byte address; a v4-mapped one is IPv4 (RFC 4291, 2.5.5.2)."""
    if raw.startswith(V4MAPPED):
        return inet_ntop(AF_INET, raw[12:])
    return inet_ntop(AF_INET6, raw)


def escape(text: bytes) -> str:
    """A task's name, safe for a terminal: what is not printable UTF-8 stands as \\xNN."""
    decoded = text.split(b"\0", 1)[0].replace(b"\\", b"\\\\").decode(errors="backslashreplace")
    return printable(decoded)


def printable(text: str) -> str:
    """One line that does nothing to a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
