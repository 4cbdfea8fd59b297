/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Sockets that are older than the trace, with the first process that has them open. User space runs
 * the iterator once, after the attach; the tool says in seeded() what its part of an entry is.
 * Through the files of all tasks: an iterator of sockets (iter/tcp) sees one network namespace, and
 * no owners. Include it after entry.bpf.h.
 */
#ifndef TCPCORE_SEEDING_BPF_H
#define TCPCORE_SEEDING_BPF_H

#include "lib/entry.bpf.h"
#include "lib/files.bpf.h"

/*
 * part: all zeros. False when the tool does not follow a socket in this state. The filters have
 * rejected others already, but no listeners: what passes may be their connections.
 */
static __always_inline bool seeded(struct part *part, struct sock *sk, int state);

static __always_inline void seed(struct sock *sk, struct task_struct *task)
{
	struct entry new = {}, *known;
	__u64 key = (__u64)sk;
	int state = sk_read(sk, __sk_common.skc_state, BY_HELPER);

	if (read_tuple(&new.conn, sk, state, BY_HELPER) != TUPLE_WANTED) {
		if (state != TCP_LISTEN)
			return;
		new.conn.family = 0;
	}
	if (!seeded(&new.part, sk, state))
		return;
	other_owner(&new.owner, sk, task);
	known = find(sk);
	/* Another process that has it open, or that acted on it meanwhile, stays the owner. */
	if (known && new.owner.wanted)
		known->owner.wanted = true;
	else if (!known && bpf_map_update_elem(&sockets, &key, &new, BPF_NOEXIST) == -E2BIG)
		lose_socket();
}

SEC("iter/task_file")
int seed_from_file(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct sock *sk;

	barrier_var(file); /* one load, so that the verifier sees which value is not NULL */
	if (!task || !file)
		return 0;
	sk = tcp_sock_of_file(file);
	if (sk)
		seed(sk, task);
	return 0;
}

#endif /* TCPCORE_SEEDING_BPF_H */
