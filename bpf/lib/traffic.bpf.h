/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a socket counts itself: the bytes that its applications sent and received. */
#ifndef TCPCORE_TRAFFIC_BPF_H
#define TCPCORE_TRAFFIC_BPF_H

#include "lib/sock.bpf.h"

static __always_inline bool has_flag(struct sock *sk, int flag)
{
	return BPF_CORE_READ(sk, __sk_common.skc_flags) & (1UL << flag);
}

/* bytes_acked counts SYN and FIN, and not what a reset left unacknowledged. */
static __always_inline __u64 sent_bytes(struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	return BPF_CORE_READ(tp, bytes_sent) - BPF_CORE_READ(tp, bytes_retrans);
}

static __always_inline __u64 received_bytes(struct sock *sk)
{
	__u64 bytes = BPF_CORE_READ((struct tcp_sock *)sk, bytes_received);

	return bytes && has_flag(sk, SOCK_DONE) ? bytes - 1 : bytes; /* its FIN counts as a byte */
}

/* How long something waited to be sent, in jiffies, by what held it back. */
struct waits {
	__u64 network; /* congestion window and acknowledgements */
	__u64 window;  /* the receiver's */
	__u64 buffer;  /* room in its own send buffer */
};

enum { /* include/net/tcp.h, enum tcp_chrono */
       CHRONO_BUSY = 1,
       CHRONO_RWND_LIMITED,
       CHRONO_SNDBUF_LIMITED,
};

/* The one that runs is not added up yet: tcp_get_info_chrono_stats(), net/ipv4/tcp.c. */
static __always_inline void read_waits(struct waits *waits, struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	__u32 runs = BPF_CORE_READ_BITFIELD_PROBED(tp, chrono_type), stats[3], running = 0;

	BPF_CORE_READ_INTO(&stats, tp, chrono_stat);
	if (runs)
		running = (__u32)bpf_jiffies64() - BPF_CORE_READ(tp, chrono_start);
	waits->network = stats[0] + (runs == CHRONO_BUSY ? running : 0);
	waits->window = stats[1] + (runs == CHRONO_RWND_LIMITED ? running : 0);
	waits->buffer = stats[2] + (runs == CHRONO_SNDBUF_LIMITED ? running : 0);
}

#endif /* TCPCORE_TRAFFIC_BPF_H */
