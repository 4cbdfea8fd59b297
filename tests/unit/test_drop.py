"""What drop makes of the kernel's numbers and addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcpcore.loader import Btf
from tcpcore.model import fields, symbols
from tcpcore.model.symbols import KernelSymbols, Place
from tcpcore.tools import drop

KALLSYMS = """\
0000000000000000 A fixed_percpu_data
ffffffff81000200 T second
ffffffff81000100 t first
ffffffff81000180 D data
ffffffffc0000000 t third	[module]
"""


@pytest.fixture
def kallsyms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(symbols, "KALLSYMS", tmp_path / "kallsyms")
    symbols.KALLSYMS.write_text(KALLSYMS)
    return symbols.KALLSYMS


def looked_up() -> KernelSymbols:
    found = KernelSymbols()
    found.look_up(Btf())
    return found


def test_a_return_address_is_in_the_function_that_called(kallsyms: Path) -> None:
    """Also right behind that function's end, after a call that does not return."""
    found = looked_up()
    assert found(0xFFFFFFFF81000190) == Place("first", 0x90)
    assert found(0xFFFFFFFF81000200) == Place("first", 0x100)
    assert found(0xFFFFFFFF81000201) == Place("second", 1)
    assert found(0xFFFFFFFFC0000010) == Place("third", 0x10)
    assert found(0xFFFFFFFF81000100) is None


@pytest.mark.parametrize("content", ["", "0000000000000000 T first\n0000000000000000 t second\n"])
def test_hidden_addresses(kallsyms: Path, content: str) -> None:
    kallsyms.write_text(content)
    assert looked_up()(0xFFFFFFFF81000190) is None
    kallsyms.unlink()
    assert looked_up()(0xFFFFFFFF81000190) is None


def shown(name: str, raw: object) -> object:
    return fields.kinds(drop.WithStack)[name].value(raw)


def test_flags() -> None:
    assert [shown("flags", raw) for raw in (0, 2, 0x18, 0xFF, 0xFFFF)] == [
        "", "SYN", "PSH|ACK", "FIN|SYN|RST|PSH|ACK|URG|ECE|CWR", None,
    ]  # fmt: skip


def test_reasons() -> None:
    """Without the kernel's names there are numbers; the subsystem is in the high half."""
    none = (1 << 32) - 1
    told = [shown("reason", raw) for raw in (none, 1 << 30, (0x4000 << 16) + 7)]
    assert told == [None, "16384:0", "16384:7"]
    assert shown("reason_code", none) is shown("len", none) is None


def test_a_stack_begins_where_the_packet_was_dropped() -> None:
    frames = [9, 8, 5, 6] + [0] * 12
    assert shown("stack", drop._STACK.pack(5, *frames)) == "?;?"
    assert shown("stack", drop._STACK.pack(7, *frames)) == "?;?;?;?"
    assert shown("stack", drop._STACK.pack(5, *[0] * 16)) is None
