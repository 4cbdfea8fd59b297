/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef TCPCORE_STATES_H
#define TCPCORE_STATES_H

#include "lib/event.h"

/* One state change. Mirror: Event in src/tcpcore/tools/states.py. */
struct states_event {
	EVENT_HEAD;
	__u8 oldstate;
	__u8 newstate;
	__u8 pad[4];
	__u64 duration_ns; /* in oldstate; all ones: its start was not seen */
	__u64 skaddr;
};

#endif /* TCPCORE_STATES_H */
