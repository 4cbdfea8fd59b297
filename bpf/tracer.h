/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef TCPCORE_TRACER_H
#define TCPCORE_TRACER_H

#include "vmlinux.h"

enum tracer_action {
	ACTION_CONNECT = 1,
	ACTION_ACCEPT,
	ACTION_CLOSE,
};

/* A connection begins or ends. Mirror: Event in src/tcpcore/tools/tracer.py. */
struct tracer_event {
	__u64 ts_ns;	 /* CLOCK_MONOTONIC */
	__u64 cgroup_id; /* inode of the cgroup v2 directory, 0: not known */
	__u8 laddr[16];	 /* IPv4 as ::ffff:a.b.c.d */
	__u8 raddr[16];
	__u32 pid; /* 0: not known */
	__u32 tid;
	__u32 uid;
	__u32 netns; /* inode */
	__u16 lport; /* host order */
	__u16 rport;
	__u16 family; /* AF_INET or AF_INET6 */
	__u8 action;
	char comm[16];
	__u8 pad;
};

#endif /* TCPCORE_TRACER_H */
