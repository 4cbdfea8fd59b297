// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Local ports in use by destination. A pass over all sockets before each report counts them, as
 * sockets in TIME_WAIT end without any event; state changes tell what was taken in between.
 */
#include "ports.h"

/* The owner is all that is kept of a socket. */
struct part {
};

#include "lib/aggregate.bpf.h"
#include "lib/entry.bpf.h"
#include "lib/files.bpf.h"
#include "lib/output.bpf.h"
#include "lib/transitions.bpf.h"

#define UNKNOWN_UID (~0U)

/* Owners are followed, as a filter asks for them or the table has a row for each. */
const volatile bool with_owners;
const volatile bool count_owners;

AGGREGATE(destinations, struct ports, struct ports_count);

/* By network namespace: those that are looked at. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct port_sets);
} namespaces SEC(".maps");

/*
 * Sockets in connect() whose port is not counted as taken yet, with the port of their connection
 * before this one, which stays in inet_sport. Who deletes the entry counts it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u64);
} connecting SEC(".maps");

static __always_inline struct port_sets *sets_of(struct sock *sk)
{
	__u32 netns = common_netns(sk);

	return bpf_map_lookup_elem(&namespaces, &netns);
}

/* Only the pass writes these, one at a time. */
static __always_inline void put_into(__u64 *bits, __u16 port)
{
	__u32 bit = port;

	barrier_var(bit); /* see in_bitmap() */
	bit &= 0xffff;
	bits[bit / 64] |= 1ULL << (bit % 64);
}

/* Who owns a connection that the pass finds, or that takes a port. False: not wanted. */
static __always_inline bool find_owner(struct owner *owner, struct sock *sk, bool is_full)
{
	struct entry *entry = with_owners ? find(sk) : NULL;

	__builtin_memset(owner, 0, sizeof(*owner));
	owner->uid = UNKNOWN_UID;
	if (entry) {
		*owner = entry->owner;
		return owner->wanted;
	}
	if (is_full)
		set_user(owner, sk, BY_HELPER);
	return want_unknown_task() && want_uid(owner->uid);
}

static __always_inline struct ports_count *counters(const struct conn *conn,
						    const struct owner *owner)
{
	const struct ports_count none = {};
	struct ports key = {
		.netns = conn->netns,
		.uid = UNKNOWN_UID,
		.rport = conn->rport,
		.family = conn->family,
	};

	__builtin_memcpy(key.laddr, &conn->laddr, sizeof(key.laddr));
	__builtin_memcpy(key.raddr, &conn->raddr, sizeof(key.raddr));
	if (count_owners) {
		key.pid = owner->pid;
		key.uid = owner->uid;
		__builtin_memcpy(key.comm, owner->comm, sizeof(key.comm));
	}
	return counters_or_rest(destinations, &key, &none);
}

static __always_inline struct ports_count *wanted_counters(struct sock *sk, const struct conn *conn,
							   bool is_full)
{
	struct owner owner;

	if (!want_conn(conn) || !find_owner(&owner, sk, is_full))
		return NULL;
	return counters(conn, &owner);
}

/* connect() begins; the port comes later, but for a socket that bind() has given one. */
static __always_inline void begin(struct sock *sk, const bool direct)
{
	__u64 key = (__u64)sk, before = read_closed_lport(sk);
	struct entry begun = {};

	if (is_rejected(sk, TCP_SYN_SENT, direct) || !sets_of(sk))
		return;
	if (with_owners) {
		own(&begun.owner, sk, ROLE_ACTIVE, direct);
		follow(sk, &begun);
	}
	if (!sk_read(sk, __sk_common.skc_num, direct))
		remember(&connecting, &key, &before);
}

/*
 * The port is known, or there is none. A connect that has failed has given it back already; one that
 * found none leaves the port of before, and no error in the socket.
 */
static __always_inline void take(struct sock *sk, int state)
{
	struct ports_count *found;
	struct port_sets *sets;
	__u64 key = (__u64)sk, *place = bpf_map_lookup_elem(&connecting, &key), before;
	struct conn conn;

	if (!place)
		return;
	before = *place;
	if (bpf_map_delete_elem(&connecting, &key) || !read_closed_conn(&conn, sk, BY_HELPER))
		return;
	if (state == TCP_CLOSE && conn.lport == before && !sk_read(sk, sk_err, BY_HELPER))
		conn.lport = 0;
	sets = sets_of(sk);
	if (!sets || (conn.lport && !in_bitmap(sets->allowed, conn.lport)) ||
	    (!conn.lport && sk_read(sk, sk_shutdown, BY_HELPER) == SHUTDOWN_MASK))
		return;
	found = wanted_counters(sk, &conn, true);
	if (found)
		add(conn.lport ? &found->taken : &found->failed, 1);
}

static __always_inline bool concerns(int oldstate, int newstate)
{
	return newstate == TCP_SYN_SENT || oldstate == TCP_SYN_SENT;
}

static __always_inline void transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				       const bool owned, const bool direct)
{
	if (newstate == TCP_SYN_SENT)
		begin(sk, direct);
	else
		take(sk, newstate);
}

static __always_inline void destroy(void *ctx, struct sock *sk, const bool direct)
{
	__u64 key = (__u64)sk;

	if (with_owners)
		forget(sk);
	if (bpf_map_lookup_elem(&connecting, &key))
		bpf_map_delete_elem(&connecting, &key);
}

/* The pass. User space runs it in each namespace: the first program once, the second one in each. */

/*
 * connect() chooses only ports that connect() alone has chosen before, and looks whether its own
 * destination is free: __inet_hash_connect(). So a bound port is taken for all destinations.
 */
static __always_inline bool is_bound(struct sock *sk, int state)
{
	struct inet_timewait_sock *tw = (struct inet_timewait_sock *)sk;
	struct inet_bind_bucket *bucket;

	if (state == TCP_TIME_WAIT)
		bucket = BPF_CORE_READ(tw, tw_tb);
	else
		bucket = BPF_CORE_READ((struct tcp_sock *)sk, inet_conn.icsk_bind_hash);
	return bucket &&
	       (BPF_CORE_READ(bucket, fastreuse) >= 0 || BPF_CORE_READ(bucket, fastreuseport) >= 0);
}

static __always_inline void seed_owner(struct sock *sk, struct task_struct *task)
{
	struct entry new = {}, *known = find(sk);
	__u64 key = (__u64)sk;

	other_owner(&new.owner, sk, task);
	if (known && new.owner.wanted)
		known->owner.wanted = true;
	else if (!known && bpf_map_update_elem(&sockets, &key, &new, BPF_NOEXIST) == -E2BIG)
		lose_socket();
}

/* A port that was bound, and is not in use yet, is known by its file alone. */
SEC("iter/task_file")
int look_at_file(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct port_sets *sets;
	struct sock *sk;
	__u16 port;
	int state;

	barrier_var(file); /* one load, so that the verifier sees which value is not NULL */
	if (!task || !file)
		return 0;
	sk = tcp_sock_of_file(file);
	sets = sk ? sets_of(sk) : NULL;
	if (!sets)
		return 0;
	port = sk_read(sk, __sk_common.skc_num, BY_HELPER);
	state = sk_read(sk, __sk_common.skc_state, BY_HELPER);
	if (state == TCP_CLOSE && in_bitmap(sets->allowed, port) && is_bound(sk, state))
		put_into(sets->bound, port);
	if (with_owners && port && state != TCP_LISTEN && state != TCP_CLOSE)
		seed_owner(sk, task);
	return 0;
}

static __always_inline void count_state(struct ports_count *found, struct sock *sk, int state)
{
	struct inet_timewait_sock *tw = (struct inet_timewait_sock *)sk;

	add(&found->in_use, 1);
	if (state == TCP_SYN_SENT || state == TCP_SYN_RECV)
		add(&found->syn_sent, 1);
	else if (state == TCP_ESTABLISHED)
		add(&found->established, 1);
	else if (state == TCP_CLOSE_WAIT)
		add(&found->close_wait, 1);
	else if (state == TCP_TIME_WAIT && BPF_CORE_READ(tw, tw_substate) == TCP_TIME_WAIT)
		add(&found->time_wait, 1);
	else
		add(&found->closing, 1);
}

/*
 * Listeners come before all others (tcp_seq_start()). What a listener accepts has the listener's
 * port, and takes none of its own; requests (NEW_SYN_RECV) neither.
 */
SEC("iter/tcp")
int count_socket(struct bpf_iter__tcp *ctx)
{
	struct sock *sk = (struct sock *)ctx->sk_common;
	struct ports_count *found;
	struct port_sets *sets;
	struct conn conn;
	bool bound;
	int state;

	if (!sk || !common_conn(&conn, sk, BY_HELPER))
		return 0;
	state = sk_read(sk, __sk_common.skc_state, BY_HELPER);
	sets = sets_of(sk);
	if (!sets || state == TCP_NEW_SYN_RECV || !in_bitmap(sets->allowed, conn.lport))
		return 0;
	bound = is_bound(sk, state);
	if (bound)
		put_into(sets->bound, conn.lport);
	if (state == TCP_LISTEN)
		put_into(sets->listened, conn.lport);
	if (state == TCP_LISTEN || (bound && in_bitmap(sets->listened, conn.lport)))
		return 0;
	if (state == TCP_SYN_SENT)
		take(sk, state);
	found = wanted_counters(sk, &conn, state != TCP_TIME_WAIT);
	if (!found)
		return 0;
	count_state(found, sk, state);
	if (!bound)
		add(&found->shared, 1);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
