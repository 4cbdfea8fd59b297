"""What each tool keeps in the kernel: only as long as the socket lives, and counted when full."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

import pytest

from tcpcore import api
from tests import facts
from tests.facts import Act
from tests.live import harness
from tests.live.harness import Namespace, Net, Tracer, tracer
from tests.unit.samples import tool as tool_named

TOOLS = facts.streams()
KEEPERS = [name for name in TOOLS if tool_named(name).sockets]
FILTERS = [(), ("-D", "1"), ("-p", "1"), ("--comm", "nobody")][: 1 if harness.EMULATED else None]


def all_kinds(here: Namespace, act: Act) -> None:
    """Connections that are accepted, or not, or never come to be; all of them gone. act: what is
    done with those that come to something."""
    for host in ("127.0.0.1", "::1"):
        harness.session(host, act=act)
        harness.session(host, server_closes_first=True, act=act)
        harness.refuse(host, harness.refused_port(host))
        never_accepted(host)
        accepted_after_a_reset(host)
    harness.start_hanging(here.nobody, 1001).close()
    with harness.listener() as server, socket.socket() as client:
        for _ in range(2):
            client.connect(server.getsockname())
            server.accept()[0].close()
            harness.disconnect(client)


def never_accepted(host: str) -> None:
    with harness.listener(host) as server:
        client = harness.connect(host, server.getsockname()[1])
    client.close()


def accepted_after_a_reset(host: str) -> None:
    with harness.listener(host) as server:
        harness.reset(harness.connect(host, server.getsockname()[1]))
        server.accept()[0].close()


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("unwanted", FILTERS)
def test_no_entry_outlives_its_socket(
    attach: str, tool: str, unwanted: tuple[str, ...], net: Net
) -> None:
    """Whether the filters pass the connection or reject it."""
    here = net[0]
    arguments = ("--attach", attach, "--netns", here.name, *unwanted)
    with tracer(tool, "--json", *arguments) as running:
        with here.entered():
            all_kinds(here, facts.of(tool).provoke)
        left = running.entries()  # also those of the host's other sockets, which will go
        harness.until(lambda: not left & running.entries())
        assert bool(running.events()) != bool(unwanted)


@pytest.mark.parametrize("tool", TOOLS)
def test_what_a_filter_rejects_has_no_entry(attach: str, tool: str, net: Net) -> None:
    """Not even while it is open, once its addresses and ports are known."""
    here = net[0]
    # By its process: the host's other sockets have no entries that would be in the way.
    mine = ("--attach", attach, "--netns", here.name, "-p", str(os.getpid()), "--rport", "1")
    listeners = 2 * facts.of(tool).listening
    with (
        tracer(tool, "--json", *mine) as running,
        here.entered(),
        harness.pair() as (_, accepted),
        harness.listener("::1") as server,
        harness.connect("::1", server.getsockname()[1]),  # nobody accepts it
    ):
        harness.until(lambda: len(running.entries()) == listeners)
        harness.reset(accepted)
        harness.until(lambda: len(running.entries()) == listeners)
        assert running.events() == []


@pytest.mark.parametrize("tool", TOOLS)
def test_another_namespace_takes_no_place(tool: str, net: Net) -> None:
    """Not even while its connects wait for an answer, or for their addresses."""
    here, other = net
    with (
        tracer(tool, "--netns", other.name) as running,
        here.entered(),
        harness.start_hanging(here.nobody, 1003),
        harness.pair(),
    ):
        assert not running.entries()


@pytest.mark.parametrize("tool", [name for name in KEEPERS if not facts.of(name).kept])
def test_what_is_answered_or_accepted_has_no_entry(attach: str, tool: str, net: Net) -> None:
    """All was told of it: it needs no place while it lives."""
    here = net[0]
    mine = ("--attach", attach, "--netns", here.name, "-p", str(os.getpid()))
    with tracer(tool, "--json", *mine) as running, here.entered(), harness.pair():
        harness.until(lambda: not running.entries())
        assert len(running.events()) == 1


@pytest.mark.parametrize("tool", KEEPERS)
def test_its_end_forgets_what_a_missed_change_left(tool: str, net: Net) -> None:
    """An entry that is put back after the socket's last change goes with the socket."""
    here = net[0]
    with api.trace(tool, netns=here.name) as events, here.entered():
        kept = events._session.program.map(tool_named(tool).sockets[0])
        with ExitStack() as stack:
            if facts.of(tool).queued:
                server = stack.enter_context(harness.listener())
                client = stack.enter_context(harness.connect(*server.getsockname()))
                client.sendall(b"x")  # some tools follow only what has data to read
            else:
                client = stack.enter_context(harness.start_hanging(here.nobody, 1004))
            entries = {key: kept.get(key) for key in list(kept.keys())}
            harness.disconnect(client)
            for key, value in entries.items():
                kept.set(key, value or b"")
            assert {*kept.keys()} >= entries.keys() > set()
        harness.until(lambda: not list(kept.keys()))


def test_entries_are_found(net: Net) -> None:
    """Of a socket that still lives: the test above looks at the right thing."""
    here = net[0]
    with (
        tracer("connlat", "--netns", here.name, "-p", str(os.getpid())) as running,
        here.entered(),
        harness.start_hanging(here.nobody, 1002),
    ):
        assert "sockets" in {name for name, _, _ in running.entries()}


PLACES, CONNECTIONS = 4, 12


@pytest.mark.parametrize("tool", KEEPERS)
def test_a_full_map_is_counted(tool: str, net: Net) -> None:
    """Sockets that wait: for an answer, or at both ends to be accepted."""
    here, known = net[0], facts.of(tool)
    mine = ("--netns", here.name, "-p", str(os.getpid()), "--map-size", str(PLACES))
    with tracer(tool, "--json", *mine) as running, here.entered(), ExitStack() as stack:
        if known.queued:
            server = stack.enter_context(harness.listener())
            for _ in range(CONNECTIONS):
                stack.enter_context(harness.connect(*server.getsockname())).sendall(b"x")
        else:
            for i in range(CONNECTIONS):
                stack.enter_context(harness.start_hanging(here.nobody, 2000 + i))
        assert running.stop() == 0
    sockets = CONNECTIONS * (known.queued or 1) + known.listening
    lost = lost_in_maps(running)
    if known.listener:  # counts each of a socket's changes; the listener has a place
        assert lost >= sockets + 1 - PLACES
    else:
        assert lost == sockets - PLACES
    assert any("a larger --map-size" in line for line in running.errors())


def lost_in_maps(running: Tracer) -> int:
    told = [r for r in running.records() if r["type"] == "lost"]
    return int(told[-1]["map"]) if told else 0


@pytest.mark.parametrize("tool", ["life", "tracer"])
def test_accepts_that_find_a_full_map_are_counted(tool: str, net: Net) -> None:
    """Besides the connections themselves: whose they are is not known."""
    here = net[0]
    mine = ("--netns", here.name, "-p", str(os.getpid()), "--map-size", str(PLACES))
    with tracer(tool, "--json", *mine) as running, here.entered(), ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(harness.pair())
        assert running.stop() == 0
    assert lost_in_maps(running) > 2 * CONNECTIONS - PLACES
