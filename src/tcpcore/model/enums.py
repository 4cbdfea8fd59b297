"""Names that the running kernel has for its numbers: a table of ours would be right for one kernel
only, since new values are put in between."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Protocol

from tcpcore.errors import LibbpfError
from tcpcore.loader import Btf


class Names(Protocol):
    """Names that are looked up at the start of each trace."""

    def look_up(self, btf: Btf) -> None: ...


class KernelEnum:
    """An enum of the kernel, as the `value` of a Kind that has it among its `enums`, or a part of
    that. It has no names before look_up(), which comes with each trace.

    name: in C. prefix: of its enumerators, left out.
    """

    def __init__(self, name: str, prefix: str = "") -> None:
        self.name, self.prefix = name, prefix
        self._names: dict[int, str] = {}

    def __call__(self, raw: int) -> str:
        """The name; the number where the kernel has none for it."""
        return self._names.get(raw) or str(raw)

    def look_up(self, btf: Btf) -> None:
        """No names where the kernel has no such enum, or no BTF."""
        try:
            found = btf.enumerators(self.name) or {}
        except LibbpfError:
            found = {}
        self._names = {value: name.removeprefix(self.prefix) for value, name in found.items()}


def look_up(enums: Iterable[Names], btf: Btf, file: Path | None) -> None:
    """All of them, from the kernel's BTF; where there is a file, from that."""
    if wanted := set(enums):
        with closing(Btf(file)) if file else nullcontext(btf) as source:
            for each in wanted:
                each.look_up(source)
