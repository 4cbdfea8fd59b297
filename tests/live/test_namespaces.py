"""tcpcore inside a pid namespace; names and addresses that are alike, in a network namespace."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live import harness
from tests.live.harness import TCPCORE, Namespace, Net, tracer

CLONE_NEWPID = 0x20000000  # include/uapi/linux/sched.h


def in_a_pid_namespace(act: Callable[[], object]) -> None:
    """Process 1 of a new one does it; /proc is still the host's."""
    assert ctypes.CDLL(None).unshare(CLONE_NEWPID) == 0
    assert harness.reap(harness.fork(act)) == 0


def trace_myself() -> None:
    assert os.getpid() == 1
    with tracer("connlat", "--json", "--pid", "1") as running:
        harness.session()
        assert {e["pid"] for e in running.events()} == {int(Path("/proc/self").readlink().name)}


def test_a_pid_of_our_own_namespace() -> None:
    """It is meant as the caller sees it, and shown as the host does."""
    assert harness.reap(harness.fork(lambda: in_a_pid_namespace(trace_myself))) == 0


def test_where_the_hosts_pids_are_not_known() -> None:
    inside = ["unshare", "--pid", "--fork", "--mount-proc"]
    for options in (["-p", "1"], ["-p", "1", "--pidns", "1"]):
        done = subprocess.run(
            [*inside, *TCPCORE, "connlat", "-d", "0.1", *options],
            capture_output=True,
            text=True,
            timeout=harness.PATIENCE,
        )
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "in this pid namespace the host's process ids are not known" in line


PORT = 1001  # nobody listens there
ALIKE = ("fd01::1", "fd02::1", "fd01::2", "fd01:0:0:1::1")  # in one half or the other


@pytest.fixture(scope="module")
def inside(net: Net) -> Iterator[Namespace]:
    """The namespace that we are in, with these addresses on its loopback device."""
    for address in ALIKE:
        harness.sh(f"ip -n {net[0].name} addr add {address}/128 dev lo")
    try:
        with net[0].entered():
            yield net[0]
    finally:
        for address in ALIKE:
            harness.sh(f"ip -n {net[0].name} addr del {address}/128 dev lo")


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("fd01::1", ["fd01::1"]),
        ("fd01::/64", ["fd01::1", "fd01::2"]),
        ("fd01::/127", ["fd01::1"]),
        ("fd02::/16", ["fd02::1"]),
        ("fd01:0:0:1::/64", ["fd01:0:0:1::1"]),
    ],
)
@pytest.mark.parametrize("side", ["raddr", "laddr"])
def test_addresses_that_differ_in_one_half(
    inside: Namespace, side: str, prefix: str, expected: list[str]
) -> None:
    """Both ends of these connects have the same address."""
    arguments = (f"--{side}", prefix, "-D", str(PORT), "--netns", inside.name)
    with tracer("connect", "--json", *arguments) as running:
        for address in ALIKE:
            harness.refuse(address, PORT)
        assert [e[side] for e in running.events()] == expected


@pytest.mark.parametrize("name", ["samesame-one", "samesame", "onlyhere-two"])
def test_task_names_that_differ_in_one_half(inside: Namespace, name: str) -> None:
    names = ("samesame-one", "samesame-two", "samesame", "onlyhere-two")
    arguments = ("--comm", name, "-D", str(PORT), "--netns", inside.name)
    with tracer("connect", "--json", *arguments) as running:
        for each in names:
            with harness.task_name(each.encode()):
                harness.refuse("127.0.0.1", PORT)
        assert [e["comm"] for e in running.events()] == [name]
