/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef TCPCORE_ACCEPT_H
#define TCPCORE_ACCEPT_H

#include "vmlinux.h"

/* One accepted connection. Mirror: Event in src/tcpcore/tools/accept.py. */
struct accept_event {
	__u64 ts_ns;	 /* CLOCK_MONOTONIC */
	__u64 wait_ns;	 /* since it was established; all ones: that was not seen */
	__u64 cgroup_id; /* inode of the cgroup v2 directory */
	__u8 laddr[16];	 /* IPv4 as ::ffff:a.b.c.d */
	__u8 raddr[16];
	__u32 pid; /* of the accepting task */
	__u32 tid;
	__u32 uid;
	__u32 netns; /* inode */
	__u16 lport; /* host order */
	__u16 rport;
	__u16 family; /* AF_INET or AF_INET6 */
	char comm[16];
	__u8 pad[2];
};

#endif /* TCPCORE_ACCEPT_H */
