/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is known of a socket: one entry, from the socket's first event to its end. Its owner, its
 * tuple, and a `struct part` of the tool's own, which the tool defines before it includes this.
 *
 * The owner is taken where the kernel runs for it, never from whoever is on the CPU. Whoever
 * includes this forgets sockets that are destroyed: their address will be in use again.
 */
#ifndef TCPCORE_ENTRY_BPF_H
#define TCPCORE_ENTRY_BPF_H

#include "lib/output.bpf.h"
#include "lib/owner.bpf.h"

struct entry {
	struct owner owner;
	struct conn conn; /* family 0: not read yet. Else it is complete and passes the filters */
	struct part part;
};

/* Takes memory as it fills, if the kernel is fit for that: loader/kernel.py, can_fill_on_demand(). */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64); /* struct sock * */
	__type(value, struct entry);
} sockets SEC(".maps");

static __always_inline struct entry *find(struct sock *sk)
{
	__u64 key = (__u64)sk;

	return bpf_map_lookup_elem(&sockets, &key);
}

/* Of a socket that is known to have an entry. */
static __always_inline void drop(struct sock *sk)
{
	__u64 key = (__u64)sk;

	bpf_map_delete_elem(&sockets, &key);
}

static __always_inline void forget(struct sock *sk)
{
	/* Most sockets have no entry, and a look is cheaper than a try to delete. */
	if (find(sk))
		drop(sk);
}

/*
 * At a change of state, before anything else is read: true when the filters reject the tuple. An
 * entry from the time when the tuple was incomplete goes.
 */
static __always_inline bool reject(struct sock *sk, int oldstate, int newstate, const bool direct)
{
	if (!is_rejected(sk, newstate, direct))
		return false;
	if (was_incomplete(oldstate))
		forget(sk);
	return true;
}

/* Also where the socket begins anew: nothing of an older one at its address is left. */
static __always_inline bool follow(struct sock *sk, const struct entry *entry)
{
	__u64 key = (__u64)sk;

	return remember(&sockets, &key, entry);
}

/*
 * Whether a state change is the work of a system call. Only then is current the user of the socket.
 * It is not enough that current holds the lock: whoever just looks at a socket (`ss -i`,
 * getsockopt(2), iterators) holds it for a moment, and then has to work off the packets that came
 * meanwhile. A packet or a timer that closes a socket leaves an error in it first.
 */
static __always_inline bool is_act(struct sock *sk, int oldstate, int newstate, const bool direct)
{
	switch (newstate) {
	case TCP_SYN_SENT:
	case TCP_LISTEN:
	case TCP_FIN_WAIT1:
	case TCP_LAST_ACK:
		return true;
	case TCP_CLOSE:
		break;
	default:
		return false;
	}
	/* Only a packet or a timer closes a socket from the other states. */
	return (oldstate == TCP_SYN_SENT || oldstate == TCP_SYN_RECV ||
		oldstate == TCP_ESTABLISHED || oldstate == TCP_CLOSE_WAIT ||
		oldstate == TCP_LISTEN) &&
	       !sk_read(sk, sk_err, direct);
}

/*
 * A kernel thread owns what it opens itself. It owns neither what it closes for others (files that
 * were left in the queue of a unix socket) nor the subflows that it adds to MPTCP sockets.
 */
static __always_inline bool is_opened_by_kernel(struct sock *sk, enum role role)
{
	return role == ROLE_ACTIVE && !is_subflow(sk);
}

/*
 * Current works on the socket, under its lock, and is the owner from now on. owner: of its entry, or
 * all zeros. role: what current makes of the socket, unless unknown.
 */
static __always_inline void own(struct owner *owner, struct sock *sk, enum role role,
				const bool direct)
{
	if (role)
		owner->role = role;
	/* An owner that was rejected is asked again: its cgroup or a pinned map may have changed. */
	if (!(owner->wanted && is_current(owner)) &&
	    (!is_kernel_thread() || is_opened_by_kernel(sk, role)))
		current_owner(owner, sk, direct);
}

/* For tools that need accept() for the owner only. unseen: the entry of a socket that has none. */
static __always_inline void own_accepted(struct sock *sk, struct entry *unseen, const bool direct)
{
	struct entry *entry;

	/* There is nothing more to tell of a closed one. */
	if (sk_read(sk, __sk_common.skc_state, direct) == TCP_CLOSE)
		return;
	entry = find(sk);
	if (entry) {
		own(&entry->owner, sk, ROLE_PASSIVE, direct);
	} else if (common_conn(&unseen->conn, sk, direct) && want_conn(&unseen->conn)) {
		own(&unseen->owner, sk, ROLE_PASSIVE, direct);
		follow(sk, unseen);
	}
}

/* The owner to show at a hook outside the socket's lock: the one that was kept, never current. */
static __always_inline void kept_owner(struct owner *owner, const struct entry *entry,
				       struct sock *sk, const bool direct)
{
	if (entry && entry->owner.pid) {
		*owner = entry->owner;
		return;
	}
	unknown_owner(owner, sk, direct);
	if (entry)
		owner->role = entry->owner.role;
}

/*
 * The owner to show at a state change: the entry's where it has one, else `other`. owned: a task
 * holds the socket's lock; the change happens under that lock, so that the task is current. At other
 * hooks, as in the timers of a listener, a task on another CPU may hold the lock.
 */
static __always_inline const struct owner *changing_owner(struct owner *other, struct entry *entry,
							  struct sock *sk, int oldstate,
							  int newstate, const bool owned,
							  const bool direct)
{
	struct owner *owner = entry ? &entry->owner : other;

	/* Else clang writes all that follows twice: for an entry, and for none. */
	barrier_var(owner);
	__builtin_memset(other, 0, sizeof(*other));
	if (owned && is_act(sk, oldstate, newstate, direct))
		own(owner, sk, ROLE_UNKNOWN, direct);
	if (owner->pid)
		return owner;
	unknown_owner(other, sk, direct);
	other->role = owner->role;
	return other;
}

#endif /* TCPCORE_ENTRY_BPF_H */
