/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A task takes a connection from a listener's queue. The tool says in accepted() what it makes of
 * that: `current` is the accepting task; the socket is established, or was, and may be closed again.
 */
#ifndef TCPCORE_ACCEPTING_BPF_H
#define TCPCORE_ACCEPTING_BPF_H

#include "lib/compat.bpf.h"
#include "lib/sock.bpf.h"
#include "lib/task.bpf.h"
#include <bpf/bpf_tracing.h>

static __always_inline void accepted(void *ctx, struct sock *sk, const bool direct);

/* The first subflow of an MPTCP socket stands for the connection: nobody accepts the later ones. */
static __always_inline int accepts(void *ctx, struct sock *sk, const bool direct)
{
	struct sock *subflow;

	if (is_tcp(sk, direct)) {
		accepted(ctx, sk, direct);
		return 0;
	}
	subflow = first_subflow(sk, direct);
	if (subflow)
		accepted(ctx, subflow, BY_HELPER);
	return 0;
}

/*
 * accept(2) calls security_sock_graft() when its wait is over, so that threads which waited already
 * when the trace began are seen, too. A probe of the return of inet_csk_accept() does not see them,
 * and follows a limited number of waiting threads only.
 */
SEC("fentry/security_sock_graft")
int BPF_PROG(graft_fentry, struct sock *sk)
{
	return accepts(ctx, sk, DIRECT);
}

SEC("kprobe/security_sock_graft")
int BPF_KPROBE(graft_kprobe, struct sock *sk)
{
	return accepts(ctx, sk, BY_HELPER);
}

static __always_inline int accept_call_returns(void *ctx, int fd)
{
	struct sock *sk = fd < 0 ? NULL : sock_of_fd(fd);

	return sk ? accepts(ctx, sk, BY_HELPER) : 0;
}

SEC("tp/syscalls/sys_exit_accept,sys_exit_accept4")
int accept_returns(struct syscall_returns *ctx)
{
	return accept_call_returns(ctx, ctx->ret);
}

SEC("raw_tp/sys_exit")
int BPF_PROG(compat_accept_returns, struct pt_regs *regs, long ret)
{
	__u32 call = (int)ret < 0 ? SYS_NONE : compat_returning(regs);

	return call == SYS_ACCEPT || call == SYS_ACCEPT4 ? accept_call_returns(ctx, ret) : 0;
}

#endif /* TCPCORE_ACCEPTING_BPF_H */
