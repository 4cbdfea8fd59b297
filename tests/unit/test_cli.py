"""The command line in a process of its own, without any privilege, whoever runs the tests."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
from pathlib import Path

import pytest

import tcpcore
from tcpcore import cli, explain
from tcpcore.explain import _wanted
from tests.unit.samples import TOOLS, child, python, tcpcore_command

# Root gives up its capabilities; the files stay readable, wherever they are.
UNPRIVILEGED = """
import ctypes, sys
from tcpcore.cli import main
from tcpcore.loader import ffi
header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
assert ffi.libc().capset(header, (ctypes.c_uint32 * 6)()) == 0
sys.argv = {arguments!r}
main()
"""


def unprivileged(*arguments: str) -> subprocess.CompletedProcess[str]:
    return python(UNPRIVILEGED.format(arguments=["/opt/tcpcore/bin/tcpcore", *arguments]))


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The error message: one line, and nothing else anywhere."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("tcpcore: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr.rstrip("\n").isprintable()
    return done.stderr


@pytest.mark.parametrize("name", TOOLS)
def test_help_of_every_tool(name: str) -> None:
    done = tcpcore_command(name, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for option in (
        "--pid", "--uid", "--comm", "--ipv4", "--ipv6", "--lport", "--rport", "--laddr", "--raddr",
        "--cgroup", "--netns", "--container", "--pidns", "--timestamp", "--time", "--wide",
        "--json", "--csv", "--output", "--duration", "--count", "--interval", "--attach", "--btf",
        "--buffer", "--map-size", "--compat", "--fail-on-loss", "--verbose",
        "-p", "-u", "-4", "-6", "-L", "-D", "-t", "-T", "-w", "-o", "-d", "-n", "-i", "-v",
    ):  # fmt: skip
        assert re.search(rf"(^|[\s,|]){re.escape(option)}([\s,|]|$)", done.stdout), option


def help_of(*arguments: str, columns: int = 80) -> list[str]:
    """The lines of a help text, whatever this test runs in."""
    plain = {"COLUMNS": str(columns), "GITHUB_ACTIONS": "", "FORCE_COLOR": "", "PY_COLORS": ""}
    done = child("-m", "tcpcore", *arguments, "--help", PYTHONUTF8="1", **plain)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    return done.stdout.splitlines()


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_every_tool(option: str) -> None:
    done = tcpcore_command(option)
    assert (done.returncode, done.stderr) == (0, "")
    for name in TOOLS:
        assert re.search(rf"^\W*{name} ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("columns", [80, 120])
def test_help_has_whole_sentences(columns: int) -> None:
    lines = help_of(columns=columns)
    text = " ".join(" ".join(lines).replace("│", " ").split())
    for name in TOOLS:
        whole = inspect.getdoc(importlib.import_module(f"tcpcore.tools.{name}")) or ""
        first = " ".join(whole.split("\n\n")[0].split())
        assert first.endswith(".") and f"{name} {first}" in text
    assert "..." not in text.replace("[ARGS]...", "") and max(map(len, lines)) <= columns


@pytest.mark.parametrize("name", TOOLS)
def test_help_of_a_tool_is_in_groups_and_ends_with_examples(name: str) -> None:
    lines = help_of(name)
    groups = [line.strip("╭─╮ ") for line in lines if line.startswith("╭")]
    assert [g for g in groups if g not in ("Arguments", "Options")] == [
        "Who", "Where", "Output", "When", "Machinery",
    ]  # fmt: skip
    start = lines.index(next(line for line in lines if line.strip() == "Examples:"))
    examples = [line.strip() for line in lines[start + 1 :] if line.strip()]
    assert len(examples) == 3 and all(line.startswith(f"tcpcore {name}") for line in examples)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", TOOLS)
def test_the_examples_make_sense(name: str) -> None:
    """They fail for want of privilege, not of meaning."""
    module = importlib.import_module(f"tcpcore.tools.{name}")
    for arguments, _ in module.EXAMPLES:
        assert arguments.split()[0] == name
        one_line(unprivileged(*arguments.split()), 4)


@pytest.mark.parametrize(("words", "offers"), [("co", "connect"), ("connlat --summ", "--summary")])
def test_completion(words: str, offers: str) -> None:
    environment = {
        "_TCPCORE_COMPLETE": "complete_bash",
        "COMP_WORDS": f"tcpcore {words}",
        "COMP_CWORD": str(len(words.split())),
    }
    done = child("-m", "tcpcore", **environment)
    assert (done.returncode, done.stderr) == (0, "") and offers in done.stdout.split()


@pytest.mark.parametrize(("given", "code"), [(1, 1), (None, 0)])
def test_the_exit_code_of_what_typer_does_itself(
    monkeypatch: pytest.MonkeyPatch, given: int | None, code: int
) -> None:
    """Completion for a shell that it does not know is a failure."""
    monkeypatch.setattr(explain, "application", lambda wanted: lambda *words, **options: given)
    assert cli._run(["--install-completion"]) == code


def test_no_arguments_print_help() -> None:
    done = tcpcore_command()
    assert "Traceback" not in done.stderr
    assert not (done.stdout + done.stderr).startswith("tcpcore: ")
    for name in TOOLS:
        assert name in done.stdout + done.stderr


def test_version() -> None:
    done = tcpcore_command("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"tcpcore {tcpcore.__version__}\n"
    assert re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+\S*", tcpcore.__version__)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no-such-tool"], "no-such-tool"),
        (["--no-such-option"], "--no-such-option"),
        (["connlat", "--no-such-option"], "--no-such-option"),
        (["connlat", "--pid"], "--pid"),
        (["connlat", "--pid", "x"], "--pid: 'x'"),
        (["connlat", "-p", "0"], "--pid: '0'"),
        (["connlat", "--pid", "1", "--pid", "\u0661"], "--pid"),
        (["connlat", "--uid", "-1"], "--uid: '-1'"),
        (["connlat", "--lport", "80,99999"], "--lport: '99999'"),
        (["connlat", "-D", "http"], "--rport: 'http'"),
        (["connlat", "--raddr", "10.0.0.0/99"], "--raddr: '10.0.0.0/99'"),
        (["connlat", "--netns", "nowhere"], "--netns: 'nowhere'"),
        (["connlat", "--cgroup", "nowhere"], "--cgroup"),
        (["connlat", "--container", "nowhere"], "--container"),
        (["connlat", "--pidns", "1"], "--pidns"),
        (["connlat", "--duration", "soon"], "--duration: 'soon'"),
        (["connlat", "--count", "0"], "--count: '0'"),
        (["connlat", "--interval", "-3"], "--interval: '-3'"),
        (["connlat", "--buffer", "huge"], "--buffer: 'huge'"),
        (["connlat", "--map-size", "0"], "--map-size: '0'"),
        (["connlat", "--btf", "/nowhere"], "--btf: /nowhere"),
        (["connlat", "--json", "--csv"], "--json and --csv"),
        (["connlat", "soon"], "MIN_MS: 'soon'"),
        (["connlat", "1", "2"], "2"),
        (["states", "1"], "1"),
        (["states", "--pid", "1\n2"], "--pid"),
        (["states", "--comm", "\x1b[31mred-and-too-long"], "--comm"),
        (["states", "--json=1"], "--json"),
    ],
)
def test_bad_usage_is_one_line(arguments: list[str], says: str) -> None:
    assert says in one_line(unprivileged(*arguments), 2)


@pytest.mark.parametrize("name", TOOLS)
def test_no_privilege_names_the_capabilities_and_what_works(name: str) -> None:
    said = one_line(unprivileged(name), 4)
    assert "CAP_BPF" in said
    assert "CAP_PERFMON" in said
    assert f"sudo /opt/tcpcore/bin/tcpcore {name}" in said


def test_no_privilege_leaves_an_existing_output_file_alone(tmp_path: Path) -> None:
    before = tmp_path / "events.json"
    before.write_text("yesterday's events\n")
    one_line(unprivileged("states", "--json", "--output", str(before)), 4)
    assert before.read_text() == "yesterday's events\n"


def test_only_the_tool_that_is_called_is_imported() -> None:
    assert _wanted(["connlat", "--json"]) == ["connlat"]
    assert _wanted(["--help"]) == []
    assert _wanted([]) == []
    assert _wanted(["no-such-tool"]) == []


SHOW_MODULES = "\nimport sys; print(*sys.modules, file=sys.stderr)"


def test_import_tcpcore_alone_loads_nothing() -> None:
    loaded = python("import tcpcore" + SHOW_MODULES).stderr.split()
    assert not [name for name in loaded if name.startswith("tcpcore.")]
    assert not {"rich", "asyncio", "typer", "ctypes", "elftools", "typing"} & set(loaded)


def loaded(*arguments: str, code: int) -> set[str]:
    """What a command has imported when it ends with this exit code."""
    done = python(
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        f"sys.argv = ['tcpcore', *{arguments!r}]\n"
        "from tcpcore.cli import main\n"
        "main()\n"
    )
    assert done.returncode == code, done.stderr
    return set(done.stderr.split())


def test_starting_a_tool_loads_nothing_heavy() -> None:
    found = loaded("connlat", "--map-size", "0", code=2)
    assert "tcpcore.tools.connlat" in found
    heavy = {"typer", "rich", "asyncio", "pydantic", "elftools", "json", "csv", "socket", "shutil"}
    own = {"tcpcore.tools.states", "tcpcore.request.containers", "tcpcore.model.histogram"}
    assert not (heavy | own) & found


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_what_is_about_no_tool_loads_none(option: str) -> None:
    found = loaded(option, code=0)
    assert not [name for name in found if name.startswith("tcpcore.tools.")]
    assert not {"ctypes", "tcpcore.loader", "tcpcore.session"} & found
    assert ("typer" in found) == (option == "--help")


def test_an_unknown_attribute_of_the_package() -> None:
    with pytest.raises(AttributeError):
        tcpcore.no_such_name  # noqa: B018


def test_a_tools_own_name_for_an_option_wins() -> None:
    """connect counts with --count; to stop after so many events is -n there."""
    text = "\n".join(help_of("connect"))
    assert re.search(r"--count +-c +Count per source", text)
    assert re.search(r"│ +-n +N +Stop after N events", text)
    text = "\n".join(help_of("accept"))
    assert re.search(r"│ --count +-n +N +Stop after N events", text)


def test_names_and_counts_do_not_go_together() -> None:
    assert "tcpcore: --dns: there are no names with --count" in one_line(
        unprivileged("connect", "-c", "--dns"), 2
    )


def test_what_is_counted_in_the_kernel_does_not_end_at_a_number() -> None:
    assert "tcpcore: -n: this is counted in the kernel" in one_line(
        unprivileged("connect", "-cn2"), 2
    )


def test_an_internal_error_is_one_line_unless_somebody_debugs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(_: list[str]) -> int:
        raise ValueError("odd")

    monkeypatch.setattr(cli, "_call", fail)
    monkeypatch.delenv("TCPCORE_DEBUG", raising=False)
    assert cli._run([]) == 1
    assert "internal error: ValueError: odd (" in capfd.readouterr().err
    monkeypatch.setenv("TCPCORE_DEBUG", "1")
    with pytest.raises(ValueError, match="odd"):
        cli._run([])
