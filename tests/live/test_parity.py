"""The same traffic under Debian's libbpf-tools: the same rows, apart from what is mended."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import harness
from tests.live.harness import Event, Net, tracer
from tests.live.test_pktlat import send
from tests.live.test_rtt import talk
from tests.live.test_synbl import serving

HOSTS = ("127.0.0.1", "::1")

pytestmark = [
    pytest.mark.skipif(not shutil.which("tcpstates"), reason="no libbpf-tools here"),
    pytest.mark.flaky_because("nothing tells when the original has read all"),
]


# They need it, and a host need not have it mounted.
WITH_TRACEFS = """
[ -e /sys/kernel/tracing/events ] || mount -t tracefs none /sys/kernel/tracing; exec "$@"
"""


@contextlib.contextmanager
def original(tool: str, tmp_path: Path, *arguments: str) -> Iterator[list[str]]:
    """A tool of libbpf-tools, attached; its rows are there at the end of the block."""
    rows: list[str] = []
    out = tmp_path / f"{tool}.out"
    with out.open("w") as file:
        child = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", WITH_TRACEFS, "sh", tool, *arguments],
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_attached(child)
            yield rows
            time.sleep(1)  # it polls; nothing tells when it has read all
        finally:
            child.send_signal(signal.SIGINT)
            child.communicate(timeout=harness.PATIENCE)
    rows += out.read_text().splitlines()[1:]


def wait_attached(child: subprocess.Popen[str]) -> None:
    """It has nothing to say until its first event."""
    deadline = time.monotonic() + harness.PATIENCE
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(OSError):
            if sleeps_attached(Path(f"/proc/{child.pid}")):
                return
        time.sleep(0.05)
    child.kill()
    pytest.skip(f"this kernel does not run the original: {child.communicate()[1].strip()}")


def sleeps_attached(process: Path) -> bool:
    """It has what an attach leaves open, and waits for events, an interval or a signal (S). An
    attach that goes on waits for the kernel's locks and RCU (D)."""
    state = (process / "stat").read_text().rpartition(")")[2].split()[0]
    kept = [str(fd.readlink()) for fd in (process / "fd").iterdir()]
    return state == "S" and any("perf_event" in name or "bpf_link" in name for name in kept)


def everything() -> None:
    """Sessions of both families and orders, refusals."""
    closed = harness.refused_port()
    for host in HOSTS:
        harness.session(host)
        harness.session(host, server_closes_first=True)
        harness.refuse(host, closed)


StateRow = tuple[str, str, str, int, str, str]


def our_states(events: list[Event]) -> Counter[StateRow]:
    return Counter(
        (e["skaddr"], e["laddr"], e["raddr"], e["rport"] or 0, e["oldstate"], e["newstate"])
        for e in events
    )


def their_states(rows: list[str]) -> Counter[StateRow]:
    found: Counter[StateRow] = Counter()
    for row in rows:
        skaddr, _, rest = row.partition(" ")
        laddr, _, raddr, rport, old, _, new, _ = rest.split()[-8:]
        found[skaddr, laddr, raddr, int(rport), old, new] += 1
    return found


@pytest.mark.each_variant
def test_states(attach: str, tmp_path: Path) -> None:
    """Before Linux 6.x a new child has no peer yet when tcpstates sees it; we wait until it has."""
    with tracer("states", "--json", "--attach", attach) as running:
        with original("tcpstates", tmp_path) as rows:
            everything()
        ours, theirs = our_states(running.events()), their_states(rows)
    unfinished = [r for r in theirs if r[4:] == ("LISTEN", "SYN_RECV") and r[3] == 0]
    for row in unfinished:
        mended = [r for r in ours if r[0] == row[0] and r[4:] == row[4:]]
        theirs[row] -= len(mended)
        ours -= Counter(mended)
    assert sum(ours.values()) >= 40
    assert +theirs - ours == Counter()


@pytest.mark.each_variant
def test_connlat(attach: str, tmp_path: Path) -> None:
    """The same connects, and latencies that agree: theirs ends at the segment's arrival, ours at
    the state change that it causes."""
    with tracer("connlat", "--json", "--attach", attach) as running:
        with original("tcpconnlat", tmp_path) as rows:
            for _ in range(10):
                everything()
        events = running.events()
    ours: dict[tuple[str, int], list[float]] = {}
    for e in events:
        if e["pid"] == os.getpid():
            ours.setdefault((e["raddr"], e["rport"]), []).append(e["latency_ns"] / 1e6)
    theirs: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        pid, *_, raddr, rport, latency = row.split()
        if int(pid) == os.getpid():
            theirs.setdefault((raddr, int(rport)), []).append(float(latency))
    assert {k: len(v) for k, v in ours.items()} == {k: len(v) for k, v in theirs.items()}
    differences = [a - b for k in ours for a, b in zip(ours[k], theirs[k], strict=True)]
    assert sorted(map(abs, differences))[len(differences) // 2] < 2


ConnectRow = tuple[int, str, str, int]


@pytest.mark.each_variant
def test_connect(attach: str, tmp_path: Path, net: Net) -> None:
    """tcpconnect tells no result, and misses connects that fail at once."""
    with tracer("connect", "--json", "--attach", attach) as running:
        with original("tcpconnect", tmp_path) as rows:
            everything()
            v4mapped_session()
            with net[0].entered():
                port = no_port_left()
        events = [e for e in running.events() if e["pid"] == os.getpid()]
    ours = Counter((e["pid"], e["family"], e["raddr"], e["rport"]) for e in events)
    theirs: Counter[ConnectRow] = Counter()
    for row in rows:
        pid, *_, ip, _, raddr, rport = row.split()
        if int(pid) == os.getpid():
            theirs[int(pid), f"ipv{ip}", raddr, int(rport)] += 1
    assert theirs - ours == Counter()
    assert ours - theirs == Counter({(os.getpid(), "ipv4", "127.0.0.1", port): 1})
    assert Counter(e["result"] for e in events) == {
        **{"ok": 4 + 1 + 1, "ECONNREFUSED": 2},
        "EADDRNOTAVAIL": 1,
    }


def v4mapped_session() -> tuple[int, int]:
    """Its client and server port."""
    with harness.pair("::ffff:127.0.0.1", "::") as (client, _):
        return harness.ports(client)


def no_port_left() -> int:
    """Two connects, of which the second one finds none; the server's port."""
    with harness.listener() as server:
        port = int(server.getsockname()[1])
        harness.connect_without_a_port("127.0.0.1", port)
    return port


TracerRow = tuple[str, int, str, str, int, int]


def our_tracer(events: list[Event]) -> Counter[TracerRow]:
    letters = {"connect": "C", "accept": "A", "close": "X"}
    return Counter(
        (letters[e["action"]], e["pid"], e["laddr"], e["raddr"], e["lport"], e["rport"])
        for e in events
        if e["pid"] == os.getpid()
    )


def their_tracer(rows: list[str]) -> Counter[TracerRow]:
    found: Counter[TracerRow] = Counter()
    for row in rows:
        letter, pid, *_, laddr, raddr, lport, rport = row.split()
        if int(pid) == os.getpid():
            laddr, raddr = (x.removeprefix("::ffff:") for x in (laddr, raddr))
            found[letter, int(pid), laddr, raddr, int(lport), int(rport)] += 1
    return found


@pytest.mark.each_variant
def test_tracer(attach: str, tmp_path: Path) -> None:
    """tcptracer misses v4-mapped connects, which it looks for under another address than it
    remembers, and sees the end of non-blocking connects that were refused: they began nothing."""
    closed = harness.refused_port()
    with tracer("tracer", "--json", "--attach", attach) as running:
        with original("tcptracer", tmp_path) as rows:
            everything()
            lport, port = v4mapped_session()
            with harness.start_connect("127.0.0.1", closed) as client:
                select.select([], [client], [], harness.PATIENCE)
        ours, theirs = our_tracer(running.events()), their_tracer(rows)
    assert sum(ours.values()) == (4 + 1) * 4
    local = "127.0.0.1", "127.0.0.1"
    assert ours - theirs == Counter({("C", os.getpid(), *local, lport, port): 1})
    made_up = theirs - ours
    assert {(row[0], row[5]) for row in made_up} <= {("X", closed)}


LifeEnd = tuple[str, int, str, int]


@pytest.mark.each_variant
def test_life(attach: str, tmp_path: Path) -> None:
    """tcplife takes refused connects for sessions. Of a server that closes first it names whoever
    was on the CPU at the end. Its bytes hold SYN and FIN, its time not the handshake."""
    closed = harness.refused_port()
    with tracer("life", "--json", "--attach", attach) as running:
        with original("tcplife", tmp_path) as rows:
            polite = [some_bytes(host, server_first=False) for host in HOSTS]
            blamed = [some_bytes(host, server_first=True) for host in HOSTS]
            for host in HOSTS:
                harness.refuse(host, closed)
        events = running.events()
    wanted = {closed, *polite, *blamed}
    ours = {end(e): e for e in events if wanted & {e["lport"], e["rport"]}}
    theirs = {which: rest for which, rest in map(their_life, rows) if wanted & {*which}}
    assert len(ours) == 2 * len(polite + blamed)
    assert ours.keys() - theirs.keys() == set()
    assert Counter(which[3] for which in theirs.keys() - ours.keys()) == {closed: len(HOSTS)}
    longer = []
    for which, event in ours.items():
        pid, tx_kb, rx_kb, ms = theirs[which]
        longer.append(event["duration_ns"] / 1e6 - ms)
        assert event["pid"] == os.getpid()
        assert pid == os.getpid() or which[1] in blamed
        assert abs(event["tx_bytes"] / 1024 - tx_kb) < 0.01
        assert abs(event["rx_bytes"] / 1024 - rx_kb) < 0.01
    assert sorted(longer)[len(longer) // 2] > -1  # each takes its own time stamps


def end(event: Event) -> LifeEnd:
    return event["laddr"], event["lport"], event["raddr"], event["rport"]


def their_life(row: str) -> tuple[LifeEnd, list[float]]:
    pid, *_, laddr, lport, raddr, rport, tx_kb, rx_kb, ms = row.split()
    return (laddr, int(lport), raddr, int(rport)), [float(x) for x in (pid, tx_kb, rx_kb, ms)]


def some_bytes(host: str, server_first: bool) -> int:
    """A session with bytes each way; its server's port."""
    with harness.pair(host) as (client, accepted):
        for sender, receiver, size in ((client, accepted, 3000), (accepted, client, 5000)):
            sender.sendall(b"x" * size)
            assert len(receiver.recv(size, socket.MSG_WAITALL)) == size
        port = int(client.getpeername()[1])
        first, second = (accepted, client) if server_first else (client, accepted)
        first.close()
        assert second.recv(1) == b""
    return port


Buckets = Counter[int]  # of a histogram: how many values, by the lower end


def our_buckets(record: Event) -> Buckets:
    """As theirs: 0 and 1 are in one."""
    found: Buckets = Counter()
    for lower, _, count in record["buckets"]:
        found[lower if lower > 1 else 0] += count
    return found


def their_histograms(rows: list[str]) -> dict[str, Buckets]:
    """By the line before: what they are of."""
    found: dict[str, Buckets] = {}
    what = ""
    for row in rows:
        if " = " in row:
            what = row.strip()
        if bucket := re.match(r" *(\d+) -> \d+ +: (\d+)", row):
            found.setdefault(what, Counter())[int(bucket[1])] += int(bucket[2])
    return {what: +buckets for what, buckets in found.items()}


def test_rtt(attach: str, tmp_path: Path, net: Net) -> None:
    """The same segments, with the same times. Theirs counts those of sockets whose round-trip time
    was never measured, too, as 0; there are none here."""
    here, there = net
    with tracer("rtt", "--json", "--by", "raddr", "--attach", attach) as running:
        with original("tcprtt", tmp_path, "--byraddr", "--extension") as rows, there.entered():
            server = harness.listener(there.address)
            with here.entered():
                client = harness.connect(*server.getsockname())
            with server, client, server.accept()[0] as accepted:
                talk(client, accepted)
        ours = {
            f"Remote Address = {each['key']['raddr']} [AVG {each['sum'] // each['count']}]": each
            for each in running.events("histogram")
            if each["key"]["raddr"] in (here.address, there.address)
        }
    theirs = their_histograms(rows)
    assert len(ours) == 2
    for name, each in ours.items():
        assert theirs[name] == our_buckets(each)


def test_synbl(attach: str, tmp_path: Path) -> None:
    """The same lengths of accept queues, by backlog. tcpsynbl has IPv4 twice on a dual-stack
    listener, as tcp_v6_syn_recv_sock() calls tcp_v4_syn_recv_sock(); and also what a full queue
    refuses, which there is none of here."""
    servers = {61: ("127.0.0.1", "127.0.0.1"), 62: ("::1", "::1"), 63: ("::", "127.0.0.1")}
    with (
        tracer("synbl", "--json", "-p", str(os.getpid()), "--attach", attach) as running,
        original("tcpsynbl", tmp_path) as rows,
        contextlib.ExitStack() as stack,
    ):
        for backlog, (bound, host) in servers.items():
            server = stack.enter_context(serving(bound, backlog))
            for _ in range(10):
                stack.enter_context(harness.connect(host, server.getsockname()[1]))
        ours = {e["limit"]: our_buckets(e) for e in running.events("flow")}
    theirs = their_histograms(rows)
    assert ours == {backlog: Counter({0: 2, 2: 2, 4: 4, 8: 2}) for backlog in servers}
    for backlog, (bound, host) in servers.items():
        times = 1 if bound == host else 2
        expected = {low: count * times for low, count in ours[backlog].items()}
        assert theirs[f"backlog_max = {backlog}"] == expected


def test_top(attach: str, tmp_path: Path) -> None:
    """The same bytes of each session, in KiB. tcptop has what a process asked to send, though less
    may go, and counts some of a read twice that waits in between: neither happens here."""
    me = str(os.getpid())
    with (
        tracer("top", "60", "--json", "-p", me, "--attach", attach) as running,
        original("tcptop", tmp_path, "--noclear", "--pid", me, "60") as rows,
    ):
        for host in HOSTS:
            with harness.pair(host) as (client, accepted):
                for sender, receiver, size in ((client, accepted, 3), (accepted, client, 5)):
                    send(sender, receiver, bytes(size << 10))
                    receiver.recv(size << 10)
        flows = running.events("flow")
    ours = {
        (f"{e['laddr']}:{e['lport']}", f"{e['raddr']}:{e['rport']}"): [e["rx_bytes"], e["tx_bytes"]]
        for e in flows
    }
    assert sorted(ours.values()) == [[3 << 10, 5 << 10]] * 2 + [[5 << 10, 3 << 10]] * 2
    found = (row.split()[-4:] for row in rows if row.startswith(f"{me} "))
    theirs = {(laddr, raddr): [int(x) << 10 for x in sizes] for laddr, raddr, *sizes in found}
    assert theirs == ours
