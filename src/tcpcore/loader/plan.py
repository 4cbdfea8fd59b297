"""Which programs to attach: the variants of a tool, best first, and why some were refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tcpcore.errors import LibbpfError, UnsupportedError, UsageError
from tcpcore.loader import kernel


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

    def cannot(self, section: str) -> str | None:
        """What the kernel's own description says against a section, if anything."""
        return kernel.cannot(section, self.parameters.get(section.partition("/")[2]))


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


def candidates(variants: Sequence[Variant], refusals: list[Refusal]) -> Iterator[Choice]:
    """The variants that the kernel's BTF does not speak against; refusals are appended."""
    for variant in variants:
        reasons = list(filter(None, map(variant.cannot, variant.sections)))
        if reasons:
            refusals.append(Refusal(variant, reasons[0]))
            continue
        asked = {section: variant.cannot(section) for section in variant.optional}
        optional = tuple(section for section, reason in asked.items() if not reason)
        absent = tuple(f"{section}: {reason}" for section, reason in asked.items() if reason)
        yield Choice(variant, variant.sections, optional, absent)


def unsupported(refusals: Sequence[Refusal], errors: Sequence[LibbpfError]) -> UnsupportedError:
    """The error when no variant is left: every reason, and a remedy where one is known."""
    reasons = "; ".join(map(str, refusals))
    return UnsupportedError(f"no way to attach on this kernel: {reasons}{_remedy(errors)}")


def _remedy(errors: Sequence[LibbpfError]) -> str:
    said = " ".join(line for error in errors for line in (*error.log, str(error)))
    if not kernel.VMLINUX_BTF.exists() and "BTF" in said:
        return " (--btf FILE takes BTF of this kernel from a file)"
    if _lockdown() == "confidentiality":
        return " (kernel lockdown is 'confidentiality', which forbids reading kernel memory)"
    if any(error.errno == 12 for error in errors):
        return " (out of locked memory: raise 'ulimit -l', or lower --map-size or --buffer)"
    return ""


def _lockdown() -> str:
    try:
        text = Path("/sys/kernel/security/lockdown").read_text()
    except OSError:
        return ""
    return text.partition("[")[2].partition("]")[0]
