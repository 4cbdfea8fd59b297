"""What Python and C must agree on, for every tool and architecture; and who may import whom."""

from __future__ import annotations

import ast
import re
import struct
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from ipaddress import IPv6Network
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from tcpcore.loader import ObjectFile, Slot, Way, aggregate
from tcpcore.loader.elf import Struct
from tcpcore.loader.object import encode
from tcpcore.model import fields
from tcpcore.model.counted import Counted, Measured
from tcpcore.model.event import ConnectionEvent
from tcpcore.model.tool import Histograms, Table, Tool
from tcpcore.request.filters import Filters
from tcpcore.request.values import MAX_TARGETS
from tests.unit.samples import PACKAGE, ROOT, TOOLS, all_lines, tool, with_each_flag

Built = tuple[str, ObjectFile]

# As many ranges as prefixes can make: IPv4 addresses apart, and two from ::/0.
NETWORKS = [IPv6Network(f"::ffff:0:{x:x}") for x in range(2, 2 * MAX_TARGETS, 2)]
NETWORKS.append(IPv6Network("::/0"))
EVERYTHING = Filters(
    pid=range(1, MAX_TARGETS + 1),
    uid=range(MAX_TARGETS),
    comm=[b"curl"] * MAX_TARGETS,
    family=2,
    lport=range(1, 65536),
    rport=range(1, 65536),
    laddr=NETWORKS,
    raddr=NETWORKS,
    netns=range(MAX_TARGETS),
    cgroup=[Path("/")] * MAX_TARGETS,
    cgroupmap=Path("/"),
    mntnsmap=Path("/"),
)


def test_there_are_tools() -> None:
    assert {"accept", "connect", "connlat", "life", "states", "tracer"} <= set(TOOLS)


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_is_a_module_a_source_and_a_header(name: str) -> None:
    assert tool(name).name == name
    for suffix in (".bpf.c", ".h"):
        assert (ROOT / "bpf" / (name + suffix)).is_file()


def test_no_source_without_a_tool() -> None:
    sources = {path.name.removesuffix(".bpf.c") for path in ROOT.glob("bpf/*.bpf.c")}
    assert sources == set(TOOLS)


def test_the_event_mirrors_the_c_struct(built: Built) -> None:
    name, file = built
    for event, there in mirrors(tool(name), file):
        assert mirror(event) == [member for member in there.members.items() if member[0] != "pad"]
        assert fields.layout(event).size == there.size


def mirrors(of: Tool, file: ObjectFile) -> Iterator[tuple[type[Any], Struct]]:
    """What mirrors a C struct, and the struct."""
    if of.event is not ConnectionEvent:
        yield of.event, file.struct(of.struct)
    for source in with_options(of.name).counted:
        if source.key:
            yield source.key, file.struct(source.struct)


def mirror(event: type[Any]) -> list[tuple[str, tuple[int, int]]]:
    """Name, offset and size of every field; only `pad` is C's own."""
    end, found = 0, []
    for field, kind in fields.kinds(event).items():
        if kind.code:  # else a Derive adds it
            size = struct.calcsize("=" + kind.code)
            offset = end if kind.code.endswith("s") else -(-end // size) * size
            found.append((field, (offset, size)))
            end = offset + size
    return found


def test_no_implicit_padding(built: Built) -> None:
    """What the compiler puts between fields is not zeroed: kernel memory would leak, and keys that
    are the same would differ."""
    name, file = built
    for _, there in mirrors(tool(name), file):
        end = 0
        for offset, size in there.members.values():
            assert offset == end
            end += size
        assert end == there.size


def test_counters_mirror_the_c_struct(built: Built) -> None:
    name, file = built
    kinds = with_options(name).kinds
    tables = [
        (k, k.counts) for k in kinds if isinstance(k, Table) and isinstance(k.counts, Counted)
    ]
    for table, source in tables:
        rows = fields.kinds(table.lines.row).items()
        counters = [field for field, kind in rows if kind.code][len(fields.kinds(source.key)) :]
        if source.counters:
            counters = list(fields.kinds(source.counters))
        assert issubclass(table.lines.row, source.key)
        assert file.struct(f"{source.struct}_count").members == {
            name: (8 * i, 8) for i, name in enumerate(counters)
        }
    for kind in kinds:
        if isinstance(kind, Histograms) and isinstance(kind.measures, Measured):
            assert file.struct("histogram").size == 8 * (64 + 1)


def ways(slots: Iterable[Slot]) -> list[Way]:
    return [way for slot in slots for way in slot.ways]


def sections(slots: Iterable[Slot]) -> list[str]:
    """In the order of the attach."""
    return [section for way in ways(slots) for section in (*way.sections, *way.optional)]


def test_every_program_is_in_a_slot_and_the_other_way_round(built: Built) -> None:
    name, file = built
    slots = (*tool(name).slots, *EVERYTHING.slots())
    assert {*sections(slots), *with_options(name).called} == set(file.programs)
    # In its own slot a program may be in several ways, which differ in what the kernel passes it.
    named = [section for slot in slots for section in set(sections([slot]))]
    assert len(named) == len(set(named))


@pytest.mark.parametrize("name", TOOLS)
def test_ways_with_the_same_programs_tell_them_apart(name: str) -> None:
    for slot in tool(name).slots:
        told = [(way.sections, tuple(sorted(way.rodata.items()))) for way in slot.ways]
        assert len(told) == len(set(told))


@pytest.mark.parametrize("name", TOOLS)
def test_slots_have_names_of_their_own(name: str) -> None:
    names = [slot.name for slot in (*EVERYTHING.slots(), *tool(name).slots)]
    assert len(names) == len(set(names))


# What ends an entry, and what begins one.
ENDS = {"fentry": "fexit", "kprobe": "kretprobe", "sys_enter": "sys_exit"}


@pytest.mark.parametrize("name", TOOLS)
def test_what_ends_an_entry_is_attached_first(name: str) -> None:
    """Else an entry whose end nobody saw would stay, and the next socket there inherit it."""
    order = sections(tool(name).slots)
    hooks = list(dict.fromkeys(section.partition("/")[2] for section in order))
    first = [hook for hook in ("tcp_destroy_sock", "inet_sock_set_state") if hook in hooks]
    assert hooks[: len(first)] == first
    for begin, end in ENDS.items():
        for section in order:
            ending = section.replace(begin, end)
            if begin in section and ending in order:
                assert order.index(ending) < order.index(section)


@pytest.mark.parametrize("name", TOOLS)
def test_parameter_types_are_of_hooks_in_the_way(name: str) -> None:
    for way in ways(tool(name).slots):
        assert way.types.keys() <= {s.partition("/")[2] for s in (*way.sections, *way.optional)}


@pytest.mark.parametrize("name", TOOLS)
def test_a_trampolines_parameters_are_compared(name: str) -> None:
    for way in ways(tool(name).slots):
        for section in (*way.sections, *way.optional):
            kind, _, function = section.partition("/")
            assert kind not in ("fentry", "fexit") or function in way.types


def test_what_python_writes_is_rodata_of_the_right_width(built: Built) -> None:
    name, file = built
    known = file.variables(".rodata")
    of_ways = {k: v for way in ways(tool(name).slots) for k, v in way.rodata.items()}
    own = with_options(name).rodata
    for variable, value in (EVERYTHING.rodata() | own | of_ways).items():
        data = encode(variable, value, known[variable].size)
        assert len(data) == known[variable].size
        if isinstance(value, bytes):  # every filter is full: so is its array
            assert len(value) == known[variable].size


def test_every_rodata_filter_can_be_written(built: Built) -> None:
    name, file = built
    own = with_options(name).rodata
    there = {x for x in file.variables(".rodata") if x.startswith("targ")}
    assert there == EVERYTHING.rodata().keys() | {x for x in own if x.startswith("targ")}


def with_options(name: str) -> Tool:
    """The tool with all that its flags bring, one by one."""
    whole, *others = with_each_flag(name)
    for one in others:
        kinds = (*whole.kinds, *(kind for kind in one.kinds if kind not in whole.kinds))
        rodata, seed = {**whole.rodata, **one.rodata}, whole.seed or one.seed
        whole = whole._replace(kinds=kinds, rodata=rodata, seed=seed)
    return whole


def test_the_maps_that_python_names_exist(built: Built) -> None:
    name, file = built
    swept = {sweep.map for sweep in with_options(name).sweeps}
    counting = {each.aggregate for each in with_options(name).counted}
    counting |= {one for each in counting for one in aggregate.maps(each)}
    named = {*tool(name).sockets, *swept, *counting, *EVERYTHING.pins(), "events"}
    assert named <= set(file.variables(".maps"))


def test_the_counters_of_sweeps_exist(built: Built) -> None:
    name, file = built
    for sweep in with_options(name).sweeps:
        assert sweep.changed is None or file.variables(".bss")[sweep.changed].size == 8


def test_the_loss_counters_exist(built: Built) -> None:
    _, file = built
    counters = file.variables(".bss")
    names = ("lost_ring", "lost_map", "lost_output", "made_up_for")
    assert [counters[x].size for x in names] == [8] * len(names)


def test_the_kernel_takes_the_licence_for_gpl(built: Built) -> None:
    """bpf_perf_event_output() is for GPL programs only; linux/license.h."""
    _, file = built
    with file.path.open("rb") as f:
        section = ELFFile(f).get_section_by_name("license")
        assert section is not None
        licence = section.data()
    assert licence in (b"GPL\0", b"GPL v2\0", b"Dual BSD/GPL\0", b"Dual MIT/GPL\0")


def test_btf_is_there_and_dwarf_is_not(built: Built) -> None:
    _, file = built
    with file.path.open("rb") as f:
        names = [section.name for section in ELFFile(f).iter_sections()]
    assert ".BTF" in names
    assert ".BTF.ext" in names
    assert not [name for name in names if ".debug" in name]


@pytest.mark.parametrize("name", TOOLS)
def test_columns_are_of_the_row(name: str) -> None:
    for lines in all_lines(name):
        columns = {column.field for column in (*lines.columns, *lines.wide)}
        assert columns <= set(fields.kinds(lines.row))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imported(node: ast.AST, modules: set[str]) -> set[str]:
    """The modules of tcpcore that a syntax tree imports, at the top or inside functions."""
    found: set[str] = set()
    if isinstance(node, ast.Import):
        found = {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        inner = {f"{node.module}.{alias.name}" for alias in node.names}
        found = (inner & modules) or {str(node.module)}
    for below in ast.iter_child_nodes(node):
        if not is_type_checking(below):
            found |= imported(below, modules)
    return {name for name in found if name.partition(".")[0] == "tcpcore"}


def import_graph() -> dict[str, set[str]]:
    trees = {module_name(path): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    return {name: imported(tree, set(trees)) for name, tree in trees.items()}


IMPORTS = import_graph()
# Layer by layer, the highest first: nobody imports from a layer above its own.
LAYERS = (
    r"tcpcore\.__main__",
    r"tcpcore\.cli",
    r"tcpcore\.explain",
    r"tcpcore\.api",
    r"tcpcore\.options",
    r"tcpcore\.tools\..*",
    r"tcpcore\.session(\..*)?",
    r"tcpcore\.sinks(\..*)?",
    r"tcpcore\.enrich(\..*)?",
    r"tcpcore\.request(\..*)?",
    r"tcpcore\.model(\..*)?",
    r"tcpcore\.loader(\..*)?",
    r"tcpcore\.errors",
)


def layer(module: str) -> int | None:
    return next((i for i, layer in enumerate(LAYERS) if re.fullmatch(layer, module)), None)


def test_imports_run_in_no_circle() -> None:
    # `import tcpcore` imports nothing; its lazy names lead to the top.
    graph = {name: targets - {"tcpcore"} for name, targets in IMPORTS.items() if name != "tcpcore"}
    TopologicalSorter(graph).prepare()


def test_imports_point_downwards() -> None:
    upwards = [
        f"{name} imports {target}"
        for name, targets in IMPORTS.items()
        for target in targets
        if name != "tcpcore"
        and (layer(name) or 0) > (len(LAYERS) if (to := layer(target)) is None else to)
    ]
    assert upwards == []


def test_the_loader_stands_alone() -> None:
    allowed = re.compile(r"tcpcore\.(loader(\..*)?|errors|value)")
    for name, targets in IMPORTS.items():
        if name.startswith("tcpcore.loader"):
            assert [t for t in targets if not allowed.fullmatch(t)] == [], name
    assert IMPORTS["tcpcore.errors"] == IMPORTS["tcpcore.value"] == set()


def test_no_tool_imports_another() -> None:
    for name in TOOLS:
        others = {f"tcpcore.tools.{other}" for other in TOOLS} - {f"tcpcore.tools.{name}"}
        assert not IMPORTS[f"tcpcore.tools.{name}"] & others


def test_the_loader_has_no_words_of_the_command_line() -> None:
    """Nor of TCP: a tracepoint's or a function's name comes from the tool."""
    for path in PACKAGE.glob("loader/*.py"):
        texts = [
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        found = [text for text in texts if re.search(r"--[a-z]|\btcp_|\binet_", text)]
        assert found == [], path
