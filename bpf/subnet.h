/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Mirror: src/tcpcore/tools/subnet.py. */
#ifndef TCPCORE_SUBNET_H
#define TCPCORE_SUBNET_H

#include "vmlinux.h"

/* As user space wrote it. All zeros: none that was asked for. */
struct subnet {
	__u8 subnet[24];
};

struct subnet_count {
	__u64 tx_bytes;
	__u64 rx_bytes;
};

#endif /* TCPCORE_SUBNET_H */
