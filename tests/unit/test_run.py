"""The loop of a tool on the command line, on a trace that is made up and a clock that is ours."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tcpcore.errors import LostError, TcpcoreError
from tcpcore.request.options import Common
from tcpcore.session import privilege, run
from tcpcore.session.run import Limits, Printer, Stop, describe
from tcpcore.session.tracing import PERIOD, Losses, Trace
from tcpcore.sinks.destination import Destination
from tcpcore.sinks.output import Csv, Json, Writer
from tests.unit.samples import event, python, tool

CONNLAT = tool("connlat")


class Clock:
    """time.monotonic() of run.py, which goes on only while the trace waits."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(run, "time", clock)
    return clock


class FakeTrace:
    """A trace as far as the loop uses one.

    events: of each PERIOD, by the number of the wait before; -1: what comes at the very end.
    losses: likewise, from then on. waited: the times at which the waits ended.
    """

    def __init__(self, clock: Clock, events: dict[int, int], losses: dict[int, Losses]) -> None:
        self._clock, self._events, self._losses = clock, events, losses
        self._lost = Losses()
        self.waited: list[float] = []
        self.at_wait: Callable[[int], None] = lambda number: None
        self.program = SimpleNamespace(
            rings={"events": SimpleNamespace(size=2 << 20)},
            uses=[
                SimpleNamespace(
                    slot=SimpleNamespace(name="accept()"),
                    way=SimpleNamespace(name="kprobe"),
                    refusals=["accept(): fentry: no"],
                    absent=["kprobe/f6: no"],
                ),
                SimpleNamespace(slot=SimpleNamespace(name="x"), way=None, refusals=[], absent=[]),
            ],
        )

    def wait(self, until: float) -> None:
        self._clock.now = min(self._clock.now + PERIOD, max(until, self._clock.now))
        self.waited.append(self._clock.now - 1000.0)
        assert len(self.waited) < 1000, "it does not end"
        number = len(self.waited)
        self._lost = self._losses.get(number, self._lost)
        self.at_wait(number)

    def read(self, last: bool = False) -> list[Any]:
        number = -1 if last else len(self.waited)
        return [event(CONNLAT, pid=number % 1000 + i) for i in range(self._events.get(number, 0))]

    def losses(self) -> Losses:
        return self._lost


class Lines:
    """A destination. gone_after: so many writes are taken before the reader goes."""

    def __init__(self, gone_after: int = 1 << 30) -> None:
        self.text, self.left = "", gone_after

    def write(self, text: str) -> None:
        if text and not self.left:
            raise BrokenPipeError
        self.left -= bool(text)
        self.text += text

    def gone(self) -> bool:
        return not self.left

    def records(self, kind: str) -> list[dict[str, Any]]:
        found = map(json.loads, self.text.splitlines())
        return [record for record in found if record["type"] == kind]


class Reports:
    """A writer that tells its calls."""

    def header(self) -> str:
        return "header\n"

    def rows(self, records: Any) -> str:
        return f"{len(records)} rows\n"

    def finish(self) -> str:
        return "report\n"

    def record(self, kind: str, content: dict[str, Any]) -> str:
        return ""


class Session:
    """A run of the loop, from the options and a made-up trace to what was written."""

    def __init__(self, clock: Clock, **events: Any) -> None:
        self.clock = clock
        self.trace = FakeTrace(clock, events.get("events", {}), events.get("losses", {}))
        self.lines = Lines(events.get("gone_after", 1 << 30))
        self.stop = cast(Stop, SimpleNamespace(wanted=False))

    def run(self, out: Writer | None = None, **options: str) -> Losses:
        trace, lines = cast(Trace, self.trace), cast(Destination, self.lines)
        limits = Limits(Common(**cast(Any, options)))
        return Printer(trace, out or Json(CONNLAT), lines, limits, self.stop).run()


def test_duration_ends_it_in_time_and_with_the_last_batch(clock: Clock) -> None:
    session = Session(clock, events={1: 2, -1: 3})
    assert session.run(duration="0.12") == Losses()
    assert session.trace.waited == pytest.approx([0.05, 0.1, 0.12])
    assert len(session.lines.records("event")) == 5


def test_a_signal_ends_it_with_the_last_batch(clock: Clock) -> None:
    session = Session(clock, events={1: 1, -1: 3})
    session.trace.at_wait = lambda number: setattr(session.stop, "wanted", number == 2)
    session.run(Reports())
    assert session.lines.text.splitlines() == ["header", "1 rows", "3 rows", "report"]


@pytest.mark.parametrize("count", [1, 4, 5, 6])
def test_count_is_cut_exactly(clock: Clock, count: int) -> None:
    session = Session(clock, events={1: 2, 2: 2, 3: 7, -1: 5})
    session.run(count=str(count))
    pids = [record["pid"] for record in session.lines.records("event")]
    assert pids == [1, 2, 2, 3, 3, 4][:count]
    assert len(session.trace.waited) == (count + 1) // 2


def test_a_report_per_interval_and_one_at_the_end(clock: Clock) -> None:
    session = Session(clock, events={1: 1, 3: 2, -1: 4})
    session.run(Reports(), interval="0.12", duration="0.3")
    assert session.lines.text.splitlines() == [
        "header", "1 rows", "2 rows", "report", "report", "4 rows", "report",
    ]  # fmt: skip
    assert {0.12, 0.24, 0.3} <= {round(at, 3) for at in session.trace.waited}


def test_losses_are_told_each_time_they_grow(
    clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    """Once a second at most, and what came last at the end."""
    losses = {2: Losses(ring=1), 4: Losses(ring=3), 25: Losses(ring=3, missed=1)}
    losses[30] = Losses(ring=3, missed=2)
    losses[70] = Losses(ring=3, map=4, missed=2)
    session = Session(clock, losses=losses)
    assert session.run(duration="3.6") == losses[70]
    told = [(record["ring"], record["map"], record["missed"], record["malformed"])
            for record in session.lines.records("lost")]  # fmt: skip
    assert told == [(3, 0, 0, 0), (3, 0, 2, 0), (3, 4, 2, 0)]
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 3 and all(line.startswith("tcpcore: lost so far: 3") for line in errors)
    assert "2 events came while the program ran already" in errors[1]


def test_each_cause_is_described() -> None:
    causes = {"ring": "--buffer", "map": "--map-size", "missed": "ran already", "malformed": "deco"}
    for cause, says in causes.items():
        text = describe(Losses(**{cause: 7}))
        assert "7 " in text and says in text and ";" not in text
    assert describe(Losses(1, 2, 3, 4)).count(";") == 3


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_reader_that_goes_ends_it_quietly(
    clock: Clock, capfd: pytest.CaptureFixture[str], after: int
) -> None:
    """At the header, at a row, or between two rows; losses are told all the same."""
    session = Session(clock, events={2: 1, 5: 1}, losses={1: Losses(ring=9)}, gone_after=after)
    lost = session.run(Csv(CONNLAT))
    assert len(session.trace.waited) == (0, 0, 2)[after]
    assert len(session.lines.text.splitlines()) == after
    assert lost == (Losses(ring=9) if after == 2 else Losses())
    assert ("9 events found the ring full" in capfd.readouterr().err) == (after == 2)


def test_a_record_of_losses_that_nobody_reads(clock: Clock) -> None:
    session = Session(clock, events={2: 1}, losses={1: Losses(ring=9)}, gone_after=1)
    assert session.run() == Losses(ring=9)
    assert session.lines.text.count("\n") == 1


def test_a_full_disk_ends_it(clock: Clock) -> None:
    session = Session(clock)
    failure = TcpcoreError("standard output: No space left on device")

    def fail(text: str) -> None:
        raise failure

    session.lines.write = fail  # type: ignore[method-assign]
    with pytest.raises(TcpcoreError) as e:
        session.run()
    assert e.value is failure


@pytest.fixture
def no_traces(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Iterator[FakeTrace]:
    """stream() with all that it opens and changes left out."""
    trace = FakeTrace(clock, {}, {1: Losses(ring=2)})

    @contextmanager
    def opened(*arguments: Any) -> Iterator[Any]:
        yield trace

    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(run, "opened", opened)
    monkeypatch.setattr(privilege, "drop", lambda *arguments: None)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    monkeypatch.setattr(gc, "set_threshold", lambda number: None)
    yield trace
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_fail_on_loss(no_traces: FakeTrace, tmp_path: Path) -> None:
    common = Common(duration="0.1", json=True, output=tmp_path / "out")
    run.stream(CONNLAT, common)
    strict = Common(duration="0.1", json=True, output=tmp_path / "out", fail_on_loss=True)
    no_traces.waited.clear()
    with pytest.raises(LostError, match="connlat: lost so far: 2 events") as e:
        run.stream(CONNLAT, strict)
    assert e.value.exit_code == 5
    no_traces._losses.clear()
    no_traces._lost = Losses()
    run.stream(CONNLAT, strict)


def test_the_file_is_opened_with_the_rights_of_the_caller(
    no_traces: FakeTrace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found: list[bool] = []
    path = tmp_path / "out"
    monkeypatch.setattr(privilege, "drop", lambda *arguments: found.append(path.exists()))
    run.stream(CONNLAT, Common(duration="0.1", output=path))
    assert found == [True]


def test_only_kernel_addresses_are_hidden_from_others(no_traces: FakeTrace, tmp_path: Path) -> None:
    for name, mode in (("states", 0o600), ("connlat", 0o644)):
        before = os.umask(0o022)
        run.stream(tool(name), Common(duration="0.1", output=tmp_path / name))
        os.umask(before)
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_verbose_tells_slot_by_slot(
    no_traces: FakeTrace, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run.stream(CONNLAT, Common(duration="0.1", output=tmp_path / "out", verbose=1))
    assert capfd.readouterr().err.splitlines()[:5] == [
        "refused: accept(): fentry: no",
        "not attached: kprobe/f6: no",
        "ring per CPU: 2048 KiB",
        "attached: accept(): kprobe",
        "attached: x: no way",
    ]


def test_ctrl_c_ends_the_wait_for_the_reader_of_a_fifo(
    no_traces: FakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo, looks = tmp_path / "fifo", []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        assert len(looks) < 3, "it goes on waiting"
        if len(looks) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    os.mkfifo(fifo)
    monkeypatch.setattr("tcpcore.sinks.destination.time", SimpleNamespace(sleep=sleep))
    run.stream(CONNLAT, Common(output=fifo))
    assert len(looks) == 2 and no_traces.waited == []


SIGNALS = """
import os, signal
from tcpcore.session.run import Stop
{before}
stop = Stop()
for number in {numbers}:
    os.kill(os.getpid(), number)
    print(stop.wanted, flush=True)
"""


def after_signals(*numbers: int, before: str = "") -> subprocess.CompletedProcess[str]:
    return python(SIGNALS.format(numbers=[int(n) for n in numbers], before=before))


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_it_at_once(first: int, second: int) -> None:
    done = after_signals(first, second)
    assert (done.stdout, done.returncode) == ("True\n", -second)


def test_a_terminal_that_goes_may_say_so_twice() -> None:
    done = after_signals(signal.SIGHUP, signal.SIGHUP)
    assert (done.stdout, done.returncode) == ("True\nTrue\n", 0)


def test_nohup_is_respected() -> None:
    ignored = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    assert after_signals(signal.SIGHUP, before=ignored).stdout == "False\n"


@pytest.mark.parametrize("module", ["enum", "signal", "typer", "tcpcore.tools.connlat"])
def test_ctrl_c_while_modules_are_imported_is_quiet(module: str) -> None:
    code = (
        "import os, sys\n"
        "class Late:\n"
        "    def find_spec(self, name, *more):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), 2)\n"
        "sys.meta_path.insert(0, Late())\n"
        f"for name in ('signal', 'enum', {module!r}): sys.modules.pop(name, None)\n"
        "sys.argv = ['tcpcore', 'connlat', '--count', '0']\n"
        "from tcpcore.__main__ import main\n"
        "main()\n"
    )
    done = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
