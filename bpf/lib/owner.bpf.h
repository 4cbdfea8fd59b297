/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who a task is, as the owner of a socket. */
#ifndef TCPCORE_OWNER_BPF_H
#define TCPCORE_OWNER_BPF_H

#include "lib/filter.bpf.h"
#include "lib/sock.bpf.h"
#include "lib/task.bpf.h"

enum role { /* RFC 9293: active and passive open */
	    ROLE_UNKNOWN,
	    ROLE_ACTIVE,
	    ROLE_PASSIVE,
};

#define NO_USER (~0U) /* where there is no socket: no user has this id (INVALID_UID) */

struct owner {
	__u64 cgroup_id; /* inode of the cgroup v2 directory */
	__u32 pid;	 /* tgid in the initial pid namespace, 0: not known */
	__u32 tid;
	__u32 uid;
	char comm[16];
	__u8 role;
	bool wanted; /* it passes the owner filters, or one that had the socket before it */
};

/*
 * The user is that of the socket (sk_uid): the effective user id of who called socket() or accept().
 * It is known also where the owner is not, so that all rows of a connection show the same user.
 */
static __always_inline void set_user(struct owner *owner, struct sock *sk, const bool direct)
{
	owner->uid = sk_read(sk, sk_uid.val, direct);
}

static __always_inline void set_wanted(struct owner *owner, struct task_struct *task)
{
	if (want_uid(owner->uid) && want_task(task, owner->pid, owner->comm, owner->cgroup_id))
		owner->wanted = true;
}

/* Current is the owner already, and nothing has to be asked again. exec() gives a task a new name. */
static __always_inline bool is_current(const struct owner *owner)
{
	__u64 task = bpf_get_current_pid_tgid(), name[2], known[2];

	if (owner->pid != task >> 32 || owner->tid != (__u32)task)
		return false;
	bpf_get_current_comm(name, sizeof(name));
	__builtin_memcpy(known, owner->comm, sizeof(known));
	return name[0] == known[0] && name[1] == known[1];
}

/*
 * Current becomes the owner: only where the kernel works on the socket for it. The role stays, and
 * so does `wanted`, once it is set.
 */
static __always_inline void current_owner(struct owner *owner, struct sock *sk, const bool direct)
{
	__u64 task = bpf_get_current_pid_tgid();

	set_user(owner, sk, direct);
	owner->pid = task >> 32;
	owner->tid = task;
	owner->cgroup_id = bpf_get_current_cgroup_id();
	bpf_get_current_comm(owner->comm, sizeof(owner->comm));
	set_wanted(owner, current_task());
}

/* A task that has the socket open becomes the owner; it need not be current. owner: all zeros. */
static __always_inline void other_owner(struct owner *owner, struct sock *sk,
					struct task_struct *task)
{
	set_user(owner, sk, BY_HELPER);
	owner->pid = BPF_CORE_READ(task, tgid);
	owner->cgroup_id = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	/* Up to its end: before Linux 5.17 the rest of an older name is behind it. */
	BPF_CORE_READ_STR_INTO(&owner->comm, task, comm);
	set_wanted(owner, task);
}

/* No task is known; the socket still tells its user. */
static __always_inline void unknown_owner(struct owner *owner, struct sock *sk, const bool direct)
{
	__builtin_memset(owner, 0, sizeof(*owner));
	set_user(owner, sk, direct);
	owner->wanted = want_unknown_task() && want_uid(owner->uid);
}

/* There is no socket, or one that does not tell its user. */
static __always_inline void no_owner(struct owner *owner)
{
	__builtin_memset(owner, 0, sizeof(*owner));
	owner->uid = NO_USER;
	owner->wanted = want_unknown_task() && want_uid(NO_USER);
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
