"""The loop of a tool on the command line, on a trace that is made up and a clock that is ours."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tcpcore.errors import AlarmError, LostError, OptionError, TcpcoreError
from tcpcore.model import fields
from tcpcore.model.counted import Counted, Measured
from tcpcore.model.event import ConnectionEvent
from tcpcore.model.histogram import Histogram
from tcpcore.model.losses import Losses, describe
from tcpcore.model.tool import Histograms, Lines, Records, Snapshot, Sweep, Table
from tcpcore.request.request import Limits, Request
from tcpcore.session import loop, privilege, run
from tcpcore.session.loop import Loop
from tcpcore.session.run import Output, Stop
from tcpcore.session.session import PERIOD, Session
from tcpcore.sinks import table
from tcpcore.sinks.csv import Csv
from tcpcore.sinks.destination import Destination
from tcpcore.sinks.form import Style
from tcpcore.sinks.ndjson import Json
from tcpcore.tools.connlat.destinations import LINES, Destinations
from tcpcore.tools.connlat.destinations import Destination as Row
from tests.unit.samples import event, lines, python, tool

CONNLAT = tool("connlat")


class Clock:
    """time.monotonic() of the loop, which goes on only while the session waits."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    return clock


class FakeSession:
    """A session as far as the loop uses one.

    events: of each PERIOD, by the number of the wait before; -1: what comes at the very end.
    losses: likewise, from then on. waited: the times at which the waits ended.
    """

    def __init__(self, clock: Clock, events: dict[int, int], losses: dict[int, Losses]) -> None:
        self._clock, self._events, self._losses = clock, events, losses
        self._lost = Losses()
        self.tool = CONNLAT
        self.counted = 0
        self.waited: list[float] = []
        self.asked: list[tuple[Sweep, int]] = []
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

    def wake_on(self, descriptor: int) -> None:
        """No signal comes while it waits."""

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

    def swept(self, rows: Sweep) -> list[Any]:
        self.asked.append((rows, self.counted))
        return [event(CONNLAT), event(CONNLAT)]

    def losses(self) -> Losses:
        return self._lost

    def count(self, records: Records) -> None:
        self.counted += len(records)

    def _of(self, kind: Any) -> list[Any]:
        return [each for each in self.tool.kinds if isinstance(each, kind)]

    def walk(self) -> None:
        pass

    def tables(self) -> list[Any]:
        return [(table.lines, [ROW]) for table in self._of(Table)]

    def snapshots(self) -> list[Any]:
        return [(kind.lines, [event(CONNLAT, pid=9)]) for kind in self._of(Snapshot)]

    def histograms(self) -> list[Any]:
        return [[WHOLE] for _ in self._of(Histograms)]


class Text:
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


WHOLE = Histogram("srtt", "us", None, {3: 2}, 20)
ROW = (2, bytes(16), 80, 7, 0, 1, 1, 1, 1)
ROWS = Lines(Row, columns=LINES.columns, wide=LINES.wide)
TABLE = Table(ROWS, lambda program: Destinations([]))
OPEN = Snapshot(lines(CONNLAT), Sweep("sockets", "raw_tp"))
HISTOGRAMS = Histograms(lambda program: cast(Any, None))


class Calls:
    """A sink that tells its calls."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def batch(self, lines: Lines, records: Records) -> None:
        self.told.append(f"batch of {len(records)}")

    def report(self, lines: Lines, records: Records) -> None:
        self.told.append(f"report of {len(records)} {lines.row.__name__}")

    def histograms(self, found: Any) -> None:
        self.told += [f"histogram of {each.measure}" for each in found]

    def losses(self, losses: Losses) -> None:
        self.told.append(f"{losses.ring} lost")


class Run:
    """A run of the loop, from the limits and a made-up session to what was written."""

    def __init__(self, clock: Clock, **events: Any) -> None:
        self.clock = clock
        self.session = FakeSession(clock, events.get("events", {}), events.get("losses", {}))
        self.lines = Text(events.get("gone_after", 1 << 30))
        self.stop = cast(Stop, SimpleNamespace(wanted=False))

    def run(self, style: Style | None = None, **limits: Any) -> Losses:
        """As the command line does."""
        session, text = cast(Session, self.session), cast(Destination, self.lines)
        printer = run._Telling(session.tool, style or Json("connlat"), text.write)
        return run._print(session, Request(limits=Limits(**limits)), printer, text, self.stop)

    def calls(self, **limits: Any) -> list[str]:
        """Of a sink, whatever it is."""
        sink = Calls()
        stopped = lambda: self.stop.wanted  # noqa: E731
        Loop(cast(Session, self.session), sink, Limits(**limits), stopped).run()
        return sink.told


def test_duration_ends_it_in_time_and_with_the_last_batch(clock: Clock) -> None:
    session = Run(clock, events={1: 2, -1: 3})
    assert session.run(duration=0.12) == Losses()
    assert session.session.waited == pytest.approx([0.05, 0.1, 0.12])
    assert len(session.lines.records("event")) == 5


def test_a_signal_ends_it_with_the_last_batch(clock: Clock) -> None:
    session = Run(clock, events={1: 1, -1: 3})
    session.session.at_wait = lambda number: setattr(session.stop, "wanted", number == 2)
    assert session.calls() == ["batch of 1", "batch of 3"]


@pytest.mark.parametrize("count", [1, 4, 5, 6])
def test_count_is_cut_exactly(clock: Clock, count: int) -> None:
    session = Run(clock, events={1: 2, 2: 2, 3: 7, -1: 5})
    session.run(count=count)
    pids = [record["pid"] for record in session.lines.records("event")]
    assert pids == [1, 2, 2, 3, 3, 4][:count]
    assert len(session.session.waited) == (count + 1) // 2


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_count_is_of_whole_events(clock: Clock, count: int) -> None:
    """Where several rows are one: here those of two processes, in turn."""
    session = Run(clock, events={1: 4, 2: 1, -1: 2})
    pid = list(fields.kinds(CONNLAT.event)).index("pid")
    session.session.tool = CONNLAT._replace(one_event=lambda row: row[pid] // 2)
    session.session.at_wait = lambda number: setattr(session.stop, "wanted", number == 3)
    session.run(count=count)
    pids = [record["pid"] for record in session.lines.records("event")]
    assert pids == [1, 2, 3, 4, 2, 999, 1000][: {1: 1, 2: 3, 3: 4}.get(count, 7)]


def test_a_report_per_interval_and_one_at_the_end(clock: Clock) -> None:
    session = Run(clock, events={1: 1, 3: 2, -1: 4})
    session.session.tool = CONNLAT._replace(kinds=(TABLE,))
    reports = ["report of 1 Destination"]
    assert session.calls(interval=0.12, duration=0.3) == [*reports, *reports, *reports]
    assert session.session.counted == 7
    assert {0.12, 0.24, 0.3} <= {round(at, 3) for at in session.session.waited}


def test_a_tool_of_all_kinds(clock: Clock) -> None:
    """A snapshot comes at the end."""
    session = Run(clock, events={1: 1, -1: 4}, losses={3: Losses(ring=5)})
    session.session.tool = ALL_KINDS
    assert session.calls(interval=0.1, duration=0.15) == [
        *("batch of 1", "report of 1 Destination", "histogram of srtt"),
        *("batch of 4", "report of 1 Destination", "histogram of srtt", "report of 1 Event"),
        "5 lost",
    ]


def test_an_alarm_ends_it_when_its_report_is_out(clock: Clock) -> None:
    alarms = iter([None, AlarmError("too many")])
    session = Run(clock, events={1: 1}, losses={2: Losses(ring=5)})
    session.session.tool = CONNLAT._replace(kinds=(TABLE,), alarm=lambda: next(alarms))
    sink = Calls()
    at_work = Loop(cast(Session, session.session), sink, Limits(interval=0.1, duration=9.0))
    with pytest.raises(AlarmError, match="too many"):
        at_work.run()
    assert sink.told == ["report of 1 Destination", "report of 1 Destination", "5 lost"]
    assert at_work.is_over


class Everything(Calls):
    """A sink in ten lines gets all that JSON gets."""

    def __init__(self) -> None:
        self.found: list[Any] = []

    def batch(self, lines: Lines, records: Records) -> None:
        self.found += fields.values(lines.row, records)

    report = batch

    def histograms(self, found: Any) -> None:
        self.found += found

    def losses(self, losses: Losses) -> None:
        self.found.append(losses)


ALL_KINDS = CONNLAT._replace(kinds=(*CONNLAT.kinds, TABLE, HISTOGRAMS, OPEN))


def test_a_sink_gets_everything_that_json_gets(clock: Clock) -> None:
    events, losses = {1: 2, -1: 1}, {2: Losses(ring=5)}
    printed = Run(clock, events=events, losses=losses)
    kept = Run(clock, events=events, losses=losses)
    printed.session.tool = kept.session.tool = ALL_KINDS
    printed.run(duration=0.1)
    sink = Everything()
    Loop(cast(Session, kept.session), sink, Limits(duration=0.1)).run()
    shown = [json.loads(line) for line in printed.lines.text.splitlines()]
    assert [one["type"] for one in shown] == [
        *("event", "event", "event", "flow", "histogram", "event", "lost")
    ]
    for object_, one in zip(sink.found, shown, strict=True):
        for name in {"pid", "raddr", "count", "p99_ns", "sum", "ring"} & one.keys():
            assert one[name] == getattr(object_, name)


def test_each_style_shows_each_kind(clock: Clock) -> None:
    for style, says in (
        (table.Text(), ["PID", "DADDR", "curl", "srtt"]),
        (Csv(), ["time,ts_ns", "time,family,raddr", "time,measure,unit"]),
    ):
        session = Run(clock, events={-1: 1})
        session.session.tool = ALL_KINDS
        session.run(style, duration=0.1)
        assert all(word in session.lines.text for word in says), session.lines.text
        assert session.lines.text.count(says[0]) == 1


def test_what_the_kernel_counts_has_no_number_of_events(clock: Clock) -> None:
    counted = Table(TABLE.lines, Counted("numbers", ConnectionEvent, struct="number"))
    measured = Histograms(Measured("times", "time"))
    loop.check(CONNLAT._replace(kinds=(TABLE,)), Limits(count=1))
    loop.check(CONNLAT._replace(kinds=(TABLE, measured)), Limits(count=1))
    for kind in (counted, measured):
        in_kernel = CONNLAT._replace(kinds=(kind,))
        loop.check(in_kernel, Limits(duration=1))
        with pytest.raises(OptionError, match="count: this is counted in the kernel"):
            loop.check(in_kernel, Limits(count=1))


def test_what_a_report_asks_for_has_no_number_of_events() -> None:
    asking = CONNLAT._replace(kinds=(TABLE,), asked=Sweep("sockets", "raw_tp"))
    with pytest.raises(OptionError, match="count: this is counted in the kernel"):
        loop.check(asking, Limits(count=1))


ASKED = Sweep("sockets", "raw_tp")


def test_each_report_asks_first(clock: Clock) -> None:
    """What is told is counted before the report is made."""
    session = Run(clock, events={1: 3})
    session.session.tool = CONNLAT._replace(kinds=(TABLE,), asked=ASKED)
    session.run(interval=0.2, duration=0.3)
    assert session.session.asked == [(ASKED, 3), (ASKED, 5)]
    assert session.session.counted == 7


def test_a_trace_at_once_waits_for_nothing(clock: Clock) -> None:
    session = Run(clock)
    session.session.tool = CONNLAT._replace(kinds=(TABLE,), asked=ASKED, at_once=True)
    session.run(duration=60)
    assert session.session.waited == [0.0]
    assert session.session.asked == [(ASKED, 0)]


def test_a_stamp_stands_before_a_block_of_histograms() -> None:
    """They have no time of their own."""
    for style, stamp in (
        (table.Text(wall=True), r"\d\d:\d\d:\d\d\n"),
        (table.Text(timestamp=True), r"0\.\d{3}\n"),
        (table.Text(wall=True, timestamp=True), r"\d\d:\d\d:\d\d 0\.\d{3}\n"),
        (table.Text(), ""),
    ):
        block = style.histograms([WHOLE, WHOLE])
        assert re.match(stamp + " +srtt", block)
        assert len(re.findall(r"\d\d:\d\d|0\.\d", block)) == stamp.count(" ") + bool(stamp)


def for_heatmap(kinds: Any, style: str = "table", **limits: float) -> Limits:
    asked = Request(limits=Limits(**limits))  # type: ignore[arg-type]
    return run._for_heatmap(CONNLAT._replace(kinds=kinds), asked, style).limits


def test_a_heatmap_has_a_line_a_second_by_default() -> None:
    kinds = (TABLE, HISTOGRAMS)
    assert for_heatmap(kinds, duration=9.0) == Limits(duration=9, interval=1)
    assert for_heatmap(kinds, interval=0.5).interval == 0.5


def test_a_heatmap_of_what_is_no_histogram() -> None:
    with pytest.raises(OptionError, match="heatmap: connlat shows no histogram here"):
        for_heatmap((TABLE,))
    with pytest.raises(OptionError, match="heatmap: it is a picture, and no JSON"):
        for_heatmap((HISTOGRAMS,), "json")


@pytest.mark.parametrize(("no_color", "colours"), [("", True), ("1", False)])
def test_a_heatmap_has_colours_on_a_terminal_that_wants_them(
    monkeypatch: pytest.MonkeyPatch, no_color: str, colours: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    of = CONNLAT._replace(kinds=(HISTOGRAMS,))
    for terminal, output in ((True, None), (True, Path("file")), (False, None)):
        monkeypatch.setattr(os, "isatty", lambda fd, terminal=terminal: terminal)
        style = run._style(of, Output(heatmap=True, path=output))
        expected = colours and terminal and output is None
        assert ("\x1b[" in style.histograms([WHOLE])) == expected


def test_losses_are_told_each_time_they_grow(
    clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    """Once a second at most, and what came last at the end."""
    losses = {2: Losses(ring=1), 4: Losses(ring=3), 25: Losses(ring=3, missed=1)}
    losses[30] = Losses(ring=3, missed=2)
    losses[70] = Losses(ring=3, map=4, missed=2)
    session = Run(clock, losses=losses)
    assert session.run(duration=3.6) == losses[70]
    told = [(record["ring"], record["map"], record["missed"], record["malformed"])
            for record in session.lines.records("lost")]  # fmt: skip
    assert told == [(3, 0, 0, 0), (3, 0, 2, 0), (3, 4, 2, 0)]
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 3 and all(line.startswith("tcpcore: lost so far: 3") for line in errors)
    assert "2 events: skipped" in errors[1]


def test_each_cause_is_described() -> None:
    causes = {"ring": "`buffer`", "map": "`map_size`", "missed": "was running", "malformed": "deco"}
    for cause, says in causes.items():
        text = describe(Losses(**{cause: 7}))
        assert "7 " in text and says in text and ";" not in text
    assert describe(Losses(1, 2, 3, 4)).count(";") == 3


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_reader_that_goes_ends_it_quietly(
    clock: Clock, capfd: pytest.CaptureFixture[str], after: int
) -> None:
    """At the header, at a row, or between two rows; losses are told all the same."""
    session = Run(clock, events={2: 1, 5: 1}, losses={1: Losses(ring=9)}, gone_after=after)
    lost = session.run(Csv())
    assert len(session.session.waited) == (0, 0, 2)[after]
    assert len(session.lines.text.splitlines()) == after
    assert lost == (Losses(ring=9) if after == 2 else Losses())
    assert ("9 events: buffer full" in capfd.readouterr().err) == (after == 2)


def test_a_record_of_losses_that_nobody_reads(clock: Clock) -> None:
    session = Run(clock, events={2: 1}, losses={1: Losses(ring=9)}, gone_after=1)
    assert session.run() == Losses(ring=9)
    assert session.lines.text.count("\n") == 1


def test_a_full_disk_ends_it(clock: Clock) -> None:
    session = Run(clock)
    failure = TcpcoreError("standard output: No space left on device")

    def fail(text: str) -> None:
        raise failure

    session.lines.write = fail  # type: ignore[method-assign]
    with pytest.raises(TcpcoreError) as e:
        session.run()
    assert e.value is failure


@pytest.fixture
def no_traces(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Iterator[FakeSession]:
    """run() with all that it opens and changes left out."""
    session = FakeSession(clock, {}, {1: Losses(ring=2)})

    @contextmanager
    def opened(*arguments: Any) -> Iterator[Any]:
        yield session

    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(run, "opened", opened)
    monkeypatch.setattr(privilege, "drop", lambda *arguments: None)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    monkeypatch.setattr(gc, "set_threshold", lambda number: None)
    yield session
    for number, handler in handlers.items():
        signal.signal(number, handler)


SHORT = Request(limits=Limits(duration=0.1))


def test_fail_on_loss(no_traces: FakeSession, tmp_path: Path) -> None:
    run.run(CONNLAT, SHORT, Output(style="json", path=tmp_path / "out"))
    strict = Output(style="json", path=tmp_path / "out", fail_on_loss=True)
    no_traces.waited.clear()
    with pytest.raises(LostError, match="connlat: lost so far: 2 events") as e:
        run.run(CONNLAT, SHORT, strict)
    assert e.value.exit_code == 5
    no_traces._losses.clear()
    no_traces._lost = Losses()
    run.run(CONNLAT, SHORT, strict)


def test_the_file_is_opened_with_the_rights_of_the_caller(
    no_traces: FakeSession, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found: list[bool] = []
    path = tmp_path / "out"
    monkeypatch.setattr(privilege, "drop", lambda *arguments: found.append(path.exists()))
    run.run(CONNLAT, SHORT, Output(path=path))
    assert found == [True]


def test_only_kernel_addresses_are_hidden_from_others(
    no_traces: FakeSession, tmp_path: Path
) -> None:
    for name, mode in (("states", 0o600), ("connlat", 0o644)):
        before = os.umask(0o022)
        run.run(tool(name), SHORT, Output(path=tmp_path / name))
        os.umask(before)
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_verbose_tells_slot_by_slot(
    no_traces: FakeSession, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run.run(CONNLAT, SHORT, Output(path=tmp_path / "out", verbose=1))
    assert capfd.readouterr().err.splitlines()[:5] == [
        "refused: accept(): fentry: no",
        "not attached: kprobe/f6: no",
        "ring per CPU: 2048 KiB",
        "attached: accept(): kprobe",
        "attached: x: no way",
    ]


def test_ctrl_c_ends_the_wait_for_the_reader_of_a_fifo(
    no_traces: FakeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo, looks = tmp_path / "fifo", []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        assert len(looks) < 3, "it goes on waiting"
        if len(looks) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    os.mkfifo(fifo)
    monkeypatch.setattr("tcpcore.sinks.destination.time", SimpleNamespace(sleep=sleep))
    run.run(CONNLAT, Request(), Output(path=fifo))
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


def test_a_signal_ends_a_wait() -> None:
    code = SIGNALS.format(numbers=[int(signal.SIGTERM)], before="import select")
    done = python(f"{code}\nprint(select.select([stop.signalled], [], [], 0)[0] != [])")
    assert done.stdout == "True\nTrue\n"


def test_a_terminal_that_goes_may_say_so_twice() -> None:
    done = after_signals(signal.SIGHUP, signal.SIGHUP)
    assert (done.stdout, done.returncode) == ("True\nTrue\n", 0)


def test_nohup_is_respected() -> None:
    ignored = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    assert after_signals(signal.SIGHUP, before=ignored).stdout == "False\n"


@pytest.mark.parametrize("module", ["enum", "signal", "ctypes", "tcpcore.tools.connlat"])
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
