// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* What TCP sends again, and the probes that it sends for fear of a loss. */
#include "retrans.h"

/* An entry is there for its owner alone. */
struct part {
};

#include "lib/accepting.bpf.h"
#include "lib/aggregate.bpf.h"
#include "lib/entry.bpf.h"
#include "lib/flow.bpf.h"
#include "lib/output.bpf.h"
#include "lib/seeding.bpf.h"
#include "lib/transitions.bpf.h"

EVENT(retrans_event);

/* Count flows in the kernel rather than send events. */
const volatile bool count_flows;
/* How long the kernel's unit of time is. */
const volatile __u64 jiffy_ns;

AGGREGATE(flows, struct flow, struct flow_count);

static __always_inline void count(const struct retrans_event *event, const struct conn *conn)
{
	const struct flow_count none = {};
	struct flow_count *found;
	struct flow flow;

	set_flow(&flow, conn);
	found = counters_or_rest(flows, &flow, &none);
	if (!found) {
		lose_socket();
		return;
	}
	if (event->result) {
		add(&found->failed, 1);
		return;
	}
	if (event->kind != KIND_TLP_NEW) {
		add(&found->retransmits, 1);
		add(&found->segs, event->segs);
	}
	if (event->kind >= KIND_TLP)
		add(&found->probes, 1);
}

static __always_inline void tell(void *ctx, struct retrans_event *event, const struct conn *conn,
				 const struct owner *owner)
{
	if (count_flows) {
		count(event, conn);
		return;
	}
	event->ts_ns = bpf_ktime_get_ns();
	describe(event, conn, owner);
	emit(ctx, event, sizeof(*event));
}

static __always_inline bool read_wanted(struct owner *owner, struct conn *conn, struct sock *sk,
					const bool direct)
{
	kept_owner(owner, find(sk), sk, direct);
	return owner->wanted && common_conn(conn, sk, direct) && want_conn(conn);
}

/* How its sender is, a full socket. */
static __always_inline void read_sender(struct retrans_event *event, struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	event->state = sk_read(sk, __sk_common.skc_state, BY_HELPER);
	event->ca_state = ca_state_of(sk);
	event->timeouts = BPF_CORE_READ(tp, inet_conn.icsk_retransmits);
	event->cwnd = BPF_CORE_READ(tp, snd_cwnd);
	event->ssthresh = BPF_CORE_READ(tp, snd_ssthresh);
	event->srtt_us = BPF_CORE_READ(tp, srtt_us) >> 3; /* the kernel keeps eighths */
	event->rto_us = BPF_CORE_READ(tp, inet_conn.icsk_rto) * jiffy_ns / 1000;
}

#define ICSK_TIME_LOSS_PROBE 5 /* include/net/inet_connection_sock.h */

/*
 * The timer of a socket says what it is for until the work is done. When an acknowledgement tells of
 * losses it may still be the probe's; but then the socket is in recovery when it sends again.
 */
static __always_inline bool is_probing(struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	return BPF_CORE_READ(tp, inet_conn.icsk_pending) == ICSK_TIME_LOSS_PROBE &&
	       ca_state_of(sk) < TCP_CA_Recovery;
}

static __always_inline enum retrans_kind kind_of(struct sock *sk, __u8 flags)
{
	if (flags & TCPHDR_SYN)
		return flags & TCPHDR_ACK ? KIND_SYNACK : KIND_SYN;
	return is_probing(sk) ? KIND_TLP : KIND_RETRANSMIT;
}

/* A queue of the device that is full tells so by a positive number (NET_XMIT_DROP). */
static __always_inline __u16 result_of(int error)
{
	return error > 0 ? ENOBUFS : -error;
}

/* It happens in timers and on packets: current has nothing to do with it. */
static __always_inline int retransmit(void *ctx, struct sock *sk, struct sk_buff *skb, int error,
				      const bool direct)
{
	struct tcp_skb_cb *segment = (struct tcp_skb_cb *)skb->cb;
	struct retrans_event event = {};
	struct owner owner;
	struct conn conn;

	if (!read_wanted(&owner, &conn, sk, direct))
		return 0;
	event.kind = kind_of(sk, sk_read(segment, tcp_flags, direct));
	event.result = result_of(error);
	event.seq = sk_read(segment, seq, direct);
	event.segs = sk_read(segment, tcp_gso_segs, direct);
	read_sender(&event, sk);
	tell(ctx, &event, &conn, &owner);
	return 0;
}

/*
 * What the tracepoint's programs are called through where it has a third argument, the result, and
 * shows attempts that failed: Linux 6.18 does, 6.12 does not. This asks the kernel's BTF at load time.
 */
typedef void (*btf_trace_tcp_retransmit_skb)(void *, const struct sock *, const struct sk_buff *,
					     int);

#define RESULT(argument) (bpf_core_type_exists(btf_trace_tcp_retransmit_skb) ? (int)(argument) : 0)

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(retransmit_btf, struct sock *sk, struct sk_buff *skb)
{
	return retransmit(ctx, sk, skb, RESULT(ctx[2]), DIRECT);
}

SEC("raw_tp/tcp_retransmit_skb")
int BPF_PROG(retransmit_raw, struct sock *sk, struct sk_buff *skb)
{
	return retransmit(ctx, sk, skb, RESULT(ctx[2]), BY_HELPER);
}

/*
 * A SYN-ACK that is sent again. The connection is a request, which has a tuple and no owner; sk is
 * its listener, a full socket, whose owner is the one to ask. (With TCP Fast Open sk is the
 * connection itself.)
 */
static __always_inline int resend_synack(void *ctx, struct sock *sk, struct request_sock *req,
					 const bool direct)
{
	struct retrans_event event = {
		.kind = KIND_SYNACK,
		.state = TCP_NEW_SYN_RECV,
		.ca_state = UNKNOWN_CA_STATE,
		.segs = 1,
	};
	struct owner owner;
	struct conn conn;

	kept_owner(&owner, find(sk), sk, direct);
	if (!owner.wanted || !common_conn(&conn, (struct sock *)req, BY_HELPER) ||
	    !want_conn(&conn))
		return 0;
	event.seq = BPF_CORE_READ((struct tcp_request_sock *)req, snt_isn);
	/* The kernel counts this one as soon as it is sent. */
	event.timeouts = BPF_CORE_READ(req, num_retrans) + 1;
	tell(ctx, &event, &conn, &owner);
	return 0;
}

SEC("tp_btf/tcp_retransmit_synack")
int BPF_PROG(synack_btf, struct sock *sk, struct request_sock *req)
{
	return resend_synack(ctx, sk, req, DIRECT);
}

SEC("raw_tp/tcp_retransmit_synack")
int BPF_PROG(synack_raw, struct sock *sk, struct request_sock *req)
{
	return resend_synack(ctx, sk, req, BY_HELPER);
}

/*
 * -l: a probe that sends new data passes no tracepoint. tcp_send_loss_probe() may also send nothing,
 * or a segment again, which the tracepoint shows. So what it has sent is known when it returns. It
 * runs with softirqs off: one at a time on a CPU.
 */
struct probe {
	__u64 sk; /* 0: none */
	__u32 snd_nxt;
	__u32 packets_out;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct probe);
} probes SEC(".maps");

static __always_inline struct probe *probe_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&probes, &zero);
}

static __always_inline int begin_probe(struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct probe *probe = probe_here();

	if (!probe)
		return 0;
	probe->sk = (__u64)sk;
	probe->snd_nxt = BPF_CORE_READ(tp, snd_nxt);
	probe->packets_out = BPF_CORE_READ(tp, packets_out);
	return 0;
}

static __always_inline int end_probe(void *ctx)
{
	struct retrans_event event = {.kind = KIND_TLP_NEW};
	struct probe *probe = probe_here();
	struct owner owner;
	struct tcp_sock *tp;
	struct conn conn;

	if (!probe || !probe->sk)
		return 0;
	tp = (struct tcp_sock *)probe->sk;
	probe->sk = 0;
	if (BPF_CORE_READ(tp, snd_nxt) == probe->snd_nxt ||
	    !read_wanted(&owner, &conn, (struct sock *)tp, BY_HELPER))
		return 0;
	event.seq = probe->snd_nxt;
	event.segs = BPF_CORE_READ(tp, packets_out) - probe->packets_out;
	read_sender(&event, (struct sock *)tp);
	tell(ctx, &event, &conn, &owner);
	return 0;
}

SEC("fentry/tcp_send_loss_probe")
int BPF_PROG(probe_fentry, struct sock *sk)
{
	return begin_probe(sk);
}

SEC("fexit/tcp_send_loss_probe")
int BPF_PROG(probe_fexit)
{
	return end_probe(ctx);
}

SEC("kprobe/tcp_send_loss_probe")
int BPF_KPROBE(probe_kprobe, struct sock *sk)
{
	return begin_probe(sk);
}

SEC("kretprobe/tcp_send_loss_probe")
int BPF_KRETPROBE(probe_kretprobe)
{
	return end_probe(ctx);
}

/* Sockets are followed for their owners: who opens, accepts, or shuts down. */

static __always_inline bool concerns(int oldstate, int newstate)
{
	return newstate == TCP_SYN_SENT || newstate == TCP_LISTEN || newstate == TCP_FIN_WAIT1 ||
	       newstate == TCP_LAST_ACK || newstate == TCP_CLOSE ||
	       is_new_child(oldstate, newstate);
}

/* Filters by addresses and remote ports are about a listener's connections, not about itself. */
static __always_inline bool is_rejected_listener(struct sock *sk, const bool direct)
{
	return has_rejected_port(sk, direct) ||
	       (target_netns_count && !want_netns(common_netns(sk)));
}

static __always_inline void open(struct sock *sk, const bool direct)
{
	struct entry begun = {};

	own(&begun.owner, sk, ROLE_ACTIVE, direct);
	follow(sk, &begun);
}

static __always_inline void shut_down(struct sock *sk, const bool direct)
{
	struct entry unseen = {}, *entry = find(sk);

	own(entry ? &entry->owner : &unseen.owner, sk, ROLE_UNKNOWN, direct);
	if (!entry && unseen.owner.pid)
		follow(sk, &unseen);
}

static __always_inline void transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				       const bool owned, const bool direct)
{
	if (newstate == TCP_LISTEN ? is_rejected_listener(sk, direct)
				   : reject(sk, oldstate, newstate, direct))
		return;
	switch (newstate) {
	case TCP_SYN_SENT:
	case TCP_LISTEN:
		open(sk, direct);
		return;
	case TCP_FIN_WAIT1:
	case TCP_LAST_ACK:
		if (owned)
			shut_down(sk, direct);
		return;
	}
	forget(sk); /* it is closed; or new, and an older one had the address */
}

static __always_inline void accepted(void *ctx, struct sock *sk, const bool direct)
{
	struct entry unseen = {};

	own_accepted(sk, &unseen, direct);
}

static __always_inline void destroy(void *ctx, struct sock *sk, const bool direct)
{
	forget(sk);
}

static __always_inline bool seeded(struct part *part, struct sock *sk, int state)
{
	return state == TCP_LISTEN ? !is_rejected_listener(sk, BY_HELPER) : state != TCP_CLOSE;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
