/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef TCPCORE_RTT_H
#define TCPCORE_RTT_H

#include "vmlinux.h"

/*
 * What has a histogram of its own: fields that --by does not ask for are zero. All zeros are the
 * values that found no room, or all of them without --by. Mirror: Key in src/tcpcore/tools/rtt.py.
 */
struct rtt {
	__u8 laddr[16]; /* addresses: or their prefix */
	__u8 raddr[16];
	__u64 cgroup_id; /* of the owner, 0: not known */
	__u32 pid;	 /* of the owner, 0: not known */
	__u32 netns;
	char comm[16]; /* of the owner */
	__u16 lport;
	__u16 rport;
	__u8 found_room; /* 1: else an owner who is not known would be all zeros */
	__u8 pad[3];
};

enum rtt_measure {
	MEASURE_SRTT,
	MEASURE_MIN_RTT,
	MEASURE_JITTER,
};

/* The bits of an address that tell keys apart, by family; in network order. */
struct prefix {
	__u64 ipv4[2]; /* v4-mapped */
	__u64 ipv6[2];
};

#endif /* TCPCORE_RTT_H */
