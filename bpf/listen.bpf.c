// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Who listens where, with what backlog, and with what result. */
#include "listen.h"
#include "lib/compat.bpf.h"
#include "lib/output.bpf.h"
#include "lib/owner.bpf.h"
#include <bpf/bpf_tracing.h>

EVENT(listen_event);

/* Of a kernel before Linux 5.15: there the stack ends with the registers, in 4 pages. */
#define STACK_SIZE 16384

/* arch/.../include/asm/syscall.h: where the number of the system call is. */
#if defined(__TARGET_ARCH_x86)
#define SYSCALL_LISTEN 50
#define SYSCALL_NUMBER(user) ((user)->orig_ax)
#elif defined(__TARGET_ARCH_arm64)
#define SYSCALL_LISTEN 201
#define SYSCALL_NUMBER(user) ((user)->user_regs.regs[8])
#endif

struct call {
	struct sock *sk;
	__s64 backlog;
};

/* Thread to its listen(): what sees the return does not see the arguments. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct call);
} calls SEC(".maps");

static __always_inline bool is_mptcp(struct sock *sk)
{
	return sk_read(sk, sk_protocol, BY_HELPER) == IPPROTO_MPTCP;
}

/*
 * The key of a call. Older kernels have mptcp_listen() call inet_listen() for the subflow, in the same
 * thread; Linux 6.18 has __inet_listen_sk() for that.
 */
static __always_inline __u64 thread_and(bool mptcp)
{
	return (__u64)mptcp << 32 | (__u32)bpf_get_current_pid_tgid();
}

static __always_inline enum v6only v6only(struct sock *sk, const struct conn *conn)
{
	if (conn->family != AF_INET6)
		return V6ONLY_UNKNOWN;
	return BPF_CORE_READ_BITFIELD_PROBED(sk, __sk_common.skc_ipv6only) ? V6ONLY_ON : V6ONLY_OFF;
}

static __always_inline void tell(void *ctx, struct sock *sk, __s64 backlog, int error)
{
	struct listen_event event = {
		.ts_ns = bpf_ktime_get_ns(),
		.backlog = backlog,
		.limit = ~0U,
		.result = -error,
		.protocol = is_mptcp(sk) ? PROTOCOL_MPTCP : PROTOCOL_TCP,
	};
	/* What an MPTCP socket is bound to is known to its first subflow, which does the listening. */
	struct sock *listener = first_subflow(sk, BY_HELPER) ?: sk;
	struct owner owner = {};
	struct conn conn;

	if (!common_conn(&conn, listener, BY_HELPER) || !want_conn(&conn))
		return;
	current_owner(&owner, sk, BY_HELPER);
	if (!owner.wanted)
		return;
	if (!error)
		event.limit = sk_read(listener, sk_max_ack_backlog, BY_HELPER);
	event.v6only = v6only(listener, &conn);
	event.tid = owner.tid;
	event.cgroup_id = owner.cgroup_id;
	describe(&event, &conn, &owner);
	emit(ctx, &event, sizeof(event));
}

/* The registers that current entered the kernel with. */
static __always_inline struct pt_regs *user_registers(void)
{
	void *stack;

	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_task_pt_regs))
		return (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());
	stack = BPF_CORE_READ(current_task(), stack);
	return stack + STACK_SIZE - bpf_core_type_size(struct pt_regs);
}

/*
 * The backlog that was asked for. listen(2) lowers it to net.core.somaxconn before it calls
 * inet_listen(): then the system call's own argument has it. A call that does not come from there, as
 * the kernel's own, or one of a 32-bit program, has no such, and a number that would not have been
 * lowered is not it.
 */
static __always_inline __s64 asked(struct sock *sk, int backlog)
{
	int most = BPF_CORE_READ(sk, __sk_common.skc_net.net, core.sysctl_somaxconn);
	struct pt_regs *user = user_registers(), registers;
	int argument;

	if (backlog != most)
		return backlog;
	if (bpf_probe_read_kernel(&registers, sizeof(registers), user) ||
	    SYSCALL_NUMBER(&registers) != SYSCALL_LISTEN)
		return UNKNOWN_BACKLOG;
	argument = PT_REGS_PARM2_SYSCALL(&registers);
	return (__u32)argument < (__u32)most ? UNKNOWN_BACKLOG : argument;
}

/* Of a subflow, mptcp_listen() tells. */
static __always_inline bool is_ours(struct sock *sk)
{
	return is_mptcp(sk) || (is_tcp(sk, BY_HELPER) && !is_subflow(sk));
}

static __always_inline int returned(void *ctx, struct socket *socket, int backlog, int error)
{
	struct sock *sk = BPF_CORE_READ(socket, sk);

	if (sk && is_ours(sk))
		tell(ctx, sk, asked(sk, backlog), error);
	return 0;
}

SEC("fexit/inet_listen")
int BPF_PROG(inet_fexit, struct socket *socket, int backlog, int ret)
{
	return returned(ctx, socket, backlog, ret);
}

SEC("fexit/mptcp_listen")
int BPF_PROG(mptcp_fexit, struct socket *socket, int backlog, int ret)
{
	return returned(ctx, socket, backlog, ret);
}

static __always_inline void enter(struct sock *sk, __s64 backlog)
{
	struct call call = {.sk = sk, .backlog = backlog};
	__u64 key;

	if (!sk || !is_ours(sk))
		return;
	key = thread_and(is_mptcp(sk));
	remember(&calls, &key, &call);
}

static __always_inline int leave(void *ctx, bool mptcp, int error)
{
	__u64 key = thread_and(mptcp);
	struct call *found = bpf_map_lookup_elem(&calls, &key), call;

	if (!found)
		return 0;
	call = *found;
	bpf_map_delete_elem(&calls, &key);
	tell(ctx, call.sk, call.backlog, error);
	return 0;
}

static __always_inline int called(struct socket *socket, int backlog)
{
	struct sock *sk = BPF_CORE_READ(socket, sk);

	if (sk)
		enter(sk, asked(sk, backlog));
	return 0;
}

SEC("kprobe/inet_listen")
int BPF_KPROBE(inet_kprobe, struct socket *socket, int backlog)
{
	return called(socket, backlog);
}

SEC("kretprobe/inet_listen")
int BPF_KRETPROBE(inet_kretprobe, int ret)
{
	return leave(ctx, false, ret);
}

SEC("kprobe/mptcp_listen")
int BPF_KPROBE(mptcp_kprobe, struct socket *socket, int backlog)
{
	return called(socket, backlog);
}

SEC("kretprobe/mptcp_listen")
int BPF_KRETPROBE(mptcp_kretprobe, int ret)
{
	return leave(ctx, true, ret);
}

/* Here the backlog is what the program asked for. */
SEC("tp/syscalls/sys_enter_listen")
int call_enters(struct syscall_enters *ctx)
{
	enter(sock_of_fd(ctx->args[0]), (int)ctx->args[1]);
	return 0;
}

static __always_inline int listen_returns(void *ctx, int ret)
{
	leave(ctx, false, ret);
	leave(ctx, true, ret);
	return 0;
}

SEC("tp/syscalls/sys_exit_listen")
int call_returns(struct syscall_returns *ctx)
{
	return listen_returns(ctx, ctx->ret);
}

SEC("raw_tp/sys_enter")
int BPF_PROG(compat_enters, struct pt_regs *regs, long number)
{
	struct compat_arguments arguments;

	if (compat_call(regs, number) != SYS_LISTEN)
		return 0;
	arguments = compat_arguments(regs, number);
	enter(sock_of_fd(arguments.first), (int)arguments.second);
	return 0;
}

SEC("raw_tp/sys_exit")
int BPF_PROG(compat_returns, struct pt_regs *regs, long ret)
{
	if ((int)ret > 0 || compat_returning(regs) != SYS_LISTEN)
		return 0;
	return listen_returns(ctx, ret);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
