// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Who sends and receives RST segments, and why. */
#include "reset.h"

/* What the entry of a socket has besides its owner. */
struct part {
	__u8 closed_from; /* the state that it came to CLOSE from, 0: it is not closed */
};

#include "lib/accepting.bpf.h"
#include "lib/entry.bpf.h"
#include "lib/output.bpf.h"
#include "lib/seeding.bpf.h"
#include "lib/skb.bpf.h"
#include "lib/traffic.bpf.h"
#include "lib/transitions.bpf.h"

EVENT(reset_event);

/*
 * What sends a RST is told why: an enum sk_rst_reason (Linux 6.10, b533fb9cf4f7), the last argument.
 * Its place in tcp_send_active_reset(); elsewhere it is the third. 0: there is none.
 */
const volatile __u32 reset_reason_at;
/* tcp_reset() gets the segment, too (Linux 5.13, 049fe386d353). */
const volatile bool reset_has_segment;

#define UNKNOWN_SEQ (~0ULL)

/*
 * Data that comes after close() ends the socket, and then is answered: the same CPU still needs the
 * entry that went with the socket.
 */
struct ended {
	__u64 sk;
	struct entry entry;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ended);
} last_ended SEC(".maps");

static __always_inline bool is_waiting(__u8 state)
{
	return state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2;
}

static __always_inline void keep_ended(struct sock *sk, const struct entry *entry)
{
	__u32 zero = 0;
	struct ended *ended = bpf_map_lookup_elem(&last_ended, &zero);

	if (!ended)
		return;
	ended->sk = (__u64)sk;
	ended->entry = *entry;
}

/* Of a socket that answers a segment. */
static __always_inline struct entry *find_ended(struct sock *sk)
{
	struct entry *entry = find(sk);
	struct ended *ended;
	__u32 zero = 0;

	if (entry || sk_read(sk, __sk_common.skc_state, BY_HELPER) != TCP_CLOSE)
		return entry;
	ended = bpf_map_lookup_elem(&last_ended, &zero);
	return ended && ended->sk == (__u64)sk ? &ended->entry : NULL;
}

/* Asked before anything else is read. sk: NULL where there is none. entry: of a full one. */
static __always_inline bool is_wanted(struct owner *owner, struct sock *sk,
				      const struct entry *entry, const struct conn *conn)
{
	if (!want_conn(conn))
		return false;
	if (sk && is_fullsock(sk))
		kept_owner(owner, entry, sk, BY_HELPER);
	else
		no_owner(owner);
	return owner->wanted;
}

static __always_inline void tell(void *ctx, struct reset_event *event, const struct conn *conn,
				 const struct owner *owner)
{
	event->ts_ns = bpf_ktime_get_ns();
	if (!event->reason && event->cause)
		event->reason = OWN_REASON | event->cause;
	describe(event, conn, owner);
	emit(ctx, event, sizeof(*event));
}

/* A RST of the socket's own comes when it is closed already. */
static __always_inline __u8 state_before(struct sock *sk, const struct entry *entry)
{
	__u8 state = sk_read(sk, __sk_common.skc_state, BY_HELPER);

	return state == TCP_CLOSE && entry && entry->part.closed_from ? entry->part.closed_from
								      : state;
}

/* close() has shut both directions down before it does anything else. */
static __always_inline bool is_shut_down(struct sock *sk)
{
	return (sk_read(sk, sk_shutdown, BY_HELPER) & SHUTDOWN_MASK) == SHUTDOWN_MASK;
}

/* The FIN takes a number, too. */
static __always_inline bool has_unread_data(struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	__s32 unread = BPF_CORE_READ(tp, rcv_nxt) - BPF_CORE_READ(tp, copied_seq);

	return unread - has_flag(sk, SOCK_DONE) > 0;
}

/* TCP_LINGER2, tcp(7): nobody waits for the peer's FIN after close(). */
static __always_inline bool waits_for_no_fin(struct sock *sk)
{
	return BPF_CORE_READ((struct tcp_sock *)sk, linger2) < 0;
}

/* __tcp_close(), tcp_disconnect(), inet_csk_listen_stop(). */
static __always_inline enum cause cause_of_close(struct sock *sk)
{
	if (has_flag(sk, SOCK_DEAD)) /* else there was no memory */
		return waits_for_no_fin(sk) ? CAUSE_LINGER2 : CAUSE_UNKNOWN;
	if (!socket_of(sk)) /* nobody has accepted it */
		return CAUSE_LISTENER_CLOSED;
	if (!is_shut_down(sk))
		return CAUSE_DISCONNECT;
	if (has_unread_data(sk))
		return CAUSE_UNREAD_DATA;
	return has_flag(sk, SOCK_LINGER) && !sk_read(sk, sk_lingertime, BY_HELPER) ? CAUSE_LINGER
										   : CAUSE_UNKNOWN;
}

/* tcp_keepalive_timer(), tcp_abort() */
static __always_inline enum cause cause_of_abort(struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	if (is_owned(sk, BY_HELPER))
		return CAUSE_ABORTED;
	if (!has_flag(sk, SOCK_KEEPOPEN) || !BPF_CORE_READ(tp, inet_conn.icsk_probes_out))
		return CAUSE_UNKNOWN;
	return BPF_CORE_READ(tp, inet_conn.icsk_user_timeout) ? CAUSE_USER_TIMEOUT
							      : CAUSE_KEEPALIVE;
}

static __always_inline enum cause cause_of_own(struct sock *sk)
{
	if (is_subflow(sk))
		return CAUSE_MPTCP;
	return sk_read(sk, __sk_common.skc_state, BY_HELPER) == TCP_CLOSE ? cause_of_close(sk)
									  : cause_of_abort(sk);
}

/*
 * tcp_acceptable_seq(): the peer may have taken the window back from what is in flight. What its scale
 * rounds off does not count.
 */
static __always_inline __u32 acceptable_seq(struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	__u32 next = BPF_CORE_READ(tp, snd_nxt);
	__u32 end = BPF_CORE_READ(tp, snd_una) + BPF_CORE_READ(tp, snd_wnd);
	__s32 beyond = next - end;
	__s32 grain = BPF_CORE_READ_BITFIELD_PROBED(tp, rx_opt.wscale_ok)
			      ? 1 << BPF_CORE_READ_BITFIELD_PROBED(tp, rx_opt.rcv_wscale)
			      : 1;

	return beyond < grain ? next : end;
}

/* Of the host's own accord. */
static __always_inline int sends(void *ctx, struct sock *sk, __u32 reason)
{
	struct reset_event event = {.direction = DIRECTION_SENT, .reason = reason};
	struct entry *entry;
	struct owner owner;
	struct conn conn;

	if (has_rejected_port(sk, BY_HELPER) || !read_closed_conn(&conn, sk, BY_HELPER))
		return 0;
	entry = find(sk);
	if (!is_wanted(&owner, sk, entry, &conn))
		return 0;
	event.state = state_before(sk, entry);
	event.cause = cause_of_own(sk);
	event.seq = acceptable_seq(sk);
	tell(ctx, &event, &conn, &owner);
	return 0;
}

static __always_inline bool aborts_on_overflow(struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_net.net, ipv4.sysctl_tcp_abort_on_overflow);
}

static __always_inline enum cause cause_of_answer(struct sock *sk, const struct segment *segment,
						  __u8 state)
{
	if (!sk)
		return (segment->flags & (TCPHDR_SYN | TCPHDR_ACK)) == TCPHDR_SYN
			       ? CAUSE_NO_LISTENER
			       : CAUSE_NO_CONNECTION;
	/* With a FIN that is still to come FIN_WAIT2 looks like that, too (tcp_time_wait). */
	if (state == TCP_TIME_WAIT)
		return segment->len ? CAUSE_LATE_DATA : CAUSE_TIME_WAIT;
	if (state == TCP_LISTEN && is_acceptq_full(sk) && aborts_on_overflow(sk))
		return CAUSE_OVERFLOW;
	if (!is_fullsock(sk) || !is_shut_down(sk))
		return CAUSE_UNEXPECTED;
	if (segment->len)
		return CAUSE_LATE_DATA;
	return state == TCP_FIN_WAIT2 && waits_for_no_fin(sk) ? CAUSE_LINGER2 : CAUSE_UNEXPECTED;
}

/*
 * In answer to a segment. sk: NULL where it belongs to none; a listener does not know the peer, so
 * that the tuple is the segment's. A RST is never answered, nor is what goes to many.
 */
static __always_inline int answers(void *ctx, struct sock *sk, struct sk_buff *skb, __u32 reason)
{
	struct reset_event event = {.direction = DIRECTION_SENT, .reason = reason};
	struct entry *entry = sk ? find_ended(sk) : NULL;
	struct segment segment;
	struct owner owner;
	struct conn conn;

	if (!read_segment(&segment, skb) || segment.flags & TCPHDR_RST ||
	    segment.daddr.bytes[0] == 0xff)
		return 0;
	segment_endpoints(&conn, &segment, false);
	conn.netns = sk ? common_netns(sk) : device_netns(device_of(skb));
	if (!is_wanted(&owner, sk, entry, &conn))
		return 0;
	if (sk)
		event.state = state_before(sk, entry);
	event.cause = cause_of_answer(sk, &segment, event.state);
	if (segment.flags & TCPHDR_ACK)
		event.seq = segment.ack;
	tell(ctx, &event, &conn, &owner);
	return 0;
}

/* skb: the segment that is answered, or NULL. */
static __always_inline int sends_or_answers(void *ctx, struct sock *sk, struct sk_buff *skb,
					    __u32 reason)
{
	if (skb)
		return answers(ctx, sk, skb, reason);
	return sk ? sends(ctx, sk, reason) : 0;
}

/*
 * The kernel takes the way of a RST (tcp_reset) for data that comes after close(), too, and then
 * answers it with one. Without the segment nobody can tell which it was.
 */
static __always_inline bool may_be_late_data(struct sock *sk, __u8 state)
{
	return is_waiting(state) && is_shut_down(sk);
}

static __always_inline int receives(void *ctx, struct sock *sk, struct sk_buff *skb)
{
	struct reset_event event = {.direction = DIRECTION_RECEIVED, .seq = UNKNOWN_SEQ};
	struct segment segment;
	struct owner owner;
	struct conn conn;

	if (has_rejected_port(sk, BY_HELPER))
		return 0;
	if (skb) {
		if (!read_segment(&segment, skb) || !(segment.flags & TCPHDR_RST))
			return 0;
		event.seq = segment.seq;
	}
	if (!read_closed_conn(&conn, sk, BY_HELPER) || !is_wanted(&owner, sk, find(sk), &conn))
		return 0;
	event.state = sk_read(sk, __sk_common.skc_state, BY_HELPER);
	if (event.state == TCP_SYN_SENT)
		event.cause = CAUSE_REFUSED;
	else if (skb || !may_be_late_data(sk, event.state))
		event.cause = CAUSE_PEER;
	tell(ctx, &event, &conn, &owner);
	return 0;
}

/* The programs. Resets are rare: all read through the helper. */

#define TRACEPOINTS(kind, suffix)                                                                  \
	SEC(kind "/tcp_send_reset")                                                                \
	int BPF_PROG(sent_##suffix, struct sock *sk, struct sk_buff *skb)                          \
	{                                                                                          \
		return sends_or_answers(ctx, sk, skb, reset_reason_at ? ctx[2] : 0);               \
	}                                                                                          \
	SEC(kind "/tcp_receive_reset")                                                             \
	int BPF_PROG(received_##suffix, struct sock *sk)                                           \
	{                                                                                          \
		return receives(ctx, sk, NULL);                                                    \
	}

TRACEPOINTS("tp_btf", btf)
TRACEPOINTS("raw_tp", raw)

/*
 * In assembler, as clang would make one load of two, from an address that it has computed: the
 * verifier refuses that for a context.
 */
#define ARGUMENT(ctx, number)                                                                      \
	({                                                                                         \
		__u64 _value;                                                                      \
		asm volatile("%0 = *(u64 *)(%1 + %2)"                                              \
			     : "=r"(_value)                                                        \
			     : "r"(ctx), "i"((number) * 8));                                       \
		_value;                                                                            \
	})

SEC("fentry/tcp_send_active_reset")
int BPF_PROG(active_fentry, struct sock *sk)
{
	__u32 reason = 0;

	if (reset_reason_at == 1)
		reason = ARGUMENT(ctx, 1);
	else if (reset_reason_at == 2)
		reason = ARGUMENT(ctx, 2);
	return sends(ctx, sk, reason);
}

SEC("kprobe/tcp_send_active_reset")
int BPF_KPROBE(active_kprobe, struct sock *sk, __u64 second, __u64 third)
{
	barrier_var(second);
	barrier_var(third);
	return sends(ctx, sk, reset_reason_at == 1 ? second : reset_reason_at == 2 ? third : 0);
}

#define ANSWERS(function, suffix)                                                                  \
	SEC("fentry/" #function)                                                                   \
	int BPF_PROG(suffix##_fentry, struct sock *sk, struct sk_buff *skb)                        \
	{                                                                                          \
		return answers(ctx, sk, skb, reset_reason_at ? ctx[2] : 0);                        \
	}                                                                                          \
	SEC("kprobe/" #function)                                                                   \
	int BPF_KPROBE(suffix##_kprobe, struct sock *sk, struct sk_buff *skb)                      \
	{                                                                                          \
		return answers(ctx, sk, skb, reset_reason_at ? PT_REGS_PARM3(ctx) : 0);            \
	}

ANSWERS(tcp_v4_send_reset, v4)
ANSWERS(tcp_v6_send_reset, v6)

SEC("fentry/tcp_reset")
int BPF_PROG(received_fentry, struct sock *sk)
{
	return receives(ctx, sk, reset_has_segment ? (struct sk_buff *)ctx[1] : NULL);
}

SEC("kprobe/tcp_reset")
int BPF_KPROBE(received_kprobe, struct sock *sk)
{
	return receives(ctx, sk, reset_has_segment ? (struct sk_buff *)PT_REGS_PARM2(ctx) : NULL);
}

/* Who has which socket, and what state it had. */

static __always_inline bool concerns(int oldstate, int newstate)
{
	/* Nothing to learn but the rest of the tuple, for filters that reject it. */
	if (newstate == TCP_ESTABLISHED)
		return is_tuple_filtered();
	return newstate == TCP_LISTEN || is_of_session(oldstate, newstate);
}

static __always_inline void transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				       const bool owned, const bool direct)
{
	struct entry begun = {}, *found = NULL, *entry;

	if (reject(sk, oldstate, newstate, direct))
		return;
	if (is_new_child(oldstate, newstate)) {
		forget(sk); /* an older socket had the address, and its end was missed */
		return;
	}
	if (newstate == TCP_ESTABLISHED)
		return;
	if (newstate != TCP_SYN_SENT)
		found = find(sk);
	entry = found ?: &begun;
	barrier_var(entry); /* else clang writes all that follows twice */
	entry->part.closed_from = newstate == TCP_CLOSE ? oldstate : 0;
	if (owned && is_act(sk, oldstate, newstate, direct))
		own(&entry->owner, sk, newstate == TCP_SYN_SENT ? ROLE_ACTIVE : ROLE_UNKNOWN,
		    direct);
	if (!found)
		follow(sk, &begun);
}

static __always_inline void accepted(void *ctx, struct sock *sk, const bool direct)
{
	struct entry unseen = {};

	own_accepted(sk, &unseen, direct);
}

static __always_inline void destroy(void *ctx, struct sock *sk, const bool direct)
{
	struct entry *entry = find(sk);

	if (!entry)
		return;
	if (is_waiting(entry->part.closed_from))
		keep_ended(sk, entry);
	drop(sk);
}

static __always_inline bool seeded(struct part *part, struct sock *sk, int state)
{
	return state == TCP_LISTEN || is_session(state);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
