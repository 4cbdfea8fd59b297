"""The common filters, on connlat and states: they keep what they name and nothing else."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.live import harness
from tests.live.harness import Event, Namespace, tracer

Net = tuple[Namespace, Namespace]
CONNECT = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2]))).close()"


@contextmanager
def two_servers() -> Iterator[tuple[int, int]]:
    """The ports of two dual-stack listeners."""
    with harness.listener("::") as one, harness.listener("::") as two:
        yield one.getsockname()[1], two.getsockname()[1]


def connects(ports: tuple[int, int], *hosts: str) -> None:
    for host in hosts or ("127.0.0.1",):
        for port in ports:
            harness.connect(host, port).close()


def test_remote_port_list_and_range() -> None:
    with two_servers() as (one, two):
        wanted = f"1-3,{one}" if one + 1 != two else str(one)
        with tracer("connlat", "--json", "-D", wanted) as running:
            connects((one, two))
            assert {e["rport"] for e in running.events()} == {one}
        with tracer("connlat", "--json", "--rport", f"{min(one, two)}-{max(one, two)}") as running:
            connects((one, two))
            assert {e["rport"] for e in running.events()} == {one, two}


def test_local_port() -> None:
    with two_servers() as (one, two), tracer("states", "--json", "-L", str(one)) as running:
        connects((one, two))
        events = running.events()
    assert events and {e["lport"] for e in events} == {one}


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("127.0.0.0/8", {"127.0.0.1"}),
        ("::1", {"::1"}),
        ("::1,127.0.0.1/32", {"127.0.0.1", "::1"}),
        ("128.0.0.0/8", set()),
        ("0.0.0.0/0", {"127.0.0.1"}),
        ("::/1", {"127.0.0.1", "::1"}),  # v4-mapped addresses lie below ::/1 as well
    ],
)
def test_addresses(prefix: str, expected: set[str]) -> None:
    with two_servers() as ports:
        arguments = ("-D", f"{ports[0]},{ports[1]}")
        with tracer("connlat", "--json", "--raddr", prefix, "--laddr", prefix, *arguments) as run:
            connects(ports, "127.0.0.1", "::1")
            assert {e["raddr"] for e in run.events()} == expected


def owners(arguments: list[str], act: Callable[[tuple[int, int]], None]) -> list[Event]:
    """What connlat shows of the connects that `act` makes to two local servers."""
    with two_servers() as ports, tracer("connlat", "--json", *arguments) as running:
        act(ports)
        return [e for e in running.events() if e["rport"] in ports]


def in_child(ports: tuple[int, int], *prefix: str) -> int:
    child = subprocess.Popen([*prefix, sys.executable, "-c", CONNECT, "127.0.0.1", str(ports[0])])
    child.wait(harness.PATIENCE)
    return child.pid


def test_pid() -> None:
    def act(ports: tuple[int, int]) -> None:
        connects(ports)
        in_child(ports)

    assert {e["pid"] for e in owners(["-p", str(os.getpid())], act)} == {os.getpid()}
    assert len(owners(["-p", str(os.getpid()), "-p", "1"], act)) == 2
    assert owners(["-p", "1"], act) == []


def test_uid() -> None:
    def act(ports: tuple[int, int]) -> None:
        connects(ports)
        in_child(ports, "setpriv", "--reuid", "65534", "--clear-groups")

    assert {e["uid"] for e in owners(["-u", "65534"], act)} == {65534}
    assert {e["uid"] for e in owners(["-u", "0"], act)} == {0}


def test_cgroup() -> None:
    root = next(
        x.split()[1] for x in Path("/proc/mounts").read_text().splitlines() if " cgroup2 " in x
    )
    group = Path(root, f"tcpcore-test-{os.getpid()}", "inner")
    group.mkdir(parents=True)
    pids = []

    def act(ports: tuple[int, int]) -> None:
        connects(ports)
        join = f'echo $$ >{group}/cgroup.procs && exec "$@"'
        pids.append(in_child(ports, "sh", "-c", join, "sh"))

    try:
        assert [e["pid"] for e in owners(["--cgroup", str(group.parent)], act)] == [pids[-1]]
        assert [e["pid"] for e in owners(["--cgroup", str(group)], act)] == [pids[-1]]
    finally:
        group.rmdir()
        group.parent.rmdir()


def test_pid_of_a_pid_namespace() -> None:
    """--pid as the process itself sees it, and the namespace as an inode."""
    code = (
        "import os,socket,sys; print(os.getpid(), os.stat('/proc/self/ns/pid').st_ino, flush=True);"
        "input(); socket.create_connection(('127.0.0.1', int(sys.argv[1])))"
    )
    with two_servers() as ports:
        child = subprocess.Popen(
            ["unshare", "-p", "--mount-proc", "-f", sys.executable, "-c", code, str(ports[0])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdin and child.stdout
        inner, inode = child.stdout.readline().split()
        with tracer("connlat", "--json", "--pid", inner, "--pidns", inode) as running:
            connects(ports)
            child.communicate("\n", timeout=harness.PATIENCE)
            (event,) = (e for e in running.events() if e["rport"] in ports)
    assert inner == "1" and event["pid"] not in (1, os.getpid())


def test_netns_tells_equal_addresses_apart(net: Net) -> None:
    """By name, by inode and by a process inside; both namespaces use the same loopback tuple."""
    one, two = net
    for spelled in (one.name, str(one.inode)):
        with tracer("states", "--json", "--netns", spelled) as running:
            for namespace in (one, two):
                with namespace.entered():
                    harness.session()
            events = running.events()
        assert {e["netns"] for e in events} == {one.inode}
        assert len(events) == 12


ODD = b'a\x1b[31m"\\,\xff'


def test_an_odd_task_name() -> None:
    """Nothing of it reaches the terminal; JSON and CSV parse; the filter finds it."""
    seen: dict[str, list[str]] = {}
    for style in ("--json", "--csv", "--wide"):
        with (
            harness.listener() as server,
            tracer("connlat", style, "--comm", os.fsdecode(ODD)) as running,
        ):
            port = server.getsockname()[1]
            thread = threading.Thread(target=connect_as, args=(ODD, port))
            thread.start()
            thread.join()
            harness.connect("127.0.0.1", port).close()
            assert running.stop() == 0
            seen[style] = running.out.lines
    escaped = 'a\\x1b[31m"\\\\,\\xff'
    (event,) = (json.loads(line) for line in seen["--json"])
    assert event["comm"] == escaped
    (row,) = csv.DictReader(seen["--csv"])
    assert row["comm"] == escaped
    assert seen["--wide"][1].split()[1] == escaped[:16]
    assert all(line.isprintable() for lines in seen.values() for line in lines)


def connect_as(name: bytes, port: int) -> None:
    with harness.task_name(name):
        harness.connect("127.0.0.1", port).close()
