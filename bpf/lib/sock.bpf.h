/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a socket says of its connection. */
#ifndef TCPCORE_SOCK_BPF_H
#define TCPCORE_SOCK_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/*
 * How a program reads a kernel structure. Programs whose arguments carry BTF (fentry, tp_btf) load
 * its fields directly, which costs a quarter less than a helper call; all others (kprobes, raw
 * tracepoints, and pointers found on the way) must call the helper.
 */
enum { BY_HELPER = false, DIRECT = true };

/* Read sk->field. `direct` is a constant in every caller, so that one of the two branches remains. */
#define sk_read(sk, field, direct)                                                                 \
	({                                                                                         \
		typeof((sk)->field) _value;                                                        \
		if (direct)                                                                        \
			_value = (sk)->field;                                                      \
		else                                                                               \
			bpf_core_read(&_value, sizeof(_value), &(sk)->field);                      \
		_value;                                                                            \
	})

/*
 * sk as a TCP socket, for sk_read(). The verifier allows no load from behind struct sock through its
 * argument, but through what this helper returns: NULL for any other socket.
 */
static __always_inline struct tcp_sock *tcp_of(struct sock *sk, const bool direct)
{
	return direct ? bpf_skc_to_tcp_sock(sk) : (struct tcp_sock *)sk;
}

/* 16 bytes on the wire; an IPv4 address stands there v4-mapped, as ::ffff:a.b.c.d. */
union address {
	__u8 bytes[16];
	__be32 words[4];
	__u64 halves[2];
};

struct conn {
	union address laddr;
	union address raddr;
	__u32 netns;
	__u16 lport; /* host order, 0: not chosen yet */
	__u16 rport; /* host order, 0: not known yet */
	__u16 family;
};

/*
 * One comparison each: the verifier follows every branch to the end of the program, and an address
 * is read early in it.
 */
static __always_inline bool is_v4mapped(const union address *a)
{
	return !(a->halves[0] | (a->words[2] ^ bpf_htonl(0xffff)));
}

/* Also as an IPv4 address, ::ffff:0.0.0.0. A product is 0 where either factor is. */
static __always_inline bool is_zero(const union address *a)
{
	__u64 is_neither = (__u64)a->words[2] * (a->words[2] ^ bpf_htonl(0xffff));

	return !(a->halves[0] | a->words[3] | is_neither);
}

static __always_inline void set_v4mapped(union address *a, __be32 v4)
{
	a->halves[0] = 0;
	a->words[2] = bpf_htonl(0xffff);
	a->words[3] = v4;
}

static __always_inline void read_ipv6_addresses(struct conn *conn, struct sock *sk,
						const bool direct)
{
	/* Absent where the kernel is built without IPv6. */
	if (!bpf_core_field_exists(sk->__sk_common.skc_v6_daddr))
		return;
	if (!direct) { /* one helper call an address, not one a word */
		BPF_CORE_READ_INTO(&conn->raddr, sk, __sk_common.skc_v6_daddr);
		BPF_CORE_READ_INTO(&conn->laddr, sk, __sk_common.skc_v6_rcv_saddr);
		return;
	}
#define WORD(side, i) sk->__sk_common.skc_v6_##side.in6_u.u6_addr32[i]
	conn->raddr.words[0] = WORD(daddr, 0);
	conn->raddr.words[1] = WORD(daddr, 1);
	conn->raddr.words[2] = WORD(daddr, 2);
	conn->raddr.words[3] = WORD(daddr, 3);
	conn->laddr.words[0] = WORD(rcv_saddr, 0);
	conn->laddr.words[1] = WORD(rcv_saddr, 1);
	conn->laddr.words[2] = WORD(rcv_saddr, 2);
	conn->laddr.words[3] = WORD(rcv_saddr, 3);
#undef WORD
}

/*
 * Pointers are not loaded directly: for each such load the verifier searches all of the kernel's
 * types by name (btf_nested_type_is_trusted), which took two thirds of a load.
 */
static __always_inline __u32 common_netns(struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
}

/* sk_fullsock(), include/net/sock.h: the other kinds have what is in struct sock_common alone. */
static __always_inline bool is_fullsock(struct sock *sk)
{
	__u8 state = sk_read(sk, __sk_common.skc_state, BY_HELPER);

	return state != TCP_TIME_WAIT && state != TCP_NEW_SYN_RECV;
}

/* sk_acceptq_is_full(): one more than the backlog may wait. */
static __always_inline bool is_acceptq_full(struct sock *sk)
{
	return sk_read(sk, sk_ack_backlog, BY_HELPER) > sk_read(sk, sk_max_ack_backlog, BY_HELPER);
}

/* The socket that a process has a file descriptor of: NULL before accept() and after close(). */
static __always_inline struct socket *socket_of(struct sock *sk)
{
	return BPF_CORE_READ(sk, sk_socket);
}

/* enum tcp_ca_state; of a full socket. */
static __always_inline __u8 ca_state_of(struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	return BPF_CORE_READ_BITFIELD_PROBED(tp, inet_conn.icsk_ca_state);
}

/*
 * The tuple of sk without its namespace, which takes two helper calls; false when sk speaks neither
 * IPv4 nor IPv6. A v4-mapped peer is IPv4. A closing socket may have given its port back already
 * (inet_put_port): then lport is 0.
 *
 * Functions whose name begins with common_ read struct sock_common alone, which request sockets
 * (NEW_SYN_RECV) and time-wait sockets have as well. All others, and the owner, are for full sockets.
 */
static __always_inline bool common_endpoints(struct conn *conn, struct sock *sk, const bool direct)
{
	conn->family = sk_read(sk, __sk_common.skc_family, direct);
	conn->lport = sk_read(sk, __sk_common.skc_num, direct);
	conn->rport = bpf_ntohs(sk_read(sk, __sk_common.skc_dport, direct));
	set_v4mapped(&conn->raddr, sk_read(sk, __sk_common.skc_daddr, direct));
	set_v4mapped(&conn->laddr, sk_read(sk, __sk_common.skc_rcv_saddr, direct));
	if (conn->family == AF_INET6) {
		read_ipv6_addresses(conn, sk, direct);
		if (is_v4mapped(&conn->raddr) || is_v4mapped(&conn->laddr))
			conn->family = AF_INET;
		/* A listener on a v4-mapped address has :: as its peer. */
		if (conn->family == AF_INET && is_zero(&conn->raddr))
			set_v4mapped(&conn->raddr, 0);
	}
	return conn->family == AF_INET || conn->family == AF_INET6;
}

static __always_inline bool common_conn(struct conn *conn, struct sock *sk, const bool direct)
{
	conn->netns = common_netns(sk);
	return common_endpoints(conn, sk, direct);
}

/*
 * The local port that a closed socket had: inet_put_port() clears skc_num, but not inet_sport. In a
 * socket that is used again this is the port of its previous connection. The field lies behind the
 * end of struct sock, where the verifier allows no direct load through a struct sock pointer.
 */
static __always_inline __u16 read_closed_lport(struct sock *sk)
{
	return bpf_ntohs(BPF_CORE_READ((struct tcp_sock *)sk, inet_conn.icsk_inet.inet_sport));
}

/* The tuple of a socket that is closed, or may be, with the port it had. */
static __always_inline bool read_closed_conn(struct conn *conn, struct sock *sk, const bool direct)
{
	if (!common_conn(conn, sk, direct))
		return false;
	if (!conn->lport)
		conn->lport = read_closed_lport(sk);
	return true;
}

/*
 * Both fields are needed: a raw socket for protocol 6 (socket(AF_INET, SOCK_RAW, IPPROTO_TCP)) has
 * the protocol of TCP, is no TCP socket, and never passes tcp_destroy_sock.
 */
static __always_inline bool is_tcp(struct sock *sk, const bool direct)
{
	return sk_read(sk, sk_protocol, direct) == IPPROTO_TCP &&
	       sk_read(sk, sk_type, direct) == SOCK_STREAM;
}

/* One of the TCP connections of an MPTCP socket (RFC 8684). */
static __always_inline bool is_subflow(struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	return bpf_core_field_exists(tp->is_mptcp) && BPF_CORE_READ(tp, is_mptcp);
}

/* The first TCP connection of an MPTCP socket, NULL if it has none. No direct loads from it. */
static __always_inline struct sock *first_subflow(struct sock *sk, const bool direct)
{
	struct mptcp_sock *msk = (struct mptcp_sock *)sk;

	if (!bpf_core_field_exists(msk->first) || sk_read(sk, sk_protocol, direct) != IPPROTO_MPTCP)
		return NULL;
	return BPF_CORE_READ(msk, first);
}

#endif /* TCPCORE_SOCK_BPF_H */
