// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Who accepts connections from where, and how long they waited in the queue. */
#include "accept.h"
#include "lib/accepting.bpf.h"
#include "lib/output.bpf.h"
#include "lib/transitions.bpf.h"

EVENT(accept_event);

enum progress { /* of a connection whose accept() was not seen */
		QUEUED,
		GRAFTED, /* a process has it, and it ended */
		SHOWN,
};

struct part {
	__u64 since_ns; /* when it was established and came to its listener's queue */
	enum progress progress;
};

#include "lib/entry.bpf.h"

static __always_inline void send(void *ctx, __u64 wait_ns, const struct conn *conn,
				 const struct owner *owner)
{
	struct accept_event event = {
		.ts_ns = bpf_ktime_get_ns(),
		.wait_ns = wait_ns,
		.cgroup_id = owner->cgroup_id,
		.tid = owner->tid,
	};

	if (!owner->wanted)
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
		if (entry->part.progress == SHOWN)
			return;
		wait_ns = bpf_ktime_get_ns() - entry->part.since_ns;
		conn = entry->conn;
		drop(sk);
	} else if (!read_closed_conn(&conn, sk, direct) || !want_conn(&conn)) {
		return; /* closed: it may have been reset meanwhile */
	}
	current_owner(&owner, sk, direct);
	send(ctx, wait_ns, &conn, &owner);
}

/*
 * A connection that a process has and nobody was seen to accept: the tracepoints of accept(2) tell
 * neither of 32-bit programs nor of io_uring. It is shown when its process acts on it. If it ends
 * before, accept() may be about to return on another CPU: then it is shown when it is destroyed.
 */
static __always_inline void found_accepted(void *ctx, struct sock *sk, int oldstate, int newstate,
					   const bool owned, const bool direct)
{
	struct entry *entry = find(sk);
	const struct owner *owner;
	struct owner other;

	if (!entry || entry->part.progress != QUEUED || !socket_of(sk))
		return;
	owner = changing_owner(&other, entry, sk, oldstate, newstate, owned, direct);
	if (owner->pid) {
		entry->part.progress = SHOWN;
		send(ctx, UNKNOWN_NS, &entry->conn, owner);
	} else if (newstate == TCP_CLOSE) {
		entry->part.progress = GRAFTED;
	}
}

static __always_inline void queued(struct sock *sk, const bool direct)
{
	struct entry entry = {.part.since_ns = bpf_ktime_get_ns()};

	if (read_tuple(&entry.conn, sk, TCP_ESTABLISHED, direct) == TUPLE_WANTED)
		follow(sk, &entry);
}

/* A child's way to its listener's queue, and what a process does with a connection that it has. */
static __always_inline bool concerns(int oldstate, int newstate)
{
	switch (newstate) {
	case TCP_ESTABLISHED:
		return oldstate == TCP_SYN_RECV;
	case TCP_FIN_WAIT1:
	case TCP_LAST_ACK:
	case TCP_CLOSE:
		return oldstate != TCP_SYN_SENT && oldstate != TCP_LISTEN;
	default:
		return false;
	}
}

static __always_inline void transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				       const bool owned, const bool direct)
{
	if (is_rejected(sk, newstate, direct))
		return;
	if (newstate != TCP_ESTABLISHED && oldstate != TCP_SYN_RECV)
		found_accepted(ctx, sk, oldstate, newstate, owned, direct);
	else if (newstate != TCP_ESTABLISHED)
		forget(sk); /* it was never queued: an older socket at its address was */
	else if (!socket_of(sk))
		queued(sk, direct);
}

static __always_inline void destroy(void *ctx, struct sock *sk, const bool direct)
{
	struct entry *entry = find(sk);
	struct owner owner;

	if (!entry)
		return;
	if (entry->part.progress == GRAFTED) {
		kept_owner(&owner, entry, sk, direct);
		send(ctx, UNKNOWN_NS, &entry->conn, &owner);
	}
	drop(sk);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
