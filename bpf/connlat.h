/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef TCPCORE_CONNLAT_H
#define TCPCORE_CONNLAT_H

#include "vmlinux.h"

/* One finished connect. Mirror: Event in src/tcpcore/tools/connlat.py. */
struct connlat_event {
	__u64 ts_ns; /* CLOCK_MONOTONIC, of the end */
	__u64 latency_ns;
	__u8 laddr[16]; /* IPv4 as ::ffff:a.b.c.d */
	__u8 raddr[16];
	__u32 pid; /* of the connecting task */
	__u32 uid;
	__u32 netns; /* inode */
	__u16 lport; /* host order, 0: the connect failed before it had one */
	__u16 rport;
	__u16 family; /* AF_INET or AF_INET6 */
	__u16 result; /* 0 or an errno */
	char comm[16];
	__u8 pad[4];
};

#endif /* TCPCORE_CONNLAT_H */
