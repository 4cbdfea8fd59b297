// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Who accepts connections from where, and how long they waited in the queue. */
#include "accept.h"
#include "accepting.bpf.h"
#include "output.bpf.h"
#include "owner.bpf.h"
#include "transitions.bpf.h"

EVENT(accept_event);

/* Connections in their listener's queue, and when they were established. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64); /* struct sock * */
	__type(value, __u64);
} queued SEC(".maps");

static __always_inline __u64 waited(struct sock *sk, __u64 now)
{
	__u64 key = (__u64)sk, *since = bpf_map_lookup_elem(&queued, &key), wait;

	if (!since)
		return UNKNOWN_NS;
	wait = now - *since;
	bpf_map_delete_elem(&queued, &key);
	return wait;
}

static __always_inline void accepted(void *ctx, struct sock *sk, const bool direct)
{
	__u64 now = bpf_ktime_get_ns();
	struct accept_event event = {.ts_ns = now, .wait_ns = waited(sk, now)};
	struct owner owner = {};
	struct conn conn;

	/* It may have been reset meanwhile. */
	if (!read_closed_conn(&conn, sk, direct) || !want_conn(&conn))
		return;
	current_owner(&owner, sk, conn.netns, direct);
	if (!owner.wanted)
		return;
	event.cgroup_id = owner.cgroup_id;
	event.tid = owner.tid;
	describe(&event, &conn, &owner);
	emit(ctx, &event, sizeof(event));
}

static __always_inline void transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				       const bool owned, const bool direct)
{
	__u64 now = bpf_ktime_get_ns(), key = (__u64)sk;
	struct conn conn;

	if (newstate == TCP_SYN_RECV) /* a new child: what is left at its address is another's */
		bpf_map_delete_elem(&queued, &key);
	if (oldstate == TCP_SYN_RECV && newstate == TCP_ESTABLISHED &&
	    read_conn(&conn, sk, direct) && want_conn(&conn))
		remember(&queued, &key, &now);
}

static __always_inline void destroy(void *ctx, struct sock *sk, const bool direct)
{
	__u64 key = (__u64)sk;

	bpf_map_delete_elem(&queued, &key);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
