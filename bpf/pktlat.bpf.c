// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* How long received data waits until it is read. */
#include "vmlinux.h"

#define ARRIVALS 16

/*
 * When the data in a socket's receive queue came. An arrival is known by the sequence number at
 * which it begins; it has all bytes up to the next one that is kept, or up to the end of the queue.
 *
 * All of it is read and written under the socket's lock.
 */
struct part {
	__u64 ts_ns[ARRIVALS]; /* a ring: the place of an arrival is its number modulo ARRIVALS */
	__u32 seq[ARRIVALS];
	__u32 first;  /* number of the arrival that has the first unread byte */
	__u32 next;   /* number that the next arrival will have */
	__u32 stride; /* arrivals that share a place, once there are too many of them */
	__u32 more;   /* arrivals that the last place is still to take */
	__u32 unread; /* sequence number of the first unread byte */
	__u32 seen;   /* end of the last segment that was seen */
};

#include "lib/entry.bpf.h"
#include "lib/histogram.bpf.h"
#include "lib/output.bpf.h"
#include "lib/transitions.bpf.h"
#include "pktlat.h"

EVENT(pktlat_event);

const volatile __u64 targ_min_ns;
const volatile __u32 targ_tid;
/* Measure histograms in the kernel rather than send events. */
const volatile bool count_waits;
/* Arrivals are seen at the tracepoint tcp_probe: those of segments in TCP_ESTABLISHED alone. */
const volatile bool sees_established_only;

AGGREGATE(waits, struct pktlat, struct histogram);

/* Sequence numbers wrap around: RFC 9293, 3.4. */
static __always_inline bool is_before(__u32 seq, __u32 other)
{
	return (__s32)(seq - other) < 0;
}

static __always_inline __u32 place(__u32 number)
{
	return number % ARRIVALS;
}

/*
 * Makes room: of the arrivals, the second, the fourth and so on become part of the one before, and
 * later ones come together likewise. So no byte ever seems to have come later than it did.
 */
static __always_inline void thin_out(struct part *part)
{
#pragma clang loop unroll(disable)
	for (__u32 i = 1; i < ARRIVALS / 2; i++) {
		__u32 to = place(part->first + i), from = place(part->first + 2 * i);

		part->ts_ns[to] = part->ts_ns[from];
		part->seq[to] = part->seq[from];
	}
	part->next = part->first + ARRIVALS / 2;
	part->stride *= 2;
}

static __always_inline __u32 kept(const struct part *part)
{
	return part->next - part->first;
}

/* A place for an arrival. Once the reader catches up, there is room for each of them again. */
static __always_inline void keep(struct part *part, __u32 seq)
{
	if (kept(part) >= ARRIVALS)
		thin_out(part);
	else if (kept(part) < ARRIVALS / 4)
		part->stride = part->stride / 2 ?: 1;
	part->seq[place(part->next)] = seq;
	part->ts_ns[place(part->next)] = bpf_ktime_get_ns();
	part->next++;
	part->more = part->stride - 1;
}

/* Data comes that begins at rcv_nxt, the end of what is there. */
static __always_inline void add_arrival(struct part *part, __u32 rcv_nxt)
{
	if (part->unread == rcv_nxt) {
		part->first = part->next; /* all is read that came before */
		part->stride = 1;
	} else if (kept(part) && part->seq[place(part->next - 1)] == rcv_nxt) {
		part->next--; /* the kernel dropped that segment: nothing has come since */
	} else if (part->more) {
		part->more--;
		return;
	}
	keep(part, rcv_nxt);
}

/*
 * The first data that is seen of a socket. Of MPTCP, nothing: who reads takes the data from another
 * socket, and the kernel moves it there without passing any hook.
 */
static __always_inline struct entry *begin(struct sock *sk, const bool direct)
{
	struct entry entry = {};

	if (is_subflow(sk) || !common_conn(&entry.conn, sk, direct) || !want_conn(&entry.conn))
		return NULL;
	entry.part.unread = BPF_CORE_READ((struct tcp_sock *)sk, copied_seq);
	return follow(sk, &entry) ? find(sk) : NULL;
}

/* seen: where the segment ends, as far as that is known. */
static __always_inline void arrives(struct sock *sk, __u32 rcv_nxt, __u32 seen, const bool direct)
{
	struct entry *entry;

	if (is_rejected(sk, TCP_ESTABLISHED, direct))
		return;
	entry = find(sk) ?: begin(sk, direct);
	if (!entry)
		return;
	add_arrival(&entry->part, rcv_nxt);
	entry->part.seen = seen;
}

static __always_inline __u32 received_up_to(struct sock *sk, const bool direct)
{
	struct tcp_sock *tp = tcp_of(sk, direct);

	return tp ? sk_read(tp, rcv_nxt, direct) : 0;
}

/*
 * The kernel puts a segment into the receive queue: it is in order, it has data, and rcv_nxt goes
 * up next. What came too early and waits behind a gap follows at once when the gap is filled.
 */
SEC("fentry/tcp_queue_rcv")
int BPF_PROG(queue_fentry, struct sock *sk)
{
	arrives(sk, received_up_to(sk, DIRECT), 0, DIRECT);
	return 0;
}

SEC("kprobe/tcp_queue_rcv")
int BPF_KPROBE(queue_kprobe, struct sock *sk)
{
	arrives(sk, received_up_to(sk, BY_HELPER), 0, BY_HELPER);
	return 0;
}

/* A segment comes in, which may be anything: most have no data. */
static __always_inline int probe(struct sock *sk, struct sk_buff *skb, const bool direct)
{
	struct tcp_skb_cb *segment = (struct tcp_skb_cb *)skb->cb;
	__u32 seq = sk_read(segment, seq, direct), end = sk_read(segment, end_seq, direct);
	__u32 rcv_nxt;

	/* A FIN takes a sequence number. */
	if (seq == end || (end - seq == 1 && sk_read(segment, tcp_flags, direct) & TCPHDR_FIN))
		return 0;
	rcv_nxt = received_up_to(sk, direct);
	/* Not too early, and not known already. */
	if (!is_before(rcv_nxt, seq) && is_before(rcv_nxt, end))
		arrives(sk, rcv_nxt, end, direct);
	return 0;
}

SEC("tp_btf/tcp_probe")
int BPF_PROG(probe_btf, struct sock *sk, struct sk_buff *skb)
{
	return probe(sk, skb, DIRECT);
}

SEC("raw_tp/tcp_probe")
int BPF_PROG(probe_raw, struct sock *sk, struct sk_buff *skb)
{
	return probe(sk, skb, BY_HELPER);
}

/* Whoever reads holds the socket's lock; without that, the kernel itself takes data on arrival. */
static __always_inline void reader(struct owner *owner, struct sock *sk, const bool direct)
{
	if (is_owned(sk, direct))
		current_owner(owner, sk, direct);
	else
		unknown_owner(owner, sk, direct);
}

static __always_inline void count(const struct owner *owner, __u64 wait_ns)
{
	struct pktlat key = {.pid = owner->pid};
	struct histogram *found;

	__builtin_memcpy(key.comm, owner->comm, sizeof(key.comm));
	found = counters_or_rest(waits, &key, &no_values);
	if (found)
		measure(found, wait_ns / 1000);
	else
		lose_socket();
}

static __always_inline void tell(void *ctx, struct sock *sk, const struct conn *conn, __u64 now,
				 __u64 wait_ns, const bool direct)
{
	struct pktlat_event event = {.ts_ns = now, .latency_ns = wait_ns};
	struct owner owner = {};

	reader(&owner, sk, direct);
	if (!owner.wanted || (targ_tid && owner.tid != targ_tid))
		return;
	if (count_waits) {
		count(&owner, wait_ns);
		return;
	}
	event.tid = owner.tid;
	describe(&event, conn, &owner);
	emit(ctx, &event, sizeof(event));
}

/* It was read up to here. */
static __always_inline void advance(struct part *part, __u32 copied_seq)
{
	part->unread = copied_seq;
#pragma clang loop unroll(disable)
	for (__u32 i = 1; i < ARRIVALS; i++) {
		if (kept(part) < 2 || is_before(copied_seq, part->seq[place(part->first + 1)]))
			return;
		part->first++;
	}
}

/*
 * Data that comes after this end has closed its half is not seen at tcp_probe. With what the last
 * arrival that was seen has beyond its own segment, it cannot be told apart from.
 */
static __always_inline bool may_be_unseen(const struct part *part, struct sock *sk,
					  const bool direct)
{
	int state;

	if (!sees_established_only || is_before(part->unread, part->seen))
		return false;
	state = sk_read(sk, __sk_common.skc_state, direct);
	return state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT;
}

/*
 * After data was copied to a reader, a segment or a part of one. MSG_PEEK leaves copied_seq where
 * it was.
 */
static __always_inline int copied(void *ctx, struct sock *sk, const bool direct)
{
	struct tcp_sock *tp = tcp_of(sk, direct);
	struct entry *entry = find(sk);
	__u64 now, since_ns;
	bool is_older;
	__u32 seq;

	if (!entry || !tp)
		return 0;
	seq = sk_read(tp, copied_seq, direct);
	if (seq == entry->part.unread)
		return 0;
	if (may_be_unseen(&entry->part, sk, direct)) {
		drop(sk); /* nor will any more be seen */
		return 0;
	}
	is_older = is_before(entry->part.unread, entry->part.seq[place(entry->part.first)]);
	since_ns = entry->part.ts_ns[place(entry->part.first)];
	advance(&entry->part, seq);
	now = bpf_ktime_get_ns();
	if (!is_older && now - since_ns >= targ_min_ns)
		tell(ctx, sk, &entry->conn, now, now - since_ns, direct);
	return 0;
}

SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(copied_btf, struct sock *sk)
{
	return copied(ctx, sk, DIRECT);
}

SEC("raw_tp/tcp_rcv_space_adjust")
int BPF_PROG(copied_raw, struct sock *sk)
{
	return copied(ctx, sk, BY_HELPER);
}

/* Data can be read after the socket is closed, by a reset. Its numbers count until it begins anew. */
static __always_inline bool concerns(int oldstate, int newstate)
{
	return newstate == TCP_SYN_SENT || is_new_child(oldstate, newstate);
}

static __always_inline void transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				       const bool owned, const bool direct)
{
	forget(sk);
}

static __always_inline void destroy(void *ctx, struct sock *sk, const bool direct)
{
	forget(sk);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
