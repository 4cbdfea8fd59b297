// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* TCP packets that the kernel drops: where and why. */
#include "drop.h"

/* Nothing is kept of a socket but its owner and its tuple. */
struct part {
};

#include "lib/accepting.bpf.h"
#include "lib/aggregate.bpf.h"
#include "lib/entry.bpf.h"
#include "lib/output.bpf.h"
#include "lib/seeding.bpf.h"
#include "lib/skb.bpf.h"
#include "lib/transitions.bpf.h"

EVENT(drop_event);

/* What the tracepoint passes: a reason since Linux 5.17 (c504e5c2f964), a socket since 6.11. */
const volatile bool has_reason, has_receiver;
const volatile bool count_drops; /* in the kernel, rather than send events */
const volatile bool with_stack;
const volatile __u32 most_a_second; /* events; the rest is counted. 0: all are sent */
const volatile __u32 target_reason[MAX_TARGETS], target_reason_count;
/* Sockets are followed, as owners are asked for. */
const volatile bool drop_has_owners;

AGGREGATE(drops, struct drop, struct drop_count);

/*
 * The followed connections by tuple: most of what drops a packet does not know its socket. Padding is
 * part of a key, so that whoever makes one clears it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct conn);
	__type(value, __u64); /* struct sock * */
} connections SEC(".maps");

__u64 second; /* of the events that were sent last */
__u32 sent_in_second;

/* A packet that the kernel lets go of. */
struct packet {
	struct sk_buff *skb;
	struct sock *owner; /* skb->sk: of any kind, as a rule the sender */
	struct sock *sk;    /* the TCP socket that sends or gets it, NULL: none is known */
	__u64 place;	    /* behind the call that dropped it */
	__u32 reason;
	__u32 seq; /* this and what follows where there is a whole TCP header */
	__u32 ack;
	__u32 len;
	__u8 flags;
	bool is_whole;
	bool sent;
};

#define IS_REASON(reason, value)                                                                   \
	(bpf_core_enum_value_exists(enum skb_drop_reason, value) &&                                \
	 (reason) == bpf_core_enum_value(enum skb_drop_reason, value))

/* Two values stand for no drop at all, where the kernel has them: since Linux 5.18 and 6.2. */
static __always_inline bool is_drop(__u32 reason)
{
	return !IS_REASON(reason, SKB_NOT_DROPPED_YET) && !IS_REASON(reason, SKB_CONSUMED);
}

static __always_inline bool want_reason(__u32 reason)
{
	return !target_reason_count || in_list(target_reason, target_reason_count, reason);
}

static __always_inline void count(const struct packet *packet)
{
	struct drop key = {.place = packet->place, .reason = packet->reason};
	const struct drop_count none = {};
	struct drop_count *counters = counters_or_rest(drops, &key, &none);

	if (counters)
		add(&counters->drops, 1);
	else
		lose_socket();
}

/*
 * Two CPUs may both be told that there is room, and some more be sent than the limit is: an addition
 * that tells what was there needs Linux 5.12.
 */
static __always_inline bool is_over_rate(void)
{
	__u64 now = bpf_ktime_get_ns() / 1000000000;

	if (now != second) {
		second = now;
		sent_in_second = 0;
	}
	if (sent_in_second >= most_a_second)
		return true;
	__sync_fetch_and_add(&sent_in_second, 1);
	return false;
}

static __always_inline __u8 state_of(struct sock *sk)
{
	return sk ? sk_read(sk, __sk_common.skc_state, BY_HELPER) : 0;
}

/* Only full sockets have a user. */
static __always_inline void read_owner(struct owner *owner, struct sock *sk)
{
	if (sk && is_fullsock(sk))
		kept_owner(owner, drop_has_owners ? find(sk) : NULL, sk, BY_HELPER);
	else
		no_owner(owner);
}

/* TCP takes the interface away, and later the route, too. */
static __always_inline __u32 netns_of(const struct packet *packet)
{
	if (packet->sk)
		return common_netns(packet->sk);
	if (packet->owner)
		return common_netns(packet->owner);
	return device_netns(device_of(packet->skb) ?: routed_device_of(packet->skb));
}

static __always_inline struct sock *followed_socket(const struct conn *conn)
{
	__u64 *sk = bpf_map_lookup_elem(&connections, conn);

	return sk ? (struct sock *)*sk : NULL;
}

/*
 * This and tell() are functions to the verifier: what both have on the stack would not fit in there
 * together. conn: the connection as this host sees it, but for the network namespace.
 */
static __noinline bool read_packet(struct packet *packet, struct conn *conn)
{
	struct sk_buff *skb = packet->skb;
	struct segment segment;

	if (!read_segment(&segment, skb) &&
	    !(packet->sk && packet->sent && read_unrouted_segment(&segment, skb, packet->sk)))
		return false;
	packet->seq = segment.seq;
	packet->ack = segment.ack;
	packet->len = segment.len;
	packet->flags = segment.flags;
	packet->is_whole = segment.is_whole;
	__builtin_memset(conn, 0, sizeof(*conn));
	segment_endpoints(conn, &segment, packet->sent);
	return true;
}

static __noinline int tell(void *ctx, const struct packet *packet, const struct conn *conn,
			   const struct owner *owner)
{
	struct sk_buff *skb = packet->skb;
	struct net_device *dev = device_of(skb);
	struct drop_with_stack told = {
		.event = {.ts_ns = bpf_ktime_get_ns(),
			  .direction = packet->sent ? DIRECTION_SENT : DIRECTION_RECEIVED,
			  .state = state_of(packet->sk),
			  .reason = packet->reason,
			  .function = packet->place,
			  .reason_code = packet->reason,
			  .seq = ~0ULL,
			  .ack = ~0ULL,
			  .len = ~0U,
			  .flags = UNKNOWN_FLAGS},
		.place = packet->place,
	};
	struct drop_event *event = &told.event;

	if (packet->is_whole) {
		event->seq = packet->seq;
		event->ack = packet->ack;
		event->len = packet->len;
		event->flags = packet->flags;
	}
	if (dev) {
		event->ifindex = BPF_CORE_READ(dev, ifindex);
		BPF_CORE_READ_STR_INTO(&event->ifname, dev, name);
	} else { /* stays when TCP takes the device away */
		event->ifindex = BPF_CORE_READ(skb, skb_iif);
	}
	describe(event, conn, owner);
	if (with_stack) {
		bpf_get_stack(ctx, told.frames, sizeof(told.frames), 0);
		emit(ctx, &told, sizeof(told));
	} else {
		emit(ctx, event, sizeof(*event));
	}
	return 0;
}

static __always_inline int freed(void *ctx, struct packet *packet)
{
	struct owner owner;
	struct conn conn;

	if (!want_reason(packet->reason) || !read_packet(packet, &conn) || !want_endpoints(&conn) ||
	    is_done_with(packet->skb, packet->flags, packet->len))
		return 0;
	conn.netns = netns_of(packet);
	if (!want_netns(conn.netns))
		return 0;
	if (drop_has_owners && !packet->sk)
		packet->sk = followed_socket(&conn);
	read_owner(&owner, packet->sk);
	if (!owner.wanted)
		return 0;
	if (count_drops || (most_a_second && is_over_rate()))
		count(packet);
	else
		tell(ctx, packet, &conn, &owner);
	return 0;
}

/*
 * A packet that has come in by an interface has its number (__netif_receive_skb_core). One that has
 * not is on its way out if somebody owns it: else it waits for a CPU to receive it.
 */
static __always_inline void read_sides(struct packet *packet, struct sock *receiver)
{
	struct sk_buff *skb = packet->skb;

	packet->owner = BPF_CORE_READ(skb, sk);
	packet->sk = tcp_socket(receiver ?: packet->owner);
	packet->sent = !receiver && packet->owner && !BPF_CORE_READ(skb, skb_iif);
}

SEC("raw_tp/kfree_skb")
int kfree_raw(struct bpf_raw_tracepoint_args *ctx)
{
	struct packet packet = {
		.skb = (struct sk_buff *)ctx->args[0],
		.place = ctx->args[1],
		.reason = has_reason ? (__u32)ctx->args[2] : NO_REASON,
	};

	if (has_reason && !is_drop(packet.reason))
		return 0;
	read_sides(&packet, has_receiver ? (struct sock *)ctx->args[3] : NULL);
	return freed(ctx, &packet);
}

/*
 * Before Linux 5.18 TCP frees what it drops without that tracepoint. The first reason that it gave
 * there tells: 5.17, and kernels with parts of it, have others already.
 */
static __always_inline bool traces_own_drops(void)
{
	return bpf_core_enum_value_exists(enum skb_drop_reason, SKB_DROP_REASON_TCP_FLAGS);
}

SEC("kprobe/tcp_drop")
int BPF_KPROBE(tcp_drop_kprobe, struct sock *sk, struct sk_buff *skb)
{
	struct packet packet = {.skb = skb, .reason = NO_REASON};

	if (traces_own_drops())
		return 0;
	BPF_KPROBE_READ_RET_IP(packet.place, ctx);
	read_sides(&packet, sk);
	return freed(ctx, &packet);
}

/* Sockets are followed for their owners: who opens, accepts, listens, or shuts down. */

static __always_inline bool concerns(int oldstate, int newstate)
{
	return newstate == TCP_LISTEN || is_of_session(oldstate, newstate);
}

/* Its tuple is complete. */
static __always_inline void note_tuple(struct sock *sk, struct entry *entry, const bool direct)
{
	__u64 value = (__u64)sk;

	if (common_conn(&entry->conn, sk, direct))
		remember(&connections, &entry->conn, &value);
}

static __always_inline void unfollow(struct sock *sk)
{
	struct entry *entry = find(sk);
	__u64 *known;

	if (!entry)
		return;
	known = bpf_map_lookup_elem(&connections, &entry->conn);
	if (known && *known == (__u64)sk)
		bpf_map_delete_elem(&connections, &entry->conn);
	drop(sk);
}

static __always_inline void established(struct sock *sk, const bool direct)
{
	struct entry begun = {}, *entry = find(sk);

	if (!entry) { /* a child, which nobody has accepted yet */
		follow(sk, &begun);
		entry = find(sk);
	}
	if (entry)
		note_tuple(sk, entry, direct);
}

static __always_inline void transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				       const bool owned, const bool direct)
{
	struct entry begun = {}, *entry;
	struct owner other;

	/* Filters by address are about a listener's connections, not about itself. */
	if (newstate != TCP_LISTEN && reject(sk, oldstate, newstate, direct))
		return;
	switch (newstate) {
	case TCP_SYN_RECV:
		unfollow(sk); /* an older socket had the address, and its end was missed */
		return;
	case TCP_SYN_SENT:
	case TCP_LISTEN:
		unfollow(sk);
		own(&begun.owner, sk, ROLE_ACTIVE, direct);
		follow(sk, &begun);
		return;
	case TCP_ESTABLISHED:
		established(sk, direct);
		return;
	}
	entry = find(sk);
	if (entry)
		changing_owner(&other, entry, sk, oldstate, newstate, owned, direct);
}

static __always_inline void accepted(void *ctx, struct sock *sk, const bool direct)
{
	struct entry unseen = {}, *entry;
	bool is_new = !find(sk);

	own_accepted(sk, &unseen, direct);
	entry = is_new ? find(sk) : NULL;
	if (entry)
		note_tuple(sk, entry, direct);
}

static __always_inline bool seeded(struct part *part, struct sock *sk, int state)
{
	struct conn conn = {};
	__u64 value = (__u64)sk;

	if (is_session(state) && common_conn(&conn, sk, BY_HELPER))
		return remember(&connections, &conn, &value);
	return state == TCP_LISTEN;
}

static __always_inline void destroy(void *ctx, struct sock *sk, const bool direct)
{
	unfollow(sk);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
