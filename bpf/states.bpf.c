// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Every TCP state change, and the time spent in the state before. */
#include "vmlinux.h"

struct part {
	__u64 since_ns;	  /* when the socket came to its state */
	__u64 offered_ns; /* since_ns of the row that was offered, see there; else any other value */
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
 * A row waits in its socket's entry while the tuple is incomplete: connect() enters SYN_SENT before
 * it has a local port, and older kernels give a new child its peer only after SYN_RECV. It is sent
 * with the socket's next change. A connect that hangs has none for minutes; so whenever this time
 * has changed, user space runs send_held() on every socket.
 */
__u64 last_held_ns;

/*
 * Rows that send_held() found. It offers a row first, and sends it when it comes again. From then
 * on whoever deletes the key sends the row; changes that did not see the offer are long over. All
 * other rows, those of connects that are answered soon, cost no map operation.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);   /* struct sock * */
	__type(value, __u64); /* when it was offered */
} offered SEC(".maps");

#define OFFER_NS 1000000 /* more than a change of state takes */

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

/* True for one of those who try, of which the others find the key gone. */
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

/* The socket's first change that we see: false when its row waits for the tuple. */
static __always_inline bool begin(struct sock *sk, __u64 now, int oldstate, int newstate,
				  const struct owner *owner, const struct conn *conn,
				  const bool complete)
{
	struct entry new = {.part = {.since_ns = now, .state = newstate}};

	if (newstate == TCP_CLOSE)
		return true;
	if (owner->pid)
		new.owner = *owner;
	if (complete)
		new.conn = *conn;
	else
		new.part.held_from = oldstate;
	if (!follow(sk, &new) || complete)
		return true;
	last_held_ns = now;
	return false;
}

/* Another one: the row that waited comes first. False when this one waits as well. */
static __always_inline bool go_on(void *ctx, struct sock *sk, struct entry *entry, __u64 now,
				  int oldstate, int newstate, const struct owner *owner,
				  const struct conn *conn, const bool complete)
{
	__u64 key = (__u64)sk;

	if (entry->part.held_from && (!is_offered(&entry->part) || take(key)))
		send_row(ctx, key, &entry->part, conn, owner);
	entry->part.held_from = 0;
	entry->part.since_ns = now;
	entry->part.state = newstate;
	if (complete) {
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
	struct owner owner;
	bool shown;

	if (is_rejected(sk, newstate, direct)) {
		if (was_incomplete(oldstate))
			forget_held(sk);
		return;
	}
	now = bpf_ktime_get_ns();
	/* What is kept at the address of a socket that begins, or begins anew, is another's. */
	if (oldstate != TCP_CLOSE && !is_new_child(oldstate, newstate))
		entry = find(sk);
	if (entry && entry->conn.family)
		conn = &entry->conn;
	else
		tuple = read_tuple(&read, sk, newstate, direct);
	barrier_var(
		conn); /* else clang keeps the tuple in pieces, which costs more than it saves */
	if (tuple == TUPLE_REJECTED)
		return;
	changing_owner(&owner, entry, sk, oldstate, newstate, owned, direct);
	if (entry) {
		/* If not, a change was missed: nobody knows when it came to its old state. */
		if (entry->part.state == oldstate)
			since = entry->part.since_ns;
		shown = go_on(ctx, sk, entry, now, oldstate, newstate, &owner, conn,
			      tuple == TUPLE_WANTED);
	} else {
		shown = begin(sk, now, oldstate, newstate, &owner, conn, tuple == TUPLE_WANTED);
	}
	if (shown && owner.wanted)
		send(ctx, (__u64)sk, now, since ? now - since : UNKNOWN_NS, oldstate, newstate,
		     conn, &owner);
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

/* The key first: a change that sees the offer finds it. The socket may be gone meanwhile. */
static __always_inline void offer(__u64 key, struct entry *entry)
{
	__u64 now = bpf_ktime_get_ns(), since = entry->part.since_ns;

	last_held_ns = now;
	if (bpf_map_update_elem(&offered, &key, &now, BPF_ANY) == 0)
		entry->part.offered_ns = since;
}

/*
 * Run by user space (BPF_PROG_TEST_RUN) on each socket. It may be gone meanwhile, and its address
 * in use again.
 */
SEC("raw_tp")
int send_held(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (struct sock *)ctx->args[0];
	__u64 key = (__u64)sk, *since;
	struct entry *entry = find(sk);
	struct owner owner;
	struct part row;
	struct conn conn;
	enum tuple tuple;

	if (!entry)
		return 0;
	row = entry->part;
	if (!row.held_from)
		return 0;
	since = bpf_map_lookup_elem(&offered, &key);
	if (!is_offered(&row)) {
		offer(key, entry);
		return 0;
	}
	if (!since)
		return 0; /* it was sent */
	tuple = read_tuple(&conn, sk, row.state, BY_HELPER);
	if (tuple == TUPLE_INCOMPLETE || bpf_ktime_get_ns() - *since < OFFER_NS) {
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
