/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a packet buffer says of its TCP segment, and of where it is. Everything by helper: what is
 * read lies behind pointers, and what a pointer means depends on where the packet is.
 */
#ifndef TCPCORE_SKB_BPF_H
#define TCPCORE_SKB_BPF_H

#include "lib/sock.bpf.h"

/* Headers as they are on the wire: RFC 791, RFC 8200, RFC 9293. */
struct ipv4_header {
	__u8 version_ihl;
	__u8 tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag_off;
	__u8 ttl;
	__u8 protocol;
	__be16 check;
	__be32 saddr;
	__be32 daddr;
};

struct ipv6_header {
	__be32 version_flow;
	__be16 payload_len;
	__u8 nexthdr;
	__u8 hop_limit;
	__u8 saddr[16];
	__u8 daddr[16];
};

struct tcp_header {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack_seq;
	__u8 doff; /* in the high half, in words */
	__u8 flags;
	__be16 window;
	__be16 check;
	__be16 urg_ptr;
};

#define IP_OFFSET 0x1fff /* of a fragment, include/net/ip.h */
#define MAX_EXTENSIONS 4

struct segment {
	union address saddr;
	union address daddr;
	__u32 seq;
	__u32 ack;
	__u32 len; /* of its payload */
	__u16 family;
	__u16 sport; /* host order */
	__u16 dport;
	__u8 flags;
	bool is_whole; /* else there is no whole TCP header: addresses and family alone are known */
};

/*
 * Where a packet's headers are: in the linear part of its buffer. Offsets count from head.
 * network: of the IP header, which a driver's packet does not have noted yet.
 */
struct linear {
	struct sk_buff *skb;
	unsigned char *head;
	__u32 network;
	__u32 data;
	__u32 tail;
	__be16 protocol;
};

/*
 * Reading is most of what a packet costs that no filter wants. From protocol to data it is one read:
 * so many bytes in all kernels from 5.10 on, unless they are built with something in between.
 */
#define CLOSE 40

/* Loads from the stack have to be aligned, as the fields are: protocol is at 180 in some kernels. */
#define close_begin(skb) (bpf_core_field_offset((skb)->protocol) & ~7U)

#define read_close(field, skb, close)                                                              \
	({                                                                                         \
		__u32 _at = bpf_core_field_offset((skb)->field) - close_begin(skb);                \
		typeof((skb)->field) _value;                                                       \
		barrier_var(_at); /* else clang makes "or" of an addition, which pointers lack */  \
		if (_at <= CLOSE - sizeof(_value)) /* the verifier knows, and drops the other */   \
			_value = *(typeof(_value) *)((void *)(close) + _at);                       \
		else                                                                               \
			bpf_core_read(&_value, sizeof(_value), &(skb)->field);                     \
		_value;                                                                            \
	})

static __always_inline void read_linear(struct linear *linear, struct sk_buff *skb)
{
	__u64 close[CLOSE / 8];

	bpf_probe_read_kernel(close, sizeof(close), (void *)skb + close_begin(skb));
	linear->skb = skb;
	linear->head = read_close(head, skb, close);
	linear->network = read_close(network_header, skb, close);
	linear->data = read_close(data, skb, close) - linear->head;
	linear->tail = read_close(tail, skb, close);
	linear->protocol = read_close(protocol, skb, close);
}

/* Of the whole packet: behind the tail if it has other parts. */
static __always_inline __u32 end_of(const struct linear *linear)
{
	struct sk_buff *skb = linear->skb;

	return linear->data + BPF_CORE_READ(skb, len);
}

/* False where the header is not, or not all of it, in the linear part. */
static __always_inline bool read_header(void *header, __u32 size, const struct linear *linear,
					__u32 offset)
{
	return offset + size <= linear->tail &&
	       !bpf_probe_read_kernel(header, size, linear->head + offset);
}

/* end: of the IP packet; what is behind it pads an Ethernet frame. */
static __always_inline void read_tcp(struct segment *segment, const struct linear *linear,
				     __u32 offset, __u32 end)
{
	struct tcp_header tcp;
	__u32 payload;

	if (!read_header(&tcp, sizeof(tcp), linear, offset))
		return;
	segment->is_whole = true;
	segment->sport = bpf_ntohs(tcp.source);
	segment->dport = bpf_ntohs(tcp.dest);
	segment->seq = bpf_ntohl(tcp.seq);
	segment->ack = bpf_ntohl(tcp.ack_seq);
	segment->flags = tcp.flags;
	payload = offset + (tcp.doff >> 4) * 4;
	segment->len = payload < end ? end - payload : 0;
}

static __always_inline bool read_ipv4(struct segment *segment, const struct linear *linear,
				      __u32 offset)
{
	struct ipv4_header ip;
	__u32 len;

	if (!read_header(&ip, sizeof(ip), linear, offset) || ip.version_ihl >> 4 != 4 ||
	    ip.protocol != IPPROTO_TCP)
		return false;
	segment->family = AF_INET;
	set_v4mapped(&segment->saddr, ip.saddr);
	set_v4mapped(&segment->daddr, ip.daddr);
	len = bpf_ntohs(ip.tot_len); /* 0: longer than 64 KiB (Linux 6.3, BIG TCP) */
	/* Only the first fragment has the TCP header. */
	if (!(bpf_ntohs(ip.frag_off) & IP_OFFSET))
		read_tcp(segment, linear, offset + (ip.version_ihl & 15) * 4,
			 len ? offset + len : end_of(linear));
	return true;
}

/* RFC 8200, 4: the extension headers that may stand before TCP's. */
static __always_inline bool is_extension(__u8 header)
{
	return header == 0 || header == 43 || header == 44 || header == 60;
}

/* Moves header and offset past them. False: there is no TCP header behind them. */
static __always_inline bool skip_extensions(__u8 *header, __u32 *offset,
					    const struct linear *linear)
{
	__u8 extension[8];
	bool first = true;

#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < MAX_EXTENSIONS && is_extension(*header); i++) {
		if (!read_header(extension, sizeof(extension), linear, *offset))
			return false;
		if (*header == 44) {
			first = !((extension[2] << 8 | extension[3]) >> 3);
			*offset += sizeof(extension);
		} else {
			*offset += (extension[1] + 1) * 8;
		}
		*header = extension[0];
	}
	return first;
}

static __always_inline bool read_ipv6(struct segment *segment, const struct linear *linear,
				      __u32 offset)
{
	__u32 tcp = offset + sizeof(struct ipv6_header), len;
	struct ipv6_header ip;
	bool first;

	if (!read_header(&ip, sizeof(ip), linear, offset) || bpf_ntohl(ip.version_flow) >> 28 != 6)
		return false;
	first = skip_extensions(&ip.nexthdr, &tcp, linear);
	if (ip.nexthdr != IPPROTO_TCP)
		return false;
	segment->family = AF_INET6;
	__builtin_memcpy(&segment->saddr, ip.saddr, sizeof(ip.saddr));
	__builtin_memcpy(&segment->daddr, ip.daddr, sizeof(ip.daddr));
	len = bpf_ntohs(ip.payload_len); /* 0: as tot_len above */
	if (first)
		read_tcp(segment, linear, tcp,
			 len ? offset + sizeof(struct ipv6_header) + len : end_of(linear));
	return true;
}

/* The segment of a packet whose IP header is at an offset from head; false: it is none of TCP. */
static __always_inline bool read_segment_at(struct segment *segment, const struct linear *linear,
					    __u32 offset)
{
	__builtin_memset(segment, 0, sizeof(*segment));
	if (linear->protocol == bpf_htons(ETH_P_IP))
		return read_ipv4(segment, linear, offset);
	return linear->protocol == bpf_htons(ETH_P_IPV6) && read_ipv6(segment, linear, offset);
}

/*
 * The segment of a packet that has an IP header; false: it has none, or is not of TCP. The place of
 * the TCP header follows from the IP header: skb->transport_header is the same as network_header
 * until the IP layer has seen a received packet (__netif_receive_skb_core).
 */
static __always_inline bool read_segment(struct segment *segment, struct sk_buff *skb)
{
	struct linear linear;

	read_linear(&linear, skb);
	return read_segment_at(segment, &linear, linear.network);
}

/* The same where a driver hands it over: the IP header is at data, and is not noted yet. */
static __always_inline bool read_received_segment(struct segment *segment, struct sk_buff *skb)
{
	struct linear linear;

	read_linear(&linear, skb);
	return read_segment_at(segment, &linear, linear.data);
}

/*
 * The segment of a packet that its TCP socket sends and that IP has not seen: there is no IP header
 * yet, nor a protocol. Both ends are the socket's.
 */
static __always_inline bool read_unrouted_segment(struct segment *segment, struct sk_buff *skb,
						  struct sock *sk)
{
	struct linear linear;
	struct conn conn;

	__builtin_memset(segment, 0, sizeof(*segment));
	read_linear(&linear, skb);
	if (linear.protocol || !common_endpoints(&conn, sk, BY_HELPER))
		return false;
	segment->family = conn.family;
	segment->saddr = conn.laddr;
	segment->daddr = conn.raddr;
	read_tcp(segment, &linear, BPF_CORE_READ(skb, transport_header), end_of(&linear));
	return true;
}

/* The ends as this host sees them, who sent the segment or gets it; not the namespace. */
static __always_inline void segment_endpoints(struct conn *conn, const struct segment *segment,
					      bool sent)
{
	conn->family = segment->family;
	conn->laddr = sent ? segment->saddr : segment->daddr;
	conn->raddr = sent ? segment->daddr : segment->saddr;
	conn->lport = sent ? segment->sport : segment->dport;
	conn->rport = sent ? segment->dport : segment->sport;
}

static __always_inline struct net *net_of_device(struct net_device *dev)
{
	return BPF_CORE_READ(dev, nd_net.net);
}

/*
 * dev, or NULL where it is none. In the queues of a socket fields of a packet are part of a node (the
 * unions around skb->dev and skb->_skb_refdst): what they lead to has no namespace whose loopback
 * device is in that namespace.
 */
static __always_inline struct net_device *checked_device(struct net_device *dev)
{
	struct net *net = dev ? net_of_device(dev) : NULL;

	return net && net_of_device(BPF_CORE_READ(net, loopback_dev)) == net ? dev : NULL;
}

/* The interface that a packet came in by or goes out by; NULL: none. */
static __always_inline struct net_device *device_of(struct sk_buff *skb)
{
	return checked_device(BPF_CORE_READ(skb, dev));
}

/* That of its route, which stays in its namespace; NULL: none, or not routed yet. */
static __always_inline struct net_device *routed_device_of(struct sk_buff *skb)
{
	/* skb_dst(), include/linux/skbuff.h: the lowest bit is a flag. */
	struct dst_entry *dst = (void *)(BPF_CORE_READ(skb, _skb_refdst) & ~1UL);

	return checked_device(BPF_CORE_READ(dst, dev));
}

/* The network namespace of a device, NULL: 0, not known. */
static __always_inline __u32 device_netns(struct net_device *dev)
{
	return dev ? BPF_CORE_READ(dev, nd_net.net, ns.inum) : 0;
}

/*
 * The TCP socket that a packet belongs to, NULL if none. Others send and receive segments as well:
 * packet sockets, raw sockets, and the kernel's own that answer where there is no socket. It may be
 * a request or a time-wait socket, which have the fields of struct sock_common alone.
 */
static __always_inline struct sock *tcp_socket(struct sock *sk)
{
	__u16 family = sk ? sk_read(sk, __sk_common.skc_family, BY_HELPER) : 0;
	__u8 state;

	if (family != AF_INET && family != AF_INET6)
		return NULL;
	state = sk_read(sk, __sk_common.skc_state, BY_HELPER);
	if (state == TCP_NEW_SYN_RECV || state == TCP_TIME_WAIT)
		return sk;
	return is_tcp(sk, BY_HELPER) ? sk : NULL;
}

/*
 * A FIN that TCP has acted upon stays in the socket's queue, and goes with the socket at the end of
 * many a session (sk_stream_kill_queues). The kernel calls that a drop, but nothing is lost.
 */
static __always_inline bool is_done_with(struct sk_buff *skb, __u8 flags, __u32 len)
{
	struct sock *sk = flags & TCPHDR_FIN && !len && BPF_CORE_READ(skb, skb_iif)
				  ? tcp_socket(BPF_CORE_READ(skb, sk))
				  : NULL;

	return sk && sk_read(sk, __sk_common.skc_state, BY_HELPER) == TCP_CLOSE;
}

#endif /* TCPCORE_SKB_BPF_H */
