// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Every TCP state change, and the time spent in the state before. */
#include "vmlinux.h"

struct part {
	__u64 since_ns; /* when the socket came to its state */
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
 * Sockets whose last row waits. connect() enters SYN_SENT before it has a local port, and older
 * kernels give a new child its peer only after SYN_RECV. Such a row is sent with the next
 * transition, or by send_held() when user space asks, whichever deletes the key first.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u64); /* since_ns of its socket: a freed address may be in use again */
} held SEC(".maps");

static __always_inline bool is_tuple_known(const struct conn *conn, int state)
{
	if (state == TCP_LISTEN)
		return conn->lport;
	return conn->lport && conn->rport && !is_zero(&conn->raddr);
}

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

/*
 * Send the row that was held until now, unless the other side did. By value: once the key is
 * gone, the other side may write to the map's entry. Time in the old state is not known: it was
 * the first one that we saw.
 */
static __always_inline void release(void *ctx, __u64 key, struct part row, const struct conn *conn,
				    const struct owner *owner)
{
	if (bpf_map_delete_elem(&held, &key) == 0 && owner->wanted)
		send(ctx, key, row.since_ns, UNKNOWN_NS, row.held_from, row.state, conn, owner);
}

static __always_inline void forget_held(struct sock *sk)
{
	__u64 key = (__u64)sk;

	if (bpf_map_lookup_elem(&held, &key))
		bpf_map_delete_elem(&held, &key);
	forget(sk);
}

/* True when the row waits. The key in `held` comes last: from then on send_held() may find it. */
static __always_inline bool hold(__u64 key, const struct part *part)
{
	return part->held_from && bpf_map_update_elem(&held, &key, &part->since_ns, BPF_ANY) == 0;
}

/* Keep the socket's new state; false when there is nothing more to come, or no room. */
static __always_inline bool remembered(struct sock *sk, struct entry *entry, int state,
				       const struct owner *owner, const struct part *part)
{
	struct entry new = {.part = *part};

	if (state == TCP_CLOSE) {
		if (entry)
			forget(sk);
		return false;
	}
	if (entry) {
		entry->part = *part;
		return true;
	}
	if (owner->pid)
		new.owner = *owner;
	return follow(sk, &new);
}

static __always_inline void transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				       const bool owned, const bool direct)
{
	__u64 now = bpf_ktime_get_ns(), key = (__u64)sk, since = 0;
	struct entry *entry;
	struct part part = {.since_ns = now, .state = newstate};
	struct owner owner;
	struct conn conn;
	bool known;

	if (!read_conn(&conn, sk, direct))
		return;
	entry = find(sk);
	/* It begins, or begins anew: what is left at its address is another's. */
	if (entry && (oldstate == TCP_CLOSE || is_new_child(oldstate, newstate))) {
		forget_held(sk);
		entry = NULL;
	}
	/* Otherwise a change was missed, and nobody knows when the socket came to its old state. */
	if (entry && entry->part.state == oldstate)
		since = entry->part.since_ns;
	if (newstate == TCP_CLOSE && !conn.lport)
		conn.lport = read_closed_lport(sk);
	known = newstate == TCP_CLOSE || is_tuple_known(&conn, newstate);
	if (known ? !want_conn(&conn) : !want_netns(conn.netns)) {
		if (entry)
			forget_held(sk);
		return;
	}
	changing_owner(&owner, entry, sk, oldstate, newstate, owned, direct);
	if (entry && entry->part.held_from)
		release(ctx, key, entry->part, &conn, &owner);
	if (!known)
		part.held_from = oldstate;
	if (remembered(sk, entry, newstate, &owner, &part) && hold(key, &part))
		return;
	if (owner.wanted)
		send(ctx, key, now, since ? now - since : UNKNOWN_NS, oldstate, newstate, &conn,
		     &owner);
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

/*
 * Run by user space (BPF_PROG_TEST_RUN) on a socket in `held`: a connect that hangs has no next
 * transition for minutes. The socket may be gone meanwhile, and its address in use again: the key
 * that user space has may be that of another socket by now.
 */
SEC("raw_tp")
int send_held(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (struct sock *)ctx->args[0];
	__u64 key = (__u64)sk, *since;
	struct entry *entry = find(sk);
	struct owner owner;
	struct conn conn;
	struct part row;

	/* Nothing to clean up: whoever takes a socket out of `sockets` sees to its key in `held`. */
	if (!entry)
		return 0;
	row = entry->part;
	if (!row.held_from || !read_conn(&conn, sk, false) || !is_tuple_known(&conn, row.state))
		return 0;
	since = bpf_map_lookup_elem(&held, &key);
	if (!since || *since != row.since_ns)
		return 0;
	kept_owner(&owner, entry, sk, false);
	if (want_conn(&conn))
		release(ctx, key, row, &conn, &owner);
	else
		forget_held(sk);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
