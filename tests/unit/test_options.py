"""The options that all tools share, from the user's text to filters and machinery."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from tcpcore import explain, options
from tcpcore.errors import UsageError
from tcpcore.options import Command, Common
from tcpcore.request import containers
from tcpcore.request.machinery import Machinery
from tcpcore.request.request import OPTIONS, Limits
from tcpcore.request.values import decimal, seconds, size
from tcpcore.session.run import Output
from tests.unit.samples import TOOLS


def common(field: str, value: Any) -> Common:
    return Common(**{field: value})


def refused(call: Any, option: str, text: str) -> None:
    with pytest.raises(UsageError) as e:
        call()
    assert str(e.value).startswith(option + ": ")
    assert text in str(e.value)


@pytest.mark.parametrize(
    ("field", "texts"),
    [
        ("pid", ["", "0", "-1", "4194305", "x", "1,2", "1.5", "1" * 5000]),
        ("uid", ["", "-1", "4294967295", "root"]),
        ("comm", ["", "x" * 16]),
        ("lport", ["", "0", "65536", "http", "2-1"]),
        ("rport", ["", "0", "65536", "http", "2-1"]),
        ("laddr", ["", "300.0.0.1", "::1/200"]),
        ("raddr", ["", "300.0.0.1", "::1/200"]),
        ("netns", ["no-such-namespace", "99999999999"]),
        ("cgroup", ["no/such/cgroup"]),
    ],
)
def test_a_bad_filter_names_option_and_text(field: str, texts: list[str]) -> None:
    for text in texts:
        refused(common(field, [text]).request, field, text)


def test_the_last_of_several_is_checked_too() -> None:
    refused(Common(pid=["1", "2", "three"]).request, "pid", "'three'")


def test_too_many() -> None:
    one = {"pid": "1", "uid": "1", "comm": "a", "laddr": "::1", "netns": "4026531840"}
    for field, value in one.items():
        refused(common(field, [value] * 65).request, field, "65 values")


def test_good_filters() -> None:
    found = Common(
        pid=["1", "4194304"], uid=["0", "4294967294"], comm=["curl"], ipv6=True, lport=["22"],
        rport=["80,443"], laddr=["::1"], raddr=["10.0.0.0/8"], netns=["4026531840"],
    ).request().filters  # fmt: skip
    assert (found.pid, found.uid, found.comm) == ([1, 4194304], [0, 4294967294], [b"curl"])
    assert (found.family, found.lport, found.rport) == (10, [22], [80, 443])
    assert [str(network) for network in (*found.laddr, *found.raddr)] == [
        "::1/128", "::ffff:a00:0/104",
    ]  # fmt: skip
    assert found.netns == [4026531840]


def test_pids_of_a_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "host_pid", lambda pid, namespace: pid + 1000)
    assert Common(pid=["1", "2"], pidns="77").request().filters.pid == [1001, 1002]
    refused(Common(pidns="77").request, "pidns", "without process ids")


def test_containers_are_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "cgroup", lambda option, text: Path("/cgroup", text))
    assert Common(container=["web"]).request().filters.cgroup == [Path("/cgroup/web")]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("512", 512), ("512K", 512 << 10), ("512k", 512 << 10), ("4M", 4 << 20),
     ("4MB", 4 << 20), ("4MiB", 4 << 20), ("1G", 1 << 30), ("1073741824", 1 << 30)],
)  # fmt: skip
def test_sizes(text: str, value: int) -> None:
    assert size("buffer", text) == value


@pytest.mark.parametrize(
    "text",
    ["", "0", "0K", "-1", "1.5M", "K", "4T", "2G", "1073741825", "4 M", "4\u212a", "9" * 5000],
)
def test_bad_sizes(text: str) -> None:
    refused(Common(buffer=text).request, "buffer", f"'{text}'")


@given(st.text(max_size=8))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        assert 1 <= size("buffer", text) <= 1 << 30
    except UsageError as e:
        assert f"buffer: '{text}'" in str(e)


@given(st.from_regex(re.compile(r"[0-9]{1,4}[kmg]?(i?b)?", re.IGNORECASE), fullmatch=True))
def test_any_case_of_a_unit_is_a_size_or_refused(text: str) -> None:
    """Ignoring the case of letters, KELVIN SIGN is a k."""
    try:
        size("buffer", text)
    except UsageError as e:
        assert f"buffer: '{text}'" in str(e)


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "16777217", "1K"])
def test_bad_map_sizes(text: str) -> None:
    refused(Common(map_size=text).request, "map_size", f"'{text}'")


@pytest.mark.parametrize("path", [".", "absent", "/absent/vmlinux", "x" * 300])
def test_bad_btf_files(path: str) -> None:
    refused(Common(btf=Path(path)).request, "btf", path)


@pytest.mark.parametrize(
    ("cpus", "free_kb", "fits"),
    [(1, 4096, True), (1, 4095, False), (4, 16384, True), (5, 16384, False)],
)
def test_rings_take_a_quarter_of_the_free_memory_at_most(
    monkeypatch: pytest.MonkeyPatch, cpus: int, free_kb: int, fits: bool
) -> None:
    said = f"MemTotal: 99999999 kB\nMemFree: 1 kB\nMemAvailable:   {free_kb} kB\n"
    monkeypatch.setattr(Path, "read_text", lambda path: said)
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    if fits:
        assert Common(buffer="1M").request().machinery.buffer == 1 << 20
    else:
        says = f"{cpus} MiB on all CPUs, {free_kb >> 10} MiB are free"
        refused(Common(buffer="1M").request, "buffer", says)


def test_machinery(tmp_path: Path) -> None:
    btf = tmp_path / "vmlinux"
    btf.touch()
    found = (
        Common(buffer="1M", map_size="1024", attach=["kprobe,raw_tp"], btf=btf, compat=True)
        .request()
        .machinery
    )
    assert (found.buffer, found.map_size, found.btf) == (1 << 20, 1024, btf)
    assert (found.attach, found.compat) == (("kprobe", "raw_tp"), True)
    assert Common().request().machinery == Machinery()


@pytest.mark.parametrize("text", ["", "0", "0.0", "-1", "1e3", "inf", "nan", "1,5", "1" * 10, "."])
@pytest.mark.parametrize("option", ["duration", "interval"])
def test_bad_seconds(option: str, text: str) -> None:
    refused(common(option, text).request, option, f"'{text}'")


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "many", "9" * 20])
def test_bad_counts(text: str) -> None:
    refused(Common(count=text).request, "count", f"'{text}'")


def test_limits() -> None:
    limits = Common(duration="1.5", interval=".25", count="10").request().limits
    assert (limits.duration, limits.interval, limits.count) == (1.5, 0.25, 10)
    limits = Common().request().limits
    assert (limits.duration, limits.interval, limits.count) == (None, None, None)


@given(st.text(max_size=6))
def test_any_text_is_a_decimal_or_refused(text: str) -> None:
    try:
        assert 0 <= decimal("MIN_MS", text, "a number") < 1e9
    except UsageError as e:
        assert str(e) == f"MIN_MS: '{text}' is not a number"


def test_decimals() -> None:
    assert [decimal("X", text, "a number") for text in ("0", "5", "0.5", ".5", "5.")] == [
        0, 5, 0.5, 0.5, 5,
    ]  # fmt: skip
    assert seconds("duration", ".5") == 0.5


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What run() is called with, instead of running."""
    found: list[Any] = []
    monkeypatch.setattr(options, "run", lambda *arguments: found.extend(arguments))
    return found


def command(name: str) -> Command:
    return Command(importlib.import_module(f"tcpcore.tools.{name}"))


def call(name: str, *arguments: str) -> None:
    of = command(name)
    by_typer(of, *arguments)


def by_typer(of: Command, *arguments: str) -> None:
    app = typer.Typer()
    app.command()(explain._function(of))
    app(arguments, standalone_mode=False)


def lines(of: Command) -> st.SearchStrategy[list[str]]:
    """Command lines of words that mean something to a tool, in any order."""
    known = [name for p in of.parameters.values() for name in options._names(p.declared)]
    value = st.sampled_from(["", "1", "x=y", "a b", "-1", "-"])
    word = st.sampled_from([*known, "--help", "--", "--no-such", "-vv", "-p1"]) | value
    joined = st.builds("{}={}".format, st.sampled_from(known), value)
    return st.lists(word | joined, max_size=6)


@pytest.mark.parametrize("name", TOOLS)
@given(data=st.data())
def test_what_is_read_without_typer_is_what_typer_reads(name: str, data: st.DataObject) -> None:
    of = command(name)
    words = data.draw(lines(of))
    found = of.read(words)
    if found is not None:
        read: dict[str, Any] = {}
        of.run = lambda **arguments: read.update(arguments)  # type: ignore[method-assign]
        by_typer(of, *words)
        assert {p.name: p.default for p in of.parameters.values()} | found == read


def test_most_command_lines_are_read_without_typer() -> None:
    words = ["10", "--failed", "-D", "80", "--rport=443", "-v", "-o", "a file", "--json", "-v"]
    assert command("connlat").read(words) == {
        "min_ms": "10",
        "failed": True,
        "rport": ["80", "443"],
        "output": Path("a file"),
        "json": True,
        "verbose": 2,
    }


@pytest.mark.parametrize(
    "words", [["--help"], ["-h"], ["--no-such"], ["-d"], ["--json=1"], ["x", "y"], ["-vv"], ["--"]]
)
def test_typer_speaks_where_something_is_wrong_or_unusual(words: list[str]) -> None:
    assert command("connlat").read(words) is None


@pytest.mark.parametrize(
    ("arguments", "level"),
    [([], 0), (["-v"], 1), (["--verbose"], 1), (["-vv"], 2), (["-v", "--verbose"], 2)],
)
def test_verbose_is_counted(asked: list[Any], arguments: list[str], level: int) -> None:
    call("states", *arguments)
    assert asked[2].verbose == level


def test_a_command_line_becomes_a_request(asked: list[Any]) -> None:
    call("connlat", "--failed", "-D", "80,443", "-p", "1", "--json", "-w", "-d", "2.5", "-n", "3")
    tool, request, output = asked
    assert tool.rodata == {"targ_min_us": 0, "target_failed": True}
    assert (request.filters.rport, request.filters.pid) == ([80, 443], [1])
    assert request.limits == Limits(duration=2.5, count=3)
    assert output == Output(style="json", wide=True)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("connlat", ["--rport", "x"], "--rport: 'x' is not a port"),
        ("connlat", ["-D", "x"], "--rport: 'x' is not a port"),
        ("connlat", ["--map-size", "x"], "--map-size: 'x' is not a number of sockets"),
        ("connlat", ["x"], "MIN_MS: 'x' is not a number of milliseconds"),
        ("connect", ["-P", "x"], "--rport: 'x' is not a port"),
        ("connect", ["-n", "x"], "-n: 'x' is not a number of events"),
        ("connect", ["-c", "--dns"], "--dns: there are no names"),
        ("states", ["--count", "x"], "--count: 'x' is not a number of events"),
    ],
)
def test_errors_name_the_option_as_it_is_on_the_command_line(
    asked: list[Any], name: str, arguments: list[str], says: str
) -> None:
    with pytest.raises(UsageError) as e:
        call(name, *arguments)
    assert str(e.value).startswith(says)
    assert asked == []


def test_an_option_of_the_tools_own_takes_the_name(asked: list[Any]) -> None:
    call("connect", "--count", "-n", "5")
    tool, request, _ = asked
    assert (tool.rodata["count_flows"], request.limits.count) == (True, 5)


@pytest.mark.parametrize("name", TOOLS)
def test_one_format_at_a_time(asked: list[Any], name: str) -> None:
    with pytest.raises(UsageError, match="--json and --csv"):
        call(name, "--json", "--csv")


def test_the_command_line_has_all_options_of_a_request() -> None:
    assert set(Common._fields) >= set(OPTIONS)
