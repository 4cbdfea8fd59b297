"""retrans on connections that lose segments."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcpcore.loader import kernel
from tests.facts import Facts
from tests.live import harness
from tests.live.harness import Event, Namespace, Net, Tracer, tracer

# include/uapi/asm-generic/socket.h, linux/in.h, linux/in6.h
SO_MEMINFO, IP_MINTTL, IPV6_MINHOPCOUNT = 55, 21, 73
TCP_THIN_LINEAR_TIMEOUTS = 16  # linux/tcp.h
BTF_KIND_STRUCT = 4  # linux/btf.h
PROBES = "loss probes with new data"


def dropped(receiver: socket.socket) -> int:
    """Packets that the kernel has dropped for the socket: SK_MEMINFO_DROPS, linux/sock_diag.h."""
    return int(
        struct.unpack_from("=I", receiver.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36), 32)[0]
    )


@contextlib.contextmanager
def deaf(receiver: socket.socket) -> Iterator[None]:
    """Nothing reaches it: the kernel drops what has passed a router, or may have (RFC 5082)."""
    levels = [(socket.IPPROTO_IP, IP_MINTTL)]
    if receiver.family == socket.AF_INET6:
        levels.append((socket.IPPROTO_IPV6, IPV6_MINHOPCOUNT))
    for level in levels:
        receiver.setsockopt(*level, 255)
    try:
        yield
    finally:
        for level in levels:
            receiver.setsockopt(*level, 0)


def lose(sender: socket.socket, receiver: socket.socket, times: int = 1) -> None:
    """A byte, that so often does not arrive."""
    before = dropped(receiver)
    with deaf(receiver):
        sender.sendall(b"x")
        harness.until(lambda: dropped(receiver) - before >= times)
    assert receiver.recv(1) == b"x"


FACTS = Facts(
    header="PID    COMM        IP LADDR           LPORT T> RADDR           RPORT STATE        SEQ"
    "        SEGS CA_STATE RESULT",
    fields=frozenset(
        {
            *("kind", "state", "ca_state", "timeouts", "result", "seq", "segs"),
            *("cwnd", "ssthresh", "srtt_us", "rto_us"),
        }
    ),
    reset=1,
    closed=1,
    queued=1,
    kept=2,
    listening=1,
    provoke=lose,
)


def of(events: list[Event], sender: socket.socket) -> list[Event]:
    return [e for e in events if e["lport"] == sender.getsockname()[1]]


def tells_failures() -> bool:
    """Whether this kernel's tracepoint shows attempts that failed: since then its record has a
    struct of its own."""
    btf = kernel.Btf()
    try:
        return btf._find("trace_event_raw_tcp_retransmit_skb", BTF_KIND_STRUCT) is not None
    finally:
        btf.close()


def sees_all_probes(running: Tracer) -> bool:
    return running.ways[PROBES] != "no way"


@pytest.mark.parametrize("way", ["tp_btf", "raw_tp"])
def test_a_probe_and_then_a_timeout(way: str) -> None:
    """What is lost twice: the probe sends it again first, then the timer does."""
    with tracer("retrans", "--json", "--attach", way) as running, harness.pair() as (one, other):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")  # some have no ssthresh
        lose(one, other, times=2)
        first, second = of(running.events(), one)
        ends = *one.getsockname(), *one.getpeername()
    assert (first["kind"], first["ca_state"], first["timeouts"]) == ("tlp", "open", 0)
    assert (second["kind"], second["ca_state"], second["timeouts"]) == ("retransmit", "loss", 1)
    assert first["seq"] == second["seq"] and first["ssthresh"] is None
    for each in (first, second):
        assert tuple(each[x] for x in ("laddr", "lport", "raddr", "rport")) == ends
        assert (each["pid"], each["uid"]) == (os.getpid(), 0)
        assert (each["state"], each["segs"], each["result"]) == ("ESTABLISHED", 1, "ok")
        assert each["cwnd"] > 0 and each["srtt_us"] > 0 and each["rto_us"] >= 200_000
    assert (second["ssthresh"], second["cwnd"]) == (first["cwnd"] // 2, 1)  # RFC 5681, 3.1


@pytest.mark.each_variant
def test_a_probe_of_new_data(attach: str, net: Net) -> None:
    """Nagle's algorithm holds the second byte back while the first one is not acknowledged; the
    probe sends it all the same. The acknowledgement then tells that the first one was lost."""
    with (
        net[0].entered(),
        tracer("retrans", "--json", "-l", "--attach", attach) as running,
        harness.pair() as (one, other),
    ):
        before = harness.kernel_counters()
        with deaf(other):
            one.sendall(b"x")
            harness.until(lambda: dropped(other))
        one.sendall(b"y")
        assert other.recv(2, socket.MSG_WAITALL) == b"xy"
        after = harness.kernel_counters()
        events = of(running.events(), one)
    probes = [e for e in events if e["kind"] == "tlp_new"]
    again = [e for e in events if e["kind"] != "tlp_new"]
    assert len(probes) == (1 if sees_all_probes(running) else 0)
    assert after["TcpExtTCPLossProbes"] - before["TcpExtTCPLossProbes"] == 1
    assert after["TcpRetransSegs"] - before["TcpRetransSegs"] == len(again) == 1
    assert again[0]["kind"] == "retransmit" and again[0]["ca_state"] in ("recovery", "loss")
    for each in probes:
        assert (each["seq"], each["segs"]) == (again[0]["seq"] + 1 & 0xFFFFFFFF, 1)
        assert (each["pid"], each["result"], each["state"]) == (os.getpid(), "ok", "ESTABLISHED")


def test_a_syn_without_an_answer(net: Net) -> None:
    here = net[0]
    with (
        tracer("retrans", "--json", "--raddr", here.nobody) as running,
        here.entered(),
        harness.start_hanging(here.nobody, 1001) as client,
    ):
        lport = client.getsockname()[1]
        found = running.wait_for(lambda e: e["lport"] == lport)
    assert (found["kind"], found["state"], found["timeouts"]) == ("syn", "SYN_SENT", 1)
    assert (found["pid"], found["netns"]) == (os.getpid(), here.inode)
    assert found["srtt_us"] is None and found["segs"] == 1


@pytest.mark.parametrize("way", ["tp_btf", "raw_tp"])
def test_a_syn_ack_has_the_owner_of_its_listener(way: str, net: Net) -> None:
    """Of an older listener, too, and whatever the filters; here of IPv4, on one for IPv6."""
    here, there = net
    arguments = ("--json", "--attach", way, "-4", "-p", str(os.getpid()), "--raddr", here.address)
    # It does not get through to who connects, until both ends have sent again.
    synack = "tcp flags & (syn | ack) == (syn | ack)"
    with contextlib.ExitStack() as stack:
        stack.enter_context(there.entered())
        servers = [stack.enter_context(harness.listener("::"))]
        running = stack.enter_context(tracer("retrans", *arguments))
        servers.append(stack.enter_context(harness.listener("::")))
        stack.enter_context(here.entered())
        with harness.firewall(synack, "drop"):
            for server in servers:
                address = there.address, server.getsockname()[1]
                stack.enter_context(harness.start_connect(*address))
            ports = [server.getsockname()[1] for server in servers]
            found = [running.wait_for(lambda e: e["lport"] == port) for port in ports]  # noqa: B023
    for each in found:
        assert (each["kind"], each["state"], each["timeouts"]) == ("synack", "NEW_SYN_RECV", 1)
        assert (each["pid"], each["family"], each["laddr"]) == (os.getpid(), "ipv4", there.address)
        assert (each["raddr"], each["netns"]) == (here.address, there.inode)
        assert each["seq"] and each["ca_state"] is each["cwnd"] is each["rto_us"] is None


def test_the_owner_is_that_of_the_socket() -> None:
    """Also of one that is older than the trace, and after its process has closed it."""
    with (
        harness.pair() as (old, other),
        tracer("retrans", "--json", "-p", str(os.getpid())) as running,
    ):
        lose(old, other)
        lport = old.getsockname()[1]
        with deaf(other):
            old.close()
            fin = running.wait_for(lambda e: e["lport"] == lport and e["state"] == "FIN_WAIT1")
    assert fin["pid"] == os.getpid() and fin["segs"] == 1


@contextlib.contextmanager
def no_route(end: Namespace) -> Iterator[None]:
    route = f"{end.address.rpartition('.')[0]}.0/24 dev ve0"
    harness.sh(f"ip -n {end.name} route del {route}")
    try:
        yield
    finally:
        harness.sh(f"ip -n {end.name} route add {route} src {end.address}")


def failed() -> int:
    return harness.kernel_counters()["TcpExtTCPRetransFail"]


FAILURES = {"ENOBUFS", "EPERM", "EHOSTUNREACH"}
TO_ANYBODY = "meta l4proto tcp", "drop", "output"


def timeouts(sender: socket.socket) -> int:
    """In a row: tcpi_retransmits, linux/tcp.h."""
    return sender.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[2]


@pytest.mark.each_variant
def test_attempts_that_fail_are_told_apart(net: Net) -> None:
    """Where the kernel tells of them; elsewhere they are no rows, and never retransmits. The kernel
    counts those that fail on their way out as sent again, and once more as failed."""
    here, there = net
    with there.entered(), harness.listener(there.address) as server, here.entered():
        arguments = ("--json", "--raddr", there.address, "--attach")
        client = harness.connect(*server.getsockname())
        with (
            client,
            server.accept()[0] as accepted,
            tracer("retrans", *arguments, "tp_btf") as running,
            tracer("retrans", "-c", *arguments, "raw_tp") as counting,
        ):
            # So that the next attempt comes soon: a few timeouts do not grow (tcp-thin.rst).
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
            client.setsockopt(socket.IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, 1)
            before = Counter(harness.kernel_counters())
            for obstacle, count, times in (
                (harness.full_queue(here), failed, 1),
                (harness.firewall(*TO_ANYBODY), failed, 1),
                # It counts a timeout and sends then, so that the second one tells of the first.
                (no_route(here), lambda: timeouts(client), 2),
            ):
                lost = dropped(accepted)
                with deaf(accepted):
                    client.sendall(b"x")
                    harness.until(lambda: dropped(accepted) > lost)  # noqa: B023
                    with obstacle:
                        wanted = count() + times
                        harness.until(lambda: count() >= wanted)  # noqa: B023
                assert accepted.recv(1) == b"x"
            kernels = Counter(harness.kernel_counters())
            kernels.subtract(before)
            rows = of(running.events(), client)
            (counted,) = of(counting.events("flow"), client)
    results = Counter(e["result"] for e in rows)
    sent = kernels["TcpRetransSegs"] - kernels["TcpExtTCPRetransFail"]
    assert results["ok"] == counted["retransmits"] == counted["segs"] == sent > 0
    probes = [e for e in rows if (e["kind"], e["result"]) == ("tlp", "ok")]
    assert kernels["TcpExtTCPLossProbes"] == counted["probes"] == len(probes)
    assert results.keys() - {"ok"} == (FAILURES if tells_failures() else set())
    if tells_failures():
        assert kernels["TcpExtTCPRetransFail"] == results["ENOBUFS"] + results["EPERM"]
    assert counted["failed"] == len(rows) - results["ok"]


@pytest.mark.any_kernel  # that tells failures, as this host does
def test_a_syn_that_fails(net: Net) -> None:
    if not tells_failures():
        pytest.skip("this kernel does not tell failures")
    here = net[0]
    with (
        here.entered(),
        tracer("retrans", "--json", "--raddr", here.nobody) as running,
        harness.firewall(*TO_ANYBODY),
        harness.start_hanging(here.nobody, 1001) as client,
    ):
        lport = client.getsockname()[1]
        found = running.wait_for(lambda e: e["lport"] == lport)
    assert (found["kind"], found["result"], found["pid"]) == ("syn", "EPERM", os.getpid())


def test_counts_by_flow(attach: str) -> None:
    """Of one process; a probe that sends again is a retransmit, too."""
    arguments = ("-c", "--json", "-p", str(os.getpid()), "--attach", attach)
    with tracer("retrans", *arguments) as running, harness.pair() as (one, other):
        lose(one, other, times=2)
        lose(other, one)
        ports = [end.getsockname()[1] for end in (one, other)]
        rows = {e["lport"]: e for e in running.events("flow")}
    names = ("retransmits", "segs", "probes", "failed")
    assert [rows[ports[0]][x] for x in names] == [2, 2, 1, 0]
    assert [rows[ports[1]][x] for x in names] == [1, 1, 1, 0]
    assert rows[ports[0]]["rport"] == ports[1] and rows[ports[0]]["raddr"] == "127.0.0.1"


@pytest.mark.any_kernel
def test_counts_follow_no_sockets_unless_a_filter_asks_for_owners() -> None:
    with tracer("retrans", "-c", "--json") as running, harness.pair() as (one, other):
        lose(one, other)
        assert not running.entries()
        (row,) = of(running.events("flow"), one)
    assert (row["retransmits"], row["probes"]) == (1, 1)


# Against the kernel's own counters.

CONNECTIONS, BULK, REQUESTS = (4, 100_000, 4) if harness.EMULATED else (16, 400_000, 10)
LOSSES = 3 if harness.EMULATED else 50
COUNTERS = ("TcpRetransSegs", "TcpExtTCPLossProbes", "TcpExtTCPSynRetrans", "TcpExtTCPRetransFail")


@contextlib.contextmanager
def losing(end: Namespace) -> Iterator[None]:
    """What leaves by this end is lost, one packet of twenty; without netem, what comes in is, up to
    the end of the namespace."""
    with harness.netem(end, "loss 5%") as there_is:
        if not there_is:
            table = "add table inet x; add chain inet x in { type filter hook input priority 0; }"
            rule = f"add rule inet x in meta l4proto tcp {harness.every(20)} drop"
            harness.sh(f"ip netns exec {end.name} nft '{table}; {rule}'")
        yield


def serve(server: socket.socket) -> None:
    """A connection's bulk, and then its requests, each a byte that comes back."""
    with server.accept()[0] as accepted:
        assert len(accepted.recv(BULK, socket.MSG_WAITALL)) == BULK
        while byte := accepted.recv(1):
            accepted.sendall(byte)


def talk(address: tuple[str, int]) -> None:
    with harness.connect(*address) as client:
        client.sendall(b"x" * BULK)
        for _ in range(REQUESTS):
            client.sendall(b"y")
            assert client.recv(1) == b"y"


def open_sockets(end: Namespace) -> list[str]:
    """All but those in TIME_WAIT, which send nothing again (proc_net_tcp.rst)."""
    with end.entered():
        _, *lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()
    return [line for line in lines if line.split()[3] != "06"]


def lost_segments(end: Namespace) -> int:
    with end.entered():
        return harness.kernel_counters()["TcpRetransSegs"]


def all_talk(here: Namespace, there: Namespace) -> None:
    """Returns when the last of them is gone, and so nothing will be sent again."""
    with there.entered(), harness.listener(there.address) as server:
        acts = ((serve, server), (talk, server.getsockname())) * CONNECTIONS
        threads = [threading.Thread(target=act, args=(on,), daemon=True) for act, on in acts]
        with here.entered():  # a thread starts where its parent is
            for each in threads:
                each.start()
        for each in threads:
            each.join(harness.PATIENCE)
            assert not each.is_alive()
    harness.until(lambda: not open_sockets(here) + open_sockets(there))


def counters_of(rows: list[Event]) -> Counter[str]:
    """What the kernel's counters would be, by these rows."""
    found: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
    for each in rows:
        if each["kind"] != "tlp_new":
            found["TcpRetransSegs"] += each["segs"]
        found["TcpExtTCPLossProbes"] += each["kind"] in ("tlp", "tlp_new")
        found["TcpExtTCPSynRetrans"] += each["kind"] in ("syn", "synack")
    return found


def test_the_counts_are_the_kernels(attach: str) -> None:
    with harness.namespaces() as (here, there), losing(here), losing(there):
        wanted = ("--netns", here.name, "--netns", there.name, "-l", "--attach", attach)
        with (
            tracer("retrans", "--json", "--fail-on-loss", *wanted) as running,
            tracer("retrans", "-c", "--json", *wanted) as counting,
        ):
            while lost_segments(here) + lost_segments(there) < LOSSES:  # netem loses at random
                all_talk(here, there)
            rows, flows = running.events(), counting.events("flow")
        for end in (here, there):
            with end.entered():
                counters = harness.kernel_counters()
            kernels = {name: counters[name] for name in COUNTERS}
            mine = counters_of([e for e in rows if e["netns"] == end.inode and e["result"] == "ok"])
            if not sees_all_probes(running):
                assert mine["TcpExtTCPLossProbes"] <= kernels["TcpExtTCPLossProbes"]
                kernels["TcpExtTCPLossProbes"] = mine["TcpExtTCPLossProbes"]
            assert mine == kernels
            counted = [flow for flow in flows if flow["netns"] == end.inode]
            assert sum(flow["segs"] for flow in counted) == kernels["TcpRetransSegs"]
            assert sum(flow["probes"] for flow in counted) == kernels["TcpExtTCPLossProbes"]
    assert {e["pid"] for e in rows} == {os.getpid()}
