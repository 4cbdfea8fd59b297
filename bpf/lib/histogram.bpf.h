/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Histograms whose buckets double in width. */
#ifndef TCPCORE_HISTOGRAM_BPF_H
#define TCPCORE_HISTOGRAM_BPF_H

#include "lib/aggregate.bpf.h"

#define HISTOGRAM_SLOTS 64

/*
 * The slot of a value: n for values from 2^n up to 2^(n+1) - 1, and 0 for 0 as well. Mirror:
 * Histogram in src/tcpcore/model/histogram.py.
 *
 * BPF has no instruction that counts leading zeros: clang makes shifts and a multiplication of it,
 * without a branch.
 */
static __always_inline __u32 log2_slot(__u64 value)
{
	__u32 slot = 63 - __builtin_clzll(value | 1);

	/*
	 * The verifier has to see a limit before the slot indexes an array. clang, which knows that
	 * it is below 64, would drop the mask.
	 */
	barrier_var(slot);
	return slot & (HISTOGRAM_SLOTS - 1);
}

/* A value of an aggregate. Mirror: Measured in src/tcpcore/model/counted.py. */
struct histogram {
	__u64 slots[HISTOGRAM_SLOTS];
	__u64 sum;
};

/* What a new key begins with: too large for the stack. */
static const struct histogram no_values;

static __always_inline void measure(struct histogram *histogram, __u64 value)
{
	add(&histogram->slots[log2_slot(value)], 1);
	add(&histogram->sum, value);
}

#endif /* TCPCORE_HISTOGRAM_BPF_H */
