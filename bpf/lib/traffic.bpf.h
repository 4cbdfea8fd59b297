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

#endif /* TCPCORE_TRAFFIC_BPF_H */
