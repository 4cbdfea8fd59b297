// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* TCP sessions from the first SYN to their end: whose, how long, how much, why they ended. */
#include "vmlinux.h"

enum progress { /* of a session */
		NO_SESSION,
		CONNECTING,
		ESTABLISHED,
};

struct part {
	__u64 start_ns; /* 0: before the trace */
	__u8 progress;
};

#include "lib/accepting.bpf.h"
#include "lib/entry.bpf.h"
#include "life.h"
#include "lib/output.bpf.h"
#include "lib/seeding.bpf.h"
#include "lib/traffic.bpf.h"
#include "lib/transitions.bpf.h"

EVENT(life_event);

/* Sessions older than the trace as well. */
const volatile bool target_all;
/* How long the kernel's unit of time is. */
const volatile __u64 jiffy_ns;

/* Both ends have sent their FIN, and ours is acknowledged. */
static __always_inline bool ended_by_fin(struct sock *sk, int oldstate, int error)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	if (oldstate == TCP_LAST_ACK || oldstate == TCP_CLOSING)
		return BPF_CORE_READ(tp, snd_una) == BPF_CORE_READ(tp, write_seq);
	/*
	 * The peer's FIN has come, or no process is there to wait for it. Either way a time-wait
	 * socket takes over.
	 */
	return oldstate == TCP_FIN_WAIT2 && (has_flag(sk, SOCK_DONE) || has_flag(sk, SOCK_DEAD)) &&
	       error != ECONNRESET && error != ECONNABORTED && error != ETIMEDOUT;
}

/*
 * net/ipv4/tcp*.c: what comes in or times out leaves an error in the socket before it closes it.
 * With IP_RECVERR (ip(7)) so does ICMP, and the session goes on: its errors tell nothing of the end.
 */
static __always_inline enum life_reason reason(struct sock *sk, int oldstate, bool owned)
{
	int error = BPF_CORE_READ(sk, sk_err);

	if (ended_by_fin(sk, oldstate, error))
		return REASON_FIN;
	switch (error) {
	case 0:
	case ECONNABORTED:
		return REASON_RESET_SENT;
	case ECONNRESET:
	case EPIPE:
		return REASON_RESET_RECEIVED;
	case ETIMEDOUT:
		return REASON_TIMEOUT;
	default: /* of ICMP: at a timeout it takes the place of ETIMEDOUT (tcp_write_err) */
		return owned ? REASON_RESET_SENT : REASON_TIMEOUT;
	}
}

static __always_inline void count(struct life_event *event, struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct waits waits;

	read_waits(&waits, sk);
	event->cwnd_limited_ns = waits.network * jiffy_ns;
	event->rwnd_limited_ns = waits.window * jiffy_ns;
	event->sndbuf_limited_ns = waits.buffer * jiffy_ns;
	event->tx_bytes = sent_bytes(sk);
	event->rx_bytes = received_bytes(sk);
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

static __always_inline void begin(struct sock *sk, __u64 start_ns, const struct conn *conn)
{
	struct entry entry = {
		.conn = *conn,
		.part = {.start_ns = start_ns, .progress = ESTABLISHED},
	};

	follow(sk, &entry);
}

static __always_inline void connecting(struct sock *sk, const bool direct)
{
	struct entry entry = {
		.part = {.start_ns = bpf_ktime_get_ns(), .progress = CONNECTING},
	};

	own(&entry.owner, sk, ROLE_ACTIVE, direct);
	follow(sk, &entry);
}

static __always_inline void established(struct sock *sk, int oldstate, const bool direct)
{
	struct entry *entry = find(sk);
	struct conn conn;

	if (read_tuple(&conn, sk, TCP_ESTABLISHED, direct) != TUPLE_WANTED)
		return;
	if (entry) {
		entry->conn = conn;
		entry->part.progress = ESTABLISHED;
	} else if (oldstate == TCP_SYN_RECV) {
		begin(sk, passive_start(sk), &conn);
	} else if (target_all) {
		begin(sk, 0, &conn);
	}
}

static __always_inline void accepted(void *ctx, struct sock *sk, const bool direct)
{
	struct entry unseen = {};

	/* With TCP Fast Open a process may have it, and close it, before the handshake is over. */
	if (sk_read(sk, __sk_common.skc_state, direct) == TCP_SYN_RECV)
		unseen.part.start_ns = bpf_ktime_get_ns();
	if (target_all || unseen.part.start_ns)
		unseen.part.progress = ESTABLISHED;
	own_accepted(sk, &unseen, direct);
}

static __always_inline void closed(void *ctx, struct sock *sk, int oldstate, struct entry *entry,
				   const bool owned, const bool direct)
{
	const bool followed = entry && entry->part.progress;
	const struct owner *owner;
	struct owner other;
	struct conn conn;

	if (followed ? entry->part.progress != ESTABLISHED : !target_all || !is_session(oldstate))
		return;
	if (entry && entry->conn.family)
		conn = entry->conn;
	else if (read_tuple(&conn, sk, TCP_CLOSE, direct) != TUPLE_WANTED)
		return;
	owner = changing_owner(&other, entry, sk, oldstate, TCP_CLOSE, owned, direct);
	if (owner->wanted)
		send(ctx, sk, followed ? entry->part.start_ns : 0, reason(sk, oldstate, owned),
		     &conn, owner);
}

/* With TCP Fast Open a process may close it before the handshake is over. Its accept was not seen. */
static __always_inline struct entry *closed_early(struct sock *sk, const bool direct)
{
	struct conn conn;

	if (read_tuple(&conn, sk, TCP_FIN_WAIT1, direct) != TUPLE_WANTED)
		return NULL;
	begin(sk, 0, &conn);
	return find(sk);
}

static __always_inline bool concerns(int oldstate, int newstate)
{
	return is_of_session(oldstate, newstate);
}

static __always_inline void ends(void *ctx, struct sock *sk, int oldstate, const bool owned,
				 const bool direct)
{
	struct entry *entry = find(sk);

	closed(ctx, sk, oldstate, entry, owned, direct);
	if (entry)
		drop(sk);
}

/* Its process closes it, and the session goes on until the peer has closed it, too. */
static __always_inline void closing(struct sock *sk, int oldstate, int newstate, const bool owned,
				    const bool direct)
{
	struct entry *entry = find(sk);

	if (!entry && oldstate == TCP_SYN_RECV)
		entry = closed_early(sk, direct);
	if (entry && owned)
		own(&entry->owner, sk, ROLE_UNKNOWN, direct);
}

static __always_inline void transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				       const bool owned, const bool direct)
{
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
		established(sk, oldstate, direct);
		return;
	case TCP_CLOSE:
		ends(ctx, sk, oldstate, owned, direct);
		return;
	default:
		closing(sk, oldstate, newstate, owned, direct);
	}
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
	struct entry *entry = find(sk);
	__u64 key = (__u64)sk, start_ns;
	struct owner owner;
	struct conn conn;

	if (!entry || entry->part.progress != ESTABLISHED)
		return 0;
	start_ns = entry->part.start_ns;
	conn = entry->conn;
	kept_owner(&owner, entry, sk, BY_HELPER);
	/* Once only: its end is no news any more. */
	if (bpf_map_delete_elem(&sockets, &key) == 0 && owner.wanted)
		send(ctx, sk, start_ns, REASON_OPEN, &conn, &owner);
	return 0;
}

/* When a session that is older than the trace began is not known. */
static __always_inline bool seeded(struct part *part, struct sock *sk, int state)
{
	part->progress = ESTABLISHED;
	return is_session(state);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
