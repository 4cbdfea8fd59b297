"""Which variant is tried when, with a kernel that answers what the test wants."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest

from tcpcore.errors import LibbpfError, UsageError
from tcpcore.loader import Variant, kernel, plan
from tcpcore.loader.tracefs import TracefsError

FENTRY = Variant(
    "fentry", ("fentry/f", "tp_btf/t"), optional=("fentry/f6",), parameters={"f": 3, "f6": 2}
)
KPROBE = Variant("kprobe", ("kprobe/f", "raw_tp/t"), optional=("kprobe/f6",))
FIRST = Variant("tracepoint", ("tp_btf/t",))
SECOND = Variant("tracepoint", ("raw_tp/t",))
ALL = (FENTRY, KPROBE, FIRST, SECOND)


class FakeBtf:
    def __init__(self, functions: Mapping[str, int]) -> None:
        self._functions = functions

    def parameters(self, function: str) -> int | None:
        return self._functions.get(function)

    def fentry_refusal(self, function: str) -> str | None:
        return None


def parsed(functions: Mapping[str, int]) -> kernel.Btf:
    return cast(kernel.Btf, FakeBtf(functions))


BOTH = parsed({"f": 3, "f6": 2})


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A kernel with BTF, kprobes and both functions; tests take away from it."""
    monkeypatch.setattr(kernel, "VMLINUX_BTF", tmp_path)
    monkeypatch.setattr(kernel, "has_kprobes", lambda: True)
    monkeypatch.setattr(plan, "_lockdown", lambda: "none")
    return monkeypatch


def without_btf(host: pytest.MonkeyPatch) -> None:
    host.setattr(kernel, "VMLINUX_BTF", Path("/absent/btf"))


def choices(
    variants: tuple[Variant, ...], btf: kernel.Btf = BOTH
) -> tuple[list[plan.Choice], list[plan.Refusal]]:
    refusals: list[plan.Refusal] = []
    return list(plan.candidates(variants, refusals, btf)), refusals


def test_the_best_comes_first(host: pytest.MonkeyPatch) -> None:
    found, refusals = choices(ALL)
    assert [choice.variant for choice in found] == list(ALL)
    assert refusals == []
    assert (found[0].attach, found[0].optional) == (FENTRY.sections, FENTRY.optional)
    assert found[0].absent == ()


def test_forced_takes_all_of_that_name_in_order() -> None:
    assert plan.select(ALL, None) == list(ALL)
    assert plan.select(ALL, "kprobe") == [KPROBE]
    assert plan.select(ALL, "tracepoint") == [FIRST, SECOND]


@pytest.mark.parametrize("forced", ["uprobe", "", "FENTRY", "fentry/f"])
def test_forced_but_unknown_lists_each_name_once(forced: str) -> None:
    with pytest.raises(UsageError) as e:
        plan.select(ALL, forced)
    assert str(e.value).startswith(f"--attach: no variant '{forced}'")
    assert str(e.value).endswith(": fentry, kprobe, tracepoint")


def test_no_btf_leaves_kprobe_and_raw_tracepoint(host: pytest.MonkeyPatch) -> None:
    without_btf(host)
    found, refusals = choices(ALL)
    assert [choice.variant for choice in found] == [KPROBE, SECOND]
    assert [refusal.variant for refusal in refusals] == [FENTRY, FIRST]
    assert "no kernel BTF (/absent/btf is absent)" in str(refusals[0])


def test_no_kprobes(host: pytest.MonkeyPatch) -> None:
    host.setattr(kernel, "has_kprobes", lambda: False)
    found, refusals = choices(ALL)
    assert KPROBE not in [choice.variant for choice in found]
    assert "without kprobes" in str(refusals[0])


def test_a_missing_function_refuses(host: pytest.MonkeyPatch) -> None:
    found, refusals = choices((FENTRY, KPROBE), parsed({"f6": 2}))
    assert [choice.variant for choice in found] == [KPROBE]
    assert str(refusals[0]) == "fentry (fentry/f): no function f in kernel BTF"


def test_a_function_that_takes_no_program_refuses(host: pytest.MonkeyPatch) -> None:
    def refusal(self: FakeBtf, function: str) -> str:
        return f"no program at {function}: forbidden"

    host.setattr(FakeBtf, "fentry_refusal", refusal)
    found, refusals = choices((FENTRY, KPROBE))
    assert [choice.variant for choice in found] == [KPROBE]
    assert str(refusals[0]) == "fentry (fentry/f): no program at f: forbidden"


def test_another_number_of_parameters_refuses(host: pytest.MonkeyPatch) -> None:
    found, refusals = choices((FENTRY,), parsed({"f": 4, "f6": 2}))
    assert found == []
    assert str(refusals[0]) == "fentry (fentry/f): f has 4 parameters, not 3"


@pytest.mark.parametrize(
    ("functions", "reason"),
    [
        ({"f": 3}, "no function f6 in kernel BTF"),
        ({"f": 3, "f6": 5}, "f6 has 5 parameters, not 2"),
    ],
)
def test_an_optional_hook_does_not_refuse(
    host: pytest.MonkeyPatch, functions: dict[str, int], reason: str
) -> None:
    found, refusals = choices((FENTRY,), parsed(functions))
    assert (found[0].attach, found[0].optional) == (FENTRY.sections, ())
    assert found[0].absent == (f"fentry/f6: {reason}",)
    assert refusals == []


def test_nothing_speaks_against_a_classic_tracepoint(host: pytest.MonkeyPatch) -> None:
    """Only tracefs knows them: the attach asks it."""
    without_btf(host)
    classic = Variant("tracepoint", ("tp/syscalls/sys_exit_accept4",))
    found, refusals = choices((classic,))
    assert (found[0].attach, refusals) == (classic.sections, [])


def test_the_plan_is_lazy(host: pytest.MonkeyPatch) -> None:
    """The second variant is not asked for while the first may do."""
    asked: list[str] = []
    host.setattr(kernel, "cannot", lambda section, btf, parameters: asked.append(section))
    next(plan.candidates(ALL, [], BOTH))
    assert asked == [*FENTRY.sections, *FENTRY.optional]


def test_every_refusal_is_in_the_error() -> None:
    errors = [LibbpfError("bpf_object__load", errno.EINVAL, ["libbpf: told by libbpf"])]
    refusals = [plan.Refusal(FENTRY, "reason one"), plan.Refusal(KPROBE, str(errors[0]))]
    error = plan.failure(refusals, errors)
    assert error.exit_code == 3
    assert "fentry (fentry/f): reason one; kprobe (kprobe/f): " in str(error)
    assert "told by libbpf" in str(error)
    assert "\n" not in str(error)


def test_the_error_has_a_remedy(host: pytest.MonkeyPatch) -> None:
    refusals = [plan.Refusal(FENTRY, "reason")]
    host.setattr(plan, "_lockdown", lambda: "integrity")
    assert str(plan.failure(refusals, [])).endswith("reason")
    host.setattr(plan, "_lockdown", lambda: "confidentiality")
    assert "lockdown" in str(plan.failure(refusals, []))
    without_btf(host)
    no_btf = [LibbpfError("bpf_object__load", errno.ESRCH, ["libbpf: failed to find valid BTF"])]
    assert "--btf FILE" in str(plan.failure(refusals, no_btf))
    given = str(plan.failure(refusals, no_btf, Path("/some/btf")))
    assert "--btf FILE" not in given
    assert "need BTF in the kernel itself, beside /some/btf" in given


def test_what_privilege_would_let_in_is_a_lack_of_privilege(host: pytest.MonkeyPatch) -> None:
    refusals = [plan.Refusal(FENTRY, "reason")]
    for number in (errno.EPERM, errno.EACCES):
        error = plan.failure(refusals, [TracefsError("open", number, "a/b")])
        assert error.exit_code == 4
        assert "fentry (fentry/f): reason" in str(error)
    assert plan.failure(refusals, [TracefsError("open", errno.ENOENT, "a/b")]).exit_code == 3
    # EPERM has many reasons elsewhere: a kernel that takes no fentry says it to root.
    assert plan.failure(refusals, [LibbpfError("bpf_prog_load", errno.EPERM)]).exit_code == 3


MAP_REFUSED = "libbpf: map 'owners': failed to create: Operation not permitted(-1)"


@pytest.mark.parametrize(
    ("number", "log", "remedy"),
    [
        (errno.ENOMEM, [], "ulimit -l"),
        (errno.EPERM, [MAP_REFUSED], "ulimit -l"),
        (errno.EPERM, ["libbpf: Error in bpf_create_map_xattr(starts):..."], "ulimit -l"),
        (errno.EMFILE, [], "ulimit -n"),
        (errno.ENFILE, [], "fs.file-max"),
    ],
)
def test_what_has_run_out_ends_the_search_with_a_remedy(
    number: int, log: list[str], remedy: str
) -> None:
    error = plan.exhausted(LibbpfError("bpf_object__load", number, log))
    assert error is not None
    assert error.exit_code == 1
    assert remedy in str(error)
    assert "bpf_object__load" in str(error)
    assert ("--map-size" in str(error)) == (remedy == "ulimit -l")
    assert ("--buffer" in str(error)) == (number == errno.ENOMEM)


def test_another_failure_has_run_out_of_nothing() -> None:
    assert plan.exhausted(LibbpfError("bpf_object__load", errno.EINVAL, [MAP_REFUSED])) is None
    assert (
        plan.exhausted(LibbpfError("bpf_object__load", errno.EPERM, ["libbpf: prog 'f'"])) is None
    )
