/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A socket's state changes, and its end. The tool says in transition() and destroy() what becomes
 * of them. A program is skipped while an instance of it runs on the CPU, so a change can be missed;
 * the end is what tools rely on to forget a socket, as its address will be in use again.
 */
#ifndef TCPCORE_TRANSITIONS_BPF_H
#define TCPCORE_TRANSITIONS_BPF_H

#include "sock.bpf.h"
#include <bpf/bpf_tracing.h>

static __always_inline void transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				       const bool direct);
static __always_inline void destroy(void *ctx, struct sock *sk, const bool direct);

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state_btf, struct sock *sk, int oldstate, int newstate)
{
	if (is_tcp(sk, true))
		transition(ctx, sk, oldstate, newstate, true);
	return 0;
}

SEC("raw_tp/inet_sock_set_state")
int BPF_PROG(set_state_raw, struct sock *sk, int oldstate, int newstate)
{
	if (is_tcp(sk, false))
		transition(ctx, sk, oldstate, newstate, false);
	return 0;
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(destroy_btf, struct sock *sk)
{
	destroy(ctx, sk, true);
	return 0;
}

SEC("raw_tp/tcp_destroy_sock")
int BPF_PROG(destroy_raw, struct sock *sk)
{
	destroy(ctx, sk, false);
	return 0;
}

#endif /* TCPCORE_TRANSITIONS_BPF_H */
