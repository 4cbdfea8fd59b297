"""The Python API with a kernel behind it. What once crashed is tried in a child."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from typing import Any

import pytest

import tcpcore
from tcpcore.loader.ffi import libbpf
from tests.live import harness


def ports(count: int) -> list[int]:
    """Connects that are refused, one after another; their remote ports."""
    found = [harness.refused_port() for _ in range(count)]
    for port in found:
        harness.refuse("127.0.0.1", port)
    return found


def mine() -> dict[str, Any]:
    return {"pid": os.getpid(), "raddr": "127.0.0.0/8"}


def seen(events: tcpcore.api.Events[Any], wanted: list[int]) -> list[int]:
    """The remote ports of the events that come, until the wanted ones were among them."""
    found: list[int] = []
    deadline = time.monotonic() + harness.PATIENCE
    while not set(wanted) <= set(found) and time.monotonic() < deadline:
        found += [event.rport for event in events.read()]
    return found


def refuses(use: Any, why: str) -> None:
    with pytest.raises(tcpcore.TcpcoreError, match=why):
        use()


def test_after_the_block_every_method_refuses() -> None:
    def use_it_late() -> None:
        with tcpcore.trace("connlat", **mine()) as events:
            ports(3)
        for use in (lambda: list(events), events.read, events.losses):
            refuses(use, "has ended")

    assert harness.reap(harness.fork(use_it_late)) == 0


def test_a_reader_in_another_thread_is_told_of_the_end() -> None:
    def leave_it() -> None:
        told: list[str] = []

        def read() -> None:
            try:
                for _ in events:
                    pass
            except tcpcore.TcpcoreError as e:
                told.append(str(e))

        with tcpcore.trace("states", **mine()) as events:
            reader = threading.Thread(target=read)
            reader.start()
            ports(20)
        reader.join(harness.PATIENCE)
        assert told == ["this trace has ended: what it owned is gone with its block"]

    assert harness.reap(harness.fork(leave_it)) == 0


def test_a_loop_that_is_left_loses_nothing() -> None:
    with tcpcore.trace("connlat", duration=harness.PATIENCE, **mine()) as events:
        made = ports(10)
        assert [next(iter(events)).rport for _ in made] == made


def test_traces_in_threads_come_and_go() -> None:
    """Each has a log, the kernel's types and handles of its own."""

    def trace(name: str, told: list[str]) -> None:
        for _ in range(2):
            with tcpcore.api.trace(
                name, map_size=64, pid=os.getpid(), raddr="127.0.0.0/8"
            ) as events:
                begun.wait(harness.PATIENCE)
                (port,) = ports(1)
                assert port in seen(events, [port])
        told.append(name)

    def together() -> None:
        told: list[str] = []
        names = ["connlat", "states"]
        threads = [threading.Thread(target=trace, args=(name, told)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(harness.PATIENCE)
        assert sorted(told) == sorted(names)

    begun = threading.Barrier(2)
    assert harness.reap(harness.fork(together)) == 0


def test_a_child_leaves_its_parents_trace_alone() -> None:
    """It is refused the trace, and its end of the block switches nothing off."""

    def leave_it() -> None:
        for use in (lambda: list(events), events.read, events.losses):
            refuses(use, "parent process's")
        block.close()

    with contextlib.ExitStack() as block:
        events = block.enter_context(tcpcore.trace("connlat", **mine()))
        assert harness.reap(harness.fork(leave_it)) == 0
        made = ports(3)
        assert set(made) <= set(seen(events, made))
        assert not events.losses()


def test_an_event_without_a_ring_is_not_told_as_a_full_one() -> None:
    """So it is on a CPU that came after the start: no ring stands in its place in the map."""
    with tcpcore.trace("connlat", **mine()) as events, harness.on_one_cpu() as cpu:
        rings = events._session.program.map("events")
        libbpf().bpf_map_delete_elem(rings.fd, struct.pack("=I", cpu))
        ports(5)
        losses = events.losses()
        assert (losses.output, losses.ring) == (5, 0)


def test_a_per_cpu_map_is_read_whole() -> None:
    """What a session left behind: on some CPU a state that it came to."""
    with tcpcore.trace("states", **mine()) as events:
        harness.session("127.0.0.1")
        changes = events._session.program.map("seen_changes")
        values = changes.get_of_each_cpu(bytes(4))
        (made_up_for,) = events._session.program.counters("made_up_for")
        assert made_up_for <= events._session.program.missed()
        assert changes.get_of_each_cpu(b"\1\0\0\0") == []
    assert len(values) == libbpf().libbpf_num_possible_cpus()
    states = [state for value in values for _, state in struct.iter_unpack("=Qi4x", value[8:])]
    assert all(0 <= state < 16 for state in states)
    assert any(states)
