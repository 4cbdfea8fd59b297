// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The ways of packets through the stack: an event for each stage that a packet comes by. Which
 * stages are of one packet is found out in user space, from what the events say of the packet.
 *
 * Addresses and ports are those of the packet: "local" is who sent it. The filters are about
 * connections, so that a packet is of interest in either direction.
 */
#include "path.h"

/* Nothing is kept of a socket but its owner. */
struct part {
};

#include "lib/accepting.bpf.h"
#include "lib/entry.bpf.h"
#include "lib/output.bpf.h"
#include "lib/seeding.bpf.h"
#include "lib/skb.bpf.h"
#include "lib/transitions.bpf.h"

EVENT(path_event);

#define MOST_DEQUEUED 32 /* at once, for devices with byte queue limits */

const volatile __u8 target_flags; /* TCP flags, any of which will do */
/* A filter asks for owners: sockets are followed. */
const volatile bool path_has_owners;
const volatile bool path_has_bytes; /* events have the packets' first bytes */

struct flow {
	union address saddr, daddr;
	__u16 sport, dport;
	__u32 pad;
};

/* Both directions of connections whose owner, or user, is wanted. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow);
	__type(value, __u8);
} flows SEC(".maps");

/* A packet at a stage. */
struct packet {
	struct conn conn; /* as who sent it sees it */
	__u32 seq;
	__u32 len;
	__u32 reason;
	__u8 stage;
	__u8 flags;
};

static __always_inline struct flow flow_of(const struct conn *conn)
{
	return (struct flow){.saddr = conn->laddr,
			     .daddr = conn->raddr,
			     .sport = conn->lport,
			     .dport = conn->rport};
}

static __always_inline struct conn turned(const struct conn *conn)
{
	struct conn other = *conn;

	other.laddr = conn->raddr;
	other.raddr = conn->laddr;
	other.lport = conn->rport;
	other.rport = conn->lport;
	return other;
}

/* A driver's packet, whose IP header the kernel has not noted yet. */
static __always_inline bool is_from_driver(enum stage stage)
{
	return stage == STAGE_RX || stage == STAGE_GRO || stage == STAGE_RECEIVE;
}

static __always_inline bool read_stage(struct segment *segment, struct sk_buff *skb,
				       struct sock *sk, enum stage stage)
{
	if (stage == STAGE_IP_SEND)
		return read_unrouted_segment(segment, skb, sk);
	return is_from_driver(stage) ? read_received_segment(segment, skb)
				     : read_segment(segment, skb);
}

/*
 * A filter is about a connection, of which a packet may go either way.
 *
 * The verifier sees this and others as functions: programs are many, filters long, and what all of
 * them have on the stack would not fit in there together.
 */
static __noinline bool want_either_way(const struct conn *conn)
{
	struct conn other;

	if (want_endpoints(conn))
		return true;
	other = turned(conn);
	return want_endpoints(&other);
}

/* In place, as the stack is short: the other direction. */
static __always_inline void turn(struct flow *flow)
{
	union address saddr = flow->saddr;
	__u16 sport = flow->sport;

	flow->saddr = flow->daddr;
	flow->daddr = saddr;
	flow->sport = flow->dport;
	flow->dport = sport;
}

static __always_inline void want_flow(struct flow *flow)
{
	__u8 value = 1;

	bpf_map_update_elem(&flows, flow, &value, BPF_ANY);
	turn(flow);
	bpf_map_update_elem(&flows, flow, &value, BPF_ANY);
}

static __always_inline bool is_owner_asked_for(void)
{
	return path_has_owners || target_uid_count;
}

/* Request and time-wait sockets have no user. */
static __always_inline bool has_wanted_user(struct sock *sk)
{
	return is_fullsock(sk) && want_uid(sk_read(sk, sk_uid.val, BY_HELPER));
}

static __always_inline bool has_wanted_owner(struct sock *sk)
{
	struct entry *entry;

	if (!path_has_owners)
		return has_wanted_user(sk);
	entry = find(sk);
	return entry && entry->owner.wanted;
}

/* Where a packet has no socket, its connection tells: a packet with one came before. */
static __always_inline bool is_owner_wanted(const struct conn *conn, struct sock *sk)
{
	struct flow flow = flow_of(conn);

	if (bpf_map_lookup_elem(&flows, &flow))
		return true;
	if (!sk || !has_wanted_owner(sk))
		return false;
	want_flow(&flow);
	return true;
}

static __noinline bool read_packet(struct packet *packet, struct sk_buff *skb, struct sock *sk,
				   enum stage stage)
{
	struct segment segment;

	if (!read_stage(&segment, skb, sk, stage) || !segment.sport)
		return false;
	packet->conn = (struct conn){.laddr = segment.saddr,
				     .raddr = segment.daddr,
				     .lport = segment.sport,
				     .rport = segment.dport,
				     .family = segment.family};
	packet->seq = segment.seq;
	packet->len = segment.len;
	packet->flags = segment.flags;
	return true;
}

/* Asked before anything but the headers is read: mostly they tell that a packet is not wanted. */
static __always_inline bool want_headers(const struct packet *packet)
{
	return (!target_flags || packet->flags & target_flags) && want_either_way(&packet->conn);
}

/* The packet's namespace is known here. */
static __noinline bool want_place(const struct packet *packet, struct sock *sk)
{
	return want_netns(packet->conn.netns) &&
	       (!is_owner_asked_for() || is_owner_wanted(&packet->conn, sk));
}

/*
 * No IP header is there yet where TCP sends and IP begins. Where a reader copies data, its packet
 * may be of several, and was seen before.
 */
static __always_inline bool has_ip_header(enum stage stage)
{
	return stage != STAGE_TCP_SEND && stage != STAGE_IP_SEND && stage != STAGE_COPIED;
}

static __always_inline void read_bytes(struct path_with_bytes *told, struct sk_buff *skb,
				       enum stage stage)
{
	unsigned char *head = BPF_CORE_READ(skb, head);
	__u32 tail = BPF_CORE_READ(skb, tail);
	__u32 begin = is_from_driver(stage) ? BPF_CORE_READ(skb, data) - head
					    : BPF_CORE_READ(skb, network_header);
	__u32 size = tail - begin;

	if (size > sizeof(told->bytes))
		size = sizeof(told->bytes);
	if (begin < tail && !bpf_probe_read_kernel(told->bytes, size, head + begin))
		told->captured = size;
}

static __noinline int tell(void *ctx, const struct packet *packet, struct sk_buff *skb,
			   struct net_device *dev, const struct owner *owner)
{
	struct path_with_bytes told = {};
	struct path_event *event = &told.event;

	*event = (struct path_event){
		.ts_ns = bpf_ktime_get_ns(),
		.stage = packet->stage,
		.flags = packet->flags,
		.seq = packet->seq,
		.len = packet->len,
		.cpu = bpf_get_smp_processor_id(),
		.skb = (__u64)skb,
		.reason = packet->reason,
	};
	if (dev) {
		event->ifindex = BPF_CORE_READ(dev, ifindex);
		BPF_CORE_READ_INTO(&event->ifname, dev, name);
	}
	describe(event, &packet->conn, owner);
	if (!path_has_bytes) {
		emit(ctx, event, sizeof(*event));
		return 0;
	}
	if (has_ip_header(packet->stage))
		read_bytes(&told, skb, packet->stage);
	emit(ctx, &told, sizeof(told));
	return 0;
}

/* sk: NULL where only the packet itself may tell its socket, which may be no full one. */
static __noinline int pass(void *ctx, struct sk_buff *skb, struct sock *sk, __u32 stage,
			   __u32 reason)
{
	struct packet packet = {.stage = stage, .reason = reason};
	struct net_device *dev;

	if (!read_packet(&packet, skb, sk, stage) || !want_headers(&packet))
		return 0;
	if (stage == STAGE_DROPPED && is_done_with(skb, packet.flags, packet.len)) {
		packet.stage = STAGE_FREED;
		packet.reason = 0;
	}
	dev = device_of(skb);
	sk = sk ?: tcp_socket(BPF_CORE_READ(skb, sk));
	packet.conn.netns = dev ? device_netns(dev) : sk ? common_netns(sk) : 0;
	if (want_place(&packet, sk)) {
		struct owner nobody = {.uid = NO_USER};

		tell(ctx, &packet, skb, dev, &nobody);
	}
	return 0;
}

/* Tracepoints: where every kernel in question has a stage. */

SEC("raw_tp/net_dev_queue")
int BPF_PROG(dev_queue, struct sk_buff *skb)
{
	return pass(ctx, skb, NULL, STAGE_DEV_QUEUE, 0);
}

/* After the fact: another CPU may have taken the packet out of the queue and freed it. */
SEC("raw_tp/qdisc_enqueue")
int BPF_PROG(qdisc_in, void *qdisc, const void *txq, struct sk_buff *skb)
{
	return pass(ctx, skb, NULL, STAGE_QDISC_IN, 0);
}

SEC("raw_tp/qdisc_dequeue")
int BPF_PROG(qdisc_out, void *qdisc, const void *txq, int packets, struct sk_buff *skb)
{
	/* A list of them, where the device takes several at once. */
#pragma clang loop unroll(disable)
	for (int i = 0; i < MOST_DEQUEUED && i < packets && skb; i++) {
		pass(ctx, skb, NULL, STAGE_QDISC_OUT, 0);
		skb = BPF_CORE_READ(skb, next);
	}
	return 0;
}

SEC("raw_tp/net_dev_start_xmit")
int BPF_PROG(driver, struct sk_buff *skb)
{
	return pass(ctx, skb, NULL, STAGE_DRIVER, 0);
}

SEC("raw_tp/netif_rx")
int BPF_PROG(rx, struct sk_buff *skb)
{
	return pass(ctx, skb, NULL, STAGE_RX, 0);
}

SEC("raw_tp/napi_gro_receive_entry")
int BPF_PROG(gro, struct sk_buff *skb)
{
	return pass(ctx, skb, NULL, STAGE_GRO, 0);
}

SEC("raw_tp/netif_receive_skb")
int BPF_PROG(receive, struct sk_buff *skb)
{
	return pass(ctx, skb, NULL, STAGE_RECEIVE, 0);
}

SEC("raw_tp/tcp_probe")
int BPF_PROG(tcp_process, struct sock *sk, struct sk_buff *skb)
{
	return pass(ctx, skb, sk, STAGE_TCP_PROCESS, 0);
}

SEC("raw_tp/kfree_skb")
int dropped(struct bpf_raw_tracepoint_args *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)ctx->args[0];

	/* The third argument came with the type: Linux 5.17, c504e5c2f964. */
	if (bpf_core_type_exists(enum skb_drop_reason))
		return pass(ctx, skb, NULL, STAGE_DROPPED, ctx->args[2]);
	return pass(ctx, skb, NULL, STAGE_DROPPED, 0);
}

SEC("raw_tp/consume_skb")
int BPF_PROG(freed, struct sk_buff *skb)
{
	return pass(ctx, skb, NULL, STAGE_FREED, 0);
}

/* The tuple of what a socket receives. A function: its stack is free again behind it. */
static __noinline bool read_peers_conn(struct conn *conn, struct sock *sk)
{
	struct conn own;

	if (!common_conn(&own, sk, BY_HELPER))
		return false;
	*conn = turned(&own);
	return true;
}

/* Data of a socket's queue, which may have come in several packets, goes to a reader. */
SEC("raw_tp/skb_copy_datagram_iovec")
int BPF_PROG(copied, struct sk_buff *skb, int len)
{
	struct packet packet = {.stage = STAGE_COPIED, .len = len};
	struct sock *sk = tcp_socket(BPF_CORE_READ(skb, sk));
	struct owner owner = {.uid = NO_USER};

	if (!sk || len <= 0 || !read_peers_conn(&packet.conn, sk))
		return 0;
	/* Whether the packets had the wanted flags is not known here: user space knows them. */
	if (!want_either_way(&packet.conn) || !want_place(&packet, sk))
		return 0;
	packet.seq = BPF_CORE_READ((struct tcp_sock *)sk, copied_seq);
	/* Whoever reads holds the lock; else the kernel takes the data itself. */
	if (is_owned(sk, BY_HELPER))
		current_owner(&owner, sk, BY_HELPER);
	tell(ctx, &packet, skb, NULL, &owner);
	return 0;
}

/* Functions: more stages, where the kernel lets them be hooked. */

/* A segment before it has headers. Mostly its clone is sent, and it is kept for retransmission. */
static __always_inline int tcp_send(void *ctx, struct sock *sk, struct sk_buff *skb)
{
	struct tcp_skb_cb *segment = (struct tcp_skb_cb *)skb->cb;
	struct packet packet = {
		.stage = STAGE_TCP_SEND,
		.seq = sk_read(segment, seq, BY_HELPER),
		.len = BPF_CORE_READ(skb, len),
		.flags = sk_read(segment, tcp_flags, BY_HELPER),
	};
	struct owner owner = {.uid = NO_USER};

	if (common_conn(&packet.conn, sk, BY_HELPER) && want_headers(&packet) &&
	    want_place(&packet, sk))
		tell(ctx, &packet, skb, NULL, &owner);
	return 0;
}

SEC("fentry/__tcp_transmit_skb")
int BPF_PROG(tcp_send_fentry, struct sock *sk, struct sk_buff *skb)
{
	return tcp_send(ctx, sk, skb);
}

SEC("kprobe/__tcp_transmit_skb")
int BPF_KPROBE(tcp_send_kprobe, struct sock *sk, struct sk_buff *skb)
{
	return tcp_send(ctx, sk, skb);
}

/* A stage whose arguments begin with the packet. */
#define OF_PACKET(function, stage)                                                                 \
	SEC("fentry/" #function)                                                                   \
	int BPF_PROG(function##_fentry, struct sk_buff *skb)                                       \
	{                                                                                          \
		return pass(ctx, skb, NULL, stage, 0);                                             \
	}                                                                                          \
	SEC("kprobe/" #function)                                                                   \
	int BPF_KPROBE(function##_kprobe, struct sk_buff *skb)                                     \
	{                                                                                          \
		return pass(ctx, skb, NULL, stage, 0);                                             \
	}

/* A stage whose arguments begin with a socket and its packet. */
#define OF_SOCKET(function, stage)                                                                 \
	SEC("fentry/" #function)                                                                   \
	int BPF_PROG(function##_fentry, struct sock *sk, struct sk_buff *skb)                      \
	{                                                                                          \
		return pass(ctx, skb, sk, stage, 0);                                               \
	}                                                                                          \
	SEC("kprobe/" #function)                                                                   \
	int BPF_KPROBE(function##_kprobe, struct sock *sk, struct sk_buff *skb)                    \
	{                                                                                          \
		return pass(ctx, skb, sk, stage, 0);                                               \
	}

/* The same behind a namespace. */
#define OF_OUTPUT(function, stage)                                                                 \
	SEC("fentry/" #function)                                                                   \
	int BPF_PROG(function##_fentry, struct net *net, struct sock *sk, struct sk_buff *skb)     \
	{                                                                                          \
		return pass(ctx, skb, sk, stage, 0);                                               \
	}                                                                                          \
	SEC("kprobe/" #function)                                                                   \
	int BPF_KPROBE(function##_kprobe, struct net *net, struct sock *sk, struct sk_buff *skb)   \
	{                                                                                          \
		return pass(ctx, skb, sk, stage, 0);                                               \
	}

OF_SOCKET(__ip_queue_xmit, STAGE_IP_SEND)
OF_SOCKET(inet6_csk_xmit, STAGE_IP_SEND)
OF_OUTPUT(ip_output, STAGE_IP_OUTPUT)
OF_OUTPUT(ip6_output, STAGE_IP_OUTPUT)
OF_PACKET(ip_rcv, STAGE_IP_RECEIVE)
OF_PACKET(ipv6_rcv, STAGE_IP_RECEIVE)
OF_PACKET(ip_local_deliver, STAGE_IP_DELIVER)
OF_PACKET(ip6_input, STAGE_IP_DELIVER)
OF_PACKET(tcp_v4_rcv, STAGE_TCP_RECEIVE)
OF_PACKET(tcp_v6_rcv, STAGE_TCP_RECEIVE)
OF_SOCKET(tcp_queue_rcv, STAGE_SOCKET_QUEUE)

/* What the shared headers ask for, where a filter asks for owners. */

static __always_inline bool concerns(int oldstate, int newstate)
{
	return is_of_session(oldstate, newstate);
}

static __always_inline void transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				       const bool owned, const bool direct)
{
	struct entry begun = {}, *entry;
	struct owner other;

	if (reject(sk, oldstate, newstate, direct))
		return;
	if (newstate == TCP_SYN_RECV) { /* a new child: an older socket had the address */
		forget(sk);
	} else if (newstate == TCP_SYN_SENT) {
		own(&begun.owner, sk, ROLE_ACTIVE, direct);
		follow(sk, &begun);
	} else {
		entry = find(sk);
		if (entry)
			changing_owner(&other, entry, sk, oldstate, newstate, owned, direct);
	}
}

static __always_inline void accepted(void *ctx, struct sock *sk, const bool direct)
{
	struct entry unseen = {};

	own_accepted(sk, &unseen, direct);
}

static __always_inline bool seeded(struct part *part, struct sock *sk, int state)
{
	return is_session(state);
}

static __always_inline void destroy(void *ctx, struct sock *sk, const bool direct)
{
	struct flow flow;
	struct conn conn;

	if (!find(sk))
		return;
	drop(sk);
	if (!read_closed_conn(&conn, sk, direct))
		return;
	flow = flow_of(&conn);
	bpf_map_delete_elem(&flows, &flow);
	turn(&flow);
	bpf_map_delete_elem(&flows, &flow);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
