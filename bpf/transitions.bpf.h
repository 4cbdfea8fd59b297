/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A socket's state changes, and its end. The tool says in transition() and destroy() what becomes
 * of them. The end is what tools rely on to forget a socket, as its address will be in use again.
 */
#ifndef TCPCORE_TRANSITIONS_BPF_H
#define TCPCORE_TRANSITIONS_BPF_H

#include "sock.bpf.h"
#include <bpf/bpf_tracing.h>

/* owned: a task has the socket's lock, and makes the change. */
static __always_inline void transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				       const bool owned, const bool direct);
static __always_inline void destroy(void *ctx, struct sock *sk, const bool direct);

/*
 * Since Linux 6.1 (05b24ff9b2cf) a program is skipped that comes while it runs on the same CPU
 * already, as when a packet's change of state interrupts a system call's. So there are two: one
 * for changes under a task's lock, which interrupt nothing, and one for all others, which hardly
 * anything interrupts.
 *
 * The kernel counts a skipped program as missed, also the first one in an interrupt, where it has
 * nothing to do. Those are counted here, so that user space can take them off.
 */
__u64 harmless_misses;

enum task_program { /* whether it runs on this CPU */
		    IDLE,
		    RUNNING,
		    ENTERED_AGAIN, /* by an interrupt: the kernel does not skip it */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} task_programs SEC(".maps");

static __always_inline bool is_owned(struct sock *sk, const bool direct)
{
	return sk_read(sk, sk_lock.owned, direct);
}

static __always_inline int change_in_task(void *ctx, struct sock *sk, int oldstate, int newstate,
					  const bool direct)
{
	__u32 zero = 0, *program = bpf_map_lookup_elem(&task_programs, &zero);

	if (!program)
		return 0;
	if (!is_owned(sk, direct)) {
		if (*program == RUNNING)
			*program = ENTERED_AGAIN;
		return 0;
	}
	*program = RUNNING;
	if (is_tcp(sk, direct))
		transition(ctx, sk, oldstate, newstate, true, direct);
	*program = IDLE;
	return 0;
}

static __always_inline int change_in_softirq(void *ctx, struct sock *sk, int oldstate, int newstate,
					     const bool direct)
{
	__u32 zero = 0, *program = bpf_map_lookup_elem(&task_programs, &zero);

	if (!program || is_owned(sk, direct))
		return 0;
	if (*program == RUNNING)
		__sync_fetch_and_add(&harmless_misses, 1);
	else if (*program == ENTERED_AGAIN)
		*program = RUNNING;
	if (is_tcp(sk, direct))
		transition(ctx, sk, oldstate, newstate, false, direct);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(task_change_btf, struct sock *sk, int oldstate, int newstate)
{
	return change_in_task(ctx, sk, oldstate, newstate, true);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(softirq_change_btf, struct sock *sk, int oldstate, int newstate)
{
	return change_in_softirq(ctx, sk, oldstate, newstate, true);
}

SEC("raw_tp/inet_sock_set_state")
int BPF_PROG(task_change_raw, struct sock *sk, int oldstate, int newstate)
{
	return change_in_task(ctx, sk, oldstate, newstate, false);
}

SEC("raw_tp/inet_sock_set_state")
int BPF_PROG(softirq_change_raw, struct sock *sk, int oldstate, int newstate)
{
	return change_in_softirq(ctx, sk, oldstate, newstate, false);
}

/* It runs with softirqs off, so that it interrupts nothing. */
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
