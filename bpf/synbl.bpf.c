// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Listeners: how long their queues are when connections come, and how often they overflow. */
#include "synbl.h"

/* What the entry of a listener has besides its owner. */
struct part {
	__u64 since_ns;
	__u64 overflows;
	__u64 syn_overflows;
	__u64 cookies;
	__u64 length_sum;
	__u64 lengths[LENGTH_SLOTS];
	__u32 drops_before; /* it was followed */
};

#include "lib/entry.bpf.h"
#include "lib/histogram.bpf.h"
#include "lib/output.bpf.h"
#include "lib/seeding.bpf.h"
#include "lib/transitions.bpf.h"

EVENT(synbl_event);

/* net.ipv4.tcp_syncookies: 0 never, 2 always */
#define COOKIES_WHEN_FULL 1

/* Only what there is now: drops count from the listener's own beginning. */
const volatile bool target_now;

/*
 * The listener whose SYN this CPU works on. tcp_conn_request() is not interrupted by another one, and
 * nothing else makes SYN cookies.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64); /* struct sock * */
} requested SEC(".maps");

static __always_inline __u32 drops(struct sock *sk)
{
	return sk_read(sk, sk_drops.counter, BY_HELPER);
}

/* The accept queue and the SYN queue have the same limit. */
static __always_inline __u32 limit(struct sock *sk)
{
	return sk_read(sk, sk_max_ack_backlog, BY_HELPER);
}

static __always_inline __u32 syn_queue(struct sock *sk)
{
	return BPF_CORE_READ((struct tcp_sock *)sk, inet_conn.icsk_accept_queue.qlen.counter);
}

static __always_inline void begin(struct part *part, struct sock *sk)
{
	part->since_ns = bpf_ktime_get_ns();
	part->drops_before = target_now ? 0 : drops(sk);
}

static __always_inline void send(void *ctx, struct sock *sk, const struct entry *entry, bool ended)
{
	const struct part *part = &entry->part;
	struct synbl_event event = {
		.ts_ns = bpf_ktime_get_ns(),
		.ended = ended,
		.queue = sk_read(sk, sk_ack_backlog, BY_HELPER),
		.limit = limit(sk),
		.syn_queue = syn_queue(sk),
		.sk = (__u64)sk,
		.since_ns = part->since_ns,
		.overflows = part->overflows,
		.drops = drops(sk) - part->drops_before,
		.syn_overflows = part->syn_overflows,
		.cookies = part->cookies,
		.length_sum = part->length_sum,
	};
	struct owner owner;
	struct conn conn;

	kept_owner(&owner, entry, sk, BY_HELPER);
	if (!owner.wanted || !read_closed_conn(&conn, sk, BY_HELPER) || !want_conn(&conn))
		return;
	__builtin_memcpy(event.lengths, part->lengths, sizeof(event.lengths));
	describe(&event, &conn, &owner);
	emit(ctx, &event, sizeof(event));
}

static __always_inline void ends(void *ctx, struct sock *sk)
{
	struct entry *entry = find(sk);

	if (!entry)
		return;
	send(ctx, sk, entry, true);
	drop(sk);
}

/*
 * The listener that a new child was copied from. The tracepoint does not tell it. But a listener has
 * sent nothing: its list of sent segments is empty, so that it points to itself, and at this moment
 * the child's is still a copy, which points to the listener's (tcp_create_openreq_child). If that
 * should ever change, what is found here is no listener that we know.
 */
static __always_inline struct sock *listener_of(struct sock *child)
{
	struct tcp_sock *tp = (struct tcp_sock *)child;
	void *list = BPF_CORE_READ(tp, tsorted_sent_queue.next);

	return list - bpf_core_field_offset(tp->tsorted_sent_queue);
}

/* The new connection is about to enter the accept queue: how many are there before it? */
static __always_inline void comes(struct sock *child)
{
	struct sock *sk = listener_of(child);
	struct entry *entry = find(sk);
	__u32 length, slot;

	if (!entry)
		return;
	length = sk_read(sk, sk_ack_backlog, BY_HELPER);
	slot = length ? 1 + log2_slot(length) : 0;
	if (slot > LENGTH_SLOTS - 1)
		slot = LENGTH_SLOTS - 1;
	add(&entry->part.lengths[slot], 1);
	add(&entry->part.length_sum, length);
}

static __always_inline void listens(struct sock *sk, const bool direct)
{
	struct entry begun = {};

	if (is_rejected(sk, TCP_LISTEN, direct)) {
		forget(sk);
		return;
	}
	begin(&begun.part, sk);
	/* As who opens: also a kernel thread is the owner of what it listens on. */
	own(&begun.owner, sk, ROLE_ACTIVE, direct);
	follow(sk, &begun);
}

static __always_inline bool concerns(int oldstate, int newstate)
{
	return newstate == TCP_LISTEN || oldstate == TCP_LISTEN;
}

static __always_inline void transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				       const bool owned, const bool direct)
{
	if (newstate == TCP_LISTEN) {
		listens(sk, direct);
	} else if (is_new_child(oldstate, newstate)) {
		forget(sk); /* an older listener had the address, and its end was missed */
		comes(sk);
	} else {
		ends(ctx, sk);
	}
}

static __always_inline void destroy(void *ctx, struct sock *sk, const bool direct)
{
	ends(ctx, sk);
}

static __always_inline bool seeded(struct part *part, struct sock *sk, int state)
{
	begin(part, sk);
	return state == TCP_LISTEN && !is_rejected(sk, state, BY_HELPER);
}

/* Run by user space for each listener, before a report. */
SEC("raw_tp")
int send_listener(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (struct sock *)ctx->args[0];
	struct entry *entry = find(sk);

	if (entry)
		send(ctx, sk, entry, false);
	return 0;
}

/* What overflows, which no tracepoint tells. */

static __always_inline void set_requested(struct sock *sk)
{
	__u32 zero = 0;
	__u64 *place = bpf_map_lookup_elem(&requested, &zero);

	if (place)
		*place = (__u64)sk;
}

static __always_inline __u8 syncookies(struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_net.net, ipv4.sysctl_tcp_syncookies);
}

/*
 * A SYN: tcp_conn_request() looks at the SYN queue first. If that is full, a cookie takes the place of
 * the request, or there are no cookies and the SYN is dropped. Then it looks at the accept queue.
 */
static __always_inline int syn_comes(struct sock *sk)
{
	struct entry *entry = find(sk);

	set_requested(sk);
	if (!entry)
		return 0;
	if (syn_queue(sk) >= limit(sk) && !syncookies(sk))
		add(&entry->part.syn_overflows, 1);
	else if (is_acceptq_full(sk))
		add(&entry->part.overflows, 1);
	return 0;
}

static __always_inline int cookie(void)
{
	__u32 zero = 0;
	__u64 *place = bpf_map_lookup_elem(&requested, &zero);
	struct entry *entry = place ? find((struct sock *)*place) : NULL;

	if (!entry)
		return 0;
	add(&entry->part.cookies, 1);
	if (syncookies((struct sock *)*place) == COOKIES_WHEN_FULL)
		add(&entry->part.syn_overflows, 1);
	return 0;
}

/* The last ACK of a handshake. */
static __always_inline int ack_comes(struct sock *sk)
{
	struct entry *entry = find(sk);

	if (entry && is_acceptq_full(sk))
		add(&entry->part.overflows, 1);
	return 0;
}

/* Of IPv4 on a dual-stack listener, tcp_v6_syn_recv_sock() calls tcp_v4_syn_recv_sock(). */
static __always_inline int ack6_comes(struct sock *sk, struct sk_buff *skb)
{
	if (BPF_CORE_READ(skb, protocol) == bpf_htons(ETH_P_IP))
		return 0;
	return ack_comes(sk);
}

SEC("fentry/tcp_conn_request")
int BPF_PROG(syn_fentry, void *ops, void *family_ops, struct sock *sk)
{
	return syn_comes(sk);
}

SEC("kprobe/tcp_conn_request")
int BPF_KPROBE(syn_kprobe, void *ops, void *family_ops, struct sock *sk)
{
	return syn_comes(sk);
}

SEC("fentry/tcp_v4_syn_recv_sock")
int BPF_PROG(ack_fentry, struct sock *sk)
{
	return ack_comes(sk);
}

SEC("kprobe/tcp_v4_syn_recv_sock")
int BPF_KPROBE(ack_kprobe, struct sock *sk)
{
	return ack_comes(sk);
}

SEC("fentry/tcp_v6_syn_recv_sock")
int BPF_PROG(ack6_fentry, struct sock *sk, struct sk_buff *skb)
{
	return ack6_comes(sk, skb);
}

SEC("kprobe/tcp_v6_syn_recv_sock")
int BPF_KPROBE(ack6_kprobe, struct sock *sk, struct sk_buff *skb)
{
	return ack6_comes(sk, skb);
}

#define COOKIE_PROGRAMS(family)                                                                    \
	SEC("fentry/cookie_" #family "_init_sequence")                                             \
	int BPF_PROG(cookie_##family##_fentry)                                                     \
	{                                                                                          \
		return cookie();                                                                   \
	}                                                                                          \
	SEC("kprobe/cookie_" #family "_init_sequence")                                             \
	int BPF_KPROBE(cookie_##family##_kprobe)                                                   \
	{                                                                                          \
		return cookie();                                                                   \
	}

COOKIE_PROGRAMS(v4)
COOKIE_PROGRAMS(v6)

char LICENSE[] SEC("license") = "Dual BSD/GPL";
