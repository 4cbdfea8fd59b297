/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef TCPCORE_STATES_H
#define TCPCORE_STATES_H

#include "vmlinux.h"

/* One state change. Mirror: Event in src/tcpcore/tools/states.py. */
struct states_event {
	__u64 ts_ns;	   /* CLOCK_MONOTONIC */
	__u64 duration_ns; /* in oldstate; all ones: its start was not seen */
	__u64 skaddr;
	__u8 laddr[16]; /* IPv4 as ::ffff:a.b.c.d */
	__u8 raddr[16];
	__u32 pid; /* 0: not known */
	__u32 uid;
	__u32 netns; /* inode */
	__u16 lport; /* host order */
	__u16 rport;
	__u16 family; /* AF_INET or AF_INET6 */
	__u8 oldstate;
	__u8 newstate;
	char comm[16];
	__u8 pad[4];
};

#endif /* TCPCORE_STATES_H */
