"""The kernel's functions, by address."""

from __future__ import annotations

from bisect import bisect_left
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from tcpcore.loader import Btf
from tcpcore.value import Value

KALLSYMS = Path("/proc/kallsyms")
_CODE = b"tTwW"  # weak functions, too
_HIDDEN = b"0" * 16


class Place(Value):
    """A place in the kernel's code. offset: from where the function begins. module: None where the
    function is the kernel's own."""

    function: str
    offset: int
    module: str | None = None

    def __str__(self) -> str:
        """As the kernel prints it (%pS), but for the function's size."""
        return f"{self.function}+{self.offset:#x}" + (f" [{self.module}]" if self.module else "")


class KernelSymbols:
    """Functions of the kernel and its modules. It has none before look_up(), which comes with each
    trace."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        # As the kernel prints them: an address of 16 digits, a letter, the name; behind those of a
        # module a tab and its name in brackets. They are many, and few of them are asked for.
        self._lines: list[bytes] = []

    def __call__(self, address: int) -> Place | None:
        """Where in which function a return address is; None where no function is known. What it
        returns to may be behind a function's end: that of one whose last call does not return."""
        if self._file:
            self._read(self._file)
        at = bisect_left(self._lines, b"%016x" % address) - 1
        if at < 0:
            return None
        begin, _, name = self._lines[at].decode().split(None, 2)
        function, _, module = name.strip().partition("\t")
        return Place(function, address - int(begin, 16), module.strip("[]") or None)

    def look_up(self, btf: Btf) -> None:
        """Opens the file; it is read with the first address. The kernel asks who opened
        it, as we are no longer root then (kallsyms_show_value, kernel/ksyms_common.c)."""
        self._close()
        self._lines = []
        with suppress(OSError):
            self._file = KALLSYMS.open("rb")

    def _read(self, file: BinaryIO) -> None:
        """No functions where the kernel hides them: all are at 0 then."""
        functions = (line for line in file if line[17] in _CODE)
        with suppress(OSError):
            self._lines = sorted(line for line in functions if not line.startswith(_HIDDEN))
        self._close()

    def _close(self) -> None:
        if self._file:
            self._file.close()
        self._file = None
