/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Mirror: src/tcpcore/tools/cong.py. */
#ifndef TCPCORE_CONG_H
#define TCPCORE_CONG_H

#include "lib/event.h"

/* One change of the congestion state, an enum tcp_ca_state. */
struct cong_event {
	EVENT_HEAD;
	__u8 oldstate;
	__u8 newstate;
	char algorithm[16];
	__u8 pad[4];
	__u64 duration_ns; /* in oldstate; all ones: its start was not seen */
	__u32 cwnd;	   /* segments */
	__u32 ssthresh;
};

/* A connection. since_ns tells it from an older one with the same ports. */
struct cong {
	__u64 since_ns; /* followed from then on */
	__u8 laddr[16];
	__u8 raddr[16];
	__u32 pid;
	__u32 netns;
	char comm[16];
	__u16 lport;
	__u16 rport;
	__u16 family;
	__u16 pad;
};

struct cong_count {
	__u64 changes;
	__u64 open_ns;
	__u64 disorder_ns;
	__u64 cwr_ns;
	__u64 recovery_ns;
	__u64 loss_ns;
};

/* What has a histogram of its own. */
struct cong_stay {
	__u64 state; /* one more than the kernel's: all zeros is the key of the rest */
};

#endif /* TCPCORE_CONG_H */
