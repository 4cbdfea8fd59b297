// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* How long connections are in each congestion state (RFC 5681), and what changes it. */
#include "cong.h"

#define CA_STATES (TCP_CA_Loss + 1)

/* Of a connection, since it is followed. */
struct sums {
	__u64 changes;
	__u64 ns[CA_STATES];
	__u64 since_ns;
};

struct kept {
	__u64 changes;
	__u64 ns[CA_STATES]; /* without the stay that lasts */
	__u64 stay;	     /* the one that lasts: since when, in which state */
};

#define WALK_KEEPS
#include "lib/histogram.bpf.h"
#include "lib/walk.bpf.h"

EVENT(cong_event);

/* What the run shows. */
const volatile bool cong_has_quiet; /* also connections that were in the state open all the time */
const volatile bool cong_has_events;
const volatile bool cong_has_stays;

AGGREGATE(connections, struct cong, struct cong_count);
AGGREGATE(stays, struct cong_stay, struct histogram);

/*
 * A stay is one number, so that the walk never sees the time of one and the state of another: ns
 * since boot, above them four bits.
 */
#define STAY_STATE 7ULL
#define STAY_IS_OLDER 8ULL /* than the time that it has: when it began was not seen */
#define STAY_BITS 4

static __always_inline __u64 since_ns(__u64 stay)
{
	return stay >> STAY_BITS;
}

/* A state that the kernel sets without telling, before we know the socket, is as old as we know it. */
static __always_inline void keep(struct part *part, struct sock *sk, bool is_older)
{
	__u64 state = ca_state_of(sk) & STAY_STATE;

	part->kept.stay = begun_ns(part) << STAY_BITS | state;
	if (is_older || state != TCP_CA_Open)
		part->kept.stay |= STAY_IS_OLDER;
}

/*
 * A change may be at work on another CPU. It writes the time of the stay that ends and the stay that
 * begins, in whatever order the CPU likes: as long as one of them is missing, the times of all stays
 * do not add up to the one that lasts. Then the next walk has both.
 */
static __always_inline bool sum_up(struct sums *sums, const struct part *part, struct sock *sk)
{
	const volatile struct kept *kept = &part->kept;
	__u64 stay = kept->stay, now = bpf_ktime_get_ns(), total = begun_ns(part);

	sums->changes = kept->changes;
	sums->since_ns = total;
#pragma clang loop unroll(full)
	for (__u32 state = 0; state < CA_STATES; state++) {
		sums->ns[state] = kept->ns[state];
		total += sums->ns[state];
		if (state == (stay & STAY_STATE))
			sums->ns[state] += now - since_ns(stay);
	}
	return total == since_ns(stay);
}

/* Counted once it is over, with its whole length; one whose start was not seen has none. */
static __always_inline void count_stay(__u64 stay, __u64 now)
{
	struct cong_stay key = {.state = (stay & STAY_STATE) + 1};
	struct histogram *found;

	if (stay & STAY_IS_OLDER)
		return;
	found = counters_or_rest(stays, &key, &no_values);
	if (found)
		measure(found, (now - since_ns(stay)) / 1000);
	else
		lose_socket();
}

static __always_inline void count(const struct conn *conn, const struct owner *owner,
				  const struct sums *before, const struct sums *now)
{
	struct cong_count none = {}, *counters;
	struct cong key = {
		.since_ns = now->since_ns,
		.pid = owner->pid,
		.netns = conn->netns,
		.lport = conn->lport,
		.rport = conn->rport,
		.family = conn->family,
	};

	__builtin_memcpy(key.laddr, &conn->laddr, sizeof(key.laddr));
	__builtin_memcpy(key.raddr, &conn->raddr, sizeof(key.raddr));
	__builtin_memcpy(key.comm, owner->comm, sizeof(key.comm));
	counters = counters_or_rest(connections, &key, &none);
	if (!counters)
		return;
	add(&counters->changes, now->changes - before->changes);
	add(&counters->open_ns, now->ns[TCP_CA_Open] - before->ns[TCP_CA_Open]);
	add(&counters->disorder_ns, now->ns[TCP_CA_Disorder] - before->ns[TCP_CA_Disorder]);
	add(&counters->cwr_ns, now->ns[TCP_CA_CWR] - before->ns[TCP_CA_CWR]);
	add(&counters->recovery_ns, now->ns[TCP_CA_Recovery] - before->ns[TCP_CA_Recovery]);
	add(&counters->loss_ns, now->ns[TCP_CA_Loss] - before->ns[TCP_CA_Loss]);
}

/* Open all the time; a connection that stays in another state has no changes either. */
static __always_inline bool is_quiet(const struct sums *before, const struct sums *now)
{
	return now->changes == before->changes &&
	       now->ns[TCP_CA_Disorder] == before->ns[TCP_CA_Disorder] &&
	       now->ns[TCP_CA_CWR] == before->ns[TCP_CA_CWR] &&
	       now->ns[TCP_CA_Recovery] == before->ns[TCP_CA_Recovery] &&
	       now->ns[TCP_CA_Loss] == before->ns[TCP_CA_Loss];
}

/* Before each report and at the end of a connection; where stays are counted, at the end alone. */
static __always_inline void account(struct sock *sk, const struct conn *conn,
				    const struct owner *owner, const struct sums *before,
				    const struct sums *now)
{
	struct entry *entry;

	if (cong_has_events)
		return;
	if (cong_has_stays) {
		entry = find(sk);
		if (entry)
			count_stay(entry->part.kept.stay, bpf_ktime_get_ns());
	} else if (cong_has_quiet || !is_quiet(before, now)) {
		count(conn, owner, before, now);
	}
}

static __always_inline void send(void *ctx, struct sock *sk, const struct entry *entry,
				 const struct owner *owner, __u64 now, __u64 duration_ns,
				 __u8 oldstate, __u8 newstate)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct cong_event event = {
		.ts_ns = now,
		.oldstate = oldstate,
		.newstate = newstate,
		.duration_ns = duration_ns,
		.cwnd = BPF_CORE_READ(tp, snd_cwnd),
		.ssthresh = BPF_CORE_READ(tp, snd_ssthresh),
	};

	BPF_CORE_READ_STR_INTO(&event.algorithm, tp, inet_conn.icsk_ca_ops, name);
	describe(&event, &entry->conn, owner);
	emit(ctx, &event, sizeof(event));
}

/* A socket that connects has its port by the time its SYN is sent again. */
static __always_inline bool has_tuple(struct entry *entry, struct sock *sk, const bool direct)
{
	struct conn conn;

	if (entry->conn.family)
		return true;
	if (read_tuple(&conn, sk, TCP_SYN_SENT, direct) != TUPLE_WANTED)
		return false;
	entry->conn = conn;
	return true;
}

/* Under the socket's lock, so that a socket has one at a time. */
static __always_inline int set_state(void *ctx, struct sock *sk, struct entry *entry, __u8 oldstate,
				     __u8 newstate, const bool direct)
{
	struct kept *kept = &entry->part.kept;
	__u64 stay = kept->stay, now = bpf_ktime_get_ns(), lasted = now - since_ns(stay);
	__u32 state = stay & STAY_STATE;
	bool is_missed = state != oldstate; /* the change to the old state */
	struct owner owner;

	barrier_var(
		state); /* else clang masks it anew behind the check, and the verifier forgets */
	if (oldstate == newstate || newstate >= CA_STATES || state >= CA_STATES)
		return 0;
	if (has_tuple(entry, sk, direct) && is_accounted(&owner, entry, sk)) {
		if (cong_has_stays && !is_missed)
			count_stay(stay, now);
		if (cong_has_events)
			send(ctx, sk, entry, &owner, now,
			     is_missed || stay & STAY_IS_OLDER ? UNKNOWN_NS : lasted, oldstate,
			     newstate);
	}
	kept->ns[state] += lasted;
	kept->changes += 1 + is_missed;
	kept->stay = now << STAY_BITS | newstate;
	return 0;
}

/* The socket still has its old state. */
static __always_inline int sets(void *ctx, struct sock *sk, __u8 state, const bool direct)
{
	struct entry *entry = find(sk);

	return entry ? set_state(ctx, sk, entry, ca_state_of(sk), state, direct) : 0;
}

SEC("tp_btf/tcp_cong_state_set")
int BPF_PROG(sets_btf, struct sock *sk, __u8 state)
{
	return sets(ctx, sk, state, DIRECT);
}

SEC("raw_tp/tcp_cong_state_set")
int BPF_PROG(sets_raw, struct sock *sk, __u8 state)
{
	return sets(ctx, sk, state, BY_HELPER);
}

/*
 * The tracepoint is there since Linux 6.0 (15fcdf6ae116). Before, the state is compared where a
 * function ends that may have changed it.
 */
static __always_inline int may_have_set(void *ctx, struct sock *sk, const bool direct)
{
	struct entry *entry = find(sk);

	if (!entry)
		return 0;
	return set_state(ctx, sk, entry, entry->part.kept.stay & STAY_STATE, ca_state_of(sk),
			 direct);
}

/*
 * The socket that this CPU works on in one of them, for kretprobes, which get no arguments. Where
 * another one comes in between, the next function to end on this socket sees what is missed.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64); /* struct sock * */
} worked_on SEC(".maps");

static __always_inline int works_on(struct sock *sk)
{
	__u32 zero = 0;
	__u64 *place = bpf_map_lookup_elem(&worked_on, &zero);

	if (place)
		*place = (__u64)sk;
	return 0;
}

static __always_inline int worked(void *ctx)
{
	__u32 zero = 0;
	__u64 *place = bpf_map_lookup_elem(&worked_on, &zero);

	return place ? may_have_set(ctx, (struct sock *)*place, BY_HELPER) : 0;
}

#define SETTER(function)                                                                           \
	SEC("fexit/" #function)                                                                    \
	int BPF_PROG(function##_fexit, struct sock *sk)                                            \
	{                                                                                          \
		return may_have_set(ctx, sk, DIRECT);                                              \
	}                                                                                          \
	SEC("kprobe/" #function)                                                                   \
	int BPF_KPROBE(function##_kprobe, struct sock *sk)                                         \
	{                                                                                          \
		return works_on(sk);                                                               \
	}                                                                                          \
	SEC("kretprobe/" #function)                                                                \
	int BPF_KRETPROBE(function##_kretprobe)                                                    \
	{                                                                                          \
		return worked(ctx);                                                                \
	}

SETTER(tcp_fastretrans_alert)
SETTER(tcp_enter_loss)
SETTER(tcp_enter_cwr)
SETTER(tcp_enter_recovery)
SETTER(tcp_simple_retransmit)

char LICENSE[] SEC("license") = "Dual BSD/GPL";
