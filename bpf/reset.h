/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef TCPCORE_RESET_H
#define TCPCORE_RESET_H

#include "lib/event.h"

/* What we can tell of the cause, whatever the kernel says. */
enum cause {
	CAUSE_UNKNOWN,
	/* Sent in answer to a segment. */
	CAUSE_NO_LISTENER,   /* a SYN to where nobody listens */
	CAUSE_NO_CONNECTION, /* any other segment that belongs to nothing */
	CAUSE_TIME_WAIT,
	CAUSE_LATE_DATA, /* data for a process that has closed the connection */
	CAUSE_OVERFLOW,	 /* an accept queue that is full, with tcp_abort_on_overflow */
	CAUSE_UNEXPECTED,
	/* Sent of the host's own accord. */
	CAUSE_UNREAD_DATA, /* close() with received data that nobody has read */
	CAUSE_LINGER,	   /* close() with SO_LINGER and a time of 0 */
	CAUSE_LINGER2,	   /* close() with a negative TCP_LINGER2 */
	CAUSE_DISCONNECT,  /* connect() to AF_UNSPEC */
	CAUSE_LISTENER_CLOSED,
	CAUSE_KEEPALIVE,
	CAUSE_USER_TIMEOUT,
	CAUSE_ABORTED, /* by an administrator: ss -K */
	CAUSE_MPTCP,
	/* Received. */
	CAUSE_REFUSED,
	CAUSE_PEER,
};

#define OWN_REASON 0x8000 /* and an enum cause; else an enum sk_rst_reason of the kernel */

/* One RST. Mirror: Event in src/tcpcore/tools/reset.py. */
struct reset_event {
	EVENT_HEAD;
	__u8 direction;
	__u8 state; /* of the socket, before a RST of its own closed it; 0: there is no socket */
	__u16 reason;
	__u8 cause;
	__u8 pad;
	__u64 seq; /* of the RST; all ones: not known */
};

#endif /* TCPCORE_RESET_H */
