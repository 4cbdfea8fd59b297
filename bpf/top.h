/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Mirror: src/tcpcore/tools/top/. */
#ifndef TCPCORE_TOP_H
#define TCPCORE_TOP_H

#include "vmlinux.h"

struct session {
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

/*
 * What a session did. looks: how often it was looked at while it went on; the gauges are added up, a
 * value at each look. The times are jiffies.
 */
struct session_count {
	__u64 tx_bytes;
	__u64 rx_bytes;
	__u64 retransmits;
	__u64 out_of_order;
	__u64 busy;
	__u64 rwnd_limited;
	__u64 sndbuf_limited;
	__u64 looks;
	__u64 srtt_us;
	__u64 cwnd;
	__u64 delivery_rate;
};

#endif /* TCPCORE_TOP_H */
