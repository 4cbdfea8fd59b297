/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel types and fields that tcpcore reads, and nothing else: this file is the list of what
 * we rely on. Written by hand; libbpf's CO-RE relocations find the real offsets at load time, so
 * order, gaps and anonymous unions need not match the kernel. Shapes that older kernels had instead
 * belong into a header apart: none is needed so far, from Linux 5.10 on.
 *
 * The guard's name matters: bpf_tracing.h picks the kernel's register names by it.
 */
#ifndef __VMLINUX_H__
#define __VMLINUX_H__

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

typedef _Bool bool;
#define true 1
#define false 0

/* include/uapi/linux/bpf.h */
enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_PERF_EVENT_ARRAY = 4,
	BPF_MAP_TYPE_PERCPU_HASH = 5,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_ARRAY_OF_MAPS = 12,
};
enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_F_NO_PREALLOC = 1,
};
#define BPF_F_CURRENT_CPU 0xffffffffULL

/* The helpers that a kernel may lack; the kernel's own list is in its BTF. */
enum bpf_func_id {
	BPF_FUNC_task_pt_regs = 175,
};

/* Not relocated: the register frame is part of each architecture's ABI. */
#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
	unsigned long orig_ax, ip, cs, flags, sp, ss;
};
#elif defined(__TARGET_ARCH_arm64)
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp, pc, pstate;
};
struct pt_regs {
	struct user_pt_regs user_regs;
};
#endif

/*
 * Context of raw tracepoints: the tracepoint's own arguments (include/uapi/linux/bpf.h). Not
 * relocated either: libbpf would look through all of the kernel's types for it.
 */
struct bpf_raw_tracepoint_args {
	__u64 args[0];
};

/*
 * struct syscall_tp_t of kernel/trace/trace_syscalls.c: what programs at the classic tracepoints of
 * single system calls get. The record of the trace is another one (trace_event_raw_sys_enter), and
 * with PREEMPT_RT its arguments are elsewhere.
 */
struct syscall_enters {
	__u64 _common, _number;
	__u64 args[6];
};

struct syscall_returns {
	__u64 _common, _number;
	__s64 ret;
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;

struct list_head {
	struct list_head *next;
};

/* Each kernel has values and numbers of its own. */
enum skb_drop_reason {
	SKB_NOT_DROPPED_YET,
	SKB_CONSUMED,
	SKB_DROP_REASON_TCP_FLAGS,
};

struct sk_buff {
	struct sk_buff *next;
	struct net_device *dev;
	struct sock *sk;
	unsigned int len;
	unsigned long _skb_refdst;
	int skb_iif;
	__be16 protocol;
	__u16 transport_header;
	__u16 network_header;
	unsigned int tail; /* from head, in 64-bit kernels */
	unsigned char *head;
	unsigned char *data;
	char cb[48]; /* of a TCP segment: struct tcp_skb_cb */
};

struct dst_entry {
	struct net_device *dev;
};

struct in6_addr {
	union {
		__u8 u6_addr8[16];
		__be32 u6_addr32[4];
	} in6_u;
};

struct sockaddr {
	__u16 sa_family;
};

struct ns_common {
	unsigned int inum;
};

struct netns_core {
	int sysctl_somaxconn;
};

/* An int in Linux 5.10: its low byte, as our architectures are little-endian. */
struct netns_ipv4 {
	__u8 sysctl_tcp_syncookies;
	__u8 sysctl_tcp_abort_on_overflow;
};

struct net {
	struct ns_common ns;
	struct net_device *loopback_dev;
	struct netns_core core;
	struct netns_ipv4 ipv4;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct net_device {
	int ifindex;
	possible_net_t nd_net;
	char name[16];
};

typedef struct {
	__u32 val;
} kuid_t;

typedef struct {
	int owned;
} socket_lock_t;

/* include/uapi/linux/net.h; an enum in the kernel, so an enum here: CO-RE tells them from ints. */
typedef enum {
	SS_FREE = 0,
	SS_UNCONNECTED,
	SS_CONNECTING,
} socket_state;

struct file {
	void *private_data;
};

struct socket {
	socket_state state;
	struct file *file;
	struct sock *sk;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct mnt_namespace {
	struct ns_common ns;
};

struct nsproxy {
	struct mnt_namespace *mnt_ns;
};

struct kernfs_node {
	__u64 id;
};

struct cgroup;

struct cgroup_subsys_state {
	struct cgroup_subsys_state *parent;
};

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct thread_info {
	unsigned long flags;
	__u32 status; /* absent on arm64 */
};

struct task_struct {
	struct thread_info thread_info;
	unsigned int flags;
	void *stack;
	int pid;
	int tgid;
	char comm[16];
	struct files_struct *files;
	struct nsproxy *nsproxy;
	struct css_set *cgroups;
};

/* Context of iter/bpf_map_elem (kernel/bpf/map_iter.c), Linux 5.9. */
struct bpf_iter__bpf_map_elem {
	void *key;
};

/* Context of iter/task_file (kernel/bpf/task_iter.c). */
struct bpf_iter__task_file {
	struct task_struct *task;
	struct file *file;
};

/* Context of iter/tcp (net/ipv4/tcp_ipv4.c), Linux 5.9. */
struct bpf_iter__tcp {
	struct sock_common *sk_common;
};

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	unsigned char skc_state;
	unsigned char skc_ipv6only : 1;
	unsigned long skc_flags;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

struct sock {
	struct sock_common __sk_common;
	socket_lock_t sk_lock;
	struct socket *sk_socket;
	kuid_t sk_uid;
	atomic_t sk_drops;
	int sk_err;
	/* Of a listener: connections that wait for accept(), and how many may. */
	__u32 sk_ack_backlog;
	__u32 sk_max_ack_backlog;
	unsigned long sk_lingertime;
	__u16 sk_type;
	__u16 sk_protocol;
	__u8 sk_shutdown;
};

struct inet_sock {
	__be16 inet_sport;
};

struct request_sock_queue {
	atomic_t qlen; /* the SYN queue: requests whose handshake is not over */
};

struct tcp_congestion_ops {
	char name[16];
};

/* A local port; both are -1 as long as connect() alone has chosen it. */
struct inet_bind_bucket {
	signed char fastreuse;
	signed char fastreuseport;
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	struct request_sock_queue icsk_accept_queue;
	struct inet_bind_bucket *icsk_bind_hash;
	const struct tcp_congestion_ops *icsk_ca_ops;
	__u32 icsk_user_timeout;
	__u8 icsk_probes_out;
	__u32 icsk_rto;		/* in jiffies */
	__u8 icsk_ca_state : 5; /* enum tcp_ca_state */
	__u8 icsk_retransmits;	/* timeouts in a row */
	__u8 icsk_pending;	/* what its timer is for */
};

/* Of a handshake that is not over: the connection has no full socket yet. */
struct request_sock {
	struct sock_common __req_common;
	__u8 num_retrans;
};

struct inet_request_sock {
	struct request_sock req;
};

struct tcp_request_sock {
	struct inet_request_sock req;
	__u32 snt_isn; /* sequence number of our SYN */
};

/* Begins with a sock_common, and is no sock. */
struct inet_timewait_sock {
	struct inet_bind_bucket *tw_tb;
	unsigned char tw_substate; /* TIME_WAIT, or FIN_WAIT2 without an owner */
};

/* Absent where the kernel is built without MPTCP. */
struct mptcp_sock {
	struct sock *first; /* subflow */
};

struct minmax_sample {
	__u32 v;
};

struct minmax {
	struct minmax_sample s[3];
};

struct tcp_options_received {
	__u16 wscale_ok : 1, rcv_wscale : 4;
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u64 bytes_received;
	__u64 bytes_sent;
	__u64 bytes_retrans;
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u32 snd_nxt;
	__u32 snd_una;
	__u32 snd_wnd;
	__u32 write_seq;
	__u32 packets_out;
	__u32 total_retrans;
	struct tcp_options_received rx_opt;
	int linger2;   /* below 0: none of TCP_LINGER2 */
	bool is_mptcp; /* a subflow; absent where the kernel is built without MPTCP */
	__u32 srtt_us; /* times 8 */
	__u32 mdev_us; /* times 4 */
	struct minmax rtt_min;
	__u32 snd_cwnd;
	__u32 snd_ssthresh;
	__u32 mss_cache;
	__u32 rcv_ooopack;
	__u32 rate_delivered;
	__u32 rate_interval_us;
	__u8 chrono_type : 2; /* a whole byte since Linux 6.9 */
	__u32 chrono_start;
	__u32 chrono_stat[3];
	struct list_head tsorted_sent_queue;
};

struct tcp_skb_cb {
	__u32 seq;
	__u32 end_seq;
	__u16 tcp_gso_segs; /* how many segments it is on the wire */
	__u16 tcp_flags;    /* __u8 before Linux 6.15; all that we ask is in the first byte */
};

#pragma clang attribute pop

/* The same in every kernel, as user space has it: one read takes a whole address. */
struct sockaddr_in6 {
	__u16 sin6_family;
	__be16 sin6_port;
	union { /* sockaddr_in has its address where sockaddr_in6 has the flow */
		__be32 sin_addr;
		__be32 sin6_flowinfo;
	};
	__u8 sin6_addr[16];
};
#define SOCKADDR_IN_SIZE 16

/* Macros and enumerators that BTF does not carry or that never change. */
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define IPPROTO_TCP 6
#define IPPROTO_MPTCP 262

enum { /* include/net/tcp_states.h */
       TCP_ESTABLISHED = 1,
       TCP_SYN_SENT,
       TCP_SYN_RECV,
       TCP_FIN_WAIT1,
       TCP_FIN_WAIT2,
       TCP_TIME_WAIT,
       TCP_CLOSE,
       TCP_CLOSE_WAIT,
       TCP_LAST_ACK,
       TCP_LISTEN,
       TCP_CLOSING,
       TCP_NEW_SYN_RECV,
};

/* include/uapi/linux/tcp.h */
enum tcp_ca_state {
	TCP_CA_Open,
	TCP_CA_Disorder,
	TCP_CA_CWR,
	TCP_CA_Recovery,
	TCP_CA_Loss,
};

#define TCPHDR_FIN 0x01 /* include/net/tcp.h */
#define TCPHDR_SYN 0x02
#define TCPHDR_RST 0x04
#define TCPHDR_ACK 0x10
#define SHUTDOWN_MASK 3 /* include/net/sock.h: RCV_SHUTDOWN | SEND_SHUTDOWN */

#define SOCK_DEAD 0	      /* enum sock_flags: no process has it any more */
#define SOCK_DONE 1	      /* the peer's FIN has come */
#define SOCK_KEEPOPEN 3	      /* SO_KEEPALIVE */
#define SOCK_LINGER 4	      /* SO_LINGER */
#define PF_KTHREAD 0x00200000 /* include/linux/sched.h */

#define EINTR 4
#define E2BIG 7
#define ENOSPC 28
#define EPIPE 32
#define EADDRNOTAVAIL 99
#define ECONNABORTED 103
#define ECONNRESET 104
#define ENOBUFS 105
#define ETIMEDOUT 110
#define ECONNREFUSED 111
#define EALREADY 114
#define EINPROGRESS 115
#define ERESTARTSYS 512		  /* never reaches user space: the call starts again */
#define ERESTART_RESTARTBLOCK 516 /* the last of its kind, include/linux/errno.h */

#endif /* __VMLINUX_H__ */
