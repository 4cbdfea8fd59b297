/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef TCPCORE_CONNLAT_H
#define TCPCORE_CONNLAT_H

#include "lib/event.h"

/* One finished connect. Mirror: Event in src/tcpcore/tools/connlat.py. */
struct connlat_event {
	EVENT_HEAD;   /* lport 0: the connect failed before it had one */
	__u16 result; /* 0 or an errno */
	__u8 pad[4];
	__u64 latency_ns;
};

#endif /* TCPCORE_CONNLAT_H */
