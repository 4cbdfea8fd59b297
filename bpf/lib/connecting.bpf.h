/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Active connects from connect() to their result. The tool says in finished() what becomes of one.
 */
#ifndef TCPCORE_CONNECTING_BPF_H
#define TCPCORE_CONNECTING_BPF_H

#include "lib/compat.bpf.h"
#include "lib/output.bpf.h"
#include "lib/owner.bpf.h"
#include "lib/task.bpf.h"
#include "lib/transitions.bpf.h"

/*
 * There are hooks on connect() itself. A connect begins there, and is counted there when the map is
 * full; without them it begins with SYN_SENT.
 */
const volatile bool connect_is_hooked;

/*
 * A connect on its way, with its owner. The entry's tuple is what connect() was called with: raddr,
 * rport, family; and lport is that of the socket's connection before this one.
 */
struct part {
	__u64 ts_ns;
	__u32 caller;	/* thread whose connect() has not returned: it will tell its error itself */
	bool from_both; /* the peer has called connect(), too: RFC 9293, 3.5, simultaneous open */
};

#include "lib/entry.bpf.h"

struct call {
	struct sock *sk;
	const void *address;
};

/* Thread to its connect(): return probes do not see the function's arguments. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct call);
} calls SEC(".maps");

/* result: 0 or an errno. The tuple passes the filters, and so does the owner. */
static __always_inline void finished(void *ctx, __u64 start_ns, int result, const struct conn *conn,
				     const struct owner *owner);

static __always_inline __u32 current_thread(void)
{
	return bpf_get_current_pid_tgid();
}

/* A full map is a loss, unless connect() was hooked and has counted it. */
enum full_map { MAP_FULL_COUNTED, MAP_FULL_IS_LOSS };

static __always_inline void begin(struct sock *sk, struct entry *start, enum full_map full,
				  const bool direct)
{
	struct owner *owner = &start->owner;
	__u64 key = (__u64)sk;

	start->part.ts_ns = bpf_ktime_get_ns();
	start->conn.lport = read_closed_lport(sk);
	owner->role = ROLE_ACTIVE;
	/* The kernel adds subflows to the MPTCP sockets of others. */
	if (is_kernel_thread() && is_subflow(sk))
		unknown_owner(owner, sk, direct);
	else
		current_owner(owner, sk, direct);
	if (!owner->wanted)
		forget(sk);
	else if (bpf_map_update_elem(&sockets, &key, start, BPF_ANY) && full == MAP_FULL_IS_LOSS)
		lose_socket();
}

/* Where the peer's address and port are taken from: a connect that fails at once left none. */
enum peer { PEER_OF_SOCKET, PEER_OF_CALL };

static __always_inline bool read_result(struct conn *conn, struct sock *sk,
					const struct conn *start, enum peer peer, const bool direct)
{
	if (!common_conn(conn, sk, direct))
		return false;
	/* It may fail before it has a port, and then has that of the time before. */
	if (!conn->lport)
		conn->lport = read_closed_lport(sk);
	if (conn->lport == start->lport && !sk_read(sk, __sk_common.skc_num, direct))
		conn->lport = 0;
	if (peer == PEER_OF_CALL || !conn->rport) {
		conn->raddr = start->raddr;
		conn->rport = start->rport;
		conn->family = start->family;
		if (conn->family == AF_INET && is_zero(&conn->laddr))
			set_v4mapped(&conn->laddr, 0);
	}
	return true;
}

/* Whoever deletes the entry tells of the connect; from then on its place may be in use again. */
static __always_inline void end(void *ctx, struct sock *sk, const struct entry *found, int result,
				enum peer peer, const bool direct)
{
	struct entry start = *found;
	__u64 key = (__u64)sk;
	struct conn conn;
	bool read = read_result(&conn, sk, &start.conn, peer, direct);

	if (bpf_map_delete_elem(&sockets, &key))
		return;
	if (read && want_conn(&conn))
		finished(ctx, start.part.ts_ns, result, &conn, &start.owner);
}

/* False for what TCP cannot connect to; AF_UNSPEC disconnects. */
static __always_inline bool parse(struct conn *start, const struct sockaddr_in6 *address)
{
	start->family = address->sin6_family;
	start->rport = bpf_ntohs(address->sin6_port);
	if (start->family == AF_INET) {
		set_v4mapped(&start->raddr, address->sin_addr);
		return true;
	}
	if (start->family != AF_INET6)
		return false;
	__builtin_memcpy(&start->raddr, address->sin6_addr, sizeof(start->raddr));
	if (is_v4mapped(&start->raddr))
		start->family = AF_INET;
	return true;
}

/* Where the address lies that connect() got: in the caller's memory, until a system call copies it. */
enum memory { KERNEL_MEMORY, USER_MEMORY };

/* What cannot be read stays as it is: zeros. */
static __always_inline void read_sockaddr(struct sockaddr_in6 *address, const void *from,
					  __u32 size, enum memory memory)
{
	if (memory == USER_MEMORY)
		bpf_probe_read_user(address, size, from);
	else
		bpf_probe_read_kernel(address, size, from);
}

/* False for what TCP cannot connect to. */
static __always_inline bool read_peer(struct conn *start, const void *uaddr, enum memory memory)
{
	struct sockaddr_in6 address = {};

	/* An IPv4 address is shorter, and the page may end behind it. */
	read_sockaddr(&address, uaddr, SOCKADDR_IN_SIZE, memory);
	if (address.sin6_family == AF_INET6)
		read_sockaddr(&address, uaddr, sizeof(address), memory);
	return parse(start, &address);
}

/* connect() begins to work. */
static __always_inline bool enter(struct sock *sk, const void *uaddr, const bool direct)
{
	struct entry start = {.part.caller = current_thread()};

	if (!read_peer(&start.conn, uaddr, KERNEL_MEMORY))
		return false;
	if (may_want_endpoints(&start.conn) && want_netns(common_netns(sk)))
		begin(sk, &start, MAP_FULL_IS_LOSS, direct);
	return true;
}

/* Of the call that is about to return; NULL if another thread made it, whose return was missed. */
static __always_inline struct entry *entry_of_call(struct sock *sk)
{
	struct entry *start = find(sk);

	return start && start->part.caller == current_thread() ? start : NULL;
}

static __always_inline void leave(void *ctx, struct sock *sk, int error, const bool direct)
{
	struct entry *start = entry_of_call(sk);

	if (!start)
		return;
	start->part.caller = 0;
	if (error)
		end(ctx, sk, start, error, PEER_OF_CALL, direct);
}

/*
 * The change to SYN_SENT. Without a hook on connect() itself, or if that was missed, the connect
 * begins here: in the same task, a little later.
 */
static __always_inline void sent(struct sock *sk, const bool direct)
{
	struct entry *known, start = {};

	if (is_rejected(sk, TCP_SYN_SENT, direct)) {
		forget(sk);
		return;
	}
	known = find(sk);
	if ((known && known->part.caller == current_thread()) ||
	    !common_conn(&start.conn, sk, direct))
		return;
	begin(sk, &start, connect_is_hooked ? MAP_FULL_COUNTED : MAP_FULL_IS_LOSS, direct);
}

/* A new attempt: a socket that is connecting, or has a result to fetch, is in another state. */
static __always_inline bool is_unconnected(struct sock *sk)
{
	struct socket *socket = socket_of(sk);

	return socket && BPF_CORE_READ(socket, state) == SS_UNCONNECTED;
}

/* The error of a socket that went from SYN_SENT to CLOSE; 0: connect() is about to return it. */
static __always_inline int failure(struct sock *sk, const struct part *start, const bool direct)
{
	int error = sk_read(sk, sk_err, direct);

	if (error)
		return error;
	if (sk_read(sk, sk_shutdown, direct) == SHUTDOWN_MASK) /* closed by its own process */
		return ECONNABORTED;
	if (start->caller == current_thread())
		return 0;
	/* As long as connect() works on a socket, it is not SS_CONNECTING yet. */
	return is_unconnected(sk) ? EADDRNOTAVAIL : ECONNABORTED;
}

static __always_inline bool concerns(int oldstate, int newstate)
{
	return newstate == TCP_SYN_SENT || oldstate == TCP_SYN_SENT || oldstate == TCP_SYN_RECV;
}

static __always_inline void transition(void *ctx, struct sock *sk, int oldstate, int newstate,
				       const bool owned, const bool direct)
{
	struct entry *start;
	int result = 0;

	if (newstate == TCP_SYN_SENT) {
		sent(sk, direct);
		return;
	}
	start = find(sk);
	if (!start)
		return;
	if (newstate == TCP_SYN_RECV) {
		start->part.from_both = true;
		return;
	}
	/* A listener's child: the entry is of an older socket at its address, whose end was missed. */
	if (oldstate == TCP_SYN_RECV && !start->part.from_both) {
		drop(sk);
		return;
	}
	if (newstate == TCP_CLOSE) {
		result = failure(sk, &start->part, direct);
		if (!result)
			return;
	}
	end(ctx, sk, start, result, PEER_OF_SOCKET, direct);
}

static __always_inline void destroy(void *ctx, struct sock *sk, const bool direct)
{
	forget(sk);
}

/*
 * For a v4-mapped peer tcp_v6_connect() calls tcp_v4_connect(). That is one connect, and the hooks on
 * tcp_v6_connect() tell of it.
 */
static __always_inline bool is_seen_outside(struct sock *sk, const bool direct)
{
	return sk_read(sk, __sk_common.skc_family, direct) == AF_INET6;
}

SEC("fentry/tcp_v4_connect")
int BPF_PROG(v4_fentry, struct sock *sk, struct sockaddr *uaddr)
{
	if (!is_seen_outside(sk, DIRECT))
		enter(sk, uaddr, DIRECT);
	return 0;
}

SEC("fentry/tcp_v6_connect")
int BPF_PROG(v6_fentry, struct sock *sk, struct sockaddr *uaddr)
{
	enter(sk, uaddr, DIRECT);
	return 0;
}

SEC("fexit/tcp_v4_connect")
int BPF_PROG(v4_fexit, struct sock *sk, struct sockaddr *uaddr, int addr_len, int ret)
{
	if (!is_seen_outside(sk, DIRECT))
		leave(ctx, sk, -ret, DIRECT);
	return 0;
}

SEC("fexit/tcp_v6_connect")
int BPF_PROG(v6_fexit, struct sock *sk, struct sockaddr *uaddr, int addr_len, int ret)
{
	leave(ctx, sk, -ret, DIRECT);
	return 0;
}

/*
 * What refuses a connect before TCP hears of it: a security module, also where connect() only asks
 * for the result of an earlier one; then a BPF program of the cgroup.
 */
static __always_inline int checked(void *ctx, struct sock *sk, const void *uaddr, int ret,
				   const bool direct)
{
	if (ret && sk && is_tcp(sk, direct) &&
	    sk_read(sk, __sk_common.skc_state, direct) == TCP_CLOSE && is_unconnected(sk) &&
	    enter(sk, uaddr, direct))
		leave(ctx, sk, -ret, direct);
	return 0;
}

/* Each of these functions returns at once, so that few of them are on their way at a time. */
static __always_inline void call(struct sock *sk, const void *address)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct call call = {.sk = sk, .address = address};

	remember(&calls, &thread, &call);
}

/* The call that returns; its sk is NULL when none is known. */
static __always_inline struct call returned(void)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct call *found = bpf_map_lookup_elem(&calls, &thread), call = {};

	if (!found)
		return call;
	call = *found;
	bpf_map_delete_elem(&calls, &thread);
	return call;
}

static __always_inline int enter_kprobe(struct sock *sk, const void *uaddr)
{
	call(sk, uaddr);
	enter(sk, uaddr, BY_HELPER);
	return 0;
}

static __always_inline int leave_kprobe(void *ctx, int ret)
{
	struct call call = returned();

	if (call.sk)
		leave(ctx, call.sk, -ret, BY_HELPER);
	return 0;
}

static __always_inline int checked_kprobe(void *ctx, int ret)
{
	struct call call = returned();

	return checked(ctx, call.sk, call.address, ret, BY_HELPER);
}

SEC("kprobe/tcp_v4_connect")
int BPF_KPROBE(v4_kprobe, struct sock *sk, struct sockaddr *uaddr)
{
	return is_seen_outside(sk, BY_HELPER) ? 0 : enter_kprobe(sk, uaddr);
}

SEC("kprobe/tcp_v6_connect")
int BPF_KPROBE(v6_kprobe, struct sock *sk, struct sockaddr *uaddr)
{
	return enter_kprobe(sk, uaddr);
}

/* tcp_v4_connect() returns into tcp_v6_connect(), whose call it is, and which goes on. */
static __always_inline bool is_call_of_v6(void)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct call *call = bpf_map_lookup_elem(&calls, &thread);

	return call && is_seen_outside(call->sk, BY_HELPER);
}

SEC("kretprobe/tcp_v4_connect")
int BPF_KRETPROBE(v4_kretprobe, int ret)
{
	return is_call_of_v6() ? 0 : leave_kprobe(ctx, ret);
}

SEC("kretprobe/tcp_v6_connect")
int BPF_KRETPROBE(v6_kretprobe, int ret)
{
	return leave_kprobe(ctx, ret);
}

/* The hooks on these functions differ in how they come by the sock alone. */
#define CHECKED(function, type, argument, sock_of_fexit, sock_of_kprobe)                           \
	SEC("fexit/" #function)                                                                    \
	int BPF_PROG(function##_fexit, type argument, struct sockaddr *uaddr, int addr_len,        \
		     int ret)                                                                      \
	{                                                                                          \
		return checked(ctx, sock_of_fexit, uaddr, ret, DIRECT);                            \
	}                                                                                          \
	SEC("kprobe/" #function)                                                                   \
	int BPF_KPROBE(function##_kprobe, type argument, struct sockaddr *uaddr)                   \
	{                                                                                          \
		call(sock_of_kprobe, uaddr);                                                       \
		return 0;                                                                          \
	}                                                                                          \
	SEC("kretprobe/" #function)                                                                \
	int BPF_KRETPROBE(function##_kretprobe, int ret)                                           \
	{                                                                                          \
		return checked_kprobe(ctx, ret);                                                   \
	}

CHECKED(security_socket_connect, struct socket *, sock, sock->sk, BPF_CORE_READ(sock, sk))
CHECKED(tcp_v4_pre_connect, struct sock *, sk, sk, sk)
CHECKED(tcp_v6_pre_connect, struct sock *, sk, sk, sk)

/*
 * The whole of connect(2), for kernels without probes. Unlike the functions above it may wait for the
 * answer: then the change of state has told the result before connect(2) returns.
 *
 * The address is read when it returns: only then is it sure to be in memory, where a constant of the
 * program may never have been before the kernel read it. By then nothing is rejected for it: a BPF
 * program of the cgroup (BPF_CGROUP_INET4_CONNECT) may have put another one in its place.
 */
static __always_inline int connect_call_enters(__u32 fd, const void *address)
{
	struct entry start = {.part.caller = current_thread()};
	struct sock *sk = sock_of_fd(fd);

	if (!sk || !is_tcp(sk, BY_HELPER) || !is_unconnected(sk) ||
	    sk_read(sk, __sk_common.skc_state, BY_HELPER) != TCP_CLOSE ||
	    !want_netns(common_netns(sk)))
		return 0;
	begin(sk, &start, MAP_FULL_IS_LOSS, BY_HELPER);
	call(sk, address);
	return 0;
}

static __always_inline bool goes_on(int error)
{
	return error == EINPROGRESS || error == EALREADY || error == EINTR ||
	       (error >= ERESTARTSYS && error <= ERESTART_RESTARTBLOCK);
}

static __always_inline int connect_call_returns(void *ctx, int error)
{
	struct call call = returned();
	struct entry *start = call.sk ? entry_of_call(call.sk) : NULL;

	if (!start)
		return 0;
	if (read_peer(&start->conn, call.address, USER_MEMORY))
		leave(ctx, call.sk, goes_on(error) ? 0 : error, BY_HELPER);
	else
		drop(call.sk);
	return 0;
}

SEC("tp/syscalls/sys_enter_connect")
int connect_enters(struct syscall_enters *ctx)
{
	return connect_call_enters(ctx->args[0], (const void *)ctx->args[1]);
}

SEC("tp/syscalls/sys_exit_connect")
int connect_returns(struct syscall_returns *ctx)
{
	return connect_call_returns(ctx, -ctx->ret);
}

SEC("raw_tp/sys_enter")
int BPF_PROG(compat_connect_enters, struct pt_regs *regs, long number)
{
	struct compat_arguments arguments;

	if (compat_call(regs, number) != SYS_CONNECT)
		return 0;
	arguments = compat_arguments(regs, number);
	return connect_call_enters(arguments.first, (const void *)(__u64)arguments.second);
}

/* Most calls return more than connect() ever does. */
SEC("raw_tp/sys_exit")
int BPF_PROG(compat_connect_returns, struct pt_regs *regs, long ret)
{
	if ((int)ret > 0 || compat_returning(regs) != SYS_CONNECT)
		return 0;
	return connect_call_returns(ctx, -ret);
}

#endif /* TCPCORE_CONNECTING_BPF_H */
