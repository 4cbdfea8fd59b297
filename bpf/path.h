/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef TCPCORE_PATH_H
#define TCPCORE_PATH_H

#include "lib/event.h"

/* Where a packet comes by, in its order. Mirror: STAGES in src/tcpcore/tools/path/stages.py. */
enum stage {
	STAGE_TCP_SEND,
	STAGE_IP_SEND,
	STAGE_IP_OUTPUT,
	STAGE_DEV_QUEUE,
	STAGE_QDISC_IN,
	STAGE_QDISC_OUT,
	STAGE_DRIVER,
	STAGE_RX,
	STAGE_GRO,
	STAGE_RECEIVE,
	STAGE_IP_RECEIVE,
	STAGE_IP_DELIVER,
	STAGE_TCP_RECEIVE,
	STAGE_TCP_PROCESS,
	STAGE_SOCKET_QUEUE,
	STAGE_COPIED,
	STAGE_DROPPED,
	STAGE_FREED,
};

/*
 * One packet at one stage. Mirror: Event in src/tcpcore/tools/path/event.py.
 *
 * laddr, lport: of who sent it, raddr, rport: of whom it is for. pid, uid, comm: of who reads it,
 * at STAGE_COPIED; there seq and len are what was copied.
 */
struct path_event {
	EVENT_HEAD;
	__u8 stage;
	__u8 flags; /* of TCP */
	__u32 seq;
	__u32 len; /* payload */
	__u32 cpu;
	__u64 skb; /* address */
	char ifname[16];
	__u32 ifindex; /* 0: none here */
	__u32 reason;  /* enum skb_drop_reason; 0: not known */
};

#define PATH_SNAP 128 /* all headers, as a rule: IPv4 and TCP have 60 bytes each at most */

/* --pcapng. Mirror: WithBytes in src/tcpcore/tools/path/event.py. */
struct path_with_bytes {
	struct path_event event;
	__u64 captured;	       /* how many bytes there are; 0 where there is no IP header yet */
	__u8 bytes[PATH_SNAP]; /* from the IP header on */
};

#endif /* TCPCORE_PATH_H */
