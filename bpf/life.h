/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef TCPCORE_LIFE_H
#define TCPCORE_LIFE_H

#include "vmlinux.h"

enum life_reason {
	REASON_OPEN, /* the trace ended first */
	REASON_FIN,
	REASON_RESET_SENT,
	REASON_RESET_RECEIVED,
	REASON_TIMEOUT,
};

/* One session. Mirror: Event in src/tcpcore/tools/life.py. */
struct life_event {
	__u64 ts_ns;	   /* CLOCK_MONOTONIC, of the end */
	__u64 duration_ns; /* with the handshake; all ones: its start was not seen */
	__u64 tx_bytes;	   /* payload, without what was sent again */
	__u64 rx_bytes;
	__u64 cgroup_id; /* inode of the cgroup v2 directory, 0: not known */
	__u8 laddr[16];	 /* IPv4 as ::ffff:a.b.c.d */
	__u8 raddr[16];
	__u32 pid; /* 0: not known */
	__u32 uid;
	__u32 netns;	   /* inode */
	__u32 retransmits; /* segments */
	__u32 rtt_min_us;  /* all ones: never measured */
	__u32 srtt_us;	   /* 0: never measured */
	__u16 lport;	   /* host order */
	__u16 rport;
	__u16 family; /* AF_INET or AF_INET6 */
	__u8 role;    /* enum role */
	__u8 reason;
	char comm[16];
};

#endif /* TCPCORE_LIFE_H */
