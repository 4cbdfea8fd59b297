/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A task takes a connection from its listener's queue. The tool says in accepted() what becomes of
 * it. `current` is the accepting task, and the socket is established, or was.
 */
#ifndef TCPCORE_ACCEPTING_BPF_H
#define TCPCORE_ACCEPTING_BPF_H

#include "lib/sock.bpf.h"
#include "lib/task.bpf.h"
#include <bpf/bpf_tracing.h>

static __always_inline void accepted(void *ctx, struct sock *sk, const bool direct);

/* Of an MPTCP socket the first subflow stands for the connection: those after it are not accepted. */
static __always_inline int accepts(void *ctx, struct sock *sk, const bool direct)
{
	struct sock *subflow;

	if (is_tcp(sk, direct)) {
		accepted(ctx, sk, direct);
		return 0;
	}
	subflow = first_subflow(sk, direct);
	if (subflow)
		accepted(ctx, subflow, false);
	return 0;
}

/*
 * security_sock_graft() is called in accept(2) when the wait is over. So it is seen for threads
 * that waited already when the trace began, and it takes no return probe, of which the kernel has
 * a limited number for waiting threads. inet_csk_accept(), where others look, has neither.
 */
SEC("fentry/security_sock_graft")
int BPF_PROG(graft_fentry, struct sock *sk)
{
	return accepts(ctx, sk, true);
}

SEC("kprobe/security_sock_graft")
int BPF_KPROBE(graft_kprobe, struct sock *sk)
{
	return accepts(ctx, sk, false);
}

static __always_inline int syscall_returns(struct trace_event_raw_sys_exit *ctx)
{
	struct sock *sk = ctx->ret < 0 ? NULL : sock_of_fd(ctx->ret);

	return sk ? accepts(ctx, sk, false) : 0;
}

SEC("tp/syscalls/sys_exit_accept")
int accept_returns(struct trace_event_raw_sys_exit *ctx)
{
	return syscall_returns(ctx);
}

SEC("tp/syscalls/sys_exit_accept4")
int accept4_returns(struct trace_event_raw_sys_exit *ctx)
{
	return syscall_returns(ctx);
}

#endif /* TCPCORE_ACCEPTING_BPF_H */
