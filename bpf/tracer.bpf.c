// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Connections that processes open, accept and close: each beginning has one end. */
#include "vmlinux.h"

enum progress { /* of a connection */
		UNSHOWN,
		QUEUED,	 /* established, and nobody was seen to accept it */
		GRAFTED, /* accepted, which was not seen, and at its end */
		OPEN,	 /* its beginning was shown, its end is due */
};

struct part {
	__u8 progress;
};

#include "lib/accepting.bpf.h"
#include "lib/entry.bpf.h"
#include "lib/output.bpf.h"
#include "tracer.h"
#include "lib/transitions.bpf.h"

EVENT(tracer_event);

static __always_inline void send(void *ctx, const struct conn *conn, const struct owner *owner,
				 enum tracer_action action)
{
	struct tracer_event event = {
		.ts_ns = bpf_ktime_get_ns(),
		.cgroup_id = owner->cgroup_id,
		.tid = owner->tid,
		.action = action,
	};

	describe(&event, conn, owner);
	emit(ctx, &event, sizeof(event));
}

/* connect() works on it: whose it is, before anything is known of how it ends. */
static __always_inline void connecting(struct sock *sk, const bool direct)
{
	struct entry entry = {};

	own(&entry.owner, sk, ROLE_ACTIVE, direct);
	follow(sk, &entry);
}

/* A child waits to be accepted. Its end may come first, or on another CPU meanwhile: see closing(). */
static __always_inline void queued(struct sock *sk, const struct conn *conn)
{
	/* No task owns it yet, so owner filters cannot match; its user is still the listener's. */
	struct entry entry = {
		.owner.role = ROLE_PASSIVE,
		.conn = *conn,
		.part.progress = QUEUED,
	};

	follow(sk, &entry);
}

static __always_inline void connected(void *ctx, struct sock *sk, int oldstate, const bool direct)
{
	struct entry *entry = find(sk);
	struct owner owner;
	struct conn conn;

	/* Of a child that was accepted before the handshake was over (RFC 7413), A was shown. */
	if ((entry && entry->owner.role != ROLE_ACTIVE) ||
	    read_tuple(&conn, sk, TCP_ESTABLISHED, direct) != TUPLE_WANTED)
		return;
	if (!entry && oldstate == TCP_SYN_RECV) {
		queued(sk, &conn);
		return;
	}
	kept_owner(&owner, entry, sk, direct);
	if (entry)
		entry->conn = conn;
	if (!owner.wanted)
		return;
	if (entry)
		entry->part.progress = OPEN;
	send(ctx, &conn, &owner, ACTION_CONNECT);
}

static __always_inline void accepted(void *ctx, struct sock *sk, const bool direct)
{
	struct entry *entry = find(sk), new = {};
	struct owner *owner = entry ? &entry->owner : &new.owner;

	if (entry && entry->conn.family)
		new.conn = entry->conn;
	else if (!read_closed_conn(&new.conn, sk, direct) || !want_conn(&new.conn))
		return;
	own(owner, sk, ROLE_PASSIVE, direct);
	if (owner->wanted)
		send(ctx, &new.conn, owner, ACTION_ACCEPT);
	/* After the event: the end comes later. */
	new.part.progress = owner->wanted ? OPEN : UNSHOWN;
	if (entry)
		entry->part.progress = new.part.progress;
	else
		follow(sk, &new);
}

/* RFC 9293, 3.10.4 and 3.10.7.4: each connection that was established makes one such change. */
static __always_inline bool is_closing(int oldstate, int newstate)
{
	switch (oldstate) {
	case TCP_SYN_RECV: /* accepted before the handshake was over (RFC 7413) */
	case TCP_ESTABLISHED:
		return newstate == TCP_FIN_WAIT1 || newstate == TCP_CLOSE;
	case TCP_CLOSE_WAIT:
		return newstate == TCP_LAST_ACK || newstate == TCP_CLOSE;
	default:
		return false;
	}
}

/*
 * A connection may end that nobody was seen to accept. If a process has it all the same, it came by
 * a way that the tracepoints of accept(2) do not tell of: from a 32-bit program, or io_uring. An
 * accept() on another CPU may also be about to return, unless a process acts on it already.
 */
static __always_inline void closing(void *ctx, struct sock *sk, int oldstate, int newstate,
				    const bool owned, const bool direct)
{
	struct entry *entry = find(sk);
	bool queued = entry && entry->part.progress == QUEUED, had = socket_of(sk);
	const struct owner *owner;
	struct owner other;
	struct conn conn;

	/* No process ever had it: it waits to be accepted, or never was established. */
	if (!entry && (oldstate == TCP_SYN_RECV || !had))
		return;
	if (queued && !had)
		return;
	if (entry && !queued && oldstate == TCP_SYN_RECV && entry->part.progress != OPEN)
		return;
	owner = changing_owner(&other, entry, sk, oldstate, newstate, owned, direct);
	if (queued && !(owned && owner->pid)) {
		if (newstate == TCP_CLOSE)
			entry->part.progress = GRAFTED;
		return;
	}
	if (entry)
		entry->part.progress = UNSHOWN;
	if (!owner->wanted)
		return;
	if (entry && entry->conn.family)
		conn = entry->conn;
	else if (!read_closed_conn(&conn, sk, direct) || !want_conn(&conn))
		return;
	if (queued)
		send(ctx, &conn, owner, ACTION_ACCEPT);
	send(ctx, &conn, owner, ACTION_CLOSE);
}

static __always_inline bool concerns(int oldstate, int newstate)
{
	return newstate == TCP_SYN_SENT || newstate == TCP_ESTABLISHED ||
	       is_new_child(oldstate, newstate) || is_closing(oldstate, newstate);
}

static __always_inline void transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				       const bool owned, const bool direct)
{
	if (reject(sk, oldstate, newstate, direct))
		return;
	if (is_new_child(oldstate, newstate))
		forget(sk);
	else if (newstate == TCP_SYN_SENT)
		connecting(sk, direct);
	else if (newstate == TCP_ESTABLISHED)
		connected(ctx, sk, oldstate, direct);
	else if (is_closing(oldstate, newstate))
		closing(ctx, sk, oldstate, newstate, owned, direct);
}

/* A socket that was reset before its process accepted it closes without a change of state. */
static __always_inline void destroy(void *ctx, struct sock *sk, const bool direct)
{
	struct entry *entry = find(sk);
	struct owner owner;

	if (!entry)
		return;
	if (entry->part.progress >= GRAFTED && entry->conn.family) {
		kept_owner(&owner, entry, sk, direct);
		/* With an owner, accept() was seen on another CPU in the same moment. */
		if (entry->part.progress == GRAFTED && !owner.pid && owner.wanted)
			send(ctx, &entry->conn, &owner, ACTION_ACCEPT);
		if (owner.wanted)
			send(ctx, &entry->conn, &owner, ACTION_CLOSE);
	}
	drop(sk);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
