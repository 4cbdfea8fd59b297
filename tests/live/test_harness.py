"""What the live tests rely on."""

from __future__ import annotations

import os
import signal
import socket
import struct
from pathlib import Path

import pytest

from tests.live import harness
from tests.live.harness import Net


@pytest.mark.any_kernel
def test_a_killed_test_leaves_nothing_that_runs() -> None:
    """As when it takes too long. A tracer that became another user notices it by its pipes."""
    heard, say = os.pipe()

    def act() -> None:
        running = harness.Tracer("states")
        assert running.attached
        pids = running.pid, harness.fork(signal.pause)
        os.write(say, "{} {}".format(*pids).encode())
        signal.pause()

    child = harness.fork(act)
    pids = os.read(heard, 100).split()
    os.close(heard)
    os.close(say)
    os.kill(child, signal.SIGKILL)
    assert harness.reap(child) == -signal.SIGKILL
    assert len(pids) == 2
    harness.until(lambda: not any(is_running(int(pid)) for pid in pids))


def is_running(pid: int) -> bool:
    """A zombie, which waits for whoever inherited it, does not run (proc(5), stat)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")


def retransmits(connection: socket.socket) -> int:
    """tcpi_total_retrans of struct tcp_info, include/uapi/linux/tcp.h."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int(struct.unpack_from("I", info, 100)[0])


def talk(sender: socket.socket, receiver: socket.socket, segments: int) -> None:
    """One after another, each of them received before the next."""
    for _ in range(segments):
        sender.sendall(b"x" * 500)
        assert len(receiver.recv(500, socket.MSG_WAITALL)) == 500


@pytest.mark.parametrize(
    ("drop", "segments", "least"),
    [(harness.first(2), 3, 2), (harness.every(3), 4, 1), (harness.every(2), 3, 2)],
)
def test_a_lossy_link(net: Net, drop: str, segments: int, least: int) -> None:
    """What it loses is sent again. The other way nothing is lost, and nothing later."""
    here, there = net
    with there.entered(), harness.listener(there.address) as server:
        with here.entered():
            client = harness.connect(*server.getsockname())
        with client, server.accept()[0] as accepted:
            with harness.lossy(drop) as dropped:
                talk(accepted, client, segments)
                assert dropped() == 0
                talk(client, accepted, segments)
                lost = dropped()
            assert retransmits(client) >= lost >= least
            assert lost == least or drop != harness.first(2)
        assert harness.sh("nft list tables") == ""
