"""The attach variants that several tools share, best first."""

from __future__ import annotations

from tcpcore.loader import Variant

# Attached in this order. What ends an entry comes before what begins one: an entry whose end nobody
# saw would stay, and a later socket at the same address would inherit it.
_STATE_BTF = ("tp_btf/tcp_destroy_sock", "tp_btf/inet_sock_set_state")
_STATE_RAW = ("raw_tp/tcp_destroy_sock", "raw_tp/inet_sock_set_state")
_ACCEPT_CALLS = ("tp/syscalls/sys_exit_accept", "tp/syscalls/sys_exit_accept4")
_CONNECT_CALLS = ("tp/syscalls/sys_exit_connect", "tp/syscalls/sys_enter_connect")

# What refuses a connect before TCP hears of it, and IPv6, which a kernel may lack.
_EARLY = ("security_socket_connect", "tcp_v4_pre_connect", "tcp_v6_pre_connect")


def connecting() -> tuple[Variant, ...]:
    """Of connecting.bpf.h. The end of a connect is the state change everywhere: it knows the
    result. Hooks on connect() see its start, and the errors it returns at once."""
    fentry = Variant(
        "fentry",
        (*_STATE_BTF, "fexit/tcp_v4_connect", "fentry/tcp_v4_connect"),
        optional=(
            *("fexit/tcp_v6_connect", "fentry/tcp_v6_connect"),
            *(f"fexit/{function}" for function in _EARLY),
        ),
        parameters=dict.fromkeys(("tcp_v4_connect", "tcp_v6_connect", *_EARLY), 3),
        rodata={"connect_is_hooked": True},
    )
    kprobe = Variant(
        "kprobe",
        (*_STATE_RAW, "kretprobe/tcp_v4_connect", "kprobe/tcp_v4_connect"),
        optional=(
            *("kretprobe/tcp_v6_connect", "kprobe/tcp_v6_connect"),
            *(f"{kind}/{function}" for function in _EARLY for kind in ("kretprobe", "kprobe")),
        ),
        rodata={"connect_is_hooked": True},
    )
    hooked = {"connect_is_hooked": True}
    return (
        fentry,
        kprobe,
        Variant("tracepoint", (*_STATE_BTF, *_CONNECT_CALLS), rodata=hooked),
        Variant("tracepoint", (*_STATE_RAW, *_CONNECT_CALLS), rodata=hooked),
        # Without hooks on connect() it begins with SYN_SENT: earlier errors are not seen.
        Variant("tracepoint", _STATE_BTF),
        Variant("tracepoint", _STATE_RAW),
    )


def accepting(needed: bool = True) -> tuple[Variant, ...]:
    """Of accepting.bpf.h, and state changes. needed: the tool is nothing without accept()."""
    calls = _ACCEPT_CALLS if needed else ()
    optional = () if needed else _ACCEPT_CALLS
    return (
        Variant("fentry", (*_STATE_BTF, "fentry/security_sock_graft")),
        Variant("kprobe", (*_STATE_RAW, "kprobe/security_sock_graft")),
        Variant("tracepoint", (*_STATE_BTF, *calls), optional=optional),
        Variant("tracepoint", (*_STATE_RAW, *calls), optional=optional),
    )
