// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Who accepts connections from where, and how long they waited in the queue. */
#include "accept.h"
#include "accepting.bpf.h"
#include "output.bpf.h"
#include "transitions.bpf.h"

EVENT(accept_event);

struct part {
	__u64 since_ns; /* when it was established and came to its listener's queue */
	bool shown;	/* although accept() was not seen */
};

#include "entry.bpf.h"

static __always_inline void send(void *ctx, __u64 wait_ns, const struct conn *conn,
				 const struct owner *owner)
{
	struct accept_event event = {
		.ts_ns = bpf_ktime_get_ns(),
		.wait_ns = wait_ns,
		.cgroup_id = owner->cgroup_id,
		.tid = owner->tid,
	};

	if (!owner->wanted || !want_conn(conn))
		return;
	describe(&event, conn, owner);
	emit(ctx, &event, sizeof(event));
}

static __always_inline void accepted(void *ctx, struct sock *sk, const bool direct)
{
	struct entry *entry = find(sk);
	__u64 wait_ns = UNKNOWN_NS;
	struct owner owner = {};
	struct conn conn;

	if (entry) {
		bool shown = entry->part.shown;

		wait_ns = bpf_ktime_get_ns() - entry->part.since_ns;
		forget(sk);
		if (shown)
			return;
	}
	/* It may have been reset meanwhile. */
	if (!read_closed_conn(&conn, sk, direct))
		return;
	current_owner(&owner, sk, conn.netns, direct);
	send(ctx, wait_ns, &conn, &owner);
}

/*
 * A connection that a process has and nobody was seen to accept: the tracepoints of accept(2) tell
 * neither of 32-bit programs nor of io_uring. It is shown when its process acts on it, or with an
 * unknown owner when it ends.
 */
static __always_inline void found_accepted(void *ctx, struct sock *sk, int oldstate, int newstate,
					   const struct conn *conn, const bool owned,
					   const bool direct)
{
	struct entry *entry = find(sk);
	struct owner owner;

	if (!entry || entry->part.shown || !sk_read(sk, sk_socket, direct))
		return;
	changing_owner(&owner, entry, sk, conn->netns, oldstate, newstate, owned, direct);
	if (!owner.pid && newstate != TCP_CLOSE)
		return;
	entry->part.shown = true;
	send(ctx, UNKNOWN_NS, conn, &owner);
}

static __always_inline void transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				       const bool owned, const bool direct)
{
	struct entry entry = {.part = {.since_ns = bpf_ktime_get_ns()}};
	struct conn conn;

	if (newstate == TCP_SYN_RECV) { /* a new child: what is left at its address is another's */
		forget(sk);
		return;
	}
	if (newstate == TCP_SYN_SENT || newstate == TCP_LISTEN ||
	    !read_closed_conn(&conn, sk, direct) || !want_conn(&conn))
		return;
	if (newstate != TCP_ESTABLISHED)
		found_accepted(ctx, sk, oldstate, newstate, &conn, owned, direct);
	else if (oldstate == TCP_SYN_RECV && !sk_read(sk, sk_socket, direct))
		follow(sk, &entry);
}

static __always_inline void destroy(void *ctx, struct sock *sk, const bool direct)
{
	forget(sk);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
