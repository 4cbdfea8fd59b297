// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A histogram, for tests/live/test_histogram.py. */
#include "lib/histogram.bpf.h"

__u64 slots[HISTOGRAM_SLOTS];

/* Run by the test: counts the given value. */
SEC("raw_tp")
int count_value(struct bpf_raw_tracepoint_args *ctx)
{
	slots[log2_slot(ctx->args[0])]++;
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
