/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Mirror: src/tcpcore/tools/ports/. */
#ifndef TCPCORE_PORTS_H
#define TCPCORE_PORTS_H

#include "vmlinux.h"

/* Where local ports are in use to: a port may be in use to several destinations at once. */
struct ports {
	__u8 laddr[16];
	__u8 raddr[16];
	__u32 netns;
	__u32 pid; /* the owner, if it is asked for */
	__u32 uid; /* NO_USER: not known */
	__u16 rport;
	__u16 family;
	char comm[16];
};

/* The first ones are what there is in a pass; the last two count what happens between two. */
struct ports_count {
	__u64 syn_sent;
	__u64 established;
	__u64 close_wait;
	__u64 closing;
	__u64 time_wait;
	__u64 shared; /* of all states: ports that connect() may choose for other destinations, too */
	__u64 taken;
	__u64 failed; /* connect() found no port */
};

/* Bits by port, of a network namespace. allowed: what connect() chooses from; user space's. */
struct port_sets {
	__u64 allowed[65536 / 64];
	__u64 bound[65536 / 64]; /* by bind(): connect() passes them by, whatever its destination */
	__u64 listened[65536 / 64]; /* those of listeners among them */
};

#endif /* TCPCORE_PORTS_H */
