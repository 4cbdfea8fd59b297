"""The one line of a long log that tells the cause."""

from __future__ import annotations

import errno

from tcpcore import errors
from tcpcore.errors import LibbpfError, TcpcoreError

# What libbpf prints for a program that the verifier refuses: three messages.
VERIFIER = (
    "libbpf: prog 'set_state_btf': BPF program load failed: Permission denied",
    """libbpf: prog 'set_state_btf': -- BEGIN PROG LOAD LOG --
reg type unsupported for arg#0 function set_state_btf#27
0: R1=ctx(off=0,imm=0) R10=fp0
; int BPF_PROG(set_state_btf, struct sock *sk, int oldstate, int newstate)
0: (79) r1 = *(u64 *)(r1 +0)
func 'inet_sock_set_state' arg0 has btf_id 1523 type STRUCT 'sock'
1: R1_w=trusted_ptr_sock(off=0,imm=0)
1: (61) r2 = *(u32 *)(r1 +99999)
access beyond struct sock at off 99999 size 4
processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
-- END PROG LOAD LOG --""",
    "libbpf: prog 'set_state_btf': failed to load: -13",
    "libbpf: failed to load object 'states.x86'",
)
TIMED = (
    """libbpf: prog 'f': -- BEGIN PROG LOAD LOG --
10: (85) call bpf_probe_read_kernel#113
program of this type cannot use helper bpf_probe_read_kernel#113
verification time 113 usec
stack depth 0
processed 11 insns (limit 1000000) max_states_per_insn 0 total_states 1 peak_states 1 mark_read 1
-- END PROG LOAD LOG --
""",
)
NO_VERIFIER = (
    "libbpf: prog 'v4_fentry': failed to find kernel BTF type ID of 'tcp_v4_connect': -3",
    "libbpf: prog 'v4_fentry': failed to prepare load attributes: -3",
    "libbpf: prog 'v4_fentry': failed to load: -3",
)


def test_the_verifiers_last_line_tells() -> None:
    error = LibbpfError("bpf_object__load", errno.EACCES, VERIFIER)
    assert error.telling == "access beyond struct sock at off 99999 size 4"
    assert str(error) == (
        "bpf_object__load: Permission denied: access beyond struct sock at off 99999 size 4"
    )
    assert error.log == VERIFIER


def test_the_verifiers_tail_is_short_and_without_statistics() -> None:
    tail = LibbpfError("bpf_object__load", errno.EACCES, VERIFIER).verifier
    assert len(tail) <= 8
    assert tail[-2:] == [
        "1: (61) r2 = *(u32 *)(r1 +99999)",
        "access beyond struct sock at off 99999 size 4",
    ]
    assert not [line for line in tail if "libbpf" in line or "processed" in line]


def test_times_and_stack_depth_tell_nothing() -> None:
    error = LibbpfError("bpf_object__load", errno.EINVAL, TIMED)
    assert error.telling == "program of this type cannot use helper bpf_probe_read_kernel#113"


def test_without_a_verifier_libbpfs_first_line_tells() -> None:
    error = LibbpfError("bpf_object__load", errno.ESRCH, NO_VERIFIER)
    assert error.verifier == []
    assert error.telling.startswith("prog 'v4_fentry': failed to find kernel BTF type ID")
    assert "\n" not in str(error)


def test_an_empty_verifier_log_leaves_libbpfs_line() -> None:
    log = (
        "libbpf: prog 'f': BPF program load failed: Operation not permitted",
        "libbpf: prog 'f': -- BEGIN PROG LOAD LOG --\n-- END PROG LOAD LOG --",
    )
    error = LibbpfError("bpf_object__load", errno.EPERM, log)
    assert error.telling == "prog 'f': BPF program load failed: Operation not permitted"


def test_no_log_at_all() -> None:
    assert str(LibbpfError("bpf_map__fd", errno.EINVAL)) == "bpf_map__fd: Invalid argument"


def test_every_error_is_a_tcpcore_error_with_its_exit_code() -> None:
    codes = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, TcpcoreError)
    }
    assert codes == {
        "TcpcoreError": 1,
        "LibbpfError": 1,
        "OptionError": 2,
        "UsageError": 2,
        "UnsupportedError": 3,
        "PrivilegeError": 4,
        "LostError": 5,
        "AlarmError": 6,
    }
