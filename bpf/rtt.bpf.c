// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* How the round-trip times of connections are distributed. */
#include "rtt.h"

/* A socket adds nothing up. */
struct sums {
};

#include "lib/histogram.bpf.h"
#include "lib/walk.bpf.h"

/* What is measured, and what tells histograms apart. */
const volatile __u8 rtt_measure; /* enum rtt_measure */
const volatile bool rtt_in_ms;
const volatile bool by_laddr, by_raddr, by_lport, by_rport, by_netns, by_owner_task,
	by_owner_cgroup;
const volatile struct prefix laddr_prefix, raddr_prefix;

/* Whether a filter or the key asks for owners: else a segment costs no look at the sockets. */
const volatile bool rtt_has_owners;
/* Each connection counts once a report, and no segments do. */
const volatile bool rtt_by_connection;

AGGREGATE(rtts, struct rtt, struct histogram);

/* In microseconds; false where nothing was measured so far. */
static __always_inline bool read_rtt(__u32 *rtt_us, struct sock *sk, const bool direct)
{
	struct tcp_sock *tp = tcp_of(sk, direct);
	__u32 srtt_us;

	if (!tp)
		return false;
	srtt_us = sk_read(tp, srtt_us, direct);
	switch (rtt_measure) {
	case MEASURE_MIN_RTT:
		*rtt_us = sk_read(tp, rtt_min.s[0].v, direct);
		return *rtt_us != ~0U;
	case MEASURE_JITTER:
		/* Kept times 4. Before the first measurement it is a second. */
		*rtt_us = sk_read(tp, mdev_us, direct) >> 2;
		return srtt_us;
	default:
		/* Kept times 8: 0 is none, not one below a microsecond. */
		*rtt_us = srtt_us >> 3;
		return srtt_us;
	}
}

static __always_inline bool is_tuple_needed(void)
{
	return is_tuple_filtered() || by_laddr || by_raddr || by_lport || by_rport || by_netns;
}

/* As much of the tuple as filters and key ask for. */
static __always_inline bool read_wanted(struct conn *conn, struct sock *sk, const bool direct)
{
	if (!is_tuple_needed())
		return true;
	if (!common_endpoints(conn, sk, direct) || !want_endpoints(conn))
		return false;
	if (!target_netns_count && !by_netns)
		return true;
	conn->netns = common_netns(sk);
	return want_netns(conn->netns);
}

static __always_inline bool read_owner(struct owner *owner, struct sock *sk, const bool direct)
{
	if (rtt_has_owners) {
		kept_owner(owner, find(sk), sk, direct);
		return owner->wanted;
	}
	return !target_uid_count || want_uid(sk_read(sk, sk_uid.val, direct));
}

static __always_inline void set_prefix(__u8 *to, const union address *from,
				       const volatile struct prefix *prefix)
{
	const volatile __u64 *mask = is_v4mapped(from) ? prefix->ipv4 : prefix->ipv6;
	__u64 kept[2] = {from->halves[0] & mask[0], from->halves[1] & mask[1]};

	__builtin_memcpy(to, kept, sizeof(kept));
}

static __always_inline void set_key(struct rtt *key, const struct conn *conn,
				    const struct owner *owner)
{
	key->found_room = 1;
	if (by_laddr)
		set_prefix(key->laddr, &conn->laddr, &laddr_prefix);
	if (by_raddr)
		set_prefix(key->raddr, &conn->raddr, &raddr_prefix);
	if (by_lport)
		key->lport = conn->lport;
	if (by_rport)
		key->rport = conn->rport;
	if (by_netns)
		key->netns = conn->netns;
	if (by_owner_task) {
		key->pid = owner->pid;
		__builtin_memcpy(key->comm, owner->comm, sizeof(key->comm));
	}
	if (by_owner_cgroup)
		key->cgroup_id = owner->cgroup_id;
}

static __always_inline bool has_keys(void)
{
	return by_laddr || by_raddr || by_lport || by_rport || by_netns || by_owner_task ||
	       by_owner_cgroup;
}

static __always_inline void count(__u32 rtt_us, const struct conn *conn, const struct owner *owner)
{
	struct histogram *found;
	struct rtt key = {};

	if (has_keys())
		set_key(&key, conn, owner);
	found = counters_or_rest(rtts, &key, &no_values);
	if (found)
		measure(found, rtt_in_ms ? rtt_us / 1000 : rtt_us);
	else
		lose_socket();
}

static __always_inline int segment(struct sock *sk, const bool direct)
{
	struct owner owner = {};
	struct conn conn = {};
	__u32 rtt_us;

	if (read_wanted(&conn, sk, direct) && read_owner(&owner, sk, direct) &&
	    read_rtt(&rtt_us, sk, direct))
		count(rtt_us, &conn, &owner);
	return 0;
}

/* A segment came for an established connection; the socket is as it was before. */

SEC("fentry/tcp_rcv_established")
int BPF_PROG(segment_fentry, struct sock *sk)
{
	return segment(sk, DIRECT);
}

SEC("kprobe/tcp_rcv_established")
int BPF_KPROBE(segment_kprobe, struct sock *sk)
{
	return segment(sk, BY_HELPER);
}

/* The first thing that tcp_rcv_established() does. */

SEC("tp_btf/tcp_probe")
int BPF_PROG(segment_btf, struct sock *sk)
{
	return segment(sk, DIRECT);
}

SEC("raw_tp/tcp_probe")
int BPF_PROG(segment_raw, struct sock *sk)
{
	return segment(sk, BY_HELPER);
}

/* Of the walk. Where segments count, sockets are followed for their owners alone. */

static __always_inline bool sum_up(struct sums *sums, const struct part *part, struct sock *sk)
{
	return true;
}

/* Before each report, and at the end of the connection. */
static __always_inline void account(struct sock *sk, const struct conn *conn,
				    const struct owner *owner, const struct sums *before,
				    const struct sums *now)
{
	__u32 rtt_us;

	if (rtt_by_connection && read_rtt(&rtt_us, sk, BY_HELPER))
		count(rtt_us, conn, owner);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
