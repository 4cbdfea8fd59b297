/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whose socket it is: taken where the kernel runs for the owner, never from whoever is on the CPU. */
#ifndef TCPCORE_OWNER_BPF_H
#define TCPCORE_OWNER_BPF_H

#include "filter.bpf.h"
#include "sock.bpf.h"

struct owner {
	__u32 pid; /* tgid in the initial pid namespace, 0: not known */
	__u32 uid;
	char comm[16];
	bool wanted; /* what the owner filters said where they could be asked */
};

/*
 * A task that works on a socket holds its lock (lock_sock); packets that arrive meanwhile wait in
 * the backlog. So an owned lock means process context, and that current uses the socket.
 */
static __always_inline bool in_owner_context(struct sock *sk, const bool direct)
{
	return sk_read(sk, sk_lock.owned, direct);
}

static __always_inline void owner_is_current(struct owner *owner)
{
	owner->pid = bpf_get_current_pid_tgid() >> 32;
	owner->uid = bpf_get_current_uid_gid();
	bpf_get_current_comm(owner->comm, sizeof(owner->comm));
	owner->wanted = want_task(owner->pid, owner->uid, owner->comm) && want_current_cgroup();
}

/* The socket itself still tells its user. */
static __always_inline void owner_is_unknown(struct owner *owner, struct sock *sk,
					     const bool direct)
{
	__builtin_memset(owner, 0, sizeof(*owner));
	owner->uid = sk_read(sk, sk_uid.val, direct);
	owner->wanted = want_unknown_task(owner->uid);
}

#endif /* TCPCORE_OWNER_BPF_H */
