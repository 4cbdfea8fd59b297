/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef TCPCORE_DROP_H
#define TCPCORE_DROP_H

#include "lib/event.h"

#define NO_REASON (~0U)	     /* the kernel gives none */
#define UNKNOWN_FLAGS 0xffff /* there is no whole TCP header: nor a number, a length or ports */

/* One dropped packet. Mirror: Event in src/tcpcore/tools/drop.py. */
struct drop_event {
	EVENT_HEAD;
	__u8 direction; /* enum direction; what is forwarded was received */
	__u8 state;	/* of the socket, 0: none is known */
	__u32 reason;	/* enum skb_drop_reason, or of the subsystem in the high half; NO_REASON */
	__u64 function; /* the place in it behind the call that dropped the packet */
	__u64 seq;	/* all ones: not known */
	__u64 ack;
	__u32 len; /* of the payload, all ones: not known */
	__u32 ifindex;
	char ifname[16];
	__u32 reason_code; /* the reason again, to be shown as a number */
	__u16 flags;	   /* of the TCP header, or UNKNOWN_FLAGS */
	__u8 pad[2];
};

#define MAX_FRAMES 16

/* --stack. Mirror: WithStack in src/tcpcore/tools/drop.py. */
struct drop_with_stack {
	struct drop_event event;
	__u64 place; /* as event.function: where in the frames the kernel's own begin */
	__u64 frames[MAX_FRAMES]; /* return addresses, 0 behind the last one */
};

/* --count: where and why, and how many. Mirror: Key in src/tcpcore/tools/drop.py. */
struct drop {
	__u64 place; /* as function above */
	__u32 reason;
	__u8 pad[4];
};

struct drop_count {
	__u64 drops;
};

#endif /* TCPCORE_DROP_H */
