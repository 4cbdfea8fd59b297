"""Which way is tried when, with a kernel that answers what the test wants."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest

from tcpcore.errors import LibbpfError, PrivilegeError, UnsupportedError, UsageError
from tcpcore.loader import Slot, Way, kernel, plan
from tcpcore.loader.plan import Plan, Use, narrowed
from tcpcore.loader.tracefs import TracefsError

SOCK, TWO = "struct sock *", "struct sock *, int"
FENTRY = Way(("fexit/f", "fentry/f"), optional=("fentry/f6",), types={"f": (TWO,), "f6": (SOCK,)})
KPROBE = Way(("kretprobe/f", "kprobe/f"), optional=("kprobe/f6",))
CLASSIC = Way(("tp/syscalls/sys_exit_f",))
CALLS = Slot("calls", (FENTRY, KPROBE, CLASSIC))
TYPED, RAW = Way(("tp_btf/t",)), Way(("raw_tp/t",))
CHANGES = Slot("changes", (TYPED, RAW))
ALL = (CHANGES, CALLS)

FUNCTIONS = {
    "tp_btf/t": ["change_btf", "again_btf"],
    "raw_tp/t": ["change_raw"],
    "fentry/f": ["f_fentry"],
    "fentry/f6": ["f6_fentry"],
    "kprobe/f": ["f_kprobe"],
    "raw_tp": ["called"],
}


class FakeBtf:
    def __init__(self, functions: Mapping[str, str]) -> None:
        self._functions = functions
        self.asked: list[str] = []

    def types(self, function: str) -> tuple[str, ...] | None:
        self.asked.append(function)
        found = self._functions.get(function.removeprefix("btf_trace_"))
        return None if found is None else tuple(found.split(", "))

    def fentry_refusal(self, function: str) -> str | None:
        return None


def parsed(functions: Mapping[str, str]) -> kernel.Btf:
    return cast(kernel.Btf, FakeBtf(functions))


BOTH = parsed({"f": TWO, "f6": SOCK, "t": TWO})


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A kernel with BTF, kprobes and both functions; tests take away from it."""
    monkeypatch.setattr(kernel, "VMLINUX_BTF", tmp_path)
    monkeypatch.setattr(kernel, "has_kprobes", lambda: True)
    monkeypatch.setattr(kernel, "_forbids_fentry", lambda: None)
    monkeypatch.setattr(plan, "_lockdown", lambda: "none")
    return monkeypatch


def without_btf(host: pytest.MonkeyPatch) -> None:
    host.setattr(kernel, "VMLINUX_BTF", Path("/absent/btf"))


def chosen(*slots: Slot, btf: kernel.Btf = BOTH) -> list[Use]:
    return Plan(slots or ALL, btf).choose()


def reasons(use: Use) -> list[str]:
    return [str(refusal) for refusal in use.refusals]


def test_names_of_ways() -> None:
    assert [way.name for way in (*CALLS.ways, *CHANGES.ways)] == [
        *("fentry", "kprobe", "tracepoint", "tp_btf", "raw_tp")
    ]


def test_the_best_of_each_slot(host: pytest.MonkeyPatch) -> None:
    changes, calls = chosen()
    assert (changes.way, calls.way) == (TYPED, FENTRY)
    assert calls.sections == ("fexit/f", "fentry/f", "fentry/f6")
    assert (calls.absent, calls.refusals, changes.refusals) == ((), (), ())


@pytest.mark.parametrize(
    ("forced", "left"),
    [
        ([], ALL),
        (["kprobe"], [(TYPED, RAW), (KPROBE,)]),
        (["fentry", "raw_tp"], [(RAW,), (FENTRY,)]),
        (["tp_btf"], [(TYPED,), CALLS.ways]),
        # Any kind of tracepoint.
        (["tracepoint"], [(TYPED, RAW), (CLASSIC,)]),
    ],
)
def test_forced_in_every_slot_that_has_it(forced: list[str], left: list[tuple[Way, ...]]) -> None:
    found = narrowed(ALL, forced)
    assert [slot.ways for slot in found] == [getattr(x, "ways", x) for x in left]


def test_what_is_forced_is_required() -> None:
    wanted = Slot("calls", CALLS.ways, required=False)
    assert [slot.required for slot in narrowed([wanted, CHANGES], ["kprobe"])] == [True, True]
    assert not narrowed([wanted], [])[0].required


def test_a_slot_beside_another_is_needed_where_that_is_seen_by_system_calls(
    host: pytest.MonkeyPatch,
) -> None:
    beside = Slot("32-bit calls", CHANGES.ways, beside="calls")
    assert [use.slot for use in chosen(CALLS, beside)] == [CALLS]
    unseen = Slot("calls", (FENTRY,), required=False)
    assert [use.slot for use in chosen(unseen, beside, btf=parsed({}))] == [unseen]
    classic = Slot("calls", (CLASSIC,))
    assert [use.way for use in chosen(classic, beside)] == [CLASSIC, TYPED]


@pytest.mark.parametrize("forced", ["uprobe", "", "FENTRY", "fentry/f", "kretprobe"])
def test_forced_but_unknown_lists_each_name_once(forced: str) -> None:
    with pytest.raises(UsageError) as e:
        narrowed(ALL, ["kprobe", forced])
    assert str(e.value).startswith(f"attach: no way '{forced}'")
    assert str(e.value).endswith(": tp_btf, raw_tp, fentry, kprobe, tracepoint")


def test_no_btf_leaves_kprobe_and_raw_tracepoint(host: pytest.MonkeyPatch) -> None:
    without_btf(host)
    changes, calls = chosen()
    assert (changes.way, calls.way) == (RAW, KPROBE)
    why = "no kernel BTF (/absent/btf is absent)"
    assert reasons(changes) == [f"changes: tp_btf: {why}"]
    assert reasons(calls) == [f"calls: fentry: {why}"]


def test_no_kprobes(host: pytest.MonkeyPatch) -> None:
    host.setattr(kernel, "has_kprobes", lambda: False)
    (use,) = chosen(CALLS, btf=parsed({}))
    assert use.way == CLASSIC
    assert reasons(use)[1] == "calls: kprobe: the kernel is built without kprobes"


def test_a_missing_function_refuses(host: pytest.MonkeyPatch) -> None:
    (use,) = chosen(CALLS, btf=parsed({"f6": SOCK}))
    assert use.way == KPROBE
    assert reasons(use) == ["calls: fentry: no f in kernel BTF"]


def test_a_kernel_that_takes_no_fentry_is_not_asked_for_functions(
    host: pytest.MonkeyPatch,
) -> None:
    """Reading its BTF takes a tenth of a start."""
    host.setattr(kernel, "_forbids_fentry", lambda: "no fentry programs: no")
    btf = FakeBtf({"f": TWO})
    (use,) = chosen(CALLS, btf=cast(kernel.Btf, btf))
    assert (use.way, btf.asked) == (KPROBE, [])
    assert reasons(use) == ["calls: fentry: no fentry programs: no"]


def test_a_function_that_takes_no_program_refuses(host: pytest.MonkeyPatch) -> None:
    def refusal(self: FakeBtf, function: str) -> str:
        return f"no program at {function}: forbidden"

    host.setattr(FakeBtf, "fentry_refusal", refusal)
    (use,) = chosen(CALLS)
    assert use.way == KPROBE
    assert reasons(use) == ["calls: fentry: no program at f: forbidden"]


def test_other_parameters_refuse(host: pytest.MonkeyPatch) -> None:
    """Of the same number: what counts is what they are."""
    (use,) = chosen(CALLS, btf=parsed({"f": "int, struct sock *"}))
    assert use.way == KPROBE
    assert reasons(use) == [
        f"calls: fentry: f takes (int, struct sock *), not ({TWO})",
    ]


def test_an_older_shape_is_one_more_way(host: pytest.MonkeyPatch) -> None:
    new = Way(("tp_btf/t",), types={"t": (f"{TWO}, int",)})
    old = Way(("tp_btf/t",), types={"t": (TWO, f"{SOCK}, long")})
    for types, way in ((f"{TWO}, int", new), (TWO, old), (f"{SOCK}, long", old)):
        (use,) = chosen(Slot("changes", (new, old)), btf=parsed({"t": types}))
        assert use.way == way


@pytest.mark.parametrize(
    ("functions", "reason"),
    [
        ({"f": TWO}, "no f6 in kernel BTF"),
        ({"f": TWO, "f6": "int"}, f"f6 takes (int), not ({SOCK})"),
    ],
)
def test_an_optional_hook_does_not_refuse(
    host: pytest.MonkeyPatch, functions: dict[str, str], reason: str
) -> None:
    (use,) = chosen(CALLS, btf=parsed(functions))
    assert (use.way, use.optional, use.refusals) == (FENTRY, (), ())
    assert use.absent == (f"fentry/f6: {reason}",)


def test_nothing_speaks_against_a_classic_tracepoint(host: pytest.MonkeyPatch) -> None:
    """Only tracefs knows them: the attach asks it."""
    without_btf(host)
    (use,) = chosen(Slot("calls", (CLASSIC,)))
    assert (use.way, use.refusals) == (CLASSIC, ())


def test_ways_are_asked_for_one_by_one(host: pytest.MonkeyPatch) -> None:
    """The second way is not asked for while the first may do."""
    asked: list[str] = []
    host.setattr(kernel, "cannot", lambda section, btf, types: asked.append(section))
    chosen(CALLS)
    assert asked == [*FENTRY.sections, *FENTRY.optional]


ERROR = LibbpfError("bpf_link_create", errno.EBUSY)


def test_a_refused_way_makes_room_for_the_next(host: pytest.MonkeyPatch) -> None:
    plan = Plan(ALL, BOTH)
    plan.choose()
    plan.refuse(CALLS, ERROR)
    changes, calls = plan.choose()
    assert (changes.way, calls.way) == (TYPED, KPROBE)
    assert reasons(calls) == [f"calls: fentry: {ERROR}"]


def test_a_slot_that_is_not_required_may_have_no_way(host: pytest.MonkeyPatch) -> None:
    calls = Slot("calls", (CLASSIC,), required=False)
    plan = Plan((calls, CHANGES), BOTH)
    plan.choose()
    plan.refuse(calls, ERROR)
    none, changes = plan.choose()
    assert (none.way, none.sections, changes.way) == (None, (), TYPED)
    assert reasons(none) == [f"calls: tracepoint: {ERROR}"]


def load_error(*log: str) -> LibbpfError:
    return LibbpfError("bpf_object__load", errno.EINVAL, log)


@pytest.mark.parametrize(
    ("program", "changes", "calls"),
    [("again_btf", RAW, FENTRY), ("f_fentry", TYPED, KPROBE), ("f6_fentry", TYPED, KPROBE)],
)
def test_the_program_that_does_not_load_costs_its_slot_a_way(
    host: pytest.MonkeyPatch, program: str, changes: Way, calls: Way
) -> None:
    plan = Plan(ALL, BOTH)
    plan.choose()
    log = "libbpf: some warning", f"libbpf: prog '{program}': BPF program load failed: no"
    plan.refuse_load(load_error(*log), FUNCTIONS)
    assert [use.way for use in plan.choose()] == [changes, calls]


def test_where_the_log_names_no_program_all_slots_go_on(host: pytest.MonkeyPatch) -> None:
    plan = Plan(ALL, BOTH)
    plan.choose()
    plan.refuse_load(load_error("libbpf: failed"), FUNCTIONS)
    assert [use.way for use in plan.choose()] == [RAW, KPROBE]
    plan.refuse_load(load_error("libbpf: failed"), FUNCTIONS)
    assert [use.way for use in plan.choose()] == [RAW, CLASSIC]
    with pytest.raises(UnsupportedError) as e:
        plan.refuse_load(load_error("libbpf: the last"), FUNCTIONS)
    assert str(e.value).endswith("Invalid argument: the last")


def test_a_program_that_is_in_no_slot_ends_the_search(host: pytest.MonkeyPatch) -> None:
    plan = Plan(ALL, BOTH)
    plan.choose()
    with pytest.raises(UnsupportedError, match="load of 'called' failed"):
        plan.refuse_load(load_error("libbpf: prog 'called': load of 'called' failed"), FUNCTIONS)


def failure(*errors: LibbpfError, btf: Path | None = None) -> Exception:
    """Of a slot with a way for each error."""
    slot = Slot("calls", tuple(Way((f"raw_tp/{i}",)) for i in range(len(errors))))
    plan = Plan((slot,), BOTH, btf)
    for error in errors:
        plan.choose()
        plan.refuse(slot, error)
    with pytest.raises((UnsupportedError, PrivilegeError)) as e:
        plan.choose()
    return e.value


def test_every_refusal_is_in_the_error(host: pytest.MonkeyPatch) -> None:
    error = failure(ERROR, load_error("libbpf: told by libbpf"))
    assert isinstance(error, UnsupportedError)
    assert f"calls: raw_tp: {ERROR}; calls: raw_tp: bpf_object__load: " in str(error)
    assert "told by libbpf" in str(error)
    assert "\n" not in str(error)


def test_the_error_has_a_remedy(host: pytest.MonkeyPatch) -> None:
    host.setattr(plan, "_lockdown", lambda: "integrity")
    assert str(failure(ERROR)).endswith(str(ERROR))
    host.setattr(plan, "_lockdown", lambda: "confidentiality")
    assert "lockdown" in str(failure(ERROR))
    without_btf(host)
    no_btf = LibbpfError("bpf_object__load", errno.ESRCH, ["libbpf: failed to find valid BTF"])
    assert "`btf`" in str(failure(no_btf))
    given = str(failure(no_btf, btf=Path("/some/btf")))
    assert "`btf`" not in given
    assert "need BTF in the kernel itself, beside /some/btf" in given


def test_what_privilege_would_let_in_is_a_lack_of_privilege(host: pytest.MonkeyPatch) -> None:
    for number in (errno.EPERM, errno.EACCES):
        error = failure(ERROR, TracefsError("open", number, "a/b"))
        assert isinstance(error, PrivilegeError)
        assert f"calls: raw_tp: {ERROR}" in str(error)
    assert isinstance(failure(TracefsError("open", errno.ENOENT, "a/b")), UnsupportedError)
    # EPERM has many reasons elsewhere: a kernel that takes no fentry says it to root.
    assert isinstance(failure(LibbpfError("bpf_prog_load", errno.EPERM)), UnsupportedError)


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
    assert ("`map_size`" in str(error)) == (remedy == "ulimit -l")
    assert ("`buffer`" in str(error)) == (number == errno.ENOMEM)


def test_another_failure_has_run_out_of_nothing() -> None:
    assert plan.exhausted(LibbpfError("bpf_object__load", errno.EINVAL, [MAP_REFUSED])) is None
    assert (
        plan.exhausted(LibbpfError("bpf_object__load", errno.EPERM, ["libbpf: prog 'f'"])) is None
    )
