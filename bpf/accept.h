/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef TCPCORE_ACCEPT_H
#define TCPCORE_ACCEPT_H

#include "lib/event.h"

/* One accepted connection. Mirror: Event in src/tcpcore/tools/accept.py. */
struct accept_event {
	EVENT_HEAD;
	__u8 pad[2];
	__u32 tid;
	__u64 wait_ns;	 /* since it was established; all ones: that was not seen */
	__u64 cgroup_id; /* inode of the cgroup v2 directory */
};

#endif /* TCPCORE_ACCEPT_H */
