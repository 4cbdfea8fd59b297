/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What connections are counted by. */
#ifndef TCPCORE_FLOW_BPF_H
#define TCPCORE_FLOW_BPF_H

#include "lib/sock.bpf.h"

/* All zeros are the flows that found no room. Mirror: Flow in src/tcpcore/model/flow.py. */
struct flow {
	__u8 laddr[16];
	__u8 raddr[16];
	__u32 netns;
	__u16 lport; /* 0: not told apart by it */
	__u16 rport;
	__u16 family;
	__u8 pad[6]; /* part of the key */
};

static __always_inline void set_flow(struct flow *flow, const struct conn *conn)
{
	__builtin_memset(flow, 0, sizeof(*flow));
	__builtin_memcpy(flow->laddr, &conn->laddr, sizeof(flow->laddr));
	__builtin_memcpy(flow->raddr, &conn->raddr, sizeof(flow->raddr));
	flow->netns = conn->netns;
	flow->lport = conn->lport;
	flow->rport = conn->rport;
	flow->family = conn->family;
}

#endif /* TCPCORE_FLOW_BPF_H */
