"""What is given up after the attach, step by step; on a real process it is a live test's."""

from __future__ import annotations

import errno
import os
import pwd
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tcpcore.errors import LibbpfError
from tcpcore.session import privilege

NOBODY = (4242, 4343)
SYS_ADMIN, SETUID, BPF = 1 << 21, 1 << 7, 1 << 39
EVERY = (1 << 41) - 1
CAPBSET_DROP, NO_NEW_PRIVS, DUMPABLE = 24, 38, 4


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(pw_uid=NOBODY[0], pw_gid=NOBODY[1])
    monkeypatch.setattr(pwd, "getpwnam", {"nobody": found}.__getitem__)


def test_who_called_sudo() -> None:
    assert privilege.ordinary_user({"SUDO_UID": "1000", "SUDO_GID": "100"}) == (1000, 100)


@pytest.mark.parametrize(
    "text",
    ["", "0", "00", "-1", "+1000", " 1000", "1000x", "1e3", "1_0", "٣", "²", "4294967295",
     "4294967296", "9" * 5000],
)  # fmt: skip
def test_whoever_else_it_names_is_nobody(text: str) -> None:
    """Root is not, and 4294967295 would mean no change to setresuid(2)."""
    assert privilege.ordinary_user({"SUDO_UID": text, "SUDO_GID": "100"}) == NOBODY
    assert privilege.ordinary_user({"SUDO_UID": "1000", "SUDO_GID": text}) == NOBODY


def test_nobody_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for absent in ({}, {"SUDO_UID": "1000"}, {"SUDO_GID": "100"}):
        assert privilege.ordinary_user(absent) == NOBODY
    monkeypatch.setattr(pwd, "getpwnam", {}.__getitem__)
    assert privilege.ordinary_user({}) == (65534, 65534)
    found = SimpleNamespace(pw_uid=0, pw_gid=0)
    monkeypatch.setattr(pwd, "getpwnam", {"nobody": found}.__getitem__)
    assert privilege.ordinary_user({}) == (65534, 65534)


class Process:
    """A process as the kernel keeps it: its ids, its capabilities, what prctl() set.

    fixed: the calls that it may not make.
    """

    def __init__(self, uid: int = 0, permitted: int = EVERY, fixed: tuple[str, ...] = ()) -> None:
        self.uids: tuple[int, ...] = (uid,) * 3
        self.gids: tuple[int, ...] = (uid,) * 3
        self.groups = [0, 27]
        self.effective = self.permitted = permitted
        self.inheritable = SETUID
        self.bounding = set(range(41))
        self.flags: dict[int, int] = {}
        self._fixed = fixed

    def _may(self, call: str) -> None:
        if call in self._fixed:
            raise PermissionError(errno.EPERM, call)

    def setgroups(self, groups: list[int]) -> None:
        self._may("setgroups")
        self.groups = groups

    def setresgid(self, *ids: int) -> None:
        self._may("setresgid")
        self.gids = ids

    def setresuid(self, *ids: int) -> None:
        """Without PR_SET_KEEPCAPS capabilities go with root's last id; capabilities(7)."""
        self._may("setresuid")
        self.uids, self.effective = ids, 0
        if not self.flags.get(8):
            self.permitted = 0

    def prctl(self, what: int, value: int, *_: int) -> int:
        if what == CAPBSET_DROP:
            self.bounding.discard(value)
        else:
            self.flags[what] = value
        return 0

    def capget(self, _: Any, sets: Any) -> int:
        for i, mask in enumerate((self.effective, self.permitted, self.inheritable)):
            sets[i], sets[i + 3] = mask & 0xFFFFFFFF, mask >> 32
        return 0

    def capset(self, _: Any, sets: Any) -> int:
        effective, permitted, inheritable = (sets[i] | sets[i + 3] << 32 for i in range(3))
        assert not effective & ~permitted and not permitted & ~self.permitted, "EPERM"
        self.effective, self.permitted, self.inheritable = effective, permitted, inheritable
        return 0

    def read(self, *needs: int) -> None:
        """Before Linux 5.19 a map is read with one of these only."""
        if not any(self.effective & x for x in needs):
            raise LibbpfError("bpf_map_lookup_elem", errno.EPERM)


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def use(process: Process) -> Process:
        monkeypatch.setattr(privilege, "libc", lambda: process)
        monkeypatch.setattr(os, "getresuid", lambda: process.uids)
        for name in ("setgroups", "setresgid", "setresuid"):
            monkeypatch.setattr(os, name, getattr(process, name))
        for name in ("SUDO_UID", "SUDO_GID"):
            monkeypatch.delenv(name, raising=False)
        return process

    yield use


def test_all_goes(patch: Any) -> None:
    process = patch(Process())
    privilege.drop(lambda: None)
    assert (process.uids, process.gids, process.groups) == ((4242,) * 3, (4343,) * 3, [])
    assert (process.effective, process.permitted, process.inheritable) == (0, 0, 0)
    assert process.bounding == set()
    assert (process.flags[NO_NEW_PRIVS], process.flags[DUMPABLE]) == (1, 0)


def test_all_of_a_thread_goes(patch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has capabilities of its own, and the user of the process."""
    process, thread = patch(Process()), Process()

    def run(act: Callable[[], None]) -> None:
        with monkeypatch.context() as inside:
            inside.setattr(privilege, "libc", lambda: thread)
            if process.uids[0] and not thread.uids[0]:  # glibc has changed all threads
                thread.setresuid(*process.uids)
            act()

    run(privilege.keep_capabilities)
    monkeypatch.setattr(privilege, "threads", [run])
    privilege.drop(lambda: thread.read(BPF) if thread.uids[0] else process.read(BPF))
    for each in (process, thread):
        assert (each.effective, each.permitted, each.bounding) == (BPF, BPF, set())
        assert each.flags[NO_NEW_PRIVS] == 1


@pytest.mark.parametrize(
    ("permitted", "kept"), [(EVERY, BPF), (EVERY & ~BPF, SYS_ADMIN), (EVERY & ~SYS_ADMIN, BPF)]
)
def test_what_reading_a_map_needs_is_kept(patch: Any, permitted: int, kept: int) -> None:
    process = patch(Process(permitted=permitted))
    privilege.drop(lambda: process.read(BPF, SYS_ADMIN))
    assert (process.effective, process.permitted, process.inheritable) == (kept, kept, 0)
    process.read(BPF, SYS_ADMIN)
    assert process.uids == (4242,) * 3


def test_what_reading_a_map_does_not_need_is_not_kept(patch: Any) -> None:
    """It cannot be had at all: then nothing that does not help stays."""
    process = patch(Process())
    privilege.drop(lambda: process.read(1 << 30))
    assert (process.effective, process.permitted) == (0, 0)


def test_another_failure_is_told(patch: Any) -> None:
    def fail() -> None:
        raise LibbpfError("bpf_map_lookup_elem", errno.EFAULT)

    patch(Process())
    with pytest.raises(LibbpfError):
        privilege.drop(fail)


@pytest.mark.parametrize("fixed", ["setgroups", "setresgid", "setresuid"])
def test_what_the_process_may_not_do_is_left_out(patch: Any, fixed: str) -> None:
    process = patch(Process(fixed=(fixed,)))
    privilege.drop(lambda: None)
    assert process.groups == ([0, 27] if fixed == "setgroups" else [])
    assert process.gids == ((0,) * 3 if fixed == "setresgid" else (4343,) * 3)
    assert process.uids == ((0,) * 3 if fixed == "setresuid" else (4242,) * 3)
    assert process.permitted == 0 and process.flags[NO_NEW_PRIVS] == 1


def test_who_is_not_root_stays_who_it_is(patch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a service with capabilities of its own, say; whatever sudo called it."""
    process = patch(Process(uid=1000, permitted=BPF))
    monkeypatch.setenv("SUDO_UID", "1001")
    monkeypatch.setenv("SUDO_GID", "1001")
    privilege.drop(lambda: None)
    assert (process.uids, process.gids) == ((1000,) * 3, (1000,) * 3)
    assert process.permitted == 0


def test_one_id_of_root_is_enough(patch: Any) -> None:
    process = patch(Process())
    process.uids = (1000, 1000, 0)
    privilege.drop(lambda: None)
    assert process.uids == (4242,) * 3
