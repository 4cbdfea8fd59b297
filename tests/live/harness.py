"""What the live tests share: a running tcpcore, traffic, network namespaces."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import itertools
import json
import multiprocessing
import os
import pkgutil
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tcpcore
from tcpcore import cli
from tcpcore.request.places import cgroup_root
from tests.facts import Act, nothing

# Imported before the fork: in an emulated machine it takes a second. elftools: see loader/elf.py.
for _module in pkgutil.walk_packages(tcpcore.__path__, "tcpcore."):
    if _module.name != "tcpcore.__main__":
        importlib.import_module(_module.name)
importlib.import_module("elftools.elf.elffile")

TCPCORE = [sys.executable, "-m", "tcpcore"]
# Seconds; an emulated machine is slow. Mutation testing is in a hurry.
PATIENCE = float(os.environ.get("TCPCORE_TEST_PATIENCE", "60"))
EMULATED = bool(os.environ.get("TCPCORE_TEST_ATTACH"))  # in a virtual machine
CLONE_NEWNS = 0x00020000  # include/uapi/linux/sched.h
PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
Event = dict[str, Any]
Net = tuple["Namespace", "Namespace"]  # the fixture net: joined by a link
Entry = tuple[str, str, str]  # of a map: the map's name, key, value
_NUMBERS = itertools.count()  # for what needs a name of its own


class Tracer:
    """tcpcore in a forked child. events() parses what it printed as JSON.

    Forked, since a new interpreter takes seconds in an emulated machine; run() starts a real one.
    hide: folders that are empty for it.
    """

    def __init__(self, *arguments: str, hide: Sequence[str] = ()) -> None:
        (out, out_end), (err, err_end) = pipes = os.pipe(), os.pipe()
        with warnings.catch_warnings():  # our threads only read pipes
            warnings.simplefilter("ignore", DeprecationWarning)
            context = multiprocessing.get_context("fork")
            self.process = context.Process(target=_main, args=(os.getpid(), arguments, hide, pipes))
            gc.freeze()  # the child would touch, and so copy, all of our memory
            self.process.start()
        os.close(out_end)
        os.close(err_end)
        self.out, self.err = _Lines(os.fdopen(out)), _Lines(os.fdopen(err))
        self.attached = bool(self.err.wait_for(lambda line: line.startswith("attached: ")))

    def errors(self) -> list[str]:
        """What it said on standard error, libbpf's chatter left out."""
        return [line for line in self.err.lines if not line.startswith("libbpf: ")]

    @property
    def pid(self) -> int:
        assert self.process.pid
        return self.process.pid

    @property
    def ways(self) -> dict[str, str]:
        """Each slot, and how it is seen."""
        told = (x.split(": ")[1:] for x in self.err.lines if x.startswith("attached: "))
        return {slot: way for slot, way in told}

    def entries(self) -> set[Entry]:
        return entries(self.pid)

    def objects(self) -> set[tuple[str, int]]:
        return objects(self.pid)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self, number: int = signal.SIGINT) -> int:
        """Ask it to end; its exit code."""
        if self.process.is_alive():
            self.send(number)
        return self.wait()

    def wait(self) -> int:
        """Its exit code, once it has ended by itself."""
        self.process.join(PATIENCE)
        self.out.thread.join(PATIENCE)
        self.err.thread.join(PATIENCE)
        assert self.process.exitcode is not None, "it does not end"
        return self.process.exitcode

    def events(self, kind: str = "event") -> list[Event]:
        """Ends the tracer; the events it printed, or another type of records."""
        assert self.stop() == 0, self.errors()
        return [r for r in self.records() if r["type"] == kind]

    def records(self) -> list[Event]:
        return [json.loads(line) for line in self.out.lines]

    def wait_for(self, wanted: Callable[[Event], bool]) -> Event:
        """The first event that is wanted, as soon as it is printed."""
        line = self.out.wait_for(lambda text: wanted(json.loads(text)))
        found: Event = json.loads(line)
        return found


def entries(pid: int) -> set[Entry]:
    """What tools in a process keep by socket or by thread: in hash maps with keys of 8 bytes."""
    found = set()
    mine = objects(pid)
    for about in json.loads(sh("bpftool -j map show")):
        name, number = about.get("name", ""), about["id"]
        is_kept = about["type"] == "hash" and about["bytes_key"] == 8
        if ("map", number) in mine and is_kept and not name.startswith("target_"):
            rows = json.loads(sh(f"bpftool -j map dump id {number}"))
            found |= {(name, *("".join(row[x]) for x in ("key", "value"))) for row in rows}
    return found


def objects(pid: int) -> set[tuple[str, int]]:
    """The BPF programs ("prog"), maps and links that a process holds, by id (proc(5), fdinfo)."""
    found: set[tuple[str, int]] = set()
    for each in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile, as that of the folder is
            told = re.findall(r"^(prog|map|link)_id:\s+(\d+)$", each.read_text(), re.MULTILINE)
            found |= {(kind, int(number)) for kind, number in told}
    return found


def between(events: list[Event], one: int, two: int) -> list[Event]:
    """Those of the connection between two ports."""
    return [e for e in events if {e["lport"], e["rport"]} == {one, two}]


def until(done: Callable[[], object]) -> None:
    """Wait for what the kernel tells nobody."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def _main(
    parent: int, arguments: Sequence[str], hide: Sequence[str], pipes: Sequence[tuple[int, int]]
) -> None:
    _end_with_parent(parent)
    _close_sockets()
    for standard, (ours, theirs) in enumerate(pipes, start=1):
        os.close(ours)  # so that the tracer notices when the test is gone
        os.dup2(theirs, standard)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    sys.argv = ["tcpcore", *arguments, "-v"]
    if hide:
        assert ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0
        sh("mount --make-rprivate /")
    for folder in filter(os.path.isdir, hide):
        sh(f"mount -t tmpfs none {folder}")
    cli.main()


def _end_with_parent(parent: int) -> None:
    """A test that is killed leaves nothing behind that runs."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() not in (parent, 0):  # killed before; 0: in another pid namespace
        os._exit(1)


def _close_sockets() -> None:
    """The test's own sockets: as long as a child holds them too, close() closes nothing."""
    for number in [int(fd.name) for fd in Path("/proc/self/fd").iterdir()]:
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                os.close(number)


class _Lines:
    """Lines of a pipe, read by a thread so that nothing blocks."""

    def __init__(self, pipe: Any) -> None:
        self.lines: list[str] = []
        self._pipe = pipe
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        with self._pipe:
            for line in self._pipe:
                self.lines.append(line.rstrip("\n"))

    def wait_for(self, wanted: Callable[[str], bool]) -> str:
        """The first line that is wanted; empty when the pipe ends without one."""
        deadline, seen = time.monotonic() + PATIENCE, 0
        while time.monotonic() < deadline:
            ended = not self.thread.is_alive()
            for line in self.lines[seen:]:
                seen += 1
                if wanted(line):
                    return line
            if ended:
                break
            time.sleep(0.005)
        return ""


@contextlib.contextmanager
def tracer(*arguments: str, hide: Sequence[str] = ()) -> Iterator[Tracer]:
    """tcpcore, attached; killed at the end of the block if it still runs."""
    running = Tracer(*arguments, hide=hide)
    try:
        assert running.attached, running.errors()
        yield running
    finally:
        if running.process.is_alive():
            running.process.kill()
        running.wait()


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """tcpcore that ends by itself."""
    return subprocess.run(
        [*TCPCORE, *arguments], capture_output=True, text=True, timeout=PATIENCE, **options
    )


def listener(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.socket(family)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((host, port))
    server.listen(1024)
    server.settimeout(PATIENCE)
    return server


def connect(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    client = socket.socket(family)
    try:
        client.connect((host, port))
    except OSError:
        client.close()
        raise
    return client


def session(
    host: str = "127.0.0.1", server_closes_first: bool = False, act: Act = nothing
) -> tuple[int, int]:
    """One connection, opened and closed in order; its client and server port. act: in between."""
    with listener(host) as server:
        port = server.getsockname()[1]
        client = connect(host, port)
        accepted, _ = server.accept()
        ports = client.getsockname()[1], port
        act(client, accepted)
        first, second = (accepted, client) if server_closes_first else (client, accepted)
        first.close()
        second.recv(1)
        second.close()
    return ports


@contextlib.contextmanager
def pair(
    host: str = "127.0.0.1", bound: str | None = None
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection's client and its server's end. bound: the server's address, if another."""
    with listener(bound or host) as server:
        client = connect(host, server.getsockname()[1])
        with client, server.accept()[0] as accepted:
            yield client, accepted


def reset(connection: socket.socket) -> None:
    """Close it with a RST (SO_LINGER with a time of 0, socket(7))."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


def disconnect(connection: socket.socket) -> None:
    """Its connection goes, the socket stays: connect() to AF_UNSPEC, connect(2)."""
    nowhere = ctypes.create_string_buffer(16)
    assert ctypes.CDLL(None).connect(connection.fileno(), nowhere, len(nowhere)) == 0


def fork(act: Callable[[], object]) -> int:
    """A child that does this and exits at once, with what it has open; its pid, for reap()."""
    with warnings.catch_warnings():  # our threads only read pipes
        warnings.simplefilter("ignore", DeprecationWarning)
        parent, pid = os.getpid(), os.fork()
    if pid:
        return pid
    code = 1
    try:
        _end_with_parent(parent)
        act()
        code = 0
    finally:
        os._exit(code)


def reap(pid: int) -> int:
    """The exit code of a child, once it has ended; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ports(client: socket.socket) -> tuple[int, int]:
    """Its own and its peer's."""
    return client.getsockname()[1], client.getpeername()[1]


def refused_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on."""
    with listener(host) as server:
        return int(server.getsockname()[1])


def refuse(host: str, port: int) -> None:
    with contextlib.suppress(ConnectionRefusedError):
        connect(host, port).close()


def start_connect(host: str, port: int) -> socket.socket:
    """A non-blocking connect; on loopback it is answered already."""
    client = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        client.connect((host, port))
    return client


def start_hanging(host: str, port: int) -> socket.socket:
    """A non-blocking connect that gets no answer soon."""
    return start_connect(host, port)


@contextlib.contextmanager
def task_name(name: bytes) -> Iterator[None]:
    """This thread under another name (PR_SET_NAME, prctl(2))."""
    libc = ctypes.CDLL(None)
    before = ctypes.create_string_buffer(16)
    libc.prctl(16, before)
    libc.prctl(15, name)
    try:
        yield
    finally:
        libc.prctl(15, before)


def map_memory(length: int, protection: int, flags: int, fd: int = -1) -> int:
    """The address of a new mapping. Python's mmap tells none of one that cannot be written to."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    address: int = libc.mmap(None, length, protection, flags, fd, 0)
    return address


def unmap_memory(address: int, length: int) -> None:
    assert ctypes.CDLL(None).munmap(ctypes.c_void_p(address), length) == 0


def sh(command: str) -> str:
    """A command that must work."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Namespace:
    """A network namespace with one end of a veth pair; peer: its neighbour's address.

    nobody: an address on the link that swallows packets. absent: one that no neighbour has.
    """

    name: str
    address: str
    peer: str
    nobody: str = "10.77.0.77"
    absent: str = "10.77.0.99"

    @property
    def inode(self) -> int:
        return Path("/run/netns", self.name).stat().st_ino

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread inside (setns(2)); what it opens stays there."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/thread-self/ns/net").open() as home:
            with Path("/run/netns", self.name).open() as inside:
                assert libc.setns(inside.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert libc.setns(home.fileno(), 0) == 0


@contextlib.contextmanager
def firewall(match: str, verdict: str, hook: str = "input") -> Iterator[Callable[[], int]]:
    """Packets that come into the thread's namespace and match (nft(8)) are dealt with so; how many
    have been so far. hook: another place, as output."""
    table = f"inet tcpcore-{os.getpid()}-{next(_NUMBERS)}"
    chain = f"add table {table}; add chain {table} in {{ type filter hook {hook} priority 0; }}"
    sh(f"nft '{chain}; add rule {table} in {match} counter {verdict}'")
    try:
        yield lambda: _matched(sh(f"nft list table {table}"))
    finally:
        sh(f"nft delete table {table}")


def _matched(rules: str) -> int:
    (packets,) = re.findall(r"counter packets (\d+)", rules)
    return int(packets)


# Segments with data: no header alone is that long.
DATA = "meta l4proto tcp meta length > 100"


def lossy(drop: str, match: str = DATA) -> contextlib.AbstractContextManager[Callable[[], int]]:
    """A link that loses what first() or every() says of the packets that match, as they come into
    the thread's namespace; how many it lost so far. Not by netem, which few kernels have."""
    return firewall(f"{match} {drop}", "drop")


def first(count: int) -> str:
    """So many of the packets, and then no more."""
    return f"numgen inc mod {(1 << 32) - 1} < {count}"


def every(nth: int) -> str:
    """The nth packet, the one n packets later, and so on."""
    return f"numgen inc mod {nth} == {nth - 1}"


@contextlib.contextmanager
def full_queue(end: Namespace) -> Iterator[None]:
    """What would leave by its end of the link finds no room: TCP is told at once."""
    sh(f"tc -n {end.name} qdisc replace dev ve0 root bfifo limit 1")
    try:
        yield
    finally:
        sh(f"tc -n {end.name} qdisc del dev ve0 root")


@contextlib.contextmanager
def netem(end: Namespace, what: str) -> Iterator[bool]:
    """What leaves by its end of the link is delayed or lost (tc-netem(8)). False: nothing is, on a
    kernel without netem; those of the machines have it."""
    command = f"tc -n {end.name} qdisc replace dev ve0 root netem {what}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    if done.returncode:
        assert not EMULATED, done.stderr
        yield False
        return
    try:
        yield True
    finally:
        sh(f"tc -n {end.name} qdisc del dev ve0 root")


def kernel_counters() -> dict[str, int]:
    """Those of the thread's namespace, by the names that nstat(8) has for them."""
    found: dict[str, int] = {}
    for file in ("snmp", "netstat"):
        lines = Path("/proc/thread-self/net", file).read_text().splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            kind, *each = names.replace(":", "").split()
            found |= {kind + x: int(y) for x, y in zip(each, values.split()[1:], strict=True)}
    return found


def lose_a_segment(here: Namespace, there: Namespace) -> None:
    """A connection from here to there, whose first segment with data has to be sent again."""
    with there.entered(), listener(there.address) as server:
        with here.entered():
            client = connect(*server.getsockname())
        with client, server.accept()[0] as accepted:
            with lossy(first(1)):
                client.sendall(b"x" * 500)
                assert len(accepted.recv(500, socket.MSG_WAITALL)) == 500
            reset(client)


@contextlib.contextmanager
def namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces joined by a veth pair, gone afterwards."""
    pair = f"tcpcore-{os.getpid()}-{next(_NUMBERS)}"
    names = [f"{pair}-{end}" for end in "ab"]
    one = Namespace(names[0], "10.77.0.1", "10.77.0.2")
    two = Namespace(names[1], "10.77.0.2", "10.77.0.1")
    try:
        ip(*(f"netns add {name}" for name in names))
        link = f"link add ve0 type veth peer name ve0 netns {two.name}"
        nobody = f"neigh add {one.nobody} lladdr 02:00:00:00:00:77 dev ve0"
        up = "link set ve0 up", "link set lo up"
        ip(link, f"addr add {one.address}/24 dev ve0", *up, nobody, inside=one.name)
        ip(f"addr add {two.address}/24 dev ve0", *up, inside=two.name)
        yield one, two
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def ip(*commands: str, inside: str = "") -> None:
    """Commands of ip(8), by one process: in an emulated machine each takes a while to start."""
    namespace = f"-n {inside}" if inside else ""
    lines = "\n".join(commands)
    sh(f"ip {namespace} -batch - <<END\n{lines}\nEND")


@contextlib.contextmanager
def cgroup() -> Iterator[Path]:
    """A cgroup of version 2, gone afterwards; who writes its pid to cgroup.procs is in it."""
    folder = cgroup_root() / f"tcpcore-{os.getpid()}-{next(_NUMBERS)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        folder.rmdir()


def cgroup_of(process: Path) -> Path:
    """The cgroup of version 2 that a process is in. process: its folder in /proc (cgroups(7))."""
    text = (process / "cgroup").read_text()
    return cgroup_root() / text.partition("0::/")[2].partition("\n")[0]


def join_cgroup(group: Path) -> None:
    """This process."""
    (group / "cgroup.procs").write_text(str(os.getpid()))


class PinnedMap:
    """A map of somebody else's, which --cgroupmap or --mntnsmap names."""

    def __init__(self, path: Path, what: str) -> None:
        self.path = str(path)
        sh(f"bpftool map create '{path}' type {what} entries 16 name x")

    def _change(self, verb: str, key: int, more: str = "") -> None:
        numbers = " ".join(map(str, key.to_bytes(8, sys.byteorder)))
        sh(f"bpftool map {verb} pinned '{self.path}' key {numbers} {more}")

    def add(self, key: int, value: int) -> None:
        """value: how many bytes of zeros."""
        self._change("update", key, "value" + " 0" * value)

    def remove(self, key: int) -> None:
        self._change("delete", key)


@contextlib.contextmanager
def on_one_cpu() -> Iterator[int]:
    """This thread and the children that it starts stay on one CPU, whose number this gives."""
    before = os.sched_getaffinity(0)
    cpu = min(before)
    os.sched_setaffinity(0, {cpu})
    try:
        yield cpu
    finally:
        os.sched_setaffinity(0, before)


def pinned(path: Path, key: int) -> str:
    """The path of a map with this key alone."""
    made = PinnedMap(path, "hash key 8 value 8")
    made.add(key, 8)
    return made.path


# How connects end that get no answer, one of each, by port.
UNANSWERED = {1001: "ETIMEDOUT", 1002: "EHOSTUNREACH", 1003: "ECONNABORTED"}


def connect_unanswered(here: Namespace) -> None:
    """Connects as UNANSWERED has them, from the namespace that the thread is in."""
    with socket.socket() as silent, contextlib.suppress(TimeoutError):
        silent.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 800)
        silent.connect((here.nobody, 1001))
    with socket.socket() as lost, contextlib.suppress(OSError):
        lost.connect((here.absent, 1002))
    start_hanging(here.nobody, 1003).close()


def connect_without_a_port(host: str, port: int) -> None:
    """Two connects; the first one takes the only local port that there is."""
    with local_ports("45001 45001"), connect(host, port), contextlib.suppress(OSError):
        connect(host, port).close()


def local_ports(ports: str) -> contextlib.AbstractContextManager[None]:
    """Only these ports for connects from the namespace that the thread is in."""
    return sysctl("ip_local_port_range", ports)


@contextlib.contextmanager
def sysctl(name: str, value: str) -> Iterator[None]:
    """A setting of IPv4 and TCP (ip-sysctl.rst) for the namespace that the thread is in."""
    path = Path("/proc/sys/net/ipv4", name)
    before = path.read_text()
    path.write_text(value)
    try:
        yield
    finally:
        path.write_text(before)
