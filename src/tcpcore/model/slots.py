"""The slots that several tools share: one for each hook of the headers in bpf/lib.

A tool's slots are a sum: TRANSITIONS + ACCEPTING. They are attached in their order. What ends an
entry comes before what begins one: an entry whose end nobody saw would stay, and a later socket at
the same address would inherit it.
"""

from __future__ import annotations

from tcpcore.loader import Slot, Way

# Of transitions.bpf.h, in every tool that keeps something of a socket.
TRANSITIONS = (
    Slot(
        "end of sockets",
        (Way(("tp_btf/tcp_destroy_sock",)), Way(("raw_tp/tcp_destroy_sock",))),
    ),
    Slot(
        "state changes",
        (Way(("tp_btf/inet_sock_set_state",)), Way(("raw_tp/inet_sock_set_state",))),
    ),
)


def compat(of: str, *tracepoints: str) -> Slot:
    """Of compat.bpf.h: 32-bit programs in what the slot before this one sees of others.

    Each of the tracepoints is at all system calls of the host, so that only who asks has this slot.
    """
    way = Way(tuple(f"raw_tp/{each}" for each in tracepoints))
    return Slot(f"32-bit {of}", (way,), beside=of)


_GRAFT = {"security_sock_graft": ("struct sock *, struct socket *",)}

# Of accepting.bpf.h.
ACCEPTING = (
    Slot(
        "accept()",
        (
            Way(("fentry/security_sock_graft",), types=_GRAFT),
            Way(("kprobe/security_sock_graft",)),
            Way(("tp/syscalls/sys_exit_accept,sys_exit_accept4",)),
        ),
    ),
    compat("accept()", "sys_exit"),
)

# Functions that may refuse a connect before TCP hears of it. A kernel may lack those of IPv6.
_EARLY = ("security_socket_connect", "tcp_v4_pre_connect", "tcp_v6_pre_connect")
# The address has a type of its own since Linux 6.19.
_SOCK_ADDRESS = (
    "struct sock *, struct sockaddr *, int",
    "struct sock *, struct sockaddr_unsized *, int",
)
_CONNECT_TYPES = {
    **dict.fromkeys(("tcp_v4_connect", "tcp_v6_connect", *_EARLY[1:]), _SOCK_ADDRESS),
    "security_socket_connect": (
        "struct socket *, struct sockaddr *, int",
        "struct socket *, struct sockaddr_unsized *, int",
    ),
}
_HOOKED = {"connect_is_hooked": 1}

# Of connecting.bpf.h: the start of a connect, and the errors that it returns at once. Without it a
# connect begins with SYN_SENT. It always ends with a state change, which knows the result.
CONNECTING = (
    Slot(
        "connect()",
        (
            Way(
                ("fexit/tcp_v4_connect", "fentry/tcp_v4_connect"),
                optional=(
                    *("fexit/tcp_v6_connect", "fentry/tcp_v6_connect"),
                    *(f"fexit/{function}" for function in _EARLY),
                ),
                types=_CONNECT_TYPES,
                rodata=_HOOKED,
            ),
            Way(
                ("kretprobe/tcp_v4_connect", "kprobe/tcp_v4_connect"),
                optional=(
                    *("kretprobe/tcp_v6_connect", "kprobe/tcp_v6_connect"),
                    *(f"{kind}/{name}" for name in _EARLY for kind in ("kretprobe", "kprobe")),
                ),
                rodata=_HOOKED,
            ),
            Way(
                ("tp/syscalls/sys_exit_connect", "tp/syscalls/sys_enter_connect"),
                rodata=_HOOKED,
            ),
        ),
        required=False,
    ),
    compat("connect()", "sys_exit", "sys_enter"),
)

# Of walk.bpf.h. The first way needs atomic instructions of Linux 5.12, and BTF in the kernel.
WALK = (
    Slot(
        "walk over the sockets",
        (Way(("iter/bpf_map_elem",), over="sockets"), Way(("raw_tp",), over="sockets")),
    ),
)

THREAD_EXITS = Slot("thread exits", (Way(("raw_tp/sched_process_exit",)),))


def optional(slots: tuple[Slot, ...]) -> tuple[Slot, ...]:
    """The same slots, for a tool that works without them."""
    return tuple(slot._replace(required=False) for slot in slots)
