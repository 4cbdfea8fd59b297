"""reset: RST segments of every cause, and whose they are."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import sys
import termios
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tcpcore.loader import Btf
from tests.facts import Facts
from tests.live import harness
from tests.live.harness import Event, Namespace, Net, tracer
from tests.live.test_drop import ACK, RST, SYN, Segment, forged
from tests.live.test_mptcp import mptcp_pair, mptcp_socket

FACTS = Facts(
    header="PID     COMM       LADDR           LPORT RADDR           RPORT RST      STATE       "
    "CAUSE           REASON",
    fields=frozenset({"direction", "state", "reason", "cause", "seq"}),
    reset=2,  # one end sends it, the other one receives it
    closed=0,
    kept=2,
)

ME = os.getpid()
FIN_WAIT2, CLOSE = 5, 7  # include/net/tcp_states.h
SOL_TCP, TCP_REPAIR = socket.IPPROTO_TCP, 19  # include/uapi/linux/tcp.h
STRAY = 40001  # a port of nobody's
Row = tuple[str, str | None, str | None, int | None]  # direction, state, cause, pid
BY_PEER: Row = ("received", "ESTABLISHED", "by peer", ME)
BY_PEER_AFTER_FIN: Row = ("received", "CLOSE_WAIT", "by peer", ME)
LINGER2: Row = ("sent", "FIN_WAIT2", "linger2", ME)
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


def info(of: socket.socket, at: int, form: str) -> int:
    """A number of struct tcp_info, include/uapi/linux/tcp.h."""
    size = struct.calcsize(form)
    found: int = struct.unpack_from(form, of.getsockopt(SOL_TCP, socket.TCP_INFO, at + size), at)[0]
    return found


def has_state(of: socket.socket, state: int) -> bool:
    """include/net/tcp_states.h"""
    return info(of, 0, "B") == state


def late(one: socket.socket, other: socket.socket) -> None:
    one.close()
    other.recv(1)
    other.sendall(b"x")
    harness.until(lambda: has_state(other, CLOSE))


def impatient(one: socket.socket, other: socket.socket) -> None:
    """Its FIN is acknowledged after close()."""
    one.setsockopt(SOL_TCP, socket.TCP_LINGER2, -1)
    one.close()
    harness.until(lambda: has_state(other, CLOSE))


def impatient_in_fin_wait2(one: socket.socket, other: socket.socket) -> None:
    one.shutdown(socket.SHUT_WR)
    harness.until(lambda: has_state(one, FIN_WAIT2))
    impatient(one, other)


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
    (of_pair(impatient), {LINGER2, BY_PEER_AFTER_FIN}),
    (of_pair(impatient_in_fin_wait2), {LINGER2, BY_PEER_AFTER_FIN}),
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
    assert row(peer) == BY_PEER_AFTER_FIN


def test_a_syn_for_a_time_wait_socket(attach: str) -> None:
    """Its RST has the number 0 (RFC 9293, 3.10.7.1), and the peer does not take it for one."""
    with tracer("reset", "--json", "--attach", attach) as running:
        with harness.pair() as (one, other):
            ports = harness.ports(one)
            one.close()
            harness.until(lambda: is_in_fin_wait2(*ports))
            forged(other, flags=SYN, data=b"").send()
            harness.until(lambda: not is_in_fin_wait2(*ports))
        events = harness.between(running.events(), *ports)
    assert [(row(e), e["seq"]) for e in events if e["state"] == "TIME_WAIT"] == (
        [(("sent", "TIME_WAIT", "time-wait", None), 0)] if sees_all(attach) else []
    )
    # Its FIN is for a connection that is forgotten.
    assert [e["state"] for e in events if e["direction"] == "received"] == ["LAST_ACK"]


@contextlib.contextmanager
def abort_on_overflow() -> Iterator[None]:
    """In the namespace that the thread is in."""
    path = Path("/proc/sys/net/ipv4/tcp_abort_on_overflow")
    path.write_text("1")
    try:
        yield
    finally:
        path.write_text("0")


def overflow(stack: contextlib.ExitStack) -> tuple[int, int]:
    """The handshake of one client is over when others have taken all places; its ports."""
    server, late_one = (stack.enter_context(socket.socket()) for _ in range(2))
    server.bind(("127.0.0.1", 0))
    server.listen(2)
    late_one.bind(("127.0.0.1", 0))
    lport, rport = late_one.getsockname()[1], server.getsockname()[1]
    with harness.firewall(f"tcp sport {lport} tcp flags & (syn|ack) == ack", "drop"):
        late_one.connect(server.getsockname())
        for _ in range(3):
            stack.enter_context(harness.connect("127.0.0.1", rport))
        harness.until(lambda: info(server, 24, "I") == 3)  # tcpi_unacked: those in the queue
    with contextlib.suppress(OSError):
        late_one.send(b"x")
    said_goodbye(late_one)
    return lport, rport


def test_a_full_accept_queue(attach: str, net: Net) -> None:
    """A listener's RST has that cause where both are so: the queue is full, and that aborts."""
    here, _ = net
    with here.entered(), tracer("reset", "--json", "--attach", attach) as running:
        with contextlib.ExitStack() as stack:
            with abort_on_overflow():
                forgotten("127.0.0.1", with_listener=True)
                ports = overflow(stack)
            Segment(("127.0.0.1", STRAY), ("127.0.0.1", ports[1]), ACK).send()
            running.wait_for(lambda e: e["rport"] == STRAY)
        events = running.events()
    found = harness.between(events, *ports)
    assert {row(e) for e in found} == {("sent", "LISTEN", "listen overflow", ME), BY_PEER}
    assert len(found) == 2
    others = [row(e) for e in events if e["state"] == "LISTEN" and e not in found]
    assert others == [("sent", "LISTEN", "unexpected", ME)] * 2


@pytest.mark.any_kernel
def test_a_firewall(net: Net) -> None:
    """Its RST is not TCP's, and only who gets it is shown."""
    here, _ = net
    with here.entered(), tracer("reset", "--json") as running:
        port = harness.refused_port()
        with harness.firewall(f"tcp dport {port}", "reject with tcp reset"):
            harness.refuse("127.0.0.1", port)
        events = [e for e in running.events() if port in (e["lport"], e["rport"])]
    assert [row(e) for e in events] == [("received", "SYN_SENT", "refused", ME)]


def is_open(port: int) -> bool:
    """In the thread's namespace; state 6 is TIME_WAIT (proc_pid_net(5))."""
    lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()
    return any(f":{port:04X}" in " ".join(x.split()[1:3]) and x.split()[3] != "06" for x in lines)


def test_mptcp(attach: str, net: Net) -> None:
    """close() with unread data breaks off every subflow, on the kernels that do so."""
    here, _ = net
    with here.entered(), tracer("reset", "--json", "--attach", attach) as running:
        mptcp_socket().close()
        before = harness.kernel_counters()["TcpOutRsts"]
        with mptcp_pair() as (client, accepted):
            ports = harness.ports(client)
            accepted.sendall(b"x")
            client.recv(1, socket.MSG_PEEK)
            client.close()
        harness.until(lambda: not is_open(ports[1]))
        count = harness.kernel_counters()["TcpOutRsts"] - before
        events = harness.between(running.events(), *ports)
    sent = [row(e) for e in events if e["direction"] == "sent"]
    assert sent == [("sent", "ESTABLISHED", "mptcp", ME)] * count
    assert count or not kernel_reasons()


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


def kill(connection: socket.socket) -> bool:
    """False: the kernel is built without CONFIG_INET_DIAG_DESTROY."""
    lport, rport = harness.ports(connection)
    return f":{lport}" in harness.sh(f"ss -K -n dst 127.0.0.1 dport = {rport} sport = {lport}")


def test_a_connection_that_is_killed(attach: str) -> None:
    with harness.pair() as (one, _):
        if not kill(one):
            pytest.skip("this kernel lets nobody kill connections")
    with (
        tracer("reset", "--json", "--attach", attach) as running,
        harness.pair() as (one, _),
    ):
        lport = one.getsockname()[1]
        assert kill(one)
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


def in_flight(one: socket.socket, other: socket.socket) -> None:
    """The peer takes no RST whose number is not the next one: RFC 5961, 3.2. It asks, and nobody's
    RST is the answer."""
    with harness.firewall(harness.DATA, "drop"):
        one.sendall(b"x" * 40000)
        linger(one, other)


def beyond_the_window(left: int) -> Provoke:
    """left: bytes in flight for which the peer, as it acknowledges the rest, takes the window back.
    The kernel allows for what a window's scale rounds off."""

    def act(one: socket.socket, other: socket.socket) -> None:
        with harness.firewall(harness.DATA, "drop"):
            one.sendall(b"x" * 40000)
            forged(other, flags=ACK, data=b"", beyond=40000 - left, window=0).send()
            harness.until(lambda: unacknowledged(one) == left)
            linger(one, other)

    return of_pair(act)


def unacknowledged(end: socket.socket) -> int:
    """SIOCOUTQ, tcp(7)."""
    return int(struct.unpack("i", fcntl.ioctl(end, termios.TIOCOUTQ, bytes(4)))[0])


Reset = tuple[int, int, int]
"""Ports of who sends it and of who gets it; sequence number."""


def resets_on(wire: socket.socket) -> Iterator[Reset]:
    """Each RST over IPv4 that a packet socket has seen."""
    with contextlib.suppress(BlockingIOError):
        while True:
            packet = wire.recv(2048)
            tcp = packet[(packet[0] & 15) * 4 :]
            if packet[9] == socket.IPPROTO_TCP and tcp[13] & RST:
                yield struct.unpack_from("!HHI", tcp)


def test_sequence_numbers_are_those_on_the_wire(attach: str, net: Net) -> None:
    here, _ = net
    ip = socket.ntohs(0x0800)
    odd = [of_pair(in_flight), beyond_the_window(20000), beyond_the_window(10)]
    with (
        here.entered(),
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, ip) as wire,
        tracer("reset", "--json", "--attach", attach, "--netns", here.name) as running,
    ):
        wire.bind(("lo", 0x0800))
        wire.setblocking(False)
        for provoke in [provoke for provoke, _ in NO_SOCKET + OF_SOCKETS] + odd:
            provoke("127.0.0.1")
        events = running.events()
        seen = Counter(resets_on(wire))
    sent, received = Counter[Reset](), Counter[Reset]()
    for e in events:
        if e["direction"] == "sent":
            sent[e["lport"], e["rport"], e["seq"]] += 1
        elif e["seq"] is not None:
            received[e["rport"], e["lport"], e["seq"]] += 1
    if sees_all(attach):
        assert sent == seen
    assert sent <= seen and sent.total() >= len(OF_SOCKETS + odd)
    assert received <= seen
    taken = [e for e in events if e["direction"] == "received"]
    assert len(taken) == len(NO_SOCKET + OF_SOCKETS + odd)


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


@pytest.mark.any_kernel
def test_what_a_port_rejects_takes_no_place(net: Net) -> None:
    """connect() gets its port when the socket is followed already. The host's listeners stay."""
    here, _ = net
    my_pid = "".join(f"{byte:#04x}" for byte in ME.to_bytes(4, sys.byteorder))
    with (
        tracer("reset", "--netns", here.name, "--lport", "1") as running,
        here.entered(),
        harness.pair(),
    ):
        harness.until(lambda: not any(my_pid in value for _, _, value in running.entries()))
