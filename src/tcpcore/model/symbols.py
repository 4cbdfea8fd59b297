"""The kernel's functions, by address."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from pathlib import Path

from tcpcore.loader import Btf
from tcpcore.value import Value

KALLSYMS = Path("/proc/kallsyms")
# Of code: t, T, and weak ones. A module's have a tab and its name in brackets behind them.
_FUNCTION = re.compile(rb"^([0-9a-f]{16}) [tTwW] (.+)$", re.MULTILINE)


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
    trace: only then does the kernel show addresses (kallsyms_show_value, kernel/ksyms_common.c)."""

    def __init__(self) -> None:
        self._addresses, self._names = array("Q"), list[bytes]()

    def __call__(self, address: int) -> Place | None:
        """Where in which function a return address is; None where no function is known. What it
        returns to may be behind a function's end: that of one whose last call does not return."""
        at = bisect_left(self._addresses, address) - 1
        if at < 0 or not self._addresses[at]:
            return None
        function, _, module = self._names[at].decode().partition("\t")
        return Place(function, address - self._addresses[at], module.strip("[]") or None)

    def look_up(self, btf: Btf) -> None:
        """No functions where the kernel hides them."""
        try:
            found = _FUNCTION.findall(KALLSYMS.read_bytes())
        except OSError:
            found = []
        found.sort()
        self._addresses = array("Q", (int(address, 16) for address, _ in found))
        self._names = [name for _, name in found]
