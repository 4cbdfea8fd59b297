// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Bytes sent and received per subnet of the peers. */
#include "subnet.h"

#define sums subnet_count

#include "lib/aggregate.bpf.h"
#include "lib/traffic.bpf.h"
#include "lib/walk.bpf.h"

AGGREGATE(bytes, struct subnet, struct subnet_count);

/* The head is the kernel's, struct bpf_lpm_trie_key: the longest prefix that matches is found. */
struct prefix {
	__u32 bits;
	__u8 address[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC); /* the kernel takes no other */
	__uint(max_entries, 1);
	__type(key, struct prefix);
	__type(value, struct subnet);
} subnets SEC(".maps");

static __always_inline bool sum_up(struct subnet_count *sums, const struct part *part,
				   struct sock *sk)
{
	sums->rx_bytes = received_bytes(sk);
	sums->tx_bytes = sent_bytes(sk);
	return true;
}

static __always_inline void account(struct sock *sk, const struct conn *conn,
				    const struct owner *owner, const struct subnet_count *before,
				    const struct subnet_count *now)
{
	struct prefix whole = {.bits = 128};
	struct subnet *found, key = {};
	struct subnet_count none = {}, *counters;

	__builtin_memcpy(whole.address, &conn->raddr, sizeof(whole.address));
	found = bpf_map_lookup_elem(&subnets, &whole);
	if (found)
		key = *found;
	counters = counters_or_rest(bytes, &key, &none);
	if (!counters)
		return;
	add(&counters->rx_bytes, now->rx_bytes - before->rx_bytes);
	add(&counters->tx_bytes, now->tx_bytes - before->tx_bytes);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
