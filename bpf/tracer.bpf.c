// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Connections that processes open, accept and close: each beginning has one end. */
#include "accepting.bpf.h"
#include "output.bpf.h"
#include "owners.bpf.h"
#include "tracer.h"
#include "transitions.bpf.h"

EVENT(tracer_event);

#define MARK_OPEN 1 /* of an owner: the beginning was shown, the end is due */

/* Sockets whose end was shown. Whoever puts one in shows it: several CPUs may see an end at once. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64); /* struct sock * */
	__type(value, __u8);
} ended SEC(".maps");

static __always_inline bool claim_end(struct sock *sk)
{
	__u64 key = (__u64)sk;
	__u8 value = 0;
	/* An int: older kernels return one that is not extended to the helper's 64 bits. */
	int error = bpf_map_update_elem(&ended, &key, &value, BPF_NOEXIST);

	if (error && error != -EEXIST)
		lose_socket();
	return !error;
}

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
	__u64 key = (__u64)sk;

	/* The socket may have had a connection before. */
	bpf_map_delete_elem(&ended, &key);
	if (known)
		known->mark = 0;
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
	if (known)
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

	/* Nobody ever had it: it waits to be accepted, or never was established. */
	if (!known && (oldstate == TCP_SYN_RECV || !sk_read(sk, sk_socket, direct)))
		return;
	if (known && oldstate == TCP_SYN_RECV && known->mark != MARK_OPEN)
		return;
	find_owner(&owner, sk, conn->netns, direct);
	if (!want_conn(conn) || !owner.wanted || !claim_end(sk))
		return;
	send(ctx, conn, &owner, ACTION_CLOSE);
	if (known)
		known->mark = 0;
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
	__u64 key = (__u64)sk;
	struct conn conn;

	if (known && known->mark == MARK_OPEN && read_closed_conn(&conn, sk, direct) &&
	    claim_end(sk))
		send(ctx, &conn, known, ACTION_CLOSE);
	bpf_map_delete_elem(&ended, &key);
	disown(sk);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
