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
 * Sockets in connect() whose port is not to be counted as taken when they leave SYN_SENT, as it is
 * COUNTED already or bind() has taken it. Or the port of their connection before this one, which
 * stays in inet_sport. Most sockets are new, and have no entry.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u64);
} connecting SEC(".maps");

#define COUNTED (1ULL << 16)

/* NULL: its namespace is not looked at. */
static __always_inline struct port_sets *find_sets(struct conn *conn, struct sock *sk)
{
	conn->netns = common_netns(sk);
	return bpf_map_lookup_elem(&namespaces, &conn->netns);
}

/* Only the pass writes these, one at a time. */
static __always_inline void put_into(__u64 *bits, __u16 port)
{
	__u32 bit = port;

	barrier_var(bit); /* see in_bitmap() */
	bit &= 0xffff;
	bits[bit / 64] |= 1ULL << (bit % 64);
}

/* False: not wanted. is_full: it is no time-wait socket, which knows no user. */
static __always_inline bool find_owner(struct owner *owner, struct sock *sk, bool is_full,
				       const bool direct)
{
	struct entry *entry = with_owners ? find(sk) : NULL;

	if (entry)
		*owner = entry->owner;
	else if (is_full)
		unknown_owner(owner, sk, direct);
	else
		no_owner(owner);
	return owner->wanted;
}

static __always_inline struct ports_count *counters(const struct conn *conn,
						    const struct owner *owner)
{
	const struct ports_count none = {};
	struct ports key = {
		.netns = conn->netns,
		.uid = NO_USER,
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
							   bool is_full, const bool direct)
{
	struct owner owner;

	if (!want_conn(conn) || !find_owner(&owner, sk, is_full, direct))
		return NULL;
	return counters(conn, &owner);
}

static __always_inline void follow_owner(struct sock *sk, const bool direct)
{
	struct entry begun = {};

	if (is_rejected(sk, TCP_SYN_SENT, direct) || !find_sets(&begun.conn, sk))
		return;
	own(&begun.owner, sk, ROLE_ACTIVE, direct);
	follow(sk, &begun);
}

/* connect() begins. The port comes later, but for a socket that bind() has given one. */
static __always_inline void begin(struct sock *sk, const bool direct)
{
	struct tcp_sock *tp = tcp_of(sk, direct);
	__u64 key = (__u64)sk, before;

	if (with_owners)
		follow_owner(sk, direct);
	before = tp ? bpf_ntohs(sk_read(tp, inet_conn.icsk_inet.inet_sport, direct)) : 0;
	if (!before)
		return;
	if (sk_read(sk, __sk_common.skc_num, direct))
		before = COUNTED;
	remember(&connecting, &key, &before);
}

/*
 * A connect that found no port leaves the port of before, and no error in the socket; so does only
 * close(), which shuts it down.
 */
static __always_inline bool found_none(struct sock *sk, __u16 lport, __u16 before)
{
	return lport == before && !sk_read(sk, sk_err, BY_HELPER) &&
	       sk_read(sk, sk_shutdown, BY_HELPER) != SHUTDOWN_MASK;
}

/* The port is known, or there is none. A connect that has failed has given it back already. */
static __always_inline void end(struct sock *sk, int state, const bool direct)
{
	__u64 key = (__u64)sk, *known = bpf_map_lookup_elem(&connecting, &key), before = 0;
	struct ports_count *found;
	struct port_sets *sets;
	struct conn conn;

	if (known) {
		before = *known;
		bpf_map_delete_elem(&connecting, &key);
	}
	if (before == COUNTED)
		return;
	sets = find_sets(&conn, sk);
	if (!sets || !common_endpoints(&conn, sk, direct))
		return;
	if (!conn.lport)
		conn.lport = read_closed_lport(sk);
	if (state == TCP_CLOSE && found_none(sk, conn.lport, before))
		conn.lport = 0;
	else if (!in_bitmap(sets->allowed, conn.lport))
		return;
	found = wanted_counters(sk, &conn, true, direct);
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
		end(sk, newstate, direct);
}

/*
 * Attached where owners are followed. Nothing else is kept of a socket that has left SYN_SENT, and
 * this is a program less for each.
 */
static __always_inline void destroy(void *ctx, struct sock *sk, const bool direct)
{
	forget(sk);
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

	if (known && known->owner.wanted)
		return;
	other_owner(&new.owner, sk, task);
	if (known && new.owner.wanted) /* another CPU may have set it meanwhile */
		known->owner.wanted = true;
	else if (!known && bpf_map_update_elem(&sockets, &key, &new, BPF_NOEXIST) == -E2BIG)
		lose_socket();
}

/* A port that was bound, and is not in use yet, is known by its file alone. */
static __always_inline void look_at_closed(struct sock *sk)
{
	__u16 port = sk_read(sk, __sk_common.skc_num, BY_HELPER);
	struct port_sets *sets;
	struct conn conn;

	sets = port ? find_sets(&conn, sk) : NULL;
	if (sets && in_bitmap(sets->allowed, port) && is_bound(sk, TCP_CLOSE))
		put_into(sets->bound, port);
}

SEC("iter/task_file")
int look_at_file(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct conn conn;
	struct sock *sk;
	int state;

	barrier_var(file); /* one load, so that the verifier sees which value is not NULL */
	if (!task || !file)
		return 0;
	sk = tcp_sock_of_file(file);
	if (!sk)
		return 0;
	state = sk_read(sk, __sk_common.skc_state, BY_HELPER);
	if (state == TCP_CLOSE)
		look_at_closed(sk);
	else if (with_owners && state != TCP_LISTEN && find_sets(&conn, sk))
		seed_owner(sk, task);
	return 0;
}

static __always_inline void count_state(struct ports_count *found, struct sock *sk, int state)
{
	struct inet_timewait_sock *tw = (struct inet_timewait_sock *)sk;

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
 * A socket that is still in SYN_SENT: its port counts now, and not again when the answer comes. The
 * iterator has the socket's lock meanwhile. Before Linux 5.15 (04c7820b776f) it has not, and an
 * answer that comes in this moment may count once more.
 */
static __always_inline bool is_new(struct sock *sk)
{
	__u64 key = (__u64)sk, *known = bpf_map_lookup_elem(&connecting, &key);
	const __u64 counted = COUNTED;

	return !(known && *known == COUNTED) && remember(&connecting, &key, &counted);
}

static __always_inline void count(struct sock *sk, struct conn *conn, int state, bool bound)
{
	bool is_taken = state == TCP_SYN_SENT && is_new(sk);
	struct ports_count *found;

	if (!common_endpoints(conn, sk, DIRECT))
		return;
	found = wanted_counters(sk, conn, state != TCP_TIME_WAIT, BY_HELPER);
	if (!found)
		return;
	count_state(found, sk, state);
	if (is_taken)
		add(&found->taken, 1);
	if (!bound)
		add(&found->shared, 1);
}

/*
 * Listeners come before all others (tcp_seq_start()). What a listener accepts has the listener's
 * port, and takes none of its own; requests (NEW_SYN_RECV) neither.
 */
SEC("iter/tcp")
int count_socket(struct bpf_iter__tcp *ctx)
{
	struct sock *sk = (struct sock *)ctx->sk_common;
	struct port_sets *sets;
	struct conn conn;
	bool bound;
	__u16 port;
	int state;

	barrier_var(sk); /* see look_at_file() */
	if (!sk)
		return 0;
	port = sk_read(sk, __sk_common.skc_num, DIRECT);
	state = sk_read(sk, __sk_common.skc_state, DIRECT);
	sets = find_sets(&conn, sk);
	if (!sets || state == TCP_NEW_SYN_RECV || !in_bitmap(sets->allowed, port))
		return 0;
	bound = is_bound(sk, state);
	if (bound)
		put_into(sets->bound, port);
	if (state == TCP_LISTEN)
		put_into(sets->listened, port);
	else if (!bound || !in_bitmap(sets->listened, port))
		count(sk, &conn, state, bound);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
