/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef TCPCORE_RETRANS_H
#define TCPCORE_RETRANS_H

#include "lib/event.h"

/* What is sent, and why. */
enum retrans_kind {
	KIND_RETRANSMIT,
	KIND_SYN,
	KIND_SYNACK,
	KIND_TLP,     /* a tail-loss probe (RFC 8985) that sends the last segment again */
	KIND_TLP_NEW, /* one that sends new data: nothing is sent again */
};

#define UNKNOWN_CA_STATE 0xff

/* One of these. Mirror: Event in src/tcpcore/tools/retrans/__init__.py. */
struct retrans_event {
	EVENT_HEAD;
	__u8 kind; /* enum retrans_kind */
	__u8 state;
	__u8 ca_state; /* enum tcp_ca_state */
	__u8 timeouts; /* in a row, with this one; 0: it is not for a timeout */
	__u16 result;  /* 0, or the errno with which it failed */
	__u32 seq;
	__u32 segs;
	__u32 cwnd;	/* in segments; 0: there is none yet */
	__u32 ssthresh; /* the same */
	__u32 srtt_us;	/* 0: never measured */
	__u32 rto_us;	/* 0: not known */
};

/* --count, of a flow. Mirror: src/tcpcore/tools/retrans/flows.py. */
struct flow_count {
	__u64 retransmits; /* of any kind */
	__u64 segs;	   /* of them */
	__u64 probes;	   /* tail-loss probes; those that send again are retransmits, too */
	__u64 failed;
};

#endif /* TCPCORE_RETRANS_H */
