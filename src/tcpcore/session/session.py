"""A tool at work: its object attached, its events as batches in time order, its reports."""

from __future__ import annotations

import math
import os
import struct
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from tcpcore.errors import LibbpfError, UnsupportedError
from tcpcore.loader import Attached, Btf, Settings, attached
from tcpcore.loader.perf import Record
from tcpcore.model import clock, fields
from tcpcore.model.counted import Counted, Measured
from tcpcore.model.enums import look_up
from tcpcore.model.losses import Losses
from tcpcore.model.tool import Derive, Histograms, Lines, Records, Snapshot, Sweep, Table, Tool
from tcpcore.request.machinery import Machinery
from tcpcore.request.request import Request
from tcpcore.session import privilege

if TYPE_CHECKING:
    from tcpcore.model.histogram import Histogram

OBJECTS = Path(__file__).parents[1] / "objects"
PERIOD = 0.05
"""Seconds: how long an event waits in the ring at most, on a quiet host."""
SLACK_NS = 1_000_000
"""How long a program may take from its time stamp to the ring: events younger than this wait for
the next batch, since an older one may still come from another CPU."""

LOOK = 200
"""To look through all sockets for rows that wait takes at most one of so many parts of the time."""

MOST_SECONDS = 0.001
"""Of one such look: a ring fills in 40 ms on a host that does nothing but connect."""

_SEEN = struct.Struct("=Qi4x")  # struct seen: a socket, and its state
_BEFORE_SEEN = 8  # bytes of struct seen_changes
_ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}


def object_path(name: str) -> Path:
    """The object of a tool for this machine; UnsupportedError when there is none."""
    machine = os.uname().machine
    path = OBJECTS / f"{name}.{_ARCHITECTURES.get(machine, machine)}.bpf.o"
    if not path.exists():
        raise UnsupportedError(f"no BPF object {path.name} for {machine} (a checkout: make bpf)")
    return path


class Session:
    """An attached tool. program: its object, and how each slot is seen."""

    def __init__(self, tool: Tool, program: Attached, derive: Derive | None = None) -> None:
        self.tool = tool
        self.program = program
        self._derive = derive
        self._buffer = program.rings["events"]
        self._layout = fields.layout(tool.event)
        self._young: list[Record] = []
        self._lost = self._malformed = 0
        self._held = tool.held
        self._held_before = 0  # what its counter was at the last look
        self._next_look = 0.0
        self._to_ask: list[bytes] = []  # sockets whose turn is still to come
        self._tables = [(k.lines, k.counts(program)) for k in tool.kinds if isinstance(k, Table)]
        self._measures = [k.measures(program) for k in tool.kinds if isinstance(k, Histograms)]

    def fileno(self) -> int:
        """Readable when a ring has filled to its watermark: for a caller's own loop, which looks
        each PERIOD anyway."""
        return self._buffer.fileno()

    def wake_on(self, descriptor: int) -> None:
        """wait() ends as well once this is readable."""
        self._buffer.wake_on(descriptor)

    def wait(self, until: float = math.inf) -> None:
        """Until a ring has filled to its watermark, a PERIOD is over, or `until` (monotonic)."""
        self._buffer.wait(min(PERIOD, max(0.0, until - time.monotonic())))

    def read(self, last: bool = False) -> list[Record]:
        """Raw records in time order, none older than those of the call before.

        last: also the youngest ones, although an older one may still come from another CPU.
        """
        self._look_for_held(last)
        if last:
            self._sweep(self.tool.pending)
        return self._drain(last)

    def _drain(self, last: bool) -> list[Record]:
        horizon = clock.monotonic_ns() - SLACK_NS
        batch = self._buffer.take(self._layout)
        self._lost += batch.lost
        self._malformed += batch.malformed
        records = self._young + batch.records
        if self._young:
            records.sort()
        ready = len(records) if last else bisect_right(records, (horizon,))
        self._young = records[ready:]
        return self._derive(records[:ready], last) if self._derive else records[:ready]

    def swept(self, rows: Sweep) -> list[Record]:
        """All rows that BPF has to be asked for, and whatever came meanwhile."""
        keys, records = self._keys(rows), []
        # What many sockets tell would not fit into a ring: half a ring at a time.
        part = max(1, self._buffer.size // (2 * self._layout.stride))
        while keys:
            self._ask(rows, keys[:part])
            records += self._drain(last=True)
            del keys[:part]
        return records

    def count(self, records: Records) -> None:
        """Events for the tables and histograms that are counted here."""
        for _, counts in self._tables:
            counts.add(records)
        for measures in self._measures:
            measures.add(records)

    def walk(self) -> None:
        """Before a report: what the sockets themselves have counted since the last one."""
        for use in self.program.uses:
            if use.way and use.way.over:
                self.program.walk(use)

    def tables(self) -> Iterator[tuple[Lines, Records]]:
        """What was counted since the last call."""
        for lines, counts in self._tables:
            yield lines, counts.take()

    def histograms(self) -> Iterator[list[Histogram]]:
        """What was measured since the last call."""
        for measures in self._measures:
            yield measures.take()

    def snapshots(self) -> Iterator[tuple[Lines, Records]]:
        """What is there now."""
        for kind in self.tool.kinds:
            if isinstance(kind, Snapshot):
                self._sweep(kind.rows)
                yield kind.lines, self._drain(last=True)

    def _look_for_held(self, last: bool) -> None:
        """Ask for rows that wait, if there may be any; where sockets are many, some at a time.

        BPF offers a row at the first look and sends it at the second: at the end both are now.
        """
        for _ in range(1 + last):
            begin = time.monotonic()
            if begin < self._next_look and not last:
                return
            if last or not self._to_ask:
                if not self._has_new_held() and not self._to_ask:
                    return
                self._to_ask = self._keys(self._held)
            self._ask_for_held(math.inf if last else begin + MOST_SECONDS)
            self._next_look = begin + (time.monotonic() - begin) * LOOK
            if last:
                time.sleep(2 * SLACK_NS / 1e9)

    def _ask_for_held(self, until: float) -> None:
        """Not again where it cannot be asked: then a row comes with the next one of its socket."""
        if self._held and not self._ask(self._held, self._to_ask, until):
            self._held, self._to_ask = None, []

    def _has_new_held(self) -> bool:
        if self._held is None or self._held.changed is None:
            return False
        before = self._held_before
        (self._held_before,) = self.program.counters(self._held.changed)
        return self._held_before != before

    def _sweep(self, rows: Sweep | None) -> None:
        """Ask BPF for all rows that wait there."""
        if rows:
            self._ask(rows, self._keys(rows))

    def _keys(self, rows: Sweep | None) -> list[bytes]:
        """The sockets that may have such rows."""
        try:
            return list(self.program.map(rows.map).all_keys()) if rows else []
        except LibbpfError:
            return []

    def _ask(self, rows: Sweep, keys: list[bytes], until: float = math.inf) -> bool:
        """For the rows of these sockets, which are taken out of the list. False: it cannot be
        asked."""
        try:
            while keys and time.monotonic() < until:
                self.program.call(rows.section, int.from_bytes(keys.pop(), "little"))
        except LibbpfError:
            return False
        return True

    def losses(self) -> Losses:
        """Everything lost since the start. The kernel's record of a full ring comes late or never,
        our own count leaves out what the kernel refused elsewhere: the larger is right."""
        ring, sockets, output = self.program.counters("lost_ring", "lost_map", "lost_output")
        ring, missed = max(self._lost, ring), self._missed()
        answers = self._derive.lost() if self._derive else 0
        return Losses(ring, sockets, missed, self._malformed, output, answers)

    def _missed(self) -> int:
        """Of the skipped programs those whose work no other one did (transitions.bpf.h)."""
        missed = self.program.missed()  # first: what is skipped meanwhile may be made up for, too
        (made_up_for,) = self.program.counters("made_up_for")
        if missed <= made_up_for or "seen_changes" not in self.program.file.variables(".maps"):
            return max(0, missed - made_up_for)
        # What a second program was skipped for stays there until its place is needed.
        of_each_cpu = self.program.map("seen_changes").get_of_each_cpu(bytes(4))
        seen = chain.from_iterable(_SEEN.iter_unpack(x[_BEFORE_SEEN:]) for x in of_each_cpu)
        uncounted: int = sum(sk != 0 for sk, _ in seen)
        return max(0, missed - made_up_for - uncounted)


@contextmanager
def opened(tool: Tool, request: Request) -> Iterator[Session]:
    """Load and attach a tool; everything is gone again at the end of the block.

    Whatever needs rights is opened here: they may go once the block begins. Raises PrivilegeError,
    UnsupportedError, UsageError, TcpcoreError.
    """
    path = object_path(tool.name)
    privilege.require(tool.name)
    with _in_namespaces(_for(tool, request), request) as looking:
        yield from _attached(path, looking, request)


def _attached(path: Path, tool: Tool, request: Request) -> Iterator[Session]:
    filters, machinery = request.filters, request.machinery
    settings = Settings(
        rodata={**filters.rodata(), **tool.rodata},
        map_entries=dict.fromkeys(tool.sockets, machinery.sockets),
        aggregates={each.aggregate: _room(each, machinery) for each in tool.counted},
        contents=tool.contents,
        called=tool.called,
        attach=machinery.attach,
        btf=machinery.btf,
        pins=filters.pins(),
        rings={"events": machinery.ring()},
    )
    slots = (*filters.slots(), *machinery.slots(tool.slots))
    derive = tool.derive() if tool.derive else nullcontext()
    with derive as derived, closing(Btf()) as btf:
        look_up(tool.enums, btf, machinery.btf)
        with attached(path, slots, settings, btf) as program:
            if tool.seed:
                program.iterate(tool.seed)
            yield Session(tool, program, derived)


def _for(tool: Tool, request: Request) -> Tool:
    """The tool as a request needs it."""
    if tool.with_owners and request.filters.asks_for_owner():
        tool = tool.with_owners
    # Iterators need the kernel's own BTF.
    return tool._replace(seed=None) if request.machinery.btf and not tool.needs_seed else tool


def _in_namespaces(tool: Tool, request: Request) -> AbstractContextManager[Tool]:
    enter = tool.in_namespaces
    return enter(tool, request.filters.netns) if enter else nullcontext(tool)


def _room(of: Counted | Measured, machinery: Machinery) -> int:
    """For so many keys beside that of the rest."""
    if isinstance(of, Counted):
        return of.keys or machinery.keys
    return machinery.histograms if of.key else 0
