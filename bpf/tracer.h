/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef TCPCORE_TRACER_H
#define TCPCORE_TRACER_H

#include "lib/event.h"

enum tracer_action {
	ACTION_CONNECT = 1,
	ACTION_ACCEPT,
	ACTION_CLOSE,
};

/* A connection begins or ends. Mirror: Event in src/tcpcore/tools/tracer.py. */
struct tracer_event {
	EVENT_HEAD;
	__u8 action;
	__u8 pad;
	__u32 tid;
	__u64 cgroup_id; /* inode of the cgroup v2 directory, 0: not known */
};

#endif /* TCPCORE_TRACER_H */
