"""Which programs to attach: the variants of a tool, best first, and why some were refused."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tcpcore.errors import (
    LibbpfError,
    PrivilegeError,
    TcpcoreError,
    UnsupportedError,
    UsageError,
)
from tcpcore.loader import kernel
from tcpcore.loader.tracefs import TracefsError


@dataclass(frozen=True)
class Variant:
    """A set of programs that work together, by ELF section.

    name: what --attach calls it; two variants may share one.
    sections: attached, each must attach.
    optional: attached where the kernel lets them: hooks of an absent protocol family.
    parameters: how many parameters a kernel function must have, where a program counts on it.
    rodata: tells the programs which variant they serve.
    """

    name: str
    sections: tuple[str, ...]
    optional: tuple[str, ...] = ()
    parameters: Mapping[str, int] = field(default_factory=dict)
    rodata: Mapping[str, int] = field(default_factory=dict)

    def cannot(self, section: str, btf: kernel.Btf) -> str | None:
        """What the kernel's own description says against a section, if anything."""
        return kernel.cannot(section, btf, self.parameters.get(section.partition("/")[2]))


@dataclass(frozen=True)
class Refusal:
    """A variant that this kernel does not take, and the reason in one line."""

    variant: Variant
    reason: str

    def __str__(self) -> str:
        return f"{self.variant.name} ({self.variant.sections[0]}): {self.reason}"


@dataclass(frozen=True)
class Choice:
    """What is left of a variant on this kernel: the sections to attach.

    absent: the optional ones that it does not have, each with the reason.
    """

    variant: Variant
    attach: tuple[str, ...]
    optional: tuple[str, ...]
    absent: tuple[str, ...] = ()


def select(variants: Sequence[Variant], forced: str | None) -> list[Variant]:
    """The variants to try; UsageError when `forced` names none."""
    if forced is None:
        return list(variants)
    chosen = [v for v in variants if v.name == forced]
    if not chosen:
        known = ", ".join(dict.fromkeys(v.name for v in variants))
        raise UsageError(f"--attach: no variant '{forced}' here; there are: {known}")
    return chosen


def candidates(
    variants: Sequence[Variant], refusals: list[Refusal], btf: kernel.Btf
) -> Iterator[Choice]:
    """The variants that the kernel's BTF does not speak against; refusals are appended."""
    for variant in variants:
        reasons = (variant.cannot(section, btf) for section in variant.sections)
        reason = next(filter(None, reasons), None)
        if reason:
            refusals.append(Refusal(variant, reason))
            continue
        asked = {section: variant.cannot(section, btf) for section in variant.optional}
        optional = tuple(section for section, reason in asked.items() if not reason)
        absent = tuple(f"{section}: {reason}" for section, reason in asked.items() if reason)
        yield Choice(variant, variant.sections, optional, absent)


def exhausted(error: LibbpfError) -> TcpcoreError | None:
    """The error to end with where something ran out that the next variant needs as much of."""
    remedy = _EXHAUSTED.get(error.errno)
    # Before Linux 5.11 (97306be45fbe) maps count as locked memory, and too little of it is EPERM.
    if error.errno == errno.EPERM and any(map(_NO_MAP.search, error.log)):
        remedy = (
            "no maps: raise 'ulimit -l', or lower --map-size (before Linux 5.11 they count as "
            "locked memory), or leave the container that forbids them"
        )
    return TcpcoreError(f"{remedy} ({error})") if remedy else None


_NO_MAP = re.compile(r"map '[^']*': failed to create|Error in bpf_create_map")
_EXHAUSTED = {
    errno.ENOMEM: "out of memory, or of memory that may be locked: raise 'ulimit -l', or lower "
    "--map-size or --buffer",
    errno.EMFILE: "too many files are open in this process: raise 'ulimit -n'",
    errno.ENFILE: "too many files are open on this host: raise fs.file-max (sysctl)",
}


def failure(
    refusals: Sequence[Refusal], errors: Sequence[LibbpfError], btf: Path | None = None
) -> TcpcoreError:
    """The error when no variant is left: every reason, and a remedy where one is known.

    PrivilegeError where more privilege would have let one in, else UnsupportedError. btf: the file
    that the caller gave in the place of the kernel's own.
    """
    reasons = "; ".join(map(str, refusals))
    if any(isinstance(error, TracefsError) and error.is_forbidden for error in errors):
        return PrivilegeError(f"no way to attach with these privileges: {reasons}")
    return UnsupportedError(f"no way to attach on this kernel: {reasons}{_remedy(errors, btf)}")


def _remedy(errors: Sequence[LibbpfError], btf: Path | None) -> str:
    said = " ".join(line for error in errors for line in (*error.log, str(error)))
    if kernel.no_btf() and "BTF" in said:
        if btf is None:
            return " (--btf FILE takes BTF of this kernel from a file)"
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
