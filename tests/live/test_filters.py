"""The common filters: they keep what they name and nothing else."""

from __future__ import annotations

import csv
import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests import facts
from tests.facts import Act, nothing
from tests.live import harness
from tests.live.harness import CLONE_NEWNS, Event, Namespace, Net, PinnedMap, Tracer, tracer

CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000  # include/uapi/linux/sched.h
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
        ("::/0", {"::1"}),  # without the v4-mapped addresses
        ("::/1", {"::1"}),
        ("::ffff:127.0.0.0/104", {"127.0.0.1"}),
    ],
)
def test_addresses(prefix: str, expected: set[str]) -> None:
    with two_servers() as ports:
        arguments = ("-D", f"{ports[0]},{ports[1]}")
        with tracer("connlat", "--json", "--raddr", prefix, "--laddr", prefix, *arguments) as run:
            connects(ports, "127.0.0.1", "::1")
            assert {e["raddr"] for e in run.events()} == expected


@pytest.mark.parametrize("side", ["laddr", "raddr"])
def test_every_bit_of_an_ipv6_prefix_counts(side: str, net: Net) -> None:
    """Addresses that differ in one of their four words alone."""
    here = net[0]
    address = "2001:db8:0:1:0:1:0:1"
    others = ["2001:db9:0:1:0:1:0:1", "2001:db8:0:2:0:1:0:1", "2001:db8:0:1:0:2:0:1"]
    others.append("2001:db8:0:1:0:1:0:2")
    for each in (address, *others):
        harness.sh(f"ip -n {here.name} addr replace {each}/128 dev lo nodad")
    lengths = {128: {address}, 112: {address, others[3]}, 64: {address, *others[2:]}}
    with ExitStack() as stack:
        running = {
            length: stack.enter_context(
                tracer(
                    "connlat", "--json", "--netns", here.name, f"--{side}", f"{address}/{length}"
                )
            )
            for length in lengths
        }
        with here.entered():
            for each in (address, *others):
                with meeting((each, 2000), (each, PORT)):
                    pass
        seen = {length: {e[side] for e in each.events()} for length, each in running.items()}
    assert seen == lengths


def test_a_whole_task_name_counts() -> None:
    """Each half of the 16 bytes that the kernel keeps."""
    names = [b"tcpcore-one", b"tcpcore-two", b"another-one"]
    with harness.listener() as server, tracer("connlat", "--json", "--comm", "tcpcore-one") as run:
        for name in names:
            connect_as(name, server.getsockname()[1])
        assert [e["comm"] for e in run.events()] == ["tcpcore-one"]


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


@contextmanager
def meeting(client: tuple[str, int], server: tuple[str, int], act: Act = nothing) -> Iterator[None]:
    """A connection between these two. It ends with a RST: the ports are free again at once.
    act: what is done with it at first."""
    family = socket.AF_INET6 if ":" in client[0] else socket.AF_INET
    with harness.listener(*server) as listening, socket.socket(family) as connecting:
        connecting.bind(client)
        connecting.connect(server)
        with listening.accept()[0] as accepted:
            act(connecting, accepted)
            try:
                yield
            finally:
                harness.reset(connecting)


def unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(flags) == 0, os.strerror(ctypes.get_errno())


class Puppet:
    """A process that waits to be told to act. pid: out here."""

    def __init__(self, act: Callable[[], object], prepare: Callable[[], object]) -> None:
        self._ours, self._theirs = socket.socketpair()  # tracers close sockets that they inherit
        self._act, self._prepare = act, prepare
        self._ours.settimeout(harness.PATIENCE)
        self._parent = harness.fork(self._make)
        self._theirs.close()
        self.pid = int.from_bytes(self._ours.recv(4), "little")
        assert self.pid, "it could not be prepared"

    def _make(self) -> None:
        """The process is a child of the one that is prepared: so it may get a pid namespace."""
        self._ours.close()
        self._prepare()
        child = harness.fork(self._obey)
        self._theirs.sendall(child.to_bytes(4, "little"))
        self._theirs.close()
        assert harness.reap(child) == 0

    def _obey(self) -> None:
        while self._theirs.recv(1):
            self._act()
            self._theirs.sendall(b"x")

    def act(self) -> None:
        """Returns when it is done."""
        self._ours.sendall(b"x")
        assert self._ours.recv(1), "it failed"

    def end(self) -> None:
        self._ours.close()
        assert harness.reap(self._parent) == 0


@contextmanager
def puppet(
    prepare: Callable[[], object], act: Callable[[], object] = harness.session
) -> Iterator[Puppet]:
    made = Puppet(act, prepare)
    try:
        yield made
    finally:
        made.end()


CLIENT, SERVER, PORT = "127.0.0.2", "127.0.0.3", 3000
MISFITS = (
    *("lport", "pid", "uid", "comm", "family", "rport"),
    *("laddr", "raddr", "netns", "cgroup", ""),
)
FIRST = 2000  # client's port, of the one whose local port does not fit; then those of the others
FITTING = (
    *("--uid", "65534", "--comm", "fitting", "-4"),
    *("-L", f"{FIRST + 1}-{PORT}", "-D", f"{FIRST + 1}-{PORT}"),
    *("--laddr", "127.0.0.2/31,::1", "--raddr", "127.0.0.2/31,::1"),
)


def fit(cgroup: Path, netns: Namespace) -> None:
    harness.join_cgroup(cgroup)
    libc = ctypes.CDLL(None)
    with Path("/run/netns", netns.name).open() as namespace:
        assert libc.setns(namespace.fileno(), 0) == 0
    libc.prctl(15, b"fitting")  # PR_SET_NAME


@contextmanager
def user(uid: int) -> Iterator[None]:
    """What is opened inside belongs to this user: it is the effective one that counts."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def misfits(cgroups: tuple[Path, Path], elsewhere: Namespace, act: Act) -> None:
    """A connection for each filter that fails that one alone, and one that passes them all."""
    inside, outside = cgroups

    def meet(
        what: str, client: str = CLIENT, server: str = SERVER, port: int = PORT, uid: int = 65534
    ) -> None:
        with user(uid), meeting((client, FIRST + MISFITS.index(what)), (server, port), act):
            pass

    assert harness.reap(harness.fork(lambda: meet("pid"))) == 0
    meet("uid", uid=65533)
    with harness.task_name(b"misfit"):
        meet("comm")
    meet("family", "::1", "::1")
    meet("lport")
    meet("rport", port=PORT + 1)
    meet("laddr", client="127.0.0.4")
    meet("raddr", server="127.0.0.4")
    with elsewhere.entered():
        meet("netns")
    harness.join_cgroup(outside)
    meet("cgroup")
    harness.join_cgroup(inside)
    meet("")


@pytest.mark.parametrize("tool", facts.streams())
def test_each_filter_alone_keeps_a_connection_out(tool: str, net: Net) -> None:
    """Both ends of a connection fail, since ports and addresses are those of either."""
    here, there = net
    shown = facts.of(tool)

    def act() -> None:
        misfits((inside, outside), there, shown.provoke)

    with (
        harness.cgroup() as inside,
        harness.cgroup() as outside,
        puppet(lambda: fit(inside, here), act) as made,
    ):
        whose = ("--pid", str(made.pid), "--netns", here.name, "--cgroup", str(inside))
        with tracer(tool, "--json", *FITTING, *whose) as running:
            made.act()
            events = running.events()
    clients = (min(e["lport"], e["rport"]) for e in events)
    assert Counter(MISFITS[port - FIRST] for port in clients) == {"": shown.reset}
    assert {(e["pid"], e["uid"], e["comm"]) for e in events} == {(made.pid, 65534, "fitting")}


@pytest.mark.parametrize("tool", facts.streams())
def test_netns_tells_equal_connections_apart(tool: str, net: Net) -> None:
    """They exist at the same time."""
    here, there = net
    shown = facts.of(tool)
    with tracer(tool, "--json", "--netns", here.name) as running:
        with ExitStack() as stack:
            for namespace in (there, here):
                with namespace.entered():
                    ends = ("127.0.0.1", 2000), ("127.0.0.1", PORT)
                    stack.enter_context(meeting(*ends, shown.provoke))
        events = running.events()
    expected = shown.reset + shown.ownerless + shown.listener
    assert Counter(e["netns"] for e in events) == {here.inode: expected}


def contain(group: Path) -> None:
    """What makes a container."""
    harness.join_cgroup(group)
    unshare(CLONE_NEWNS | CLONE_NEWNET)
    harness.sh("ip link set lo up")
    unshare(CLONE_NEWPID)


def owner(event: Event) -> tuple[int | None, int, int | None]:
    return event["pid"], event["netns"], event.get("cgroup_id")


@pytest.mark.parametrize("tool", facts.streams())
def test_a_container(tool: str) -> None:
    """However it is named: its connections are shown and none of the host's."""
    shown = facts.of(tool)

    def act() -> None:
        harness.session(act=shown.provoke)

    with harness.cgroup() as group, puppet(lambda: contain(group), act) as inside:
        pid = str(inside.pid)
        netns, pidns = (str(Path("/proc", pid, f"ns/{x}").stat().st_ino) for x in ("net", "pid"))
        ways = [
            ("--cgroup", str(group), "--netns", pid, "--pid", "1", "--pidns", pidns),
            ("--netns", netns),
            ("--pid", pid),
        ][: 1 if harness.EMULATED else None]
        with ExitStack() as stack:
            tracers = [stack.enter_context(tracer(tool, "--json", *way)) for way in ways]
            inside.act()
            act()
            seen = [Counter(map(owner, running.events())) for running in tracers]
        cgroup = group.stat().st_ino if "cgroup_id" in shown.fields else None
    whose = (inside.pid, int(netns), cgroup)
    expected = shown.closed + shown.listener
    # --netns asks for no owner: the server's end also shows while it is nobody's.
    nobodys = Counter({(None, int(netns), None): shown.ownerless})
    for way, found in zip(ways, seen, strict=True):
        more = nobodys if way[0] == "--netns" else Counter()
        assert (way, found) == (way, Counter({whose: expected}) + more)


@pytest.mark.parametrize("tool", ["connect", "tracer"])
def test_pinned_maps(tool: str, pins: Path) -> None:
    """Whose key is in the map when the connection is made: at first and at last, nobody's."""
    cgroups = PinnedMap(pins / "cgroups", "hash key 8 value 8")
    mounts = PinnedMap(pins / "mounts", "hash key 8 value 4")
    with (
        harness.cgroup() as group,
        puppet(lambda: harness.join_cgroup(group)) as grouped,
        puppet(lambda: unshare(CLONE_NEWNS)) as mounted,
        tracer(tool, "--json", "--cgroupmap", cgroups.path) as of_cgroup,
        tracer(tool, "--json", "--mntnsmap", mounts.path) as of_mounts,
    ):

        def act() -> None:
            grouped.act()
            mounted.act()
            harness.session()

        cgroup = group.stat().st_ino
        mount = Path("/proc", str(mounted.pid), "ns/mnt").stat().st_ino
        act()
        cgroups.add(cgroup, 8)
        mounts.add(mount, 4)
        act()
        cgroups.remove(cgroup)
        mounts.remove(mount)
        act()
        for running, wanted in ((of_cgroup, grouped), (of_mounts, mounted)):
            assert Counter(e["pid"] for e in running.events()) == {
                wanted.pid: facts.of(tool).closed
            }


@pytest.mark.parametrize(
    ("tool", "option", "what"),
    [
        ("connect", "--cgroupmap", ""),
        ("connect", "--mntnsmap", "array key 4 value 8"),
        ("tracer", "--cgroupmap", "hash key 4 value 8"),
        ("tracer", "--mntnsmap", "percpu_hash key 8 value 4"),
    ],
)
def test_no_such_map(tool: str, option: str, what: str, pins: Path) -> None:
    path = pins / "map"
    if what:
        PinnedMap(path, what)
    running = Tracer(tool, option, str(path))
    assert running.wait() == 2
    (line,) = running.errors()
    assert line.startswith(f"tcpcore: {path}: ")


@pytest.mark.parametrize("tool", ["life", "states"])
def test_a_connection_that_nobody_accepts(tool: str, pins: Path) -> None:
    """Nobody has the server's end: a filter by owner leaves it out though it would fit who listens,
    except for the user, whom the socket tells."""
    me, here = str(os.getpid()), Path("/proc/self")
    cgroups = PinnedMap(pins / "cgroups", "hash key 8 value 8")
    mounts = PinnedMap(pins / "mounts", "hash key 8 value 8")
    cgroup = harness.cgroup_of(here)
    cgroups.add(cgroup.stat().st_ino, 8)
    mounts.add((here / "ns/mnt").stat().st_ino, 8)
    shown: dict[tuple[str, str], bool] = {("-u", "0"): True, ("-u", "65534"): False}
    owners = [("-p", me), ("--comm", (here / "comm").read_text().strip())]
    owners += [("--cgroup", str(cgroup)), ("--cgroupmap", cgroups.path)]
    shown |= dict.fromkeys([*owners, ("--mntnsmap", mounts.path)], False)
    with ExitStack() as stack:
        tracers = {way: stack.enter_context(tracer(tool, "--json", *way)) for way in shown}
        with harness.listener() as server:
            port = server.getsockname()[1]
            client = harness.connect("127.0.0.1", port)
        client.close()
        for way, expected in shown.items():
            events = [e for e in tracers[way].events() if e["lport"] == port and e["rport"]]
            assert (way, bool(events)) == (way, expected)
            assert {e["pid"] for e in events} <= {None}


def test_sessions_older_than_the_trace(pins: Path) -> None:
    """The owner is the process that has the file; its user is the socket's."""
    mounts = PinnedMap(pins / "mounts", "hash key 8 value 8")
    comm = Path("/proc/self/comm").read_text().strip()
    shown: dict[tuple[str, str], int] = {("--comm", comm): 2, ("--comm", "x" + comm): 0}
    shown[("-u", "0")] = 2
    shown |= dict.fromkeys([("-u", "65534"), ("--mntnsmap", mounts.path)], 0)
    with harness.pair() as (client, _), ExitStack() as stack:
        ends = {client.getsockname()[1], client.getpeername()[1]}
        tracers = {
            way: stack.enter_context(tracer("life", "--json", "--all", "--open", *way))
            for way in shown
        }
        for way, expected in shown.items():
            events = [e for e in tracers[way].events() if {e["lport"], e["rport"]} == ends]
            assert (way, len(events)) == (way, expected)
