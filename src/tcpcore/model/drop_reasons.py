"""Why the kernel drops packets, by the names that the running kernel has for it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import closing, suppress

from tcpcore.errors import LibbpfError
from tcpcore.loader import Btf
from tcpcore.model.enums import KernelEnum

_ENUM, _PREFIX = "skb_drop_reason", "SKB_DROP_REASON_"
_SHIFT = 16  # SKB_DROP_REASON_SUBSYS_SHIFT, include/net/dropreason.h
# Those of subsystems: mac80211_drop_reason, ovs_drop_reason, qdisc_drop_reason. What begins with an
# underscore has the same reasons by other names.
_OF_SUBSYSTEM = re.compile(r"(?!skb_)[a-z]\w*_drop_reason")


class DropReasons:
    """Reasons as the `value` of a Kind that has this among its `enums`, or a part of that. Those of
    subsystems (Linux 6.4) have the subsystem's number in the high half, and an enum of their own,
    mostly in a module. That is looked for when the first of them comes: hardly any trace sees one.
    """

    def __init__(self) -> None:
        self._core = KernelEnum(_ENUM, _PREFIX)
        self._subsystems = KernelEnum("skb_drop_reason_subsys", f"{_PREFIX}SUBSYS_")
        self._others: dict[int, str] = {}
        self._btf: Btf | None = None

    def __call__(self, raw: int) -> str:
        """The name; that of the subsystem and a number where the kernel has none for it."""
        if not raw >> _SHIFT:
            return self._core(raw)
        if self._btf:
            self._others, self._btf = _of_subsystems(self._btf), None
        return self._others.get(raw) or f"{self._subsystems(raw >> _SHIFT)}:{raw & 0xFFFF}"

    def look_up(self, btf: Btf) -> None:
        """At the start of a trace. btf: asked once more, when such a reason comes."""
        self._core.look_up(btf)
        self._subsystems.look_up(btf)
        self._btf, self._others = btf, {}


def numbers(wanted: Iterable[str]) -> dict[str, int]:
    """The running kernel's reasons by name; those of subsystems, which take longer to find, where a
    wanted name is not among the others. Raises LibbpfError where there is no BTF."""
    with closing(Btf()) as btf:
        core = btf.enumerators(_ENUM) or {}
        known = {name.removeprefix(_PREFIX): value for value, name in core.items()}
        if not known.keys() >= set(wanted):
            known |= {name: value for value, name in _of_subsystems(btf).items()}
    return known


def _of_subsystems(kernel: Btf) -> dict[int, str]:
    """None where there is no BTF. A module may go while it is looked at."""
    found: dict[int, str] = {}
    with closing(kernel), suppress(LibbpfError, OSError):
        found |= _reasons(kernel)
        for module in kernel.modules():
            with closing(module), suppress(LibbpfError):
                found |= _reasons(module)
    return {value: name for value, name in found.items() if value >> _SHIFT}


def _reasons(btf: Btf) -> dict[int, str]:
    enums = (btf.enumerators(name) or {} for name in btf.names(_OF_SUBSYSTEM))
    return {value: name for enum in enums for value, name in enum.items()}
