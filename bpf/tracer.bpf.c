// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Connections that processes open, accept and close. What was opened or accepted is closed exactly
 * once; the owner's mark says how far a socket is.
 */
#include "accepting.bpf.h"
#include "output.bpf.h"
#include "owners.bpf.h"
#include "tracer.h"
#include "transitions.bpf.h"

EVENT(tracer_event);

enum mark {
	MARK_NONE,
	MARK_OPEN,   /* its beginning was shown, its end is due */
	MARK_CLOSED, /* its end was shown */
};

static __always_inline void send(void *ctx, const struct conn *conn, const struct owner *owner,
				 enum tracer_action action)
{
	struct tracer_event event = {
		.ts_ns = bpf_ktime_get_ns(),
		.cgroup_id = owner->cgroup_id,
		.pid = owner->pid,
		.tid = owner->tid,
		.uid = owner->uid,
		.netns = conn->netns,
		.lport = conn->lport,
		.rport = conn->rport,
		.family = conn->family,
		.action = action,
	};

	__builtin_memcpy(event.laddr, &conn->laddr, sizeof(event.laddr));
	__builtin_memcpy(event.raddr, &conn->raddr, sizeof(event.raddr));
	__builtin_memcpy(event.comm, owner->comm, sizeof(event.comm));
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

static __always_inline void connected(void *ctx, struct sock *sk, int oldstate,
				      const struct conn *conn, const bool direct)
{
	struct owner *known = known_owner(sk), owner;

	if (known ? known->role != ROLE_ACTIVE || known->mark : oldstate != TCP_SYN_SENT)
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
	bool closed = known && known->mark == MARK_CLOSED;
	struct conn conn;

	if (!read_closed_conn(&conn, sk, direct))
		return;
	if (!want_conn(&conn))
		return;
	if (!own(&owner, known, sk, conn.netns, ROLE_PASSIVE))
		lose_socket();
	if (!owner.wanted)
		return;
	known = known_owner(sk);
	/* accept() as a system call is seen when it returns: the connection may be over by then. */
	if (known && !closed)
		known->mark = MARK_OPEN;
	send(ctx, &conn, &owner, ACTION_ACCEPT);
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
	__u64 key = (__u64)sk;

	if (known && known->mark == MARK_CLOSED)
		return;
	/* Nobody ever had it: it waits to be accepted, or never was established. */
	if (!known && (oldstate == TCP_SYN_RECV || !sk_read(sk, sk_socket, direct)))
		return;
	if (known && oldstate == TCP_SYN_RECV && known->mark != MARK_OPEN)
		return;
	find_owner(&owner, sk, conn->netns, direct);
	if (!want_conn(conn) || !owner.wanted)
		return;
	send(ctx, conn, &owner, ACTION_CLOSE);
	owner.mark = MARK_CLOSED;
	bpf_map_update_elem(&owners, &key, &owner, BPF_ANY);
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
	struct owner *known = known_owner(sk), owner;
	struct conn conn;

	if (!known)
		return;
	owner = *known;
	disown(sk);
	if (owner.mark == MARK_OPEN && read_closed_conn(&conn, sk, direct))
		send(ctx, &conn, &owner, ACTION_CLOSE);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
