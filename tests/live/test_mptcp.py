"""Multipath TCP (RFC 8684): a row is a subflow."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.live import harness
from tests.live.harness import tracer

IPPROTO_MPTCP = 262  # include/uapi/linux/in.h


def mptcp_socket() -> socket.socket:
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
    except OSError as e:
        pytest.skip(f"no MPTCP here: {e}")


@contextmanager
def mptcp_pair(host: str = "127.0.0.1") -> Iterator[tuple[socket.socket, socket.socket]]:
    with mptcp_socket() as server, mptcp_socket() as client:
        server.bind((host, 0))
        server.listen()
        server.settimeout(harness.PATIENCE)
        client.connect(server.getsockname())
        with server.accept()[0] as accepted:
            yield client, accepted


@pytest.mark.parametrize("tool", ["connect", "accept", "tracer", "life", "states"])
def test_mptcp(attach: str, tool: str) -> None:
    """Both ends are shown, and are ours."""
    mptcp_socket().close()
    with tracer(tool, "--json", "--attach", attach) as running:
        with mptcp_pair() as (client, accepted):
            lport, port = client.getsockname()[1], client.getpeername()[1]
            client.sendall(b"x" * 1000)
            assert accepted.recv(1000, socket.MSG_WAITALL)
        time.sleep(0.2)  # the subflows are closed by a worker, a little later
        rows = harness.between(running.events(), lport, port)
    ours = [e for e in rows if e["pid"] == os.getpid()]
    assert {e["pid"] for e in rows} <= {os.getpid(), None}
    match tool:
        case "connect":
            assert [e["result"] for e in ours] == ["ok"]
        case "accept":
            assert [(e["lport"], e["wait_ns"] is None) for e in ours] == [(port, False)]
        case "tracer":
            assert sorted(e["action"] for e in rows) == ["accept", "close", "close", "connect"]
            assert sorted(e["action"] for e in ours)[::3] == ["accept", "connect"]
        case "life":
            assert sorted((e["lport"], e["rx_bytes"] >= 1000) for e in ours) == sorted(
                [(lport, False), (port, True)]
            )
        case _:
            assert {e["lport"] for e in ours} == {lport, port}


@pytest.mark.parametrize("tool", ["connect", "accept", "tracer", "life"])
def test_a_subflow_that_the_kernel_adds(attach: str, tool: str) -> None:
    """It connects and ends like any other; nobody accepts it. Its owner is no kernel thread."""
    mptcp_socket().close()
    second = "10.78.0.2"  # the kernel uses it for a subflow of its own (ip-mptcp(8))
    with harness.namespaces() as (here, _):
        harness.sh(f"ip -n {here.name} addr add {second}/32 dev lo")
        harness.sh(f"ip -n {here.name} mptcp limits set subflows 2 add_addr_accepted 2")
        harness.sh(f"ip -n {here.name} mptcp endpoint add {second} dev lo subflow")
        arguments = ("--json", "--attach", attach, "--netns", here.name)
        with tracer(tool, *arguments) as running, here.entered():
            with mptcp_pair(here.address) as (client, accepted):
                lport, port = client.getsockname()[1], client.getpeername()[1]
                client.sendall(b"x")
                assert accepted.recv(1)
                harness.until(lambda: second in established(port))
            harness.until(lambda: not established(port))
            rows = running.events()
    # The accepted end tries to add one, too, where nobody listens.
    added = [e for e in rows if second in (e["laddr"], e["raddr"]) and e["rport"] != lport]
    assert len(rows) > len(added)
    assert {e["pid"] for e in added} <= {os.getpid(), None}
    match tool:
        case "connect":
            assert [(e["laddr"], e["result"]) for e in added] == [(second, "ok")]
        case "accept":
            assert added == []
        case "tracer":
            assert [(e["laddr"], e["action"]) for e in added] == [
                (second, "connect"),
                (second, "close"),
            ]
        case _:
            assert sorted(e["laddr"] for e in added) == [here.address, second]


def established(port: int) -> str:
    """The connections to a port, as ss(8) shows them."""
    return harness.sh(f"ss -Htn state established '( dport = :{port} )'")
