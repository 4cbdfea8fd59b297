/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef TCPCORE_PKTLAT_H
#define TCPCORE_PKTLAT_H

#include "lib/event.h"

/* Data that was read. Mirror: Event in src/tcpcore/tools/pktlat.py. */
struct pktlat_event {
	EVENT_HEAD; /* the owner is the task that read it */
	__u8 pad[2];
	__u32 tid;	  /* 0: not known */
	__u64 latency_ns; /* of the first byte, since it could be read */
};

/*
 * --hist: what has a histogram of its own. All zeros are those that found no room, and readers that are
 * not known. Mirror: Key in src/tcpcore/tools/pktlat.py.
 */
struct pktlat {
	__u32 pid;
	char comm[16];
	__u8 pad[4];
};

#endif /* TCPCORE_PKTLAT_H */
