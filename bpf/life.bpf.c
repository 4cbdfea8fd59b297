// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* TCP sessions from the first SYN to their end: whose, how long, how much, why they ended. */
#include "accepting.bpf.h"
#include "life.h"
#include "output.bpf.h"
#include "owners.bpf.h"
#include "transitions.bpf.h"

EVENT(life_event);

/* Sessions older than the trace as well. */
const volatile bool target_all;

struct session {
	__u64 start_ns; /* 0: before the trace */
	bool established;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64); /* struct sock * */
	__type(value, struct session);
} sessions SEC(".maps");

static __always_inline void forget(struct sock *sk)
{
	__u64 key = (__u64)sk;

	if (bpf_map_lookup_elem(&sessions, &key))
		bpf_map_delete_elem(&sessions, &key);
	disown(sk);
}

static __always_inline void begin(struct sock *sk, __u64 start_ns, bool established)
{
	struct session session = {.start_ns = start_ns, .established = established};
	__u64 key = (__u64)sk;

	remember(&sessions, &key, &session);
}

static __always_inline bool has_flag(struct sock *sk, int flag)
{
	return BPF_CORE_READ(sk, __sk_common.skc_flags) & (1UL << flag);
}

/* net/ipv4/tcp*.c: what comes in or times out leaves an error in the socket before it closes. */
static __always_inline enum life_reason reason(struct sock *sk, int oldstate)
{
	switch (BPF_CORE_READ(sk, sk_err)) {
	case 0:
		break;
	case ECONNRESET:
	case ECONNREFUSED:
	case EPIPE:
		return REASON_RESET_RECEIVED;
	case ECONNABORTED:
		return REASON_RESET_SENT;
	default: /* ETIMEDOUT, or what ICMP said of the peer meanwhile */
		return REASON_TIMEOUT;
	}
	if (oldstate == TCP_LAST_ACK || oldstate == TCP_CLOSING)
		return REASON_FIN;
	/* With the peer's FIN, or without a process: a time-wait socket waits for the rest. */
	if (oldstate == TCP_FIN_WAIT2 && (has_flag(sk, SOCK_DONE) || has_flag(sk, SOCK_DEAD)))
		return REASON_FIN;
	return REASON_RESET_SENT;
}

static __always_inline void count(struct life_event *event, struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	/* bytes_acked counts SYN and FIN and not what a reset left unacknowledged. */
	event->tx_bytes = BPF_CORE_READ(tp, bytes_sent) - BPF_CORE_READ(tp, bytes_retrans);
	event->rx_bytes = BPF_CORE_READ(tp, bytes_received);
	if (event->rx_bytes && has_flag(sk, SOCK_DONE)) /* its FIN was counted as a byte */
		event->rx_bytes--;
	event->retransmits = BPF_CORE_READ(tp, total_retrans);
	event->rtt_min_us = BPF_CORE_READ(tp, rtt_min.s[0].v);
	event->srtt_us = BPF_CORE_READ(tp, srtt_us) >> 3;
}

static __always_inline void send(void *ctx, struct sock *sk, __u64 start_ns, __u8 why,
				 const struct conn *conn, const struct owner *owner)
{
	struct life_event event = {
		.ts_ns = bpf_ktime_get_ns(),
		.cgroup_id = owner->cgroup_id,
		.role = owner->role,
		.reason = why,
	};

	event.duration_ns = start_ns ? event.ts_ns - start_ns : UNKNOWN_NS;
	count(&event, sk);
	describe(&event, conn, owner);
	emit(ctx, &event, sizeof(event));
}

/*
 * A child's socket comes with the end of the handshake, and with one measurement of the round trip:
 * from the first SYN-ACK to its acknowledgement (tcp_synack_rtt_meas), unless it was sent again.
 */
static __always_inline __u64 passive_start(struct sock *sk)
{
	__u32 srtt_us = BPF_CORE_READ((struct tcp_sock *)sk, srtt_us) >> 3;

	return bpf_ktime_get_ns() - srtt_us * 1000ULL;
}

static __always_inline void established(struct sock *sk, int oldstate, const struct conn *conn)
{
	__u64 key = (__u64)sk;
	struct session *session = bpf_map_lookup_elem(&sessions, &key);

	if (!want_conn(conn)) {
		forget(sk);
		return;
	}
	if (session)
		session->established = true;
	else if (oldstate == TCP_SYN_RECV)
		begin(sk, passive_start(sk), true);
	else if (target_all)
		begin(sk, 0, true);
}

static __always_inline void accepted(void *ctx, struct sock *sk, const bool direct)
{
	own_accepted(sk, direct);
}

static __always_inline bool was_established(int state)
{
	return state != TCP_SYN_SENT && state != TCP_SYN_RECV && state != TCP_LISTEN &&
	       state != TCP_NEW_SYN_RECV && state != TCP_CLOSE;
}

static __always_inline void closed(void *ctx, struct sock *sk, int oldstate,
				   const struct conn *conn, const struct owner *owner)
{
	__u64 key = (__u64)sk, start_ns = 0;
	struct session *session = bpf_map_lookup_elem(&sessions, &key);

	if (session ? !session->established : !target_all || !was_established(oldstate))
		return;
	if (session)
		start_ns = session->start_ns;
	if (owner->wanted && want_conn(conn))
		send(ctx, sk, start_ns, reason(sk, oldstate), conn, owner);
}

static __always_inline void transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				       const bool direct)
{
	struct owner owner;
	struct conn conn;

	if (newstate == TCP_LISTEN || newstate == TCP_SYN_RECV ||
	    !read_closed_conn(&conn, sk, direct))
		return;
	if (newstate == TCP_ESTABLISHED) {
		established(sk, oldstate, &conn);
		return;
	}
	if (newstate == TCP_SYN_SENT) {
		if (!own(&owner, known_owner(sk), sk, conn.netns, ROLE_ACTIVE))
			lose_socket();
		else if (owner.wanted)
			begin(sk, bpf_ktime_get_ns(), false);
		return;
	}
	find_owner(&owner, sk, conn.netns, direct);
	if (newstate != TCP_CLOSE)
		return;
	closed(ctx, sk, oldstate, &conn, &owner);
	forget(sk);
}

static __always_inline void destroy(void *ctx, struct sock *sk, const bool direct)
{
	forget(sk);
}

/* Run by user space at the end of the trace, on each session that is still open. */
SEC("raw_tp")
int send_open(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (struct sock *)ctx->args[0];
	__u64 key = (__u64)sk, start_ns;
	struct session *session = bpf_map_lookup_elem(&sessions, &key);
	struct owner *known = known_owner(sk), owner;
	struct conn conn;

	if (!session || !session->established || !read_conn(&conn, sk, false))
		return 0;
	start_ns = session->start_ns;
	if (known)
		owner = *known;
	else
		unknown_owner(&owner, sk, conn.netns, false);
	/* Once only: its end is no news any more. */
	if (bpf_map_delete_elem(&sessions, &key) == 0 && owner.wanted && want_conn(&conn))
		send(ctx, sk, start_ns, REASON_OPEN, &conn, &owner);
	return 0;
}

/*
 * Sessions that are open when the trace begins, with the first process that has them. Through the
 * files of all tasks: an iterator of sockets (iter/tcp) sees one network namespace, and no owners.
 */
SEC("iter/task_file")
int find_open(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct session session = {.established = true};
	struct owner owner = {};
	struct conn conn;
	struct sock *sk;
	__u64 key;

	barrier_var(file); /* one load, so that the verifier sees which value is not NULL */
	if (!task || !file)
		return 0;
	sk = sock_of_file(file);
	key = (__u64)sk;
	if (!sk || !is_tcp(sk, false) || !read_conn(&conn, sk, false) || !want_conn(&conn) ||
	    !was_established(sk_read(sk, __sk_common.skc_state, false)))
		return 0;
	owner.pid = BPF_CORE_READ(task, tgid);
	owner.uid = sk_read(sk, sk_uid.val, false);
	owner.netns = conn.netns;
	owner.cgroup_id = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	BPF_CORE_READ_INTO(&owner.comm, task, comm);
	owner.wanted = want_other_task(owner.pid, owner.uid, owner.comm);
	if (!bpf_map_lookup_elem(&sessions, &key) && remember(&sessions, &key, &session) &&
	    owner.wanted)
		bpf_map_update_elem(&owners, &key, &owner, BPF_NOEXIST);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
