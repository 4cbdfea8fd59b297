/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whose socket it is: taken where the kernel runs for the owner, never from whoever is on the CPU,
 * kept with the socket, and gone with it. Whoever includes this disowns sockets that are destroyed.
 */
#ifndef TCPCORE_OWNERS_BPF_H
#define TCPCORE_OWNERS_BPF_H

#include "output.bpf.h"
#include "owner.bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64); /* struct sock * */
	__type(value, struct owner);
} owners SEC(".maps");

static __always_inline struct owner *known_owner(struct sock *sk)
{
	__u64 key = (__u64)sk;

	return bpf_map_lookup_elem(&owners, &key);
}

static __always_inline void disown(struct sock *sk)
{
	__u64 key = (__u64)sk;

	/* Most sockets have no entry, and a look is cheaper than a try to delete. */
	if (known_owner(sk))
		bpf_map_delete_elem(&owners, &key);
}

/*
 * Current works on the socket: it is the owner from now on. known: what is known of the socket, may
 * be NULL. role: what current makes of it, unless unknown. An owner that is not wanted gets no
 * place in the map. False when the map is full: the caller knows whether that loses anything.
 */
static __always_inline bool own(struct owner *owner, struct owner *known, struct sock *sk,
				__u32 netns, enum role role)
{
	__u64 key = (__u64)sk;

	__builtin_memset(owner, 0, sizeof(*owner));
	if (known)
		*owner = *known;
	/* Kernel threads close files for others (a unix socket's queue), and are none. */
	if (!owner->pid || owner->pid == bpf_get_current_pid_tgid() >> 32 || !is_kernel_thread())
		current_owner(owner, netns);
	if (role)
		owner->role = role;
	if (known)
		*known = *owner;
	else if (owner->wanted)
		return bpf_map_update_elem(&owners, &key, owner, BPF_ANY) == 0;
	return true;
}

/* What is known of the owner; in its context, it is current. */
static __always_inline void find_owner(struct owner *owner, struct sock *sk, __u32 netns,
				       const bool direct)
{
	struct owner *known = known_owner(sk);

	if (in_owner_context(sk, direct))
		own(owner, known, sk, netns, ROLE_UNKNOWN);
	else if (known)
		*owner = *known;
	else
		unknown_owner(owner, sk, netns, direct);
}

/* For tools that want no more of accept() than the owner. */
static __always_inline void own_accepted(struct sock *sk, const bool direct)
{
	struct owner owner;
	struct conn conn;

	/* Of a closed one there is nothing more to tell. */
	if (sk_read(sk, __sk_common.skc_state, direct) == TCP_CLOSE)
		return;
	if (read_conn(&conn, sk, direct) && want_conn(&conn) &&
	    !own(&owner, known_owner(sk), sk, conn.netns, ROLE_PASSIVE))
		lose_socket();
}

#endif /* TCPCORE_OWNERS_BPF_H */
