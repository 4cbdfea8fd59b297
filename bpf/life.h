/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef TCPCORE_LIFE_H
#define TCPCORE_LIFE_H

#include "lib/event.h"

enum life_reason {
	REASON_OPEN, /* the trace ended first */
	REASON_FIN,
	REASON_RESET_SENT,
	REASON_RESET_RECEIVED,
	REASON_TIMEOUT,
};

/* One session. Mirror: Event in src/tcpcore/tools/life.py. */
struct life_event {
	EVENT_HEAD;
	__u8 role; /* enum role */
	__u8 reason;
	__u32 retransmits; /* segments */
	__u32 rtt_min_us;  /* all ones: never measured */
	__u32 srtt_us;	   /* 0: never measured */
	__u64 duration_ns; /* with the handshake; all ones: its start was not seen */
	__u64 tx_bytes;	   /* payload, without what was sent again */
	__u64 rx_bytes;
	__u64 cwnd_limited_ns;	 /* it had something to send, and waited for the network */
	__u64 rwnd_limited_ns;	 /* for the receiver's window */
	__u64 sndbuf_limited_ns; /* for room in its send buffer */
	__u64 cgroup_id;	 /* inode of the cgroup v2 directory, 0: not known */
};

#endif /* TCPCORE_LIFE_H */
