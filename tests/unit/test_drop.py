"""What drop makes of the kernel's numbers and addresses."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import pytest

from tcpcore.errors import LibbpfError
from tcpcore.loader import Btf
from tcpcore.model import fields, symbols
from tcpcore.model.drop_reasons import DropReasons
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
    assert found(0xFFFFFFFFC0000010) == Place("third", 0x10, "module")
    assert str(found(0xFFFFFFFFC0000010)) == "third+0x10 [module]"
    assert str(found(0xFFFFFFFF81000201)) == "second+0x1"
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


class Types:
    """BTF with enums. modules: with more of them."""

    def __init__(self, enums: Mapping[str, dict[int, str]], *modules: Types) -> None:
        self._enums, self._modules = enums, modules
        self.closed = 0

    def enumerators(self, name: str) -> dict[int, str] | None:
        return self._enums.get(name)

    def names(self, pattern: re.Pattern[str]) -> list[str]:
        return [name for name in self._enums if pattern.fullmatch(name)]

    def modules(self) -> Sequence[Types]:
        return self._modules

    def close(self) -> None:
        self.closed += 1


class Gone(Types):
    """A module that goes while it is looked at."""

    def names(self, pattern: re.Pattern[str]) -> list[str]:
        raise LibbpfError("btf__parse_split", errno.ENOENT)


def test_reasons_of_subsystems_are_found_in_the_kernel_and_in_modules() -> None:
    module = Types({"ovs_drop_reason": {0: "none", 2 << 16 | 1: "OVS_DROP_LAST_ACTION"}})
    kernel = Types(
        {
            "skb_drop_reason": {3: "SKB_DROP_REASON_NO_SOCKET"},
            "skb_drop_reason_subsys": {2: "SKB_DROP_REASON_SUBSYS_OPENVSWITCH"},
            "qdisc_drop_reason": {3 << 16 | 2: "QDISC_DROP_OVERLIMIT"},
            "___qdisc_drop_reason": {3 << 16 | 2: "___QDISC_DROP_OVERLIMIT"},
            "other": {3 << 16 | 5: "OTHER"},
        },
        Gone({}),
        module,
    )
    found = DropReasons()
    found.look_up(cast(Btf, kernel))
    assert (found(3), module.closed) == ("NO_SOCKET", 0)
    assert [found(raw) for raw in (2 << 16 | 1, 3 << 16 | 2)] == [
        "OVS_DROP_LAST_ACTION",
        "QDISC_DROP_OVERLIMIT",
    ]
    assert (module.closed, kernel.closed) == (1, 1)
    assert [found(raw) for raw in (2 << 16 | 9, 3 << 16 | 5)] == ["OPENVSWITCH:9", "3:5"]


def test_a_stack_begins_where_the_packet_was_dropped() -> None:
    frames = [9, 8, 5, 6] + [0] * 12
    assert shown("stack", drop._STACK.pack(5, *frames)) == "?;?"
    assert shown("stack", drop._STACK.pack(7, *frames)) == "?;?;?;?"
    assert shown("stack", drop._STACK.pack(5, *[0] * 16)) is None
