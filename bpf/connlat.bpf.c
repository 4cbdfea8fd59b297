// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* How long active connects take, and how they end. */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "connlat.h"
#include "output.bpf.h"
#include "owner.bpf.h"

EVENT(connlat_event);

const volatile __u64 targ_min_us;
const volatile bool target_failed;
/* The variant has hooks on connect() itself, where connects begin and a full map is counted. */
const volatile bool connect_is_hooked;

struct start {
	__u64 ts_ns;
	struct owner owner;
	union address raddr;
	__u16 rport;
	__u16 family;
	bool in_call; /* connect() has not returned: it will tell its error itself */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct start);
} starts SEC(".maps");

/* Thread to socket: a return probe does not see the function's arguments. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u64);
} calls SEC(".maps");

static __always_inline void begin(struct sock *sk, struct start *start, const bool counted)
{
	__u64 key = (__u64)sk;

	start->ts_ns = bpf_ktime_get_ns();
	owner_is_current(&start->owner);
	if (!start->owner.wanted)
		return;
	if (counted)
		remember(&starts, &key, start);
	else
		bpf_map_update_elem(&starts, &key, start, BPF_ANY);
}

static __always_inline void end(void *ctx, struct sock *sk, struct start *start, int result,
				bool from_call, const bool direct)
{
	__u64 now = bpf_ktime_get_ns();
	struct connlat_event event = {
		.ts_ns = now,
		.latency_ns = now - start->ts_ns,
		.pid = start->owner.pid,
		.uid = start->owner.uid,
		.result = result,
	};
	struct conn conn;

	if ((target_failed && !result) || event.latency_ns < targ_min_us * 1000 ||
	    !read_conn(&conn, sk, direct))
		return;
	/* A connect that fails at once leaves no peer in the socket. */
	if (from_call || !conn.rport) {
		conn.raddr = start->raddr;
		conn.rport = start->rport;
		conn.family = start->family;
	}
	if (!conn.lport)
		conn.lport = read_closed_lport(sk);
	if (!want_conn(&conn))
		return;
	event.netns = conn.netns;
	event.lport = conn.lport;
	event.rport = conn.rport;
	event.family = conn.family;
	__builtin_memcpy(event.laddr, &conn.laddr, sizeof(event.laddr));
	__builtin_memcpy(event.raddr, &conn.raddr, sizeof(event.raddr));
	__builtin_memcpy(event.comm, start->owner.comm, sizeof(event.comm));
	emit(ctx, &event, sizeof(event));
}

/* The kernel copied the address from user space already. */
static __always_inline int enter(struct sock *sk, const void *uaddr)
{
	const struct sockaddr_in6 *v6 = uaddr;
	const struct sockaddr_in *v4 = uaddr;
	struct start start = {.in_call = true}, *outer;
	__u64 key = (__u64)sk;

	/* tcp_v6_connect() calls tcp_v4_connect() for a v4-mapped peer. */
	outer = bpf_map_lookup_elem(&starts, &key);
	if (outer && outer->in_call)
		return 0;
	start.family = BPF_CORE_READ(v4, sin_family);
	start.rport = bpf_ntohs(BPF_CORE_READ(v4, sin_port));
	if (start.family == AF_INET6)
		bpf_core_read(&start.raddr, sizeof(start.raddr), &v6->sin6_addr);
	else
		set_v4mapped(&start.raddr, BPF_CORE_READ(v4, sin_addr.s_addr));
	if (is_v4mapped(&start.raddr))
		start.family = AF_INET;
	begin(sk, &start, true);
	return 0;
}

static __always_inline int leave(void *ctx, struct sock *sk, int ret, const bool direct)
{
	__u64 key = (__u64)sk;
	struct start *start = bpf_map_lookup_elem(&starts, &key);

	if (!start)
		return 0;
	start->in_call = false;
	if (ret) {
		end(ctx, sk, start, -ret, true, direct);
		bpf_map_delete_elem(&starts, &key);
	}
	return 0;
}

/* Without a hook on connect() itself its start is the change to SYN_SENT, made by the same task. */
static __always_inline int sent(struct sock *sk, const bool direct)
{
	__u64 key = (__u64)sk;
	struct start start = {};
	struct conn conn;

	if (bpf_map_lookup_elem(&starts, &key) || !read_conn(&conn, sk, direct))
		return 0;
	start.raddr = conn.raddr;
	start.rport = conn.rport;
	start.family = conn.family;
	begin(sk, &start, !connect_is_hooked);
	return 0;
}

/* Why a socket fell from SYN_SENT to CLOSE; 0: connect() is about to return it. */
static __always_inline int failure(struct sock *sk, const struct start *start, const bool direct)
{
	int error = sk_read(sk, sk_err, direct);
	struct socket *socket;

	if (error || start->in_call)
		return error;
	/* Closed by its own process. A socket that connect() still works on is not yet connecting. */
	socket = sk_read(sk, sk_socket, direct);
	if (sk_read(sk, sk_shutdown, direct) != SHUTDOWN_MASK && socket &&
	    sk_read(socket, state, direct) == SS_UNCONNECTED)
		return EADDRNOTAVAIL;
	return ECONNABORTED;
}

static __always_inline int transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				      const bool direct)
{
	__u64 key = (__u64)sk;
	struct start *start;
	int result = 0;

	if (!is_tcp(sk, direct))
		return 0;
	if (newstate == TCP_SYN_SENT)
		return sent(sk, direct);
	/* SYN_RECV: both sides called connect() (RFC 9293, 3.5, simultaneous open). */
	if (oldstate != TCP_SYN_SENT && oldstate != TCP_SYN_RECV)
		return 0;
	if (newstate == TCP_SYN_RECV)
		return 0;
	start = bpf_map_lookup_elem(&starts, &key);
	if (!start)
		return 0;
	if (newstate == TCP_CLOSE) {
		result = failure(sk, start, direct);
		if (!result)
			return 0;
	}
	end(ctx, sk, start, result, false, direct);
	bpf_map_delete_elem(&starts, &key);
	return 0;
}

static __always_inline int destroy(struct sock *sk)
{
	__u64 key = (__u64)sk;

	bpf_map_delete_elem(&starts, &key);
	return 0;
}

SEC("fentry/tcp_v4_connect")
int BPF_PROG(v4_fentry, struct sock *sk, struct sockaddr *uaddr)
{
	return enter(sk, uaddr);
}

SEC("fentry/tcp_v6_connect")
int BPF_PROG(v6_fentry, struct sock *sk, struct sockaddr *uaddr)
{
	return enter(sk, uaddr);
}

SEC("fexit/tcp_v4_connect")
int BPF_PROG(v4_fexit, struct sock *sk, struct sockaddr *uaddr, int addr_len, int ret)
{
	return leave(ctx, sk, ret, true);
}

SEC("fexit/tcp_v6_connect")
int BPF_PROG(v6_fexit, struct sock *sk, struct sockaddr *uaddr, int addr_len, int ret)
{
	return leave(ctx, sk, ret, true);
}

static __always_inline int enter_kprobe(struct sock *sk, const void *uaddr)
{
	__u64 thread = bpf_get_current_pid_tgid(), key = (__u64)sk;

	bpf_map_update_elem(&calls, &thread, &key, BPF_ANY);
	return enter(sk, uaddr);
}

static __always_inline int leave_kprobe(void *ctx, int ret)
{
	__u64 thread = bpf_get_current_pid_tgid();
	__u64 *key = bpf_map_lookup_elem(&calls, &thread);
	struct sock *sk;

	if (!key)
		return 0;
	sk = (struct sock *)*key;
	bpf_map_delete_elem(&calls, &thread);
	return leave(ctx, sk, ret, false);
}

SEC("kprobe/tcp_v4_connect")
int BPF_KPROBE(v4_kprobe, struct sock *sk, struct sockaddr *uaddr)
{
	return enter_kprobe(sk, uaddr);
}

SEC("kprobe/tcp_v6_connect")
int BPF_KPROBE(v6_kprobe, struct sock *sk, struct sockaddr *uaddr)
{
	return enter_kprobe(sk, uaddr);
}

SEC("kretprobe/tcp_v4_connect")
int BPF_KRETPROBE(v4_kretprobe, int ret)
{
	return leave_kprobe(ctx, ret);
}

SEC("kretprobe/tcp_v6_connect")
int BPF_KRETPROBE(v6_kretprobe, int ret)
{
	return leave_kprobe(ctx, ret);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state_btf, struct sock *sk, int oldstate, int newstate)
{
	return transition(ctx, sk, oldstate, newstate, true);
}

SEC("raw_tp/inet_sock_set_state")
int BPF_PROG(set_state_raw, struct sock *sk, int oldstate, int newstate)
{
	return transition(ctx, sk, oldstate, newstate, false);
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(destroy_btf, struct sock *sk)
{
	return destroy(sk);
}

SEC("raw_tp/tcp_destroy_sock")
int BPF_PROG(destroy_raw, struct sock *sk)
{
	return destroy(sk);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
