/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef TCPCORE_CONNECT_H
#define TCPCORE_CONNECT_H

#include "lib/event.h"

/* One connect and its result. Mirror: Event in src/tcpcore/tools/connect/__init__.py. */
struct connect_event {
	EVENT_HEAD;   /* lport 0: the connect failed before it had one */
	__u16 result; /* 0 or an errno; EINPROGRESS: none yet when the trace ended */
	__u32 tid;
	__u64 duration_ns; /* since connect() */
	__u64 cgroup_id;   /* inode of the cgroup v2 directory */
};

/* --count, of a flow. Mirror: src/tcpcore/tools/connect/flows.py. */
struct flow_count {
	__u64 connects;
	__u64 failed;
};

#endif /* TCPCORE_CONNECT_H */
