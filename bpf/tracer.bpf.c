// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Connections that processes open, accept and close: each beginning has one end. */
#include "accepting.bpf.h"
#include "output.bpf.h"
#include "owners.bpf.h"
#include "tracer.h"
#include "transitions.bpf.h"

EVENT(tracer_event);

enum mark { /* of an owner */
	    MARK_NONE,
	    MARK_QUEUED, /* established, and nobody has accepted it */
	    MARK_OPEN,	 /* its beginning was shown, its end is due */
};

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
static __always_inline void connecting(struct sock *sk, const struct conn *conn)
{
	struct owner *known = known_owner(sk), owner;

	if (known) /* the socket had a connection before */
		known->mark = MARK_NONE;
	if (!own(&owner, known, sk, conn->netns, ROLE_ACTIVE))
		lose_socket();
}

/*
 * A child waits to be accepted. Its end may come first, or on another CPU meanwhile: as long as it
 * is marked as queued, only its destruction shows it.
 */
static __always_inline void queued(struct sock *sk, const struct conn *conn)
{
	/* Nobody's, so nobody's that is wanted: its user is the listener's until it is accepted. */
	struct owner owner = {.role = ROLE_PASSIVE, .mark = MARK_QUEUED};
	__u64 key = (__u64)sk;

	if (want_conn(conn))
		remember(&owners, &key, &owner);
}

static __always_inline void connected(void *ctx, struct sock *sk, int oldstate,
				      const struct conn *conn, const bool direct)
{
	struct owner *known = known_owner(sk), owner;

	if (!known && oldstate == TCP_SYN_RECV) {
		queued(sk, conn);
		return;
	}
	if (known && (known->role != ROLE_ACTIVE || known->mark))
		return;
	if (!want_conn(conn)) {
		disown(sk);
		return;
	}
	if (known)
		owner = *known;
	else
		unknown_owner(&owner, sk, conn->netns, direct);
	if (!owner.wanted)
		return;
	if (known)
		known->mark = MARK_OPEN;
	send(ctx, conn, &owner, ACTION_CONNECT);
}

static __always_inline void accepted(void *ctx, struct sock *sk, const bool direct)
{
	struct owner *known = known_owner(sk), owner;
	struct conn conn;

	if (!read_closed_conn(&conn, sk, direct) || !want_conn(&conn))
		return;
	if (!own(&owner, known, sk, conn.netns, ROLE_PASSIVE))
		lose_socket();
	if (owner.wanted)
		send(ctx, &conn, &owner, ACTION_ACCEPT);
	known = known_owner(sk);
	if (known) /* after the event: the end comes later */
		known->mark = owner.wanted ? MARK_OPEN : MARK_NONE;
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

static __always_inline void closing(void *ctx, struct sock *sk, int oldstate,
				    const struct conn *conn, const bool direct)
{
	struct owner *known = known_owner(sk), owner;

	/* Nobody ever had it: it waits to be accepted, or never was established. */
	if (!known && (oldstate == TCP_SYN_RECV || !sk_read(sk, sk_socket, direct)))
		return;
	if (known &&
	    (known->mark == MARK_QUEUED || (oldstate == TCP_SYN_RECV && known->mark != MARK_OPEN)))
		return;
	find_owner(&owner, sk, conn->netns, direct);
	if (known)
		known->mark = MARK_NONE;
	if (want_conn(conn) && owner.wanted)
		send(ctx, conn, &owner, ACTION_CLOSE);
}

static __always_inline void transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				       const bool direct)
{
	struct conn conn;

	if (newstate != TCP_SYN_SENT && newstate != TCP_ESTABLISHED &&
	    !is_closing(oldstate, newstate))
		return;
	if (!read_closed_conn(&conn, sk, direct))
		return;
	if (newstate == TCP_SYN_SENT)
		connecting(sk, &conn);
	else if (newstate == TCP_ESTABLISHED)
		connected(ctx, sk, oldstate, &conn, direct);
	else
		closing(ctx, sk, oldstate, &conn, direct);
}

/* A socket that was reset before its process accepted it closes without a change of state. */
static __always_inline void destroy(void *ctx, struct sock *sk, const bool direct)
{
	struct owner *known = known_owner(sk);
	struct conn conn;

	if (!known)
		return;
	if (known->mark == MARK_OPEN && read_closed_conn(&conn, sk, direct))
		send(ctx, &conn, known, ACTION_CLOSE);
	disown(sk);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
