"""Whose a socket is, and what filters by owner make of it."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.live import faults, harness
from tests.live.harness import Event, tracer


@pytest.mark.parametrize("tool", ["states", "life"])
def test_who_looks_at_a_socket_is_no_owner(tool: str) -> None:
    """`ss -i` holds each socket's lock for a moment, and works off what comes meanwhile."""
    # Another process from the start: one that we fork meanwhile has our sockets, until its exec.
    look = ["sh", "-c", "while :; do ss -tinem >/dev/null; done"]
    with (
        subprocess.Popen(look) as looking,
        tracer(tool, "--json") as running,
        harness.listener() as server,
    ):
        port = server.getsockname()[1]
        try:
            for _ in range(30 if harness.EMULATED else 300):
                client = harness.connect("127.0.0.1", port)
                accepted, _ = server.accept()
                with accepted, client:
                    client.sendall(b"x")
                    client.shutdown(socket.SHUT_WR)
                    accepted.recv(2)
                    accepted.recv(2)
        finally:
            looking.kill()
        rows = [e for e in running.events() if port in (e["lport"], e["rport"])]
    assert {e["pid"] for e in rows} <= {os.getpid(), None}
    if tool == "life":
        assert {e["pid"] for e in rows} == {os.getpid()}


def test_who_has_the_lock_is_no_owner() -> None:
    """A process that peeks at what came holds the lock for as long as its memory makes it wait; the
    FIN that comes meanwhile is worked off in its context."""
    (waiting, say), (told, go) = socket.socketpair(), socket.socketpair()
    with harness.pair() as (client, accepted), tracer("states", "--json") as running:
        lport = client.getsockname()[1]
        accepted.send(b"x")

        def peek() -> None:
            accepted.close()  # the parent has it, and closes it last
            page = faults.Page()
            arguments = client.fileno(), ctypes.c_void_p(page.address), 1, socket.MSG_PEEK
            thread = threading.Thread(target=ctypes.CDLL(None).recv, args=arguments)
            thread.start()
            assert page.wait(harness.PATIENCE)
            say.send(b"x")
            told.recv(1)
            page.release()
            thread.join()

        child = harness.fork(peek)
        waiting.settimeout(harness.PATIENCE)
        assert waiting.recv(1)
        accepted.close()
        time.sleep(0.1)  # for the FIN to come into the backlog
        go.send(b"x")
        assert harness.reap(child) == 0
        rows = [e for e in running.events() if e["lport"] == lport]
    for end in (waiting, say, told, go):
        end.close()
    assert [e["newstate"] for e in rows] == ["CLOSE_WAIT"]
    assert rows[0]["pid"] is None


@pytest.mark.parametrize("tool", ["life", "states", "tracer"])
def test_owner_filters_are_subsets(tool: str) -> None:
    """What -p shows of a connection that one process opened and another closed are rows of the
    unfiltered run: those since one that passes has had it."""
    with harness.listener() as server, tracer(tool, "--json") as whole:
        client = socket.socket()
        # The child has to exist, and to be filtered for, before the connection is made.
        reading, writing = socket.socketpair()

        def inherit() -> None:
            writing.close()
            _, (fd, *_), _, _ = socket.recv_fds(reading, 1, 1)
            reading.recv(1)  # not before it is the only one who has it
            os.close(fd)

        child = harness.fork(inherit)
        with (
            tracer(tool, "--json", "-p", str(child)) as of_child,
            tracer(tool, "--json", "-p", str(os.getpid())) as of_parent,
        ):
            client.connect(server.getsockname())
            ends = client.getsockname()[1], client.getpeername()[1]
            accepted, _ = server.accept()
            socket.send_fds(writing, [b"x"], [client.fileno()])
            client.close()
            writing.send(b"x")
            assert harness.reap(child) == 0
            accepted.close()
            time.sleep(0.1)
            parts = [harness.between(one.events(), *ends) for one in (of_child, of_parent)]
        rows = harness.between(whole.events(), *ends)
        reading.close()
        writing.close()
    keys = [[identity(e) for e in part] for part in (rows, *parts)]
    assert set(keys[1]) < set(keys[0]) and set(keys[2]) <= set(keys[0])
    assert {e["pid"] for e in parts[0]} == {child}
    assert child in {e["pid"] for e in parts[1]}


def identity(row: Event) -> tuple[object, ...]:
    """What a row says, but for what differs from one tracer to the next."""
    own = {"time", "ts_ns", "duration_ns", "skaddr"}
    return (*sorted((k, str(v)) for k, v in row.items() if k not in own),)


@pytest.mark.parametrize("uid", [0, 65534])
def test_owned_and_unowned_rows_agree_about_the_user(uid: int) -> None:
    """The effective one, whatever the real one is."""
    with tracer("states", "--json", "-u", str(uid)) as running:
        os.setresuid(65534 - uid, uid, 0)
        try:
            lport, port = harness.session()
        finally:
            os.setresuid(0, 0, 0)
        rows = harness.between(running.events(), lport, port)
    assert {e["uid"] for e in rows} == {uid}
    assert len(rows) == 10
    assert {e["pid"] for e in rows} == {None, os.getpid()}


@contextmanager
def held_by(prepare: Callable[[], object]) -> Iterator[tuple[int, int]]:
    """A connection of a process that is so prepared and does nothing; the process and its port.
    The process ends with the block, and closes nothing before."""
    # Sockets: tracers close those that they inherit, so that the end is ours alone.
    (told, tell), (waiting, end) = os.pipe(), socket.socketpair()

    def hold(port: int) -> None:
        end.close()
        prepare()
        client = harness.connect("127.0.0.1", port)
        os.write(tell, client.getsockname()[1].to_bytes(2, "little"))
        waiting.recv(1)
        os._exit(0)

    with harness.listener() as server, waiting:
        child = harness.fork(lambda: hold(server.getsockname()[1]))
        try:
            yield child, int.from_bytes(os.read(told, 2), "little")
        finally:
            end.close()
            assert harness.reap(child) == 0


@pytest.mark.parametrize("option", ["--cgroup", "--cgroupmap", "--mntnsmap"])
def test_older_sessions_of_a_group(option: str, pins: Path) -> None:
    with harness.cgroup() as group, harness.cgroup() as other:
        inner = group / "inner"
        inner.mkdir()
        mounts = Path("/proc/self/ns/mnt").stat().st_ino
        values = {
            "--cgroup": (group, other),
            "--cgroupmap": (
                harness.pinned(pins / "a", inner.stat().st_ino),
                harness.pinned(pins / "b", group.stat().st_ino),
            ),
            "--mntnsmap": (
                harness.pinned(pins / "c", mounts),
                harness.pinned(pins / "d", mounts + 1),
            ),
        }
        try:
            with held_by(lambda: harness.join_cgroup(inner)) as (pid, port):
                found = []
                for value in values[option]:
                    arguments = ("--all", "--open", option, str(value))
                    with tracer("life", "--json", *arguments) as running:
                        found.append([e for e in running.events() if e["lport"] == port])
        finally:
            inner.rmdir()
    assert [[e["pid"] for e in rows] for rows in found] == [[pid], []]


def test_a_mount_namespace_that_is_left_at_the_exit(pins: Path) -> None:
    """A process that exits has no namespaces any more when its sockets are closed."""

    def unshare() -> None:
        assert ctypes.CDLL(None).unshare(harness.CLONE_NEWNS) == 0

    with ExitStack() as stack:
        pid, port = stack.enter_context(held_by(unshare))
        inode = Path(f"/proc/{pid}/ns/mnt").stat().st_ino
        path = harness.pinned(pins / "map", inode)
        with tracer("states", "--json", "--mntnsmap", path) as running:
            stack.pop_all().close()
            rows = [e for e in running.events() if e["lport"] == port]
    assert rows[0]["newstate"] == "FIN_WAIT1"
    assert {e["pid"] for e in rows} == {pid}


def test_an_older_session_of_two_processes() -> None:
    """Either of them passes the filter, whichever has the row."""
    waiting, end = socket.socketpair()
    with harness.pair() as (client, _), waiting:
        lport = client.getsockname()[1]

        def hold() -> None:
            end.close()
            waiting.recv(1)

        child = harness.fork(hold)
        try:
            shown = []
            for pid in (os.getpid(), child, 1):
                with tracer("life", "--json", "--all", "--open", "-p", str(pid)) as running:
                    rows = running.events()
                shown.append([e["pid"] for e in rows if e["lport"] == lport])
        finally:
            end.close()
            assert harness.reap(child) == 0
    assert shown[0] == shown[1] and shown[0] in ([os.getpid()], [child])
    assert shown[2] == []
