/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The filters that all tools share. Read-only data that tcpcore writes before load: the verifier
 * knows their values then and removes the code of every filter that is off. A count of 0 or a
 * false flag means that there is no such filter. Mirror: src/tcpcore/request/filters.py.
 */
#ifndef TCPCORE_FILTER_BPF_H
#define TCPCORE_FILTER_BPF_H

#include "lib/sock.bpf.h"
#include "lib/task.bpf.h"

#define MAX_TARGETS 64
#define MAX_CGROUP_DEPTH 64
#define PORT_WORDS (65536 / 64)

/* Addresses from one to another, as numbers in host order: high and low half. */
struct range {
	__u64 first[2], last[2];
};

const volatile __u16 target_family;
const volatile __u32 target_pid[MAX_TARGETS], target_pid_count;
const volatile __u32 target_uid[MAX_TARGETS], target_uid_count;
const volatile __u32 target_netns[MAX_TARGETS], target_netns_count;
const volatile __u64 target_comm[MAX_TARGETS][2];
const volatile __u32 target_comm_count;
/* In ascending order and apart. IPv4 in ::/0 is left out, which makes two ranges of one prefix. */
const volatile struct range target_laddr[MAX_TARGETS + 1], target_raddr[MAX_TARGETS + 1];
const volatile __u32 target_laddr_count, target_raddr_count;
/* One bit a port: lists and ranges of any length cost one load. */
const volatile __u64 target_lport[PORT_WORDS], target_rport[PORT_WORDS];
const volatile bool target_lport_set, target_rport_set;
const volatile __u64 target_cgroup[MAX_TARGETS]; /* ids: the inodes of cgroup v2 directories */
const volatile __u32 target_cgroup_count;
const volatile bool target_cgroupmap_set, target_mntnsmap_set;

/*
 * Their place is taken by maps that somebody else pinned and fills: ids of cgroups, inodes of
 * mount namespaces. A task whose own is a key of the map passes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, __u64);
} target_cgroupmap SEC(".maps"), target_mntnsmap SEC(".maps");

/*
 * Mount namespaces of threads that exit: do_exit() takes a thread out of its namespaces before it
 * closes its files. Filled only for --mntnsmap; the oldest go by themselves.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32); /* thread */
	__type(value, __u64);
} exiting SEC(".maps");

SEC("raw_tp/sched_process_exit")
int thread_exits(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = current_task();
	__u64 namespace = mount_namespace(task);
	__u32 thread = BPF_CORE_READ(task, pid);

	bpf_map_update_elem(&exiting, &thread, &namespace, BPF_ANY);
	return 0;
}

/* 0: not known. */
static __always_inline __u64 last_mount_namespace(struct task_struct *task)
{
	__u32 thread = BPF_CORE_READ(task, pid);
	__u64 *found, namespace = mount_namespace(task);

	if (namespace)
		return namespace;
	found = bpf_map_lookup_elem(&exiting, &thread);
	return found ? *found : 0;
}

static __always_inline bool in_list(const volatile __u32 *list, __u32 count, __u32 value)
{
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < MAX_TARGETS && i < count; i++)
		if (list[i] == value)
			return true;
	return false;
}

static __always_inline bool in_bitmap(const volatile __u64 *bits, __u16 port)
{
	__u32 bit = port;

	/*
	 * clang knows that a __u16 is small and leaves the mask out; verifiers up to Linux 6.12 at
	 * least forget it at bpf_ntohs().
	 */
	barrier_var(bit);
	bit &= 0xffff;
	return bits[bit / 64] >> (bit % 64) & 1;
}

static __always_inline bool is_less(__u64 high, __u64 low, const volatile __u64 *than)
{
	return high < than[0] || (high == than[0] && low < than[1]);
}

/* A binary search: 64 prefixes take six steps. */
static __always_inline bool in_ranges(const volatile struct range *list, __u32 count,
				      const union address *a)
{
	__u64 high = bpf_be64_to_cpu(a->halves[0]), low = bpf_be64_to_cpu(a->halves[1]);
	__u32 begun = 0; /* ranges that begin at this address or below */

#pragma clang loop unroll(disable)
	for (__u32 step = MAX_TARGETS; step; step /= 2)
		if (begun + step <= count && !is_less(high, low, list[begun + step - 1].first))
			begun += step;
	if (!begun)
		return false;
	return high < list[begun - 1].last[0] ||
	       (high == list[begun - 1].last[0] && low <= list[begun - 1].last[1]);
}

static __always_inline bool want_comm(const char *comm)
{
	__u64 name[2];

	__builtin_memcpy(name, comm, sizeof(name));
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < MAX_TARGETS && i < target_comm_count; i++)
		if (target_comm[i][0] == name[0] && target_comm[i][1] == name[1])
			return true;
	return !target_comm_count;
}

static __always_inline bool want_uid(__u32 uid)
{
	return !target_uid_count || in_list(target_uid, target_uid_count, uid);
}

static __always_inline bool is_target_cgroup(__u64 id)
{
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < MAX_TARGETS && i < target_cgroup_count; i++)
		if (target_cgroup[i] == id)
			return true;
	return false;
}

/* A task matches in the group and in all below it. Any task: iterators see others than current. */
static __always_inline bool want_cgroup(struct task_struct *task)
{
	struct cgroup *cgroup;
	void *parent;

	if (!target_cgroup_count)
		return true;
	cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp);
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < MAX_CGROUP_DEPTH; i++) {
		if (is_target_cgroup(BPF_CORE_READ(cgroup, kn, id)))
			return true;
		parent = BPF_CORE_READ(cgroup, self.parent);
		if (!parent)
			break;
		/* A parent is the `self` of the group above. */
		cgroup = parent - bpf_core_field_offset(cgroup->self);
	}
	return false;
}

static __always_inline bool in_pinned_map(void *map, __u64 key)
{
	return bpf_map_lookup_elem(map, &key);
}

static __always_inline bool want_task(struct task_struct *task, __u32 pid, const char *comm,
				      __u64 cgroup_id)
{
	if (target_pid_count && !in_list(target_pid, target_pid_count, pid))
		return false;
	if (target_cgroupmap_set && !in_pinned_map(&target_cgroupmap, cgroup_id))
		return false;
	if (target_mntnsmap_set && !in_pinned_map(&target_mntnsmap, last_mount_namespace(task)))
		return false;
	return want_comm(comm) && want_cgroup(task);
}

/* A task that is not known passes no filter that asks for the task. */
static __always_inline bool want_unknown_task(void)
{
	return !target_pid_count && !target_comm_count && !target_cgroup_count &&
	       !target_cgroupmap_set && !target_mntnsmap_set;
}

static __always_inline bool want_netns(__u32 netns)
{
	return !target_netns_count || in_list(target_netns, target_netns_count, netns);
}

/* Of a complete tuple. */
static __always_inline bool want_endpoints(const struct conn *conn)
{
	if (target_family && conn->family != target_family)
		return false;
	if (target_lport_set && !in_bitmap(target_lport, conn->lport))
		return false;
	if (target_rport_set && !in_bitmap(target_rport, conn->rport))
		return false;
	if (target_laddr_count && !in_ranges(target_laddr, target_laddr_count, &conn->laddr))
		return false;
	return !target_raddr_count || in_ranges(target_raddr, target_raddr_count, &conn->raddr);
}

/*
 * Of a tuple that is not complete yet: false when what is known of it is rejected already. As long
 * as the peer is not known, neither is the family: a socket for IPv6 may get a v4-mapped peer.
 */
static __always_inline bool may_want_endpoints(const struct conn *conn)
{
	if (target_lport_set && conn->lport && !in_bitmap(target_lport, conn->lport))
		return false;
	if (target_laddr_count && !is_zero(&conn->laddr) &&
	    !in_ranges(target_laddr, target_laddr_count, &conn->laddr))
		return false;
	if (!conn->rport || is_zero(&conn->raddr))
		return true;
	if (target_family && conn->family != target_family)
		return false;
	if (target_rport_set && !in_bitmap(target_rport, conn->rport))
		return false;
	return !target_raddr_count || in_ranges(target_raddr, target_raddr_count, &conn->raddr);
}

static __always_inline bool want_conn(const struct conn *conn)
{
	return want_netns(conn->netns) && want_endpoints(conn);
}

/* What a socket's tuple tells the filters at a change of state. */
enum tuple {
	TUPLE_REJECTED,
	TUPLE_INCOMPLETE, /* nothing is rejected so far */
	TUPLE_WANTED,
};

static __always_inline bool is_complete(const struct conn *conn, int state)
{
	if (state == TCP_LISTEN)
		return conn->lport;
	return conn->lport && conn->rport && !is_zero(&conn->raddr);
}

/*
 * The tuple of a socket that comes to a state. connect() enters SYN_SENT and only then gets its
 * local port, and what inet_sport has there is of the socket's connection before; a socket that
 * comes to CLOSE has given its port back already, and inet_sport still has it.
 */
static __always_inline enum tuple read_tuple(struct conn *conn, struct sock *sk, int state,
					     const bool direct)
{
	bool complete;

	if (!common_endpoints(conn, sk, direct))
		return TUPLE_REJECTED;
	if (state == TCP_CLOSE && !conn->lport)
		conn->lport = read_closed_lport(sk);
	complete = state == TCP_CLOSE || is_complete(conn, state);
	if (complete ? !want_endpoints(conn) : !may_want_endpoints(conn))
		return TUPLE_REJECTED;
	conn->netns = common_netns(sk);
	if (!want_netns(conn->netns))
		return TUPLE_REJECTED;
	return complete ? TUPLE_WANTED : TUPLE_INCOMPLETE;
}

static __always_inline bool is_tuple_filtered(void)
{
	return target_family || target_lport_set || target_rport_set || target_netns_count ||
	       target_laddr_count || target_raddr_count;
}

/* The ports are the least to read, and as long as there is one it is the connection's. */
static __always_inline bool has_rejected_port(struct sock *sk, const bool direct)
{
	__u16 lport = target_lport_set ? sk_read(sk, __sk_common.skc_num, direct) : 0;
	__u16 rport = target_rport_set ? bpf_ntohs(sk_read(sk, __sk_common.skc_dport, direct)) : 0;

	return (lport && !in_bitmap(target_lport, lport)) ||
	       (rport && !in_bitmap(target_rport, rport));
}

/*
 * Asked before any map: where there is a filter, most sockets are of no interest. Without one this
 * is no code at all.
 */
static __always_inline bool is_rejected(struct sock *sk, int state, const bool direct)
{
	struct conn conn;

	return is_tuple_filtered() && (has_rejected_port(sk, direct) ||
				       read_tuple(&conn, sk, state, direct) == TUPLE_REJECTED);
}

/* A socket that leaves one of these states may have been followed while its tuple was incomplete. */
static __always_inline bool was_incomplete(int oldstate)
{
	return oldstate == TCP_SYN_SENT || oldstate == TCP_SYN_RECV || oldstate == TCP_LISTEN;
}

#endif /* TCPCORE_FILTER_BPF_H */
