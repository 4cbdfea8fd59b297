"""The object reader; test_contract.py has it read every object there is."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import pytest
from elftools.common.exceptions import ELFError

from tcpcore.loader import ObjectFile
from tcpcore.loader.elf import Struct, _Btf, store

INT, PTR, ARRAY, STRUCT, TYPEDEF, CONST, FUNC, VAR, FLOAT = 1, 2, 3, 4, 8, 10, 12, 14, 16
FUNC_PROTO, DATASEC, ENUM64 = 13, 15, 19

Built = tuple[str, ObjectFile]


class BtfWriter:
    """Documentation/bpf/btf.rst, as far as these tests go."""

    def __init__(self) -> None:
        self.strings, self.types, self.count = b"\0", b"", 0

    def string(self, text: str) -> int:
        offset = len(self.strings)
        self.strings += text.encode() + b"\0"
        return offset

    def add(self, kind: int, name: str, size: int, *tail: int, vlen: int = 0) -> int:
        info = kind << 24 | vlen
        self.types += struct.pack("<3I", self.string(name), info, size)
        self.types += struct.pack(f"<{len(tail)}I", *tail)
        self.count += 1
        return self.count

    def data(self) -> bytes:
        header = struct.pack(
            "<HBB5I", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings)
        )
        return header + self.types + self.strings


def test_a_struct_among_all_kinds_of_types() -> None:
    btf = BtfWriter()
    u32 = btf.add(INT, "unsigned int", 4, 32)
    alias = btf.add(TYPEDEF, "__u32", u32)
    btf.add(FUNC_PROTO, "", u32, 0, u32, vlen=1)
    btf.add(FUNC, "f", 3)
    btf.add(VAR, "v", u32, 1)
    btf.add(DATASEC, ".bss", 4, 5, 0, 4, vlen=1)
    btf.add(ENUM64, "e", 8, 0, 1, 0, 0, 2, 0, vlen=2)
    btf.add(FLOAT, "double", 8)
    const = btf.add(CONST, "", alias)
    pointer = btf.add(PTR, "", const)
    array = btf.add(ARRAY, "", 0, const, u32, 5)
    members = [("one", const, 0), ("many", array, 32), ("where", pointer, 192)]
    tail = [x for name, kind, bits in members for x in (btf.string(name), kind, bits)]
    btf.add(STRUCT, "wanted", 32, *tail, vlen=3)
    found = _Btf(btf.data()).struct("wanted")
    assert found == Struct(32, {"one": (0, 4), "many": (4, 20), "where": (24, 8)})


def test_a_struct_that_is_not_there(built: Built) -> None:
    _, file = built
    with pytest.raises(KeyError, match="no_such_struct"):
        file.struct("no_such_struct")


def test_programs_are_sections_with_functions(built: Built) -> None:
    _, file = built
    functions = [name for names in file.programs.values() for name in names]
    assert all(file.programs) and all(map(str.isidentifier, functions))
    assert ".text" not in file.programs
    assert len(set(functions)) == len(functions) > 0


def test_variables_lie_in_their_section_without_overlap(built: Built) -> None:
    _, file = built
    variables = sorted((s.offset, s.size) for s in file.variables(".rodata").values())
    assert len(variables) > 10
    for (offset, size), (following, _) in pairwise(variables):
        assert offset + size <= following


def test_a_section_that_is_not_there_has_no_variables(built: Built) -> None:
    _, file = built
    assert file.variables(".no_such_section") == {}


def test_a_file_that_is_no_object(tmp_path: Path) -> None:
    path = tmp_path / "text.bpf.o"
    path.write_text("not an object")
    with pytest.raises(ELFError):
        ObjectFile(path)


def test_the_summary_of_the_build_is_used_until_the_object_changes(
    built: Built, tmp_path: Path
) -> None:
    _, file = built
    copy = tmp_path / file.path.name
    copy.write_bytes(file.path.read_bytes())
    store(copy)
    summary = copy.with_suffix(".txt")
    assert ObjectFile(copy).variables(".rodata") == file.variables(".rodata")
    summary.write_text(summary.read_text().replace("target_family", "target_falsified"))
    assert "target_falsified" in ObjectFile(copy).variables(".rodata")
    copy.write_bytes(file.path.read_bytes() + b"\0")
    assert ObjectFile(copy).variables(".rodata") == file.variables(".rodata")
