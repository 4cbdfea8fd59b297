"""Odd sockets, and sockets that are used again."""

from __future__ import annotations

import ctypes
import ipaddress
import mmap
import os
import socket
import struct
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tcpcore.request.filters import Filters
from tcpcore.request.request import Request
from tcpcore.session.session import opened
from tcpcore.tools import names
from tests.live import harness
from tests.live.harness import Net, tracer
from tests.live.test_mptcp import mptcp_pair
from tests.unit.samples import tool

# include/uapi/linux/{tcp,in}.h, include/linux/socket.h
TCP_FASTOPEN, IP_RECVERR, MSG_FASTOPEN = 23, 11, 0x20000000


@pytest.mark.parametrize("tool", ["life", "tracer"])
def test_fast_open_closed_before_the_handshake_ends(tool: str, net: Net) -> None:
    """The server takes the data of the SYN, answers and closes; then the client's ACK comes."""
    here, there = net
    for namespace in net:
        harness.sh(f"ip netns exec {namespace.name} sysctl -q net.ipv4.tcp_fastopen=0x607")
    address = (there.address, 7000)
    with tracer(tool, "--json") as running:
        with there.entered():
            server = harness.listener(*address)
        server.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 5)
        with here.entered():
            client = socket.socket()
        with server, client:
            # The client's SYN comes through, nothing after it until the server has closed.
            with here.entered(), harness.firewall("tcp flags & syn == syn", "drop"):
                client.setblocking(False)
                with suppress(BlockingIOError):
                    client.sendto(b"question", MSG_FASTOPEN, address)
                accepted, _ = server.accept()
                assert accepted.recv(100) == b"question"
                accepted.sendall(b"answer")
                accepted.close()
            client.setblocking(True)
            client.settimeout(harness.PATIENCE)
            assert client.recv(100) == b"answer"
            lport = client.getsockname()[1]
        time.sleep(0.3)
        rows = [e for e in running.events() if (e["lport"], e["rport"]) == (7000, lport)]
    assert {e["pid"] for e in rows} == {os.getpid()}
    if tool == "life":
        assert [(e["rx_bytes"], e["tx_bytes"]) for e in rows] == [(8, 6)]
    else:
        assert [e["action"] for e in rows] == ["accept", "close"]


def test_an_icmp_error_is_no_end(net: Net) -> None:
    """With IP_RECVERR it stays in the socket until somebody asks; the session ends by FIN."""
    here, there = net
    with tracer("life", "--json") as running:
        with there.entered():
            server = harness.listener(there.address, 7001)
        with here.entered():
            client = harness.connect(there.address, 7001)
        with server, client, server.accept()[0] as accepted:
            client.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            unreachable = "reject with icmp type host-unreachable"
            with there.entered(), harness.firewall("tcp dport 7001", unreachable) as rejected:
                client.sendall(b"x")
                # The first error comes while sendall has the lock, and is only noted
                # (sk_err_soft); that of the segment sent again stays.
                harness.until(lambda: rejected() >= 2)
            assert accepted.recv(1) == b"x"  # sent again
            lport = client.getsockname()[1]
            client.close()
            assert accepted.recv(1) == b""
        time.sleep(0.2)
        rows = harness.between(running.events(), lport, 7001)
    assert {e["reason"] for e in rows} == {"fin"}
    assert len(rows) == 2


@pytest.mark.parametrize(("tool", "rows"), [("states", 4), ("tracer", 2), ("life", 1)])
def test_a_socket_that_connects_to_itself(tool: str, rows: int, attach: str) -> None:
    """A simultaneous open: from SYN_SENT to SYN_RECV, and still the same connection and owner."""
    with tracer(tool, "--json", "--attach", attach) as running:
        with socket.socket() as client:
            client.bind(("127.0.0.1", 0))
            port = client.getsockname()[1]
            client.connect(("127.0.0.1", port))
            harness.reset(client)
        events = [e for e in running.events() if e["lport"] == e["rport"] == port]
    assert {e["pid"] for e in events} == {os.getpid()}
    assert len(events) == rows
    if tool == "states":
        states = [e["newstate"] for e in events]
        assert states == ["SYN_SENT", "SYN_RECV", "ESTABLISHED", "CLOSE"]
        assert [e["duration_ns"] is None for e in events] == [True, False, False, False]


def test_odd_sockets_leave_nothing(net: Net) -> None:
    """Raw ones with TCP's number, never connected, disconnected, refused, of MPTCP, abandoned."""
    here, _ = net
    ours = Request(Filters(netns=[here.inode]))  # no other socket has an entry
    with ExitStack() as stack, here.entered(), harness.listener() as server:
        traces = [stack.enter_context(opened(tool(name), ours)) for name in names()]
        port = server.getsockname()[1]
        for _ in range(50 if harness.EMULATED else 500):
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
            raw.connect(("127.0.0.1", port))
            raw.close()
        for _ in range(20):
            make_odd_sockets(server, here.nobody)
        server.close()

        def nothing_left() -> bool:
            for trace in traces:
                trace.read()
            return not harness.entries(os.getpid())

        harness.until(nothing_left)


def make_odd_sockets(server: socket.socket, nobody: str) -> None:
    port = server.getsockname()[1]
    socket.socket().close()
    harness.refuse("127.0.0.1", 9)
    client = harness.connect("127.0.0.1", port)
    harness.disconnect(client)
    client.close()
    harness.start_connect(nobody, 1004).close()
    with suppress(pytest.skip.Exception), mptcp_pair():
        pass
    server.accept()[0].close()
    harness.reset(harness.connect("127.0.0.1", port))  # and nobody accepts it
    server.accept()[0].close()


def test_raw_sockets_are_no_connects(attach: str) -> None:
    with tracer("connect", "--json", "--attach", attach) as running:
        for _ in range(10):
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
            raw.connect(("127.0.0.1", 5))
            raw.close()
        lport, port = harness.session()
        rows = running.events()
    assert [e["lport"] for e in rows if e["rport"] == port] == [lport]
    assert not [e for e in rows if e["pid"] == os.getpid() and e["rport"] != port]


@pytest.mark.parametrize("tool", ["connect", "connlat"])
@pytest.mark.parametrize("ask_first", [False, True])
def test_fetching_a_result_is_no_connect(tool: str, attach: str, ask_first: bool) -> None:
    """connect() again after a non-blocking one, also where SO_ERROR was read before."""
    closed = harness.refused_port()
    with tracer(tool, "--json", "--attach", attach) as running:
        client = harness.start_connect("127.0.0.1", closed)
        if ask_first:
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        with pytest.raises(OSError):
            client.connect(("127.0.0.1", closed))
        client.close()
        rows = [e for e in running.events() if e["rport"] == closed]
    assert [e["result"] for e in rows] == ["ECONNREFUSED"]


def test_the_local_port_of_a_socket_used_again() -> None:
    """Connect after a failed connect, listen after a disconnect: each with its new port."""
    closed = harness.refused_port()
    with tracer("states", "--json") as running, harness.listener() as server:
        port = server.getsockname()[1]
        client = socket.socket()
        with pytest.raises(ConnectionRefusedError):
            client.connect(("127.0.0.1", closed))
        client.connect(("127.0.0.1", port))
        first = client.getsockname()[1]
        server.accept()[0].close()
        harness.disconnect(client)
        client.listen()
        second = client.getsockname()[1]
        client.close()
        rows = running.events()
    connecting = [e for e in rows if e["rport"] == port and e["newstate"] == "SYN_SENT"]
    assert [e["lport"] for e in connecting] == [first]
    listening = [e for e in rows if e["newstate"] == "LISTEN" and e["lport"] in (first, second)]
    assert [e["lport"] for e in listening] == [second]


def test_a_connect_that_fails_before_it_has_a_port(net: Net) -> None:
    """Nor does it show the one of the socket's attempt before."""
    here = net[0]
    with here.entered(), tracer("connect", "--json") as running:
        client = socket.socket()
        with pytest.raises(ConnectionRefusedError):
            client.connect((here.peer, 9))
        with pytest.raises(OSError):
            client.connect(("198.51.100.1", 1005))  # RFC 5737: there is no route
        client.close()
        rows = [e for e in running.events() if e["rport"] == 1005]
    assert [(e["result"], e["lport"]) for e in rows] == [("ENETUNREACH", None)]


def test_a_listener_on_a_mapped_address_is_ipv4() -> None:
    with tracer("states", "--json", "-4") as running, harness.listener("::ffff:127.0.0.1") as one:
        port = one.getsockname()[1]
        running.wait_for(lambda e: e["lport"] == port)
    rows = [e for e in running.records() if e.get("lport") == port]
    assert {(e["family"], e["laddr"], e["raddr"]) for e in rows} == {
        ("ipv4", "127.0.0.1", "0.0.0.0")
    }


NOT_TO_CONNECT_TO = struct.pack("=H", socket.AF_INET) + struct.pack("!H", 1006)
NOT_TO_CONNECT_TO += ipaddress.ip_address("255.255.255.255").packed + bytes(8)


def check_that_it_fails_at_once(attach: str, address: int) -> None:
    with tracer("connect", "--json", "--attach", attach) as running:
        with socket.socket() as client:
            where = ctypes.c_void_p(address)
            connect = ctypes.CDLL(None).connect
            assert connect(client.fileno(), where, len(NOT_TO_CONNECT_TO)) == -1
        rows = [e for e in running.events() if e["rport"] == 1006]
    assert [e["raddr"] for e in rows] == ["255.255.255.255"]
    assert rows[0]["result"] not in ("ok", "EINPROGRESS")


def test_an_address_at_the_end_of_a_page(attach: str) -> None:
    """Behind an IPv4 address nothing is readable."""
    page = mmap.PAGESIZE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    start = harness.map_memory(2 * page, mmap.PROT_READ | mmap.PROT_WRITE, flags)
    harness.unmap_memory(start + page, page)
    address = start + page - len(NOT_TO_CONNECT_TO)
    ctypes.memmove(address, NOT_TO_CONNECT_TO, len(NOT_TO_CONNECT_TO))
    check_that_it_fails_at_once(attach, address)
    harness.unmap_memory(start, page)


def test_an_address_that_nobody_has_read_yet(attach: str, tmp_path: Path) -> None:
    """A program's constant: its page is fetched by the first who reads it, which BPF cannot be."""
    program = tmp_path / "program"
    program.write_bytes(NOT_TO_CONNECT_TO)
    with program.open() as file:
        protection, flags = mmap.PROT_READ, mmap.MAP_PRIVATE
        address = harness.map_memory(mmap.PAGESIZE, protection, flags, file.fileno())
    check_that_it_fails_at_once(attach, address)
    harness.unmap_memory(address, mmap.PAGESIZE)
