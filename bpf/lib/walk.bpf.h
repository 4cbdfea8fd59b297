/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What sockets count themselves, added up for reports: no hook per packet. Sessions are followed
 * from their start to their end. Before each report user space walks over them, and what a socket
 * has counted since the walk before is accounted for; its end accounts for the rest.
 *
 * The tool defines before it includes this:
 *   struct sums             counters of a socket, as __u64 alone
 * and behind it:
 *   sum_up(sums, part, sk)  reads them
 *   account(...)            adds what they have grown by to an aggregate
 * Where the socket does not count it all, the tool defines WALK_KEEPS and
 *   struct kept             what it keeps of a socket
 *   keep(part, sk, ...)     fills that in, as the socket is followed from here on
 */
#ifndef TCPCORE_WALK_BPF_H
#define TCPCORE_WALK_BPF_H

struct part;
struct sock;

#ifdef WALK_KEEPS
/* is_older: the trace did not see the socket begin. */
static __always_inline void keep(struct part *part, struct sock *sk, bool is_older);
#else
struct kept {
};

static __always_inline void keep(struct part *part, struct sock *sk, bool is_older)
{
}
#endif

/*
 * A walk and the end of a socket may come at the same time, on two CPUs. turn: tells which of the
 * sums are accounted for, and whether the socket has ended; the rest of it makes it different from
 * that of any other socket. The walk writes the other sums first and makes them the accounted ones
 * with a compare-and-exchange, which fails where the end was faster. The end marks the turn first
 * and looks then: it sees the sums of a walk that was faster.
 */
struct part {
	__u64 turn;
	struct sums sums[2];
	struct kept kept;
};

#define TURN_ENDED 1ULL
#define TURN_SECOND 2ULL /* sums[1] are accounted for, and not sums[0] */
#define TURN_BITS 2

#include "lib/accepting.bpf.h"
#include "lib/entry.bpf.h"
#include "lib/seeding.bpf.h"
#include "lib/transitions.bpf.h"

/* sums: all zeros. False where they cannot be told at this moment; never at a socket's end. */
static __always_inline bool sum_up(struct sums *sums, const struct part *part, struct sock *sk);
/* before, now: of the socket. */
static __always_inline void account(struct sock *sk, const struct conn *conn,
				    const struct owner *owner, const struct sums *before,
				    const struct sums *now);

/* A socket is followed from here on. part: all zeros. */
static __always_inline void begin(struct part *part, struct sock *sk, bool is_older)
{
	part->turn = bpf_ktime_get_ns() << TURN_BITS;
	keep(part, sk, is_older);
	if (is_older)
		sum_up(&part->sums[0], part, sk);
}

static __always_inline __u64 begun_ns(const struct part *part)
{
	return part->turn >> TURN_BITS;
}

/* False as long as it is no session, or its owner is not wanted: a later one may be. */
static __always_inline bool is_accounted(struct owner *owner, const struct entry *entry,
					 struct sock *sk)
{
	kept_owner(owner, entry, sk, BY_HELPER);
	return entry->conn.family && owner->wanted;
}

/* Which sums a turn says are accounted for. */
static __always_inline struct sums *accounted(struct part *part, __u64 turn)
{
	return turn & TURN_SECOND ? &part->sums[1] : &part->sums[0];
}

/* Not every kernel has atomic instructions that tell what was there (Linux 5.12, 5ffa25502b5a). */
static __always_inline bool take_turn(struct part *part, __u64 turn, __u64 next, const bool atomic)
{
	if (atomic)
		return __sync_val_compare_and_swap(&part->turn, turn, next) == turn;
	*(volatile __u64 *)&part->turn = next;
	return true;
}

static __always_inline void walk_socket(struct sock *sk, const bool atomic)
{
	struct entry *entry = find(sk);
	struct sums now = {}, before;
	struct owner owner;
	struct conn conn;
	__u64 turn;

	if (!entry || !is_accounted(&owner, entry, sk))
		return;
	turn = *(volatile __u64 *)&entry->part.turn;
	if (turn & TURN_ENDED)
		return;
	conn = entry->conn;
	before = *accounted(&entry->part, turn);
	if (!sum_up(&now, &entry->part, sk))
		return;
	*accounted(&entry->part, turn ^ TURN_SECOND) = now;
	if (take_turn(&entry->part, turn, turn ^ TURN_SECOND, atomic))
		account(sk, &conn, &owner, &before, &now);
}

/* Run by user space before a report. */
SEC("iter/bpf_map_elem")
int walk(struct bpf_iter__bpf_map_elem *ctx)
{
	const __u64 *key = ctx->key;

	if (key)
		walk_socket((struct sock *)*key, true);
	return 0;
}

/* The same for one socket, where the kernel does not take the other one. */
SEC("raw_tp")
int walk_one(struct bpf_raw_tracepoint_args *ctx)
{
	walk_socket((struct sock *)ctx->args[0], false);
	return 0;
}

static __always_inline void end(struct sock *sk)
{
	struct entry *entry = find(sk);
	struct sums now = {};
	struct owner owner;
	__u64 turn;

	if (!entry)
		return;
	if (is_accounted(&owner, entry, sk)) {
		__sync_fetch_and_add(&entry->part.turn, TURN_ENDED);
		turn = *(volatile __u64 *)&entry->part.turn;
		sum_up(&now, &entry->part, sk);
		account(sk, &entry->conn, &owner, accounted(&entry->part, turn), &now);
	}
	drop(sk);
}

static __always_inline void connecting(struct sock *sk, const bool direct)
{
	struct entry entry = {};

	begin(&entry.part, sk, false);
	own(&entry.owner, sk, ROLE_ACTIVE, direct);
	follow(sk, &entry);
}

static __always_inline void established(struct sock *sk, const bool direct)
{
	struct entry *entry = find(sk), new = {};

	if (read_tuple(&new.conn, sk, TCP_ESTABLISHED, direct) != TUPLE_WANTED)
		return;
	if (entry) {
		entry->conn = new.conn;
	} else {
		begin(&new.part, sk, false);
		follow(sk, &new);
	}
}

/* What its process and its peer sent before it was accepted is known, if the trace saw it begin. */
static __always_inline void accepted(void *ctx, struct sock *sk, const bool direct)
{
	struct entry unseen = {};

	begin(&unseen.part, sk, true);
	own_accepted(sk, &unseen, direct);
}

static __always_inline bool concerns(int oldstate, int newstate)
{
	return is_of_session(oldstate, newstate);
}

static __always_inline void transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				       const bool owned, const bool direct)
{
	struct entry *entry;
	struct owner other;

	if (reject(sk, oldstate, newstate, direct))
		return;
	switch (newstate) {
	case TCP_SYN_RECV: /* a new child: an older socket had the address */
		forget(sk);
		return;
	case TCP_SYN_SENT:
		connecting(sk, direct);
		return;
	case TCP_ESTABLISHED:
		established(sk, direct);
		return;
	}
	entry = find(sk);
	if (entry)
		changing_owner(&other, entry, sk, oldstate, newstate, owned, direct);
	if (newstate == TCP_CLOSE)
		end(sk);
}

static __always_inline void destroy(void *ctx, struct sock *sk, const bool direct)
{
	end(sk);
}

/* A session that is older than the trace: it is followed from here on. */
static __always_inline bool seeded(struct part *part, struct sock *sk, int state)
{
	begin(part, sk, true);
	return is_session(state);
}

#endif /* TCPCORE_WALK_BPF_H */
