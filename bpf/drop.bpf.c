// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* TCP packets that the kernel drops: where and why. */
#include "drop.h"
#include "lib/aggregate.bpf.h"
#include "lib/output.bpf.h"
#include "lib/owner.bpf.h"
#include "lib/skb.bpf.h"
#include <bpf/bpf_tracing.h>

EVENT(drop_event);

/* What the tracepoint passes: a reason since Linux 5.17 (c504e5c2f964), a socket since 6.11. */
const volatile bool has_reason, has_receiver;
const volatile bool count_drops; /* in the kernel, rather than send events */
const volatile bool with_stack;
const volatile __u32 most_a_second; /* events; the rest is counted. 0: all are sent */
const volatile __u32 target_reason[MAX_TARGETS], target_reason_count;

AGGREGATE(drops, struct drop, struct drop_count);

__u64 second; /* of the events that were sent last */
__u32 sent_in_second;

/* A packet that the kernel lets go of. */
struct packet {
	struct sk_buff *skb;
	struct sock *owner; /* skb->sk: of any kind, as a rule the sender */
	struct sock *sk;    /* the TCP socket that sends or gets it, NULL: none is known */
	__u64 place;	    /* behind the call that dropped it */
	__u32 reason;
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
		unknown_owner(owner, sk, BY_HELPER);
	else
		no_owner(owner);
}

static __always_inline void tell(void *ctx, const struct packet *packet,
				 const struct segment *segment, const struct conn *conn,
				 const struct owner *owner, struct net_device *dev)
{
	struct sk_buff *skb = packet->skb;
	struct drop_with_stack told = {.place = packet->place};
	struct drop_event *event = &told.event;

	*event = (struct drop_event){
		.ts_ns = bpf_ktime_get_ns(),
		.direction = packet->sent ? DIRECTION_SENT : DIRECTION_RECEIVED,
		.state = state_of(packet->sk),
		.reason = packet->reason,
		.function = packet->place,
		.reason_code = packet->reason,
		.seq = ~0ULL,
		.ack = ~0ULL,
		.len = ~0U,
		.flags = UNKNOWN_FLAGS,
	};

	if (segment->is_whole) {
		event->seq = segment->seq;
		event->ack = segment->ack;
		event->len = segment->len;
		event->flags = segment->flags;
	}
	event->ifindex = BPF_CORE_READ(skb, skb_iif); /* stays when TCP takes the device away */
	if (dev) {
		event->ifindex = BPF_CORE_READ(dev, ifindex);
		BPF_CORE_READ_STR_INTO(&event->ifname, dev, name);
	}
	describe(event, conn, owner);
	if (with_stack) {
		bpf_get_stack(ctx, told.frames, sizeof(told.frames), 0);
		emit(ctx, &told, sizeof(told));
	} else {
		emit(ctx, event, sizeof(*event));
	}
}

static __always_inline bool read_packet(struct segment *segment, const struct packet *packet)
{
	return read_segment(segment, packet->skb) ||
	       (packet->sk && packet->sent &&
		read_unrouted_segment(segment, packet->skb, packet->sk));
}

static __always_inline int freed(void *ctx, struct packet *packet)
{
	struct net_device *dev;
	struct segment segment;
	struct owner owner;
	struct conn conn;

	if (!want_reason(packet->reason) || !read_packet(&segment, packet))
		return 0;
	segment_endpoints(&conn, &segment, packet->sent);
	if (!want_endpoints(&conn))
		return 0;
	dev = device_of(packet->skb);
	conn.netns = packet->owner ? common_netns(packet->owner) : device_netns(dev);
	if (packet->sk)
		conn.netns = common_netns(packet->sk);
	read_owner(&owner, packet->sk);
	if (!want_netns(conn.netns) || !owner.wanted)
		return 0;
	if (count_drops || (most_a_second && is_over_rate()))
		count(packet);
	else
		tell(ctx, packet, &segment, &conn, &owner, dev);
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
 * Before Linux 5.17 TCP frees what it drops without that tracepoint. Where it has a reason to give, it
 * calls it.
 */
SEC("kprobe/tcp_drop")
int BPF_KPROBE(tcp_drop_kprobe, struct sock *sk, struct sk_buff *skb)
{
	struct packet packet = {.skb = skb, .reason = NO_REASON};

	if (has_reason)
		return 0;
	BPF_KPROBE_READ_RET_IP(packet.place, ctx);
	read_sides(&packet, sk);
	return freed(ctx, &packet);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
