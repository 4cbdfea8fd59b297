/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A socket's state changes, and its end. The tool says in concerns() which changes it has to do
 * with, and in transition() and destroy() what becomes of them. The end is what tools rely on to
 * forget a socket, as its address will be in use again.
 */
#ifndef TCPCORE_TRANSITIONS_BPF_H
#define TCPCORE_TRANSITIONS_BPF_H

#include "lib/output.bpf.h"
#include "lib/sock.bpf.h"
#include <bpf/bpf_tracing.h>

/* Asked before anything is read. */
static __always_inline bool concerns(int oldstate, int newstate);
/* owned: a task has the socket's lock, and makes the change. */
static __always_inline void transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				       const bool owned, const bool direct);
static __always_inline void destroy(void *ctx, struct sock *sk, const bool direct);

/*
 * A new connection of a listener. What is kept for its address belongs to an older socket, whose end
 * was missed. (A socket that connects comes to SYN_RECV from SYN_SENT, when the peer connects to it
 * at the same time: RFC 9293, 3.5, simultaneous open.)
 */
static __always_inline bool is_new_child(int oldstate, int newstate)
{
	return oldstate == TCP_LISTEN && newstate == TCP_SYN_RECV;
}

/* The handshake is over, and not everything of the connection. */
static __always_inline bool is_session(int state)
{
	return state != TCP_SYN_SENT && state != TCP_SYN_RECV && state != TCP_LISTEN &&
	       state != TCP_NEW_SYN_RECV && state != TCP_CLOSE;
}

/* How a session begins and ends; what packets change in between tells nothing of its owner. */
static __always_inline bool is_of_session(int oldstate, int newstate)
{
	switch (newstate) {
	case TCP_SYN_SENT:
	case TCP_ESTABLISHED:
	case TCP_FIN_WAIT1:
	case TCP_LAST_ACK:
		return true;
	case TCP_CLOSE:
		return oldstate != TCP_LISTEN;
	default:
		return is_new_child(oldstate, newstate);
	}
}

/*
 * Since Linux 6.1 (05b24ff9b2cf) the kernel does not start a program that is already running on the
 * same CPU. That happens when a packet changes a state while a system call's change is still being
 * worked on; and since 7.0, where tracepoints can be preempted, when another task changes one. So
 * there are two programs at the hook: the second one does what the first one was skipped for.
 */

/* A change that the first program has seen and the second one has not. */
struct seen {
	__u64 sk; /* 0: none */
	int newstate;
};

/*
 * Per CPU: the changes that the first program has worked on. It takes a place for each, and the
 * second program, which runs right after it, gives the place back. What stays is a change for which
 * the second program was skipped.
 */
struct seen_changes {
	bool first_runs;      /* the first program is at work, or interrupted there */
	struct seen packet;   /* by packets and timers: one is over before the next one begins */
	struct seen tasks[3]; /* by system calls: one may be interrupted for another */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct seen_changes);
} seen_changes SEC(".maps");

static __always_inline struct seen_changes *seen_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&seen_changes, &zero);
}

static __always_inline struct seen *free_place(struct seen_changes *seen, const bool owned)
{
	if (!owned)
		return &seen->packet;
	if (!seen->tasks[0].sk)
		return &seen->tasks[0];
	if (!seen->tasks[1].sk)
		return &seen->tasks[1];
	return &seen->tasks[2];
}

/* By the first program, as it begins to work. */
static __always_inline void note_change(struct seen_changes *seen, struct sock *sk, int newstate,
					const bool owned)
{
	struct seen *place = free_place(seen, owned);

	seen->first_runs = true;
	if (place->sk) /* the second program was skipped then */
		__sync_fetch_and_add(&made_up_for, 1);
	place->sk = (__u64)sk;
	place->newstate = newstate;
}

static __always_inline bool cross_out(struct seen *place, struct sock *sk, int newstate)
{
	if (place->sk != (__u64)sk || place->newstate != newstate)
		return false;
	place->sk = 0;
	return true;
}

/*
 * Asked by the second program: whether the first one has worked on this change. While the first one
 * is at work (it was interrupted by this change), it has not, and a note of the same socket and
 * state is an old one.
 */
static __always_inline bool is_seen(struct sock *sk, int newstate)
{
	struct seen_changes *seen = seen_here();

	if (!seen)
		return true;
	if (seen->first_runs)
		return false;
	return cross_out(&seen->packet, sk, newstate) || cross_out(&seen->tasks[0], sk, newstate) ||
	       cross_out(&seen->tasks[1], sk, newstate) || cross_out(&seen->tasks[2], sk, newstate);
}

static __always_inline bool is_owned(struct sock *sk, const bool direct)
{
	return sk_read(sk, sk_lock.owned, direct);
}

static __always_inline int change(void *ctx, struct sock *sk, int oldstate, int newstate,
				  const bool direct)
{
	struct seen_changes *seen;

	if (!concerns(oldstate, newstate) || !is_tcp(sk, direct))
		return 0;
	seen = seen_here();
	if (!seen)
		return 0;
	/*
	 * Read twice: what a branch was taken on is a constant to the verifier, which would follow all
	 * of the rest once for each value.
	 */
	note_change(seen, sk, newstate, is_owned(sk, direct));
	transition(ctx, sk, oldstate, newstate, is_owned(sk, direct), direct);
	seen->first_runs = false;
	return 0;
}

static __always_inline int change_again(void *ctx, struct sock *sk, int oldstate, int newstate,
					const bool direct)
{
	if (!concerns(oldstate, newstate) || is_seen(sk, newstate) || !is_tcp(sk, direct))
		return 0;
	__sync_fetch_and_add(&made_up_for, 1);
	transition(ctx, sk, oldstate, newstate, is_owned(sk, direct), direct);
	return 0;
}

/*
 * The programs, once for each kind of raw tracepoint. That at the socket's end runs with softirqs
 * off, so that nothing of its kind interrupts it.
 */
#define TRANSITION_PROGRAMS(kind, suffix, how)                                                     \
	SEC(kind "/inet_sock_set_state")                                                           \
	int BPF_PROG(change_##suffix, struct sock *sk, int oldstate, int newstate)                 \
	{                                                                                          \
		return change(ctx, sk, oldstate, newstate, how);                                   \
	}                                                                                          \
	SEC(kind "/inet_sock_set_state")                                                           \
	int BPF_PROG(change_again_##suffix, struct sock *sk, int oldstate, int newstate)           \
	{                                                                                          \
		return change_again(ctx, sk, oldstate, newstate, how);                             \
	}                                                                                          \
	SEC(kind "/tcp_destroy_sock")                                                              \
	int BPF_PROG(destroy_##suffix, struct sock *sk)                                            \
	{                                                                                          \
		destroy(ctx, sk, how);                                                             \
		return 0;                                                                          \
	}

TRANSITION_PROGRAMS("tp_btf", btf, DIRECT)
TRANSITION_PROGRAMS("raw_tp", raw, BY_HELPER)

#endif /* TCPCORE_TRANSITIONS_BPF_H */
