"""What an object file says of itself, read with pyelftools; needs no root and no kernel."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from tcpcore.value import Value


class Symbol(Value):
    """A global variable: where it lies in its section, in bytes."""

    offset: int
    size: int


class Struct(Value):
    """A C struct's layout in bytes: its size, and (offset, size) of each member by name."""

    size: int
    members: dict[str, tuple[int, int]]


class ObjectFile:
    """One .bpf.o. A summary that the build left beside it saves parsing it again: see store()."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._variables = _stored(path) or self._contents.variables

    @cached_property
    def _contents(self) -> _Contents:
        return _parse(self.path)

    @property
    def programs(self) -> dict[str, list[str]]:
        """Section name to the names of the C functions in it."""
        return self._contents.programs

    def variables(self, section: str) -> dict[str, Symbol]:
        """The global variables of .rodata or .bss by name."""
        return {name: Symbol(*where) for name, where in self._variables.get(section, {}).items()}

    def struct(self, name: str) -> Struct:
        """The layout of struct `name` from the object's BTF; KeyError if it is not there."""
        return _Btf(self._contents.btf).struct(name)


Variables = dict[str, dict[str, tuple[int, int]]]
"""Section to variable to (offset, size)."""


class _Contents(Value):
    variables: Variables
    programs: dict[str, list[str]]
    btf: bytes


def _parse(path: Path) -> _Contents:
    # Its import takes a fifth of a start: not where the build's summary is at hand.
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    with path.open("rb") as f:
        elf = ELFFile(f)
        sections = list(elf.iter_sections())
        names = {index: section.name for index, section in enumerate(sections)}
        contents = _Contents({}, {}, b"")
        for section in sections:
            if section.name == ".BTF":
                contents = contents._replace(btf=section.data())
            if not isinstance(section, SymbolTableSection):
                continue
            for symbol in section.iter_symbols():
                where, kind = names.get(symbol["st_shndx"], ""), symbol["st_info"]["type"]
                if kind == "STT_OBJECT":
                    place = (symbol["st_value"], symbol["st_size"])
                    contents.variables.setdefault(where, {})[symbol.name] = place
                elif kind == "STT_FUNC" and where != ".text":
                    contents.programs.setdefault(where, []).append(symbol.name)
    return contents


def _summary(path: Path) -> Path:
    return path.with_suffix(".txt")


def store(path: Path) -> None:
    """Write what a start needs to know of an object beside it; part of the build."""
    lines = [str(zlib.crc32(path.read_bytes()))]
    for section, variables in sorted(_parse(path).variables.items()):
        for name, (offset, size) in sorted(variables.items()):
            lines.append(f"{section} {name} {offset} {size}")
    _summary(path).write_text("\n".join(lines) + "\n")


def store_all(paths: Iterable[str]) -> None:
    """store() for each: for the Makefile."""
    for path in paths:
        store(Path(path))


def _stored(path: Path) -> Variables | None:
    """What store() wrote, unless the object is another by now."""
    try:
        crc32, *lines = _summary(path).read_text().splitlines()
    except OSError:
        return None
    if int(crc32) != zlib.crc32(path.read_bytes()):
        return None
    variables: Variables = {}
    for section, name, offset, size in map(str.split, lines):
        variables.setdefault(section, {})[name] = (int(offset), int(size))
    return variables


class _Btf:
    """As much of the BTF format (Documentation/bpf/btf.rst) as a struct of plain members needs."""

    INT, PTR, ARRAY, STRUCT, UNION, ENUM = 1, 2, 3, 4, 5, 6
    TYPEDEF, VOLATILE, CONST, RESTRICT = 8, 9, 10, 11
    # Bytes behind the common header: fixed, and for each of vlen elements.
    TAIL: ClassVar = {
        **{1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0)},
        **{15: (0, 12), 17: (4, 0), 19: (0, 12)},
    }

    def __init__(self, data: bytes) -> None:
        header, types, length, strings = struct.unpack_from("<4x4I", data)
        self._data = data
        self._strings = header + strings
        self._types = [(0, 0, 0)]
        self._tails = [0]
        position, end = header + types, header + types + length
        while position < end:
            name, info, size = struct.unpack_from("<3I", data, position)
            self._types.append((name, info, size))
            self._tails.append(position + 12)
            fixed, each = self.TAIL.get(info >> 24 & 31, (0, 0))
            position += 12 + fixed + each * (info & 0xFFFF)

    def _name(self, offset: int) -> str:
        start = self._strings + offset
        return self._data[start : self._data.index(b"\0", start)].decode()

    def _size(self, index: int) -> int:
        _, info, size = self._types[index]
        kind = info >> 24 & 31
        if kind in (self.TYPEDEF, self.VOLATILE, self.CONST, self.RESTRICT):
            return self._size(size)
        if kind == self.ARRAY:
            element, _, count = struct.unpack_from("<3I", self._data, self._tails[index])
            return self._size(element) * int(count)
        return 8 if kind == self.PTR else size

    def struct(self, name: str) -> Struct:
        for index, (offset, info, size) in enumerate(self._types):
            if info >> 24 & 31 == self.STRUCT and self._name(offset) == name:
                return Struct(size, dict(self._members(index, info & 0xFFFF)))
        raise KeyError(name)

    def _members(self, index: int, count: int) -> Iterator[tuple[str, tuple[int, int]]]:
        for i in range(count):
            place = self._tails[index] + 12 * i
            name, kind, bits = struct.unpack_from("<3I", self._data, place)
            yield self._name(name), (bits // 8, self._size(kind))
