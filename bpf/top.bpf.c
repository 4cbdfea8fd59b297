// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* What each session sent and received, and what held its sender back. */
#include "top.h"

/* Of a socket, since it was opened. */
struct sums {
	__u64 tx_bytes;
	__u64 rx_bytes;
	__u64 retransmits;
	__u64 out_of_order;
	__u64 busy;
	__u64 rwnd_limited;
	__u64 sndbuf_limited;
};

#include "lib/aggregate.bpf.h"
#include "lib/traffic.bpf.h"
#include "lib/walk.bpf.h"

AGGREGATE(sessions, struct session, struct session_count);

static __always_inline bool sum_up(struct sums *sums, const struct part *part, struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct waits waits;

	sums->tx_bytes = sent_bytes(sk);
	sums->rx_bytes = received_bytes(sk);
	sums->retransmits = BPF_CORE_READ(tp, total_retrans);
	sums->out_of_order = BPF_CORE_READ(tp, rcv_ooopack);
	read_waits(&waits, sk);
	sums->busy = waits.network;
	sums->rwnd_limited = waits.window;
	sums->sndbuf_limited = waits.buffer;
	return true;
}

/* Bytes per second: tcp_compute_delivery_rate() of net/ipv4/tcp.c. */
static __always_inline __u64 delivery_rate(struct tcp_sock *tp)
{
	__u64 bytes = (__u64)BPF_CORE_READ(tp, rate_delivered) * BPF_CORE_READ(tp, mss_cache);
	__u32 us = BPF_CORE_READ(tp, rate_interval_us);

	return us ? bytes * 1000000 / us : 0;
}

static __always_inline void look(struct session_count *counters, struct tcp_sock *tp)
{
	add(&counters->looks, 1);
	add(&counters->srtt_us, BPF_CORE_READ(tp, srtt_us) >> 3);
	add(&counters->cwnd, BPF_CORE_READ(tp, snd_cwnd));
	add(&counters->delivery_rate, delivery_rate(tp));
}

/* Nothing went either way, and nothing waited to be sent. */
static __always_inline bool is_idle(const struct sums *before, const struct sums *now)
{
	return now->tx_bytes == before->tx_bytes && now->rx_bytes == before->rx_bytes &&
	       now->busy == before->busy && now->rwnd_limited == before->rwnd_limited &&
	       now->sndbuf_limited == before->sndbuf_limited;
}

static __always_inline void account(struct sock *sk, const struct conn *conn,
				    const struct owner *owner, const struct sums *before,
				    const struct sums *now)
{
	struct session_count none = {}, *counters;
	struct session key = {
		.pid = owner->pid,
		.netns = conn->netns,
		.lport = conn->lport,
		.rport = conn->rport,
		.family = conn->family,
	};

	if (is_idle(before, now))
		return;
	__builtin_memcpy(key.laddr, &conn->laddr, sizeof(key.laddr));
	__builtin_memcpy(key.raddr, &conn->raddr, sizeof(key.raddr));
	__builtin_memcpy(key.comm, owner->comm, sizeof(key.comm));
	counters = counters_or_rest(sessions, &key, &none);
	if (!counters)
		return;
	add(&counters->tx_bytes, now->tx_bytes - before->tx_bytes);
	add(&counters->rx_bytes, now->rx_bytes - before->rx_bytes);
	add(&counters->retransmits, now->retransmits - before->retransmits);
	add(&counters->out_of_order, now->out_of_order - before->out_of_order);
	add(&counters->busy, now->busy - before->busy);
	add(&counters->rwnd_limited, now->rwnd_limited - before->rwnd_limited);
	add(&counters->sndbuf_limited, now->sndbuf_limited - before->sndbuf_limited);
	look(counters, (struct tcp_sock *)sk);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
