"""Which programs to attach: for each slot the best way that this kernel takes, and why no better.

A slot is something to see, as "a state change". A way is a set of programs that see it.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tcpcore.errors import (
    LibbpfError,
    OptionError,
    PrivilegeError,
    TcpcoreError,
    UnsupportedError,
)
from tcpcore.loader import kernel
from tcpcore.loader.tracefs import TracefsError
from tcpcore.value import Value

# The kind of an ELF section to what --attach calls a way of its kind.
_NAMES = {"fexit": "fentry", "kretprobe": "kprobe", "tp": "tracepoint"}
# `--attach tracepoint` takes all of these.
_TRACEPOINTS = ("tp_btf", "raw_tp", "tracepoint")


class Way(Value):
    """Programs that together see what a slot is about, by ELF section.

    sections: attached in this order, each must attach.
    optional: attached where the kernel lets them: hooks of an absent protocol family.
    types: the parameter types of kernel functions and tracepoints for which the programs were
        written, as C spells them. Several spellings where kernels differ in a name alone.
    rodata: tells the programs that they are in use.
    over: the map that an iterator goes through, when user space says so (Attached.walk).
    """

    sections: tuple[str, ...]
    optional: tuple[str, ...] = ()
    types: Mapping[str, Sequence[str]] = {}
    rodata: Mapping[str, int] = {}
    over: str = ""

    @property
    def name(self) -> str:
        """What `attach` calls it: fentry, kprobe, tp_btf, raw_tp or tracepoint; iter or call where
        user space runs the programs."""
        kind, hook, _ = self.sections[0].partition("/")
        return _NAMES.get(kind, kind) if hook else "call"

    def is_called(self, name: str) -> bool:
        """Whether `attach` means this way by a name."""
        return name == self.name or (name == "tracepoint" and self.name in _TRACEPOINTS)

    def cannot(self, section: str, btf: kernel.Btf) -> str | None:
        """What the kernel's own description says against a section, if anything."""
        return kernel.cannot(section, btf, self.types.get(section.partition("/")[2], ()))


class Slot(Value):
    """Something to see. name: in messages. ways: to see it, best first.

    required: the tool is nothing without it. beside: the name of a slot before this one, which the
    tracepoints of single system calls see a part of: this one sees the rest, and is needed where
    that one is seen by them.
    """

    name: str
    ways: tuple[Way, ...]
    required: bool = True
    beside: str = ""


class Refusal(Value):
    """A way that this kernel does not take, and the reason in one line."""

    slot: Slot
    way: Way
    reason: str

    def __str__(self) -> str:
        return f"{self.slot.name}: {self.way.name}: {self.reason}"


class Use(Value):
    """How a slot is seen. way: None where it is not.

    optional: those of the way's optional sections that nothing speaks against. absent: the others,
    each with the reason. refusals: the better ways.
    """

    slot: Slot
    way: Way | None = None
    optional: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    @property
    def sections(self) -> tuple[str, ...]:
        """What to attach, in order."""
        return (*self.way.sections, *self.optional) if self.way else ()

    @property
    def is_of_system_calls(self) -> bool:
        """By the tracepoints of single ones, which do not fire for 32-bit programs."""
        return self.way is not None and self.way.name == "tracepoint"


def narrowed(slots: Sequence[Slot], forced: Sequence[str]) -> list[Slot]:
    """The slots with the forced ways alone, where they have such; then they are required.

    Raises OptionError for a name that no way of any slot has.
    """
    ways = [way for slot in slots for way in slot.ways]
    for name in forced:
        if not any(way.is_called(name) for way in ways):
            known = ", ".join(dict.fromkeys(way.name for way in ways))
            raise OptionError("attach", f"no way '{name}' here; there are: {known}")
    return [_narrowed(slot, forced) for slot in slots]


def _narrowed(slot: Slot, forced: Sequence[str]) -> Slot:
    ways = tuple(way for way in slot.ways if any(map(way.is_called, forced)))
    return slot._replace(ways=ways, required=True) if ways else slot


class Plan:
    """What is left to try. btf_file: what the caller gave in the place of the kernel's own BTF."""

    def __init__(
        self, slots: Sequence[Slot], btf: kernel.Btf, btf_file: Path | None = None
    ) -> None:
        self._btf, self._btf_file = btf, btf_file
        self._left = {slot.name: list(slot.ways) for slot in slots}
        self._slots = tuple(slots)
        self._refusals: list[Refusal] = []
        self._errors: list[LibbpfError] = []

    def choose(self) -> list[Use]:
        """The best way for each slot, as far as is known.

        Raises UnsupportedError or PrivilegeError where a required slot has none.
        """
        uses: dict[str, Use] = {}
        for slot in self._slots:
            if not slot.beside or uses[slot.beside].is_of_system_calls:
                uses[slot.name] = self._use(slot)
        return list(uses.values())

    def _use(self, slot: Slot) -> Use:
        left = self._left[slot.name]
        while left and (reason := self._objection(left[0])):
            self._drop(slot, reason)
        refusals = tuple(r for r in self._refusals if r.slot == slot)
        if not left:
            if slot.required:
                raise self._failure()
            return Use(slot, refusals=refusals)
        asked = {section: left[0].cannot(section, self._btf) for section in left[0].optional}
        optional = tuple(section for section, reason in asked.items() if not reason)
        absent = tuple(f"{section}: {reason}" for section, reason in asked.items() if reason)
        return Use(slot, left[0], optional, absent, refusals)

    def _objection(self, way: Way) -> str | None:
        reasons = (way.cannot(section, self._btf) for section in way.sections)
        return next(filter(None, reasons), None)

    def _drop(self, slot: Slot, reason: str) -> None:
        self._refusals.append(Refusal(slot, self._left[slot.name].pop(0), reason))

    def refuse(self, slot: Slot, error: LibbpfError) -> None:
        """The kernel did not take the slot's way."""
        self._errors.append(error)
        self._drop(slot, str(error))

    def refuse_load(self, error: LibbpfError, functions: Mapping[str, Sequence[str]]) -> None:
        """The kernel did not take the object. functions: those of each section.

        The log names the program, and so the slot. Where it names none, every slot goes on to its
        next way. Raises like choose() where that leads nowhere.
        """
        self._errors.append(error)
        program = _named(error)
        if program:
            guilty = [slot for slot in self._slots if program in self._programs(slot, functions)]
        else:
            guilty = [slot for slot in self._slots if len(self._left[slot.name]) > 1]
        if not guilty:
            raise self._failure(str(error))
        for slot in guilty:
            self._drop(slot, str(error))

    def _programs(self, slot: Slot, functions: Mapping[str, Sequence[str]]) -> list[str]:
        """Those of the way that is tried now."""
        ways = self._left[slot.name][:1]
        sections = [section for way in ways for section in (*way.sections, *way.optional)]
        return [name for section in sections for name in functions.get(section, ())]

    def _failure(self, *last: str) -> TcpcoreError:
        """Every reason, and a remedy where one is known: PrivilegeError where more privilege would
        have let one in."""
        reasons = "; ".join((*map(str, self._refusals), *last))
        if any(isinstance(e, TracefsError) and e.is_forbidden for e in self._errors):
            return PrivilegeError(f"no way to attach with these privileges: {reasons}")
        remedy = _remedy(self._errors, self._btf_file)
        return UnsupportedError(f"no way to attach on this kernel: {reasons}{remedy}")


def _named(error: LibbpfError) -> str:
    """The program that libbpf's log names first; "" if none."""
    found = (re.search(r"prog(?:ram)? '([^']+)'", line) for line in error.log)
    return next((match[1] for match in found if match), "")


def exhausted(error: LibbpfError) -> TcpcoreError | None:
    """The error to end with where something ran out that another way needs as much of."""
    remedy = _EXHAUSTED.get(error.errno)
    # Before Linux 5.11 (97306be45fbe) maps count as locked memory, and too little of it is EPERM.
    if error.errno == errno.EPERM and any(map(_NO_MAP.search, error.log)):
        remedy = (
            "no maps: raise 'ulimit -l', or lower `map_size` (before Linux 5.11 they count as "
            "locked memory), or leave the container that forbids them"
        )
    return TcpcoreError(f"{remedy} ({error})") if remedy else None


_NO_MAP = re.compile(r"map '[^']*': failed to create|Error in bpf_create_map")
_EXHAUSTED = {
    errno.ENOMEM: "out of memory, or of memory that may be locked: raise 'ulimit -l', or lower "
    "`map_size` or `buffer`",
    errno.EMFILE: "too many files are open in this process: raise 'ulimit -n'",
    errno.ENFILE: "too many files are open on this host: raise fs.file-max (sysctl)",
}


def _remedy(errors: Sequence[LibbpfError], btf: Path | None) -> str:
    said = " ".join(line for error in errors for line in (*error.log, str(error)))
    if kernel.no_btf() and "BTF" in said:
        if btf is None:
            return " (`btf` takes BTF of this kernel from a file)"
        return f" (iter, fentry and tp_btf programs need BTF in the kernel itself, beside {btf})"
    if _lockdown() == "confidentiality":
        return " (kernel lockdown is 'confidentiality', which forbids reading kernel memory)"
    return ""


def _lockdown() -> str:
    try:
        text = Path("/sys/kernel/security/lockdown").read_text()
    except OSError:
        return ""
    return text.partition("[")[2].partition("]")[0]
