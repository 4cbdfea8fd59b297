/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef TCPCORE_LISTEN_H
#define TCPCORE_LISTEN_H

#include "lib/event.h"

enum protocol {
	PROTOCOL_TCP,
	PROTOCOL_MPTCP,
};

enum v6only {
	V6ONLY_UNKNOWN, /* a socket for IPv4 */
	V6ONLY_OFF,	/* dual stack: IPv4 comes in, too */
	V6ONLY_ON,
};

#define UNKNOWN_BACKLOG (1LL << 62) /* an int can be any other number */

/* One call of listen(). Mirror: Event in src/tcpcore/tools/listen.py. */
struct listen_event {
	EVENT_HEAD;
	__u8 protocol; /* enum protocol */
	__u8 v6only;   /* enum v6only */
	__u32 tid;
	__s64 backlog;	 /* asked for: an int, or UNKNOWN_BACKLOG */
	__u64 cgroup_id; /* inode of the cgroup v2 directory */
	__u32 limit;	 /* given: connections that may wait for accept(); all ones: it failed */
	__u16 result;	 /* 0 or an errno */
	__u8 pad[2];
};

#endif /* TCPCORE_LISTEN_H */
