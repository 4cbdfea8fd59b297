"""reset: RST segments of every cause, and whose they are."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tcpcore.loader import Btf
from tests.facts import Facts
from tests.live import harness
from tests.live.harness import Event, Namespace, Net, tracer

FACTS = Facts(
    header="PID     COMM       LADDR           LPORT RADDR           RPORT RST      STATE       "
    "CAUSE           REASON",
    fields=frozenset({"direction", "state", "reason", "cause", "seq"}),
    reset=2,  # one end sends it, the other one receives it
    closed=0,
    kept=2,
)

ME = os.getpid()
SOL_TCP, TCP_REPAIR = socket.IPPROTO_TCP, 19  # include/uapi/linux/tcp.h
TCPHDR_RST = 4
Row = tuple[str, str | None, str | None, int | None]  # direction, state, cause, pid
BY_PEER: Row = ("received", "ESTABLISHED", "by peer", ME)
Provoke = Callable[[str], set[int]]
"""Makes resets, with a host's address; their two ports."""


@cache
def kernel_reasons() -> set[str]:
    """Those that the kernel's tracepoint may give; none of an older kernel."""
    with contextlib.closing(Btf()) as btf:
        has_reason = len(btf.types("tcp_send_reset") or ()) == 3
        names = (btf.enumerators("sk_rst_reason") or {}).values()
    return {name.removeprefix("SK_RST_REASON_") for name in names} if has_reason else set()


@cache
def tcp_reset_has_segment() -> bool:
    with contextlib.closing(Btf()) as btf:
        return len(btf.types("tcp_reset") or ()) == 2


def sees_all(attach: str) -> bool:
    """Older tracepoints are not called for what no socket sends."""
    return attach != "tracepoint" or bool(kernel_reasons())


def vanish(connection: socket.socket) -> None:
    """Close it without telling anybody (TCP_REPAIR, tcp_close)."""
    connection.setsockopt(SOL_TCP, TCP_REPAIR, 1)
    connection.close()


def said_goodbye(connection: socket.socket) -> None:
    """Wait until the reset has come."""
    connection.settimeout(harness.PATIENCE)
    with contextlib.suppress(OSError):
        connection.recv(1)


def refused(host: str) -> set[int]:
    port = harness.refused_port(host)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as client:
        client.bind((host, 0))
        own = client.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            client.connect((host, port))
    return {own, port}


def of_pair(act: Callable[[socket.socket, socket.socket], None]) -> Provoke:
    def provoke(host: str) -> set[int]:
        with harness.pair(host) as (one, other):
            both = {*harness.ports(one)}
            act(one, other)
        return both

    return provoke


def linger(one: socket.socket, other: socket.socket) -> None:
    harness.reset(one)
    said_goodbye(other)


def unread(one: socket.socket, other: socket.socket) -> None:
    other.sendall(b"x")
    one.recv(1, socket.MSG_PEEK)
    one.close()
    said_goodbye(other)


def disconnect(one: socket.socket, other: socket.socket) -> None:
    harness.disconnect(one)
    said_goodbye(other)


def late(one: socket.socket, other: socket.socket) -> None:
    one.close()
    other.recv(1)
    other.sendall(b"x")
    harness.until(lambda: other.getsockopt(SOL_TCP, socket.TCP_INFO, 1) == b"\7")


def unaccepted(host: str) -> set[int]:
    with harness.listener(host) as server:
        client = harness.connect(host, server.getsockname()[1])
        both = {*harness.ports(client)}
    with client:
        said_goodbye(client)
    return both


def forgotten(host: str, with_listener: bool) -> set[int]:
    with harness.listener(host) as server:
        client = harness.connect(host, server.getsockname()[1])
        both = {*harness.ports(client)}
        vanish(server.accept()[0])
        if with_listener:
            client.sendall(b"x")
            said_goodbye(client)
    with client:
        if not with_listener:
            client.sendall(b"x")
            said_goodbye(client)
    return both


NO_SOCKET: list[tuple[Provoke, set[Row]]] = [
    (refused, {("sent", None, "no listener", None), ("received", "SYN_SENT", "refused", ME)}),
    (lambda host: forgotten(host, False), {("sent", None, "no connection", None), BY_PEER}),
]
OF_SOCKETS: list[tuple[Provoke, set[Row]]] = [
    (of_pair(linger), {("sent", "ESTABLISHED", "linger 0", ME), BY_PEER}),
    (of_pair(unread), {("sent", "ESTABLISHED", "unread data", ME), BY_PEER}),
    (of_pair(disconnect), {("sent", "ESTABLISHED", "disconnect", ME), BY_PEER}),
    (unaccepted, {("sent", "ESTABLISHED", "listener closed", None), BY_PEER}),
    (lambda host: forgotten(host, True), {("sent", "LISTEN", "unexpected", ME), BY_PEER}),
]


def row(event: Event) -> Row:
    return event["direction"], event["state"], event["cause"], event["pid"]


@pytest.mark.each_variant
def test_causes(attach: str) -> None:
    """Each once for the one end, and once for the other one."""
    with tracer("reset", "--json", "--attach", attach) as running:
        made = [
            (host, provoke(host), rows)
            for host in ("127.0.0.1", "::1")
            for provoke, rows in NO_SOCKET + OF_SOCKETS
        ]
        events = running.events()
    way = "tp_btf" if attach == "tracepoint" else attach
    assert (running.ways["RST sent"], running.ways["RST received"]) == (way, way)
    for host, ports, expected in made:
        found = [e for e in events if {e["lport"], e["rport"]} == ports]
        assert {(e["laddr"], e["raddr"]) for e in found} == {(host, host)}
        if any(state is None for _, state, *_ in expected) and not sees_all(attach):
            expected = {each for each in expected if each[0] == "received"}
        assert sorted(map(str, map(row, found))) == sorted(map(str, expected))


def is_in_fin_wait2(lport: int, rport: int) -> bool:
    """proc_pid_net(5): addresses, state 5."""
    ends = f"0100007F:{lport:04X} 0100007F:{rport:04X} 05 "
    return ends in Path("/proc/net/tcp").read_text()


def test_data_for_what_is_left_of_a_closed_socket(attach: str) -> None:
    """A time-wait socket takes the place of one in FIN_WAIT2, and has no owner."""
    with tracer("reset", "--json", "--attach", attach) as running:
        with harness.pair() as (one, other):
            ports = harness.ports(one)
            one.close()
            harness.until(lambda: is_in_fin_wait2(*ports))
            late(one, other)
        events = harness.between(running.events(), *ports)
    assert [row(e) for e in events if e["direction"] == "sent"] == (
        [("sent", "TIME_WAIT", "late data", None)] if sees_all(attach) else []
    )
    (peer,) = [e for e in events if e["direction"] == "received"]
    assert row(peer) == ("received", "CLOSE_WAIT", "by peer", ME)


def test_data_after_close(attach: str) -> None:
    """To a socket that stays (tcp_fin_time() above TCP_TIMEWAIT_LEN). The kernel then calls what it
    calls for a RST; what sees the segment knows better."""
    with tracer("reset", "--json", "--attach", attach) as running:
        with harness.pair() as (one, other):
            one.setsockopt(SOL_TCP, socket.TCP_LINGER2, 100)
            ports = harness.ports(one)
            one.close()
            harness.until(lambda: is_in_fin_wait2(*ports))
            late(one, other)
        events = harness.between(running.events(), *ports)
    sees_segment = attach != "tracepoint" and tcp_reset_has_segment()
    ambiguous: list[Row] = [] if sees_segment else [("received", "FIN_WAIT2", None, ME)]
    assert [row(e) for e in events if e["lport"] == ports[0]] == [
        *ambiguous,
        ("sent", "FIN_WAIT2", "late data", ME),
    ]


@contextlib.contextmanager
def silent_peer(here: Namespace, there: Namespace) -> Iterator[Callable[..., int]]:
    """Opens connections to a host that answers nothing any more once all are open."""
    with contextlib.ExitStack() as stack:
        with there.entered():
            server = stack.enter_context(harness.listener(there.address))

        def connect(**options: int) -> int:
            with here.entered():
                client = stack.enter_context(harness.connect(*server.getsockname()))
            for name, value in {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, **options}.items():
                client.setsockopt(SOL_TCP, getattr(socket, name), value)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return int(client.getsockname()[1])

        yield connect


def test_a_peer_that_is_gone(attach: str, net: Net) -> None:
    """Keepalive, with and without a timeout of the user."""
    here, there = net
    arguments = ("--attach", attach, "--netns", here.name)
    with (
        tracer("reset", "--json", *arguments) as running,
        there.entered(),
        harness.firewall("meta l4proto tcp meta length < 60 tcp flags & syn == 0", "drop"),
        silent_peer(here, there) as connect,
    ):
        wanted = {
            connect(TCP_KEEPCNT=1): "keepalive",
            connect(TCP_USER_TIMEOUT=500): "user timeout",
        }
        for lport in wanted:
            running.wait_for(lambda e, lport=lport: e["lport"] == lport)  # type: ignore[misc]
        events = running.events()
    sent = [e for e in events if e["direction"] == "sent" and e["lport"] in wanted]
    assert {e["lport"]: row(e) for e in sent} == {
        lport: ("sent", "ESTABLISHED", cause, ME) for lport, cause in wanted.items()
    }
    assert len(sent) == 2


def test_a_connection_that_is_killed(attach: str) -> None:
    with (
        tracer("reset", "--json", "--attach", attach) as running,
        harness.pair() as (one, _),
    ):
        lport, rport = harness.ports(one)
        killed = harness.sh(f"ss -K -n dst 127.0.0.1 dport = {rport} sport = {lport}")
        if f":{lport}" not in killed:
            pytest.skip("this kernel is built without CONFIG_INET_DIAG_DESTROY")
        events = [e for e in running.events() if e["lport"] == lport]
    assert [row(e) for e in events] == [("sent", "ESTABLISHED", "aborted", ME)]


def test_reasons_are_the_kernels_where_it_has_some(attach: str) -> None:
    with tracer("reset", "--json", "--attach", attach) as running:
        ports = of_pair(unread)("127.0.0.1")
        of_linger = of_pair(linger)("127.0.0.1")
        events = running.events()
    unread_data, lingered = (
        {e["direction"]: e["reason"] for e in harness.between(events, *each)}
        for each in (ports, of_linger)
    )
    kernels = "TCP_ABORT_ON_CLOSE"
    own = kernels if kernels in kernel_reasons() else "unread data"
    assert unread_data == {"sent": own, "received": "by peer"}
    assert lingered["sent"] in kernel_reasons() - {"NOT_SPECIFIED"} | {"linger 0"}


def resets_on(wire: socket.socket) -> Iterator[tuple[tuple[int, int], int]]:
    """Ports and sequence number of each RST over IPv4 that a packet socket has seen."""
    with contextlib.suppress(BlockingIOError):
        while True:
            packet = wire.recv(2048)
            tcp = packet[(packet[0] & 15) * 4 :]
            if packet[9] == socket.IPPROTO_TCP and tcp[13] & TCPHDR_RST:
                source, destination, seq = struct.unpack_from("!HHI", tcp)
                yield (source, destination), seq


def test_sequence_numbers_are_those_on_the_wire(attach: str) -> None:
    ip = socket.ntohs(0x0800)
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, ip) as wire,
        tracer("reset", "--json", "--attach", attach) as running,
    ):
        wire.bind(("lo", 0x0800))
        wire.setblocking(False)
        made = [provoke("127.0.0.1") for provoke, _ in NO_SOCKET + OF_SOCKETS]
        events = [e for e in running.events() if {e["lport"], e["rport"]} in made]
        seen = dict(resets_on(wire))
    assert len(seen) == len(made)
    sent = {(e["lport"], e["rport"]): e["seq"] for e in events if e["direction"] == "sent"}
    assert len(sent) >= len(OF_SOCKETS)
    assert sent == {ports: seq for ports, seq in seen.items() if ports in sent}
    received = {(e["rport"], e["lport"]): e["seq"] for e in events if e["direction"] == "received"}
    known = {ports: seq for ports, seq in received.items() if seq is not None}
    assert known == {ports: seq for ports, seq in seen.items() if ports in known}


@pytest.mark.each_variant
def test_a_connection_older_than_the_trace(attach: str) -> None:
    """Whose it is is known all the same."""
    with (
        harness.pair() as (one, other),
        tracer("reset", "--json", "--attach", attach) as running,
    ):
        ports = {*harness.ports(one)}
        linger(one, other)
        events = [e for e in running.events() if {e["lport"], e["rport"]} == ports]
    assert {row(e) for e in events} == {("sent", "ESTABLISHED", "linger 0", ME), BY_PEER}


def test_filters_by_owner_leave_out_what_is_nobodys() -> None:
    with tracer("reset", "--json", "--uid", str(os.getuid()), "-p", str(ME)) as running:
        ports = refused("127.0.0.1")
        events = [e for e in running.events() if {e["lport"], e["rport"]} == ports]
    assert [(e["direction"], e["pid"], e["uid"]) for e in events] == [("received", ME, os.getuid())]


def test_what_no_socket_sends_has_a_namespace_and_no_user(net: Net) -> None:
    here, _ = net
    with tracer("reset", "--json", "--netns", here.name) as running:
        with here.entered():
            ports = refused("127.0.0.1")
        events = [e for e in running.events() if {e["lport"], e["rport"]} == ports]
    assert {e["netns"] for e in events} == {here.inode}
    assert {e["uid"] for e in events if e["direction"] == "sent"} <= {None}
    assert [e["uid"] for e in events if e["direction"] == "received"] == [os.getuid()]
