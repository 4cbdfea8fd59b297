"""What the loader gets from a kernel that hides things, or grants little."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tcpcore import api, tools
from tcpcore.errors import LibbpfError
from tcpcore.loader import Attached, aggregate, kernel
from tcpcore.loader.ffi import libbpf
from tests.live import harness
from tests.unit.samples import tool as tool_named

TRACING, DEBUG = "/sys/kernel/tracing", "/sys/kernel/debug"
TRACEPOINT = '"sched", "sched_switch"'  # every kernel with tracepoints has it

# Prints the id, and whether descriptors and mounts are those of before.
ASK = f"""
import os
from pathlib import Path
from tcpcore.loader.tracefs import tracepoint_id

def traces():
    return len(os.listdir("/proc/self/fd")), Path("/proc/self/mountinfo").read_text()

before = traces()
print(tracepoint_id({TRACEPOINT}), traces() == before)
"""


def ask(*mounts: str, code: str = ASK) -> subprocess.CompletedProcess[str]:
    """Python in a mount namespace of its own, where only these mounts are at both places."""
    return apart(*mounts, 'exec "$@"', arguments=[sys.executable, "-c", code])


def apart(*commands: str, arguments: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    hidden = [f"mount -t tmpfs none {folder}" for folder in (TRACING, DEBUG)]
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", " && ".join([*hidden, *commands]), "sh", *arguments],
        capture_output=True,
        text=True,
        timeout=4 * harness.PATIENCE,  # six tools, one after another, in an emulated machine
    )


@pytest.fixture(scope="module")
def number() -> int:
    """The id as its file says, with nothing of ours in between."""
    mount = f"mount -t tracefs none {TRACING}"
    return int(apart(mount, f"cat {TRACING}/events/sched/sched_switch/id").stdout)


@pytest.mark.parametrize(
    "mount",
    ["true", f"mount -t tracefs none {TRACING}", f"mount -t debugfs none {DEBUG}"],
    ids=["unmounted", "tracefs", "debugfs"],
)
def test_the_id_is_the_same_wherever_tracefs_is(number: int, mount: str) -> None:
    done = ask(mount)
    assert done.stderr == ""
    # debugfs mounts tracefs by itself once somebody looks.
    assert done.stdout.split()[0] == str(number)
    assert done.stdout.split()[1] == "True" or "debugfs" in mount


def test_a_tracepoint_that_is_not_there() -> None:
    done = ask(code=ASK.replace("sched_switch", "sched_frobnicate"))
    assert done.returncode != 0
    assert "this kernel has no such tracepoint" in done.stderr.splitlines()[-1]


def test_without_the_right_to_mount() -> None:
    """A root without CAP_SYS_ADMIN, as in a container, learns what to do."""
    done = apart(
        'exec setpriv --bounding-set=-sys_admin "$@"', arguments=[sys.executable, "-c", ASK]
    )
    assert done.returncode != 0
    assert "mount -t tracefs tracefs /sys/kernel/tracing" in done.stderr.splitlines()[-1]


# Before Linux 5.11 it is about maps, too. A container's root may not, where it need not.
UNLIMITED = "{ ulimit -l unlimited 2>/dev/null || true; }"


def with_only(capabilities: str, user: int, code: str, *before: str) -> list[str]:
    """Python of this user with these capabilities alone; what it printed. before: root's part."""
    sets = ",".join(["-all", *(f"+{one}" for one in capabilities.split())])
    drop = [
        *("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"),
        *(f"--{kind}={sets}" for kind in ("inh-caps", "bounding-set")),
        f"--ambient-caps={sets if user else '-all'}",
    ]
    done = apart(*before, 'exec "$@"', arguments=[*drop, sys.executable, "-c", code])
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


# Each tool's exit code; and what came of it.
TRY_ALL = """
import tcpcore
from tcpcore.tools import names

for name in names():
    try:
        with tcpcore.trace(name, map_size=64) as events:
            print(name, 0, events.ways)
    except tcpcore.TcpcoreError as e:
        print(name, e.exit_code, e)
"""


def test_with_two_capabilities_each_tool_works_or_says_what_it_lacks() -> None:
    """tracefs may be closed to us: here it is another user's, and root is without CAP_DAC_*."""
    closed = f"mount -t tracefs -o uid=65534,mode=700 none {TRACING}"
    told = with_only("bpf perfmon", 0, TRY_ALL, closed, UNLIMITED)
    assert [line.split()[0] for line in told] == tools.names()
    for line in told:
        name, code, *_ = line.split()
        if "perf_event_paranoid" in line:  # Debian's: no ring for anybody but root
            assert code == "4"
        elif code != "0":
            assert code == "4", line
            assert "CAP_DAC_READ_SEARCH" in line
            # The others have a way without it everywhere.
            assert name in ("accept", "listen", "tracer")


# The default, and then the same size on demand.
RINGS = """
import os, socket, tcpcore
from tcpcore.request import machinery

machinery.default_buffer = lambda: 16 << 20
try:
    with tcpcore.trace("connlat", map_size=64, pid=os.getpid(), count=1) as events:
        print(events._session.program.rings["events"].size)
        socket.socket().connect_ex(("127.0.0.1", 1))
        print(next(iter(events)).rport)
    with tcpcore.trace("connlat", map_size=64, buffer="16M"):
        pass
except tcpcore.TcpcoreError as e:
    print(e.exit_code, e)
"""


def test_rings_are_as_large_as_may_be_locked() -> None:
    """A user of its own, since what each may lock is counted per user."""
    capabilities = "bpf perfmon dac_read_search"  # the checkout may be root's alone
    *told, refusal = with_only(capabilities, 64999, RINGS, "ulimit -l 8192")
    if "perf_event_paranoid" in refusal:
        pytest.skip("this kernel opens perf events with CAP_SYS_ADMIN only")
    size, port = told
    assert 4096 <= int(size) < 16 << 20
    assert port == "1"
    assert refusal.startswith("4 no rings of 16384 KiB per CPU: ")
    assert "CAP_IPC_LOCK" in refusal


# Each tool with BTF from a file (the first argument): its ways, once a row has come. But for those
# that always run an iterator, to know older sockets.
FROM_FILE = """
import os, sys, tcpcore
from tests import facts
from tests.live import harness
from tests.unit.samples import tool
from tcpcore.tools import names

for name in names():
    if tool(name).seed or tool(name).iterators:
        continue
    with tcpcore.trace(name, btf=sys.argv[1], map_size=64, pid=os.getpid()) as events:
        harness.session(act=facts.of(name).provoke)
        rows = 0
        while not rows:
            rows += len(events.read())
        print(name, *events.ways.values())
try:
    with tcpcore.trace("life", btf=sys.argv[1], all=True):
        pass
except tcpcore.TcpcoreError as e:
    print(e.exit_code, e)
"""


def test_every_tool_works_with_btf_from_a_file(tmp_path: Path) -> None:
    """Only iterators need the kernel's own; and what was given is not recommended again."""
    copy = tmp_path / "vmlinux.btf"
    copy.write_bytes(Path("/sys/kernel/btf/vmlinux").read_bytes())
    # Where libbpf looks for it.
    folders = filter(os.path.isdir, ("/sys/kernel/btf", "/boot", "/lib/modules"))
    hidden = [f"mount -t tmpfs none {folder}" for folder in folders]
    python = [sys.executable, "-c", FROM_FILE, str(copy)]
    done = apart(*hidden, 'exec "$@"', arguments=python)
    assert done.stderr == ""
    *told, refusal = done.stdout.splitlines()
    made = {name: tool_named(name) for name in tools.names()}
    without = [name for name, each in made.items() if not (each.seed or each.iterators)]
    assert [line.split()[0] for line in told] == without
    ways = {way for line in told for way in line.split()[1:]}
    assert ways <= {"kprobe", "raw_tp", "tracepoint"}
    assert refusal.startswith("3 no way to attach on this kernel: ")
    assert "--btf FILE" not in refusal
    assert f"need BTF in the kernel itself, beside {copy}" in refusal


@pytest.mark.parametrize("tool", tools.names())
def test_a_start_reads_the_kernels_btf_once_at_most(
    tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes 10 ms, and libbpf does it for itself, too. Who asks for it: fentry programs, ways
    of tracepoints that have had other parameters, names of enums."""
    read: list[Any] = []
    load = libbpf().btf__load_vmlinux_btf

    def counted() -> Any:
        read.append(load())
        return read[-1]

    monkeypatch.setattr(libbpf(), "btf__load_vmlinux_btf", counted)
    with api.trace(tool, map_size=64):
        pass
    made = tool_named(tool)
    hooks = [way for slot in made.slots for way in slot.ways if way.name == "tp_btf" and way.types]
    asks = made.enums or hooks or not kernel._forbids_fentry()
    assert len(read) <= (1 if asks else 0)


@pytest.mark.parametrize("tool", tools.names())
def test_only_maps_in_use_have_room(tool: str) -> None:
    """The kernel sets up every entry when it makes a hash: a millisecond for 10,000."""
    with api.trace(tool) as events:
        program = events._session.program
        rooms = {name: room(program, name) for name in program._maps}
        turns = {each for name in aggregate.names(rooms) for each in aggregate.maps(name)}
    used = tool_named(tool)
    counted = {each for one in used.counted for each in aggregate.maps(one.aggregate)}
    large = {name for name, number in rooms.items() if number > 8192}
    assert large <= {*used.sockets, *counted, "calls"}  # that one has a thread each
    assert {name for name in turns if rooms[name]} == counted


def test_memory_is_taken_as_a_map_fills() -> None:
    """Where the kernel has an allocator for that. It would warn otherwise."""
    with api.trace("connect") as events:
        program = events._session.program
        aside = [
            not int(of_map(program.map(n).fd, "map_flags"), 16) & 1 for n in ("sockets", "calls")
        ]
    has_allocator = b"\0bpf_mem_alloc\0" in Path("/sys/kernel/btf/vmlinux").read_bytes()
    assert aside == [not has_allocator] * 2


def room(program: Attached, name: str) -> int:
    """None in a map that is not made, as the run does not count."""
    try:
        return int(of_map(program.map(name).fd, "max_entries"))
    except LibbpfError:
        return 0


def of_map(descriptor: int, name: str) -> str:
    """What the kernel says of a map, proc_pid_fdinfo(5)."""
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return found
