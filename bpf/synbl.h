/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef TCPCORE_SYNBL_H
#define TCPCORE_SYNBL_H

#include "lib/event.h"

/* 0, 1, 2 to 3, 4 to 7, and so on; the last one has no upper bound. */
#define LENGTH_SLOTS 16

/*
 * A listener as it is now, or as it was at its end. What is counted is counted since it was followed.
 * Mirror: Event in src/tcpcore/tools/synbl/__init__.py.
 */
struct synbl_event {
	EVENT_HEAD;
	__u8 ended; /* nothing more will be told of it */
	__u8 pad;
	__u32 queue; /* connections that wait for accept() */
	__u32 limit; /* of both queues */
	__u32 syn_queue;
	__u64 sk;	/* with the next one it tells listeners apart */
	__u64 since_ns; /* when it was followed */
	__u64 overflows;
	__u64 drops;
	__u64 syn_overflows;
	__u64 cookies;
	__u64 length_sum;
	__u64 lengths[LENGTH_SLOTS]; /* how many connections found an accept queue so long */
};

#endif /* TCPCORE_SYNBL_H */
