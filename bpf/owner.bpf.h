/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who a task is, as the owner of a socket. */
#ifndef TCPCORE_OWNER_BPF_H
#define TCPCORE_OWNER_BPF_H

#include "filter.bpf.h"
#include "sock.bpf.h"
#include "task.bpf.h"

enum role { /* RFC 9293: active and passive open */
	    ROLE_UNKNOWN,
	    ROLE_ACTIVE,
	    ROLE_PASSIVE,
};

struct owner {
	__u64 cgroup_id; /* inode of the cgroup v2 directory */
	__u32 pid;	 /* tgid in the initial pid namespace, 0: not known */
	__u32 tid;
	__u32 uid;
	__u32 netns; /* of the socket */
	char comm[16];
	__u8 role;
	bool wanted; /* the owner filters let it pass, or one that had the socket before */
	__u8 mark;   /* the tool's own */
};

/*
 * A task that works on a socket holds its lock (lock_sock); packets that arrive meanwhile wait in
 * the backlog. So an owned lock means process context, and that current uses the socket.
 */
static __always_inline bool in_owner_context(struct sock *sk, const bool direct)
{
	return sk_read(sk, sk_lock.owned, direct);
}

/* Only where the kernel runs for current. Leaves role, mark and a `wanted` of before. */
static __always_inline void current_owner(struct owner *owner, __u32 netns)
{
	__u64 task = bpf_get_current_pid_tgid();

	owner->pid = task >> 32;
	owner->tid = task;
	owner->uid = bpf_get_current_uid_gid();
	owner->netns = netns;
	owner->cgroup_id = bpf_get_current_cgroup_id();
	bpf_get_current_comm(owner->comm, sizeof(owner->comm));
	owner->wanted |= want_current(owner->pid, owner->uid, owner->comm);
}

/* The socket itself still tells its user. */
static __always_inline void unknown_owner(struct owner *owner, struct sock *sk, __u32 netns,
					  const bool direct)
{
	__builtin_memset(owner, 0, sizeof(*owner));
	owner->uid = sk_read(sk, sk_uid.val, direct);
	owner->netns = netns;
	owner->wanted = want_unknown_task(owner->uid);
}

/* The fields that every event has, whatever its struct; ts_ns is the tool's. */
#define describe(event, conn, owner)                                                               \
	({                                                                                         \
		(event)->pid = (owner)->pid;                                                       \
		(event)->uid = (owner)->uid;                                                       \
		(event)->netns = (conn)->netns;                                                    \
		(event)->lport = (conn)->lport;                                                    \
		(event)->rport = (conn)->rport;                                                    \
		(event)->family = (conn)->family;                                                  \
		__builtin_memcpy((event)->laddr, &(conn)->laddr, sizeof((event)->laddr));          \
		__builtin_memcpy((event)->raddr, &(conn)->raddr, sizeof((event)->raddr));          \
		__builtin_memcpy((event)->comm, (owner)->comm, sizeof((event)->comm));             \
	})

#endif /* TCPCORE_OWNER_BPF_H */
