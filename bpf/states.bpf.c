// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Every TCP state change, and the time spent in the state before. */
#include "vmlinux.h"

struct part {
	__u64 since_ns;	  /* when the socket came to its state */
	__u64 offered_ns; /* since_ns of the row that is in `offered`; any other value: none is */
	__u8 state;
	__u8 held_from; /* old state of a row that waits for its tuple, 0: none waits */
};

#include "lib/accepting.bpf.h"
#include "lib/entry.bpf.h"
#include "lib/output.bpf.h"
#include "states.h"
#include "lib/transitions.bpf.h"

EVENT(states_event);

/*
 * A row waits in the entry of its socket while the tuple is incomplete: connect() enters SYN_SENT
 * before it has a local port, and older kernels give a new child its peer only after SYN_RECV
 * (inet_csk_clone_lock). The next change of the socket sends the row. A connect that hangs has no
 * next change for minutes. So user space runs send_held() for every socket, but only when this time
 * has changed since it did so last. (A plain store: a number that counts up would have to be atomic.)
 */
__u64 last_held_ns;

/*
 * Rows that either side may send: the next change of the socket, or send_held(). Whoever deletes the
 * key sends the row. send_held() offers a row when it finds it first, and tries to send it when it
 * comes again; by then all changes that did not see the offer are over. So a connect that is
 * answered soon costs nothing here.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);   /* struct sock * */
	__type(value, __u64); /* when it was offered */
} offered SEC(".maps");

/* Longer than a program at a change of state takes. */
#define OFFER_NS 1000000

static __always_inline void send(void *ctx, __u64 sk, __u64 ts_ns, __u64 duration_ns, __u8 oldstate,
				 __u8 newstate, const struct conn *conn, const struct owner *owner)
{
	struct states_event event = {
		.ts_ns = ts_ns,
		.duration_ns = duration_ns,
		.skaddr = sk,
		.oldstate = oldstate,
		.newstate = newstate,
	};

	describe(&event, conn, owner);
	emit(ctx, &event, sizeof(event));
}

/* Time in the old state is not known: it was the first one that we saw. */
static __always_inline void send_row(void *ctx, __u64 key, const struct part *row,
				     const struct conn *conn, const struct owner *owner)
{
	if (owner->wanted)
		send(ctx, key, row->since_ns, UNKNOWN_NS, row->held_from, row->state, conn, owner);
}

static __always_inline bool is_offered(const struct part *row)
{
	return row->offered_ns == row->since_ns;
}

/* True for one of those who try: the others find that the key is gone. */
static __always_inline bool take(__u64 key)
{
	return bpf_map_delete_elem(&offered, &key) == 0;
}

static __always_inline void forget_held(struct sock *sk)
{
	struct entry *entry = find(sk);

	if (!entry)
		return;
	if (entry->part.held_from && is_offered(&entry->part))
		take((__u64)sk);
	drop(sk);
}

/* The first change of a socket: false when its row has to wait. */
static __always_inline bool begin(struct sock *sk, __u64 now, int oldstate, int newstate,
				  const struct owner *owner, const struct conn *conn,
				  enum tuple tuple)
{
	struct entry new = {.part = {.since_ns = now, .state = newstate}};

	if (newstate == TCP_CLOSE)
		return true;
	if (owner->pid)
		new.owner = *owner;
	if (tuple == TUPLE_WANTED)
		new.conn = *conn;
	else
		new.part.held_from = oldstate;
	if (!follow(sk, &new) || tuple == TUPLE_WANTED)
		return true;
	last_held_ns = now;
	return false;
}

/* A later change, after the row that has waited. False when this one has to wait as well. */
static __always_inline bool go_on(void *ctx, struct sock *sk, struct entry *entry, __u64 now,
				  int oldstate, int newstate, const struct owner *owner,
				  const struct conn *conn, enum tuple tuple)
{
	__u64 key = (__u64)sk;

	if (entry->part.held_from && (!is_offered(&entry->part) || take(key)))
		send_row(ctx, key, &entry->part, conn, owner);
	entry->part.held_from = 0;
	entry->part.since_ns = now;
	entry->part.state = newstate;
	if (tuple == TUPLE_WANTED) {
		if (!entry->conn.family)
			entry->conn = *conn;
		return true;
	}
	entry->part.held_from = oldstate;
	last_held_ns = now;
	return false;
}

static __always_inline bool concerns(int oldstate, int newstate)
{
	return true;
}

static __always_inline void transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				       const bool owned, const bool direct)
{
	__u64 now, since = 0;
	struct entry *entry = NULL;
	enum tuple tuple = TUPLE_WANTED;
	struct conn read;
	const struct conn *conn = &read;
	const struct owner *owner;
	struct owner other;
	bool shown;

	if (is_rejected(sk, newstate, direct)) {
		if (was_incomplete(oldstate))
			forget_held(sk);
		return;
	}
	now = bpf_ktime_get_ns();
	/* A socket that begins, or begins anew, has no entry: another one had its address. */
	if (oldstate != TCP_CLOSE && !is_new_child(oldstate, newstate))
		entry = find(sk);
	if (entry && entry->conn.family)
		conn = &entry->conn;
	else
		tuple = read_tuple(&read, sk, newstate, direct);
	/* Else clang takes the tuple to pieces, which costs more than reading it where it is. */
	barrier_var(conn);
	if (tuple == TUPLE_REJECTED)
		return;
	owner = changing_owner(&other, entry, sk, oldstate, newstate, owned, direct);
	if (entry) {
		/* If it differs, a change was missed: how long the old state lasted is not known. */
		if (entry->part.state == oldstate)
			since = entry->part.since_ns;
		shown = go_on(ctx, sk, entry, now, oldstate, newstate, owner, conn, tuple);
	} else {
		shown = begin(sk, now, oldstate, newstate, owner, conn, tuple);
	}
	if (shown && owner->wanted)
		send(ctx, (__u64)sk, now, since ? now - since : UNKNOWN_NS, oldstate, newstate,
		     conn, owner);
	if (entry && newstate == TCP_CLOSE)
		drop(sk);
}

static __always_inline void accepted(void *ctx, struct sock *sk, const bool direct)
{
	struct entry unseen = {};

	own_accepted(sk, &unseen, direct);
}

static __always_inline void destroy(void *ctx, struct sock *sk, const bool direct)
{
	forget_held(sk);
}

/* The key comes first: a change that sees the offer finds it. */
static __always_inline void offer(__u64 key, struct entry *entry)
{
	__u64 now = bpf_ktime_get_ns(), since = entry->part.since_ns;

	last_held_ns = now; /* to be called again */
	if (bpf_map_update_elem(&offered, &key, &now, BPF_ANY))
		return;
	entry->part.offered_ns = since;
	if (!entry->part.held_from || entry->part.since_ns != since) /* it was sent meanwhile */
		take(key);
}

/*
 * Run by user space (BPF_PROG_TEST_RUN) on each socket. It may be gone meanwhile, and its address
 * in use again.
 */
SEC("raw_tp")
int send_held(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (struct sock *)ctx->args[0];
	__u64 key = (__u64)sk, *offered_at;
	struct entry *entry = find(sk);
	struct owner owner;
	struct part row;
	struct conn conn;
	enum tuple tuple;

	if (!entry)
		return 0;
	row = entry->part; /* by value: once the key is gone, a change may write to the entry */
	if (!row.held_from)
		return 0;
	if (!is_offered(&row)) {
		offer(key, entry);
		return 0;
	}
	offered_at = bpf_map_lookup_elem(&offered, &key);
	if (!offered_at) /* it was sent */
		return 0;
	tuple = read_tuple(&conn, sk, row.state, BY_HELPER);
	if (tuple == TUPLE_INCOMPLETE || bpf_ktime_get_ns() - *offered_at < OFFER_NS) {
		last_held_ns = bpf_ktime_get_ns();
		return 0;
	}
	kept_owner(&owner, entry, sk, BY_HELPER);
	if (!take(key))
		return 0;
	if (tuple == TUPLE_WANTED)
		send_row(ctx, key, &row, &conn, &owner);
	else
		drop(sk);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
