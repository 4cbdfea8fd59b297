/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A received TCP segment: what its headers say. */
#ifndef TCPCORE_SEGMENT_BPF_H
#define TCPCORE_SEGMENT_BPF_H

#include "lib/sock.bpf.h"

/* Headers as they are on the wire: RFC 791, 8200, 9293. */
struct ipv4_header {
	__u8 version_ihl;
	__u8 between[11];
	__be32 saddr, daddr;
};

struct ipv6_header {
	__u8 between[8];
	__u8 saddr[16], daddr[16];
};

struct tcp_header {
	__be16 source, dest;
	__be32 seq, ack_seq;
	__u8 doff; /* in words, in the upper half */
	__u8 flags;
};

struct segment {
	struct tcp_header tcp;
	__u32 length;	  /* of its data, in bytes */
	struct conn conn; /* as its receiver sees it, but for the network namespace */
};

static __always_inline bool has_flags(const struct segment *segment, __u8 flags)
{
	return segment->tcp.flags & flags;
}

static __always_inline __u32 netns_of_segment(struct sk_buff *skb)
{
	/* skb_dst(), include/linux/skbuff.h: the lowest bit is a flag. */
	struct dst_entry *dst = (void *)(BPF_CORE_READ(skb, _skb_refdst) & ~1UL);

	return BPF_CORE_READ(dst, dev, nd_net.net, ns.inum);
}

static __always_inline bool read_ip(struct conn *conn, const void *ip)
{
	struct ipv6_header v6 = {};
	struct ipv4_header v4 = {};

	if (bpf_probe_read_kernel(&v4, sizeof(v4), ip))
		return false;
	if (v4.version_ihl >> 4 == 4) {
		conn->family = AF_INET;
		set_v4mapped(&conn->laddr, v4.daddr);
		set_v4mapped(&conn->raddr, v4.saddr);
		return true;
	}
	if (v4.version_ihl >> 4 != 6 || bpf_probe_read_kernel(&v6, sizeof(v6), ip))
		return false;
	conn->family = AF_INET6;
	__builtin_memcpy(&conn->laddr, v6.daddr, sizeof(conn->laddr));
	__builtin_memcpy(&conn->raddr, v6.saddr, sizeof(conn->raddr));
	return true;
}

/* A received segment on its way through TCP, where its data begins with the header. */
static __always_inline bool read_segment(struct segment *segment, struct sk_buff *skb)
{
	const void *head = BPF_CORE_READ(skb, head);
	const void *tcp = head + BPF_CORE_READ(skb, transport_header);

	if (bpf_probe_read_kernel(&segment->tcp, sizeof(segment->tcp), tcp) ||
	    !read_ip(&segment->conn, head + BPF_CORE_READ(skb, network_header)))
		return false;
	segment->length = BPF_CORE_READ(skb, len) - (segment->tcp.doff >> 4) * 4;
	segment->conn.lport = bpf_ntohs(segment->tcp.dest);
	segment->conn.rport = bpf_ntohs(segment->tcp.source);
	return true;
}

#endif /* TCPCORE_SEGMENT_BPF_H */
