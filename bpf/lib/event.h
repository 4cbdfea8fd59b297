/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What every event begins with, and what several have. */
#ifndef TCPCORE_EVENT_H
#define TCPCORE_EVENT_H

#include "vmlinux.h"

/*
 * 74 bytes: what is small comes next in the tool's struct, or `pad`, up to a multiple of 8.
 * Mirror: ConnectionEvent in src/tcpcore/model/event.py.
 *
 * ts_ns: CLOCK_MONOTONIC. laddr, raddr: IPv4 as ::ffff:a.b.c.d. pid: of the socket's owner, 0: not
 * known. netns: inode. lport, rport: host order. family: AF_INET or AF_INET6.
 */
#define EVENT_HEAD                                                                                 \
	__u64 ts_ns;                                                                               \
	__u8 laddr[16];                                                                            \
	__u8 raddr[16];                                                                            \
	__u32 pid;                                                                                 \
	__u32 uid;                                                                                 \
	__u32 netns;                                                                               \
	char comm[16];                                                                             \
	__u16 lport;                                                                               \
	__u16 rport;                                                                               \
	__u16 family

/* As this host sees it: fields.Direction. */
enum direction {
	DIRECTION_SENT,
	DIRECTION_RECEIVED,
};

#endif /* TCPCORE_EVENT_H */
