// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* How long active connects take, and how they end. */
#include "lib/connecting.bpf.h"
#include "connlat.h"

EVENT(connlat_event);

const volatile __u64 targ_min_us;
const volatile bool target_failed;

static __always_inline void finished(void *ctx, __u64 start_ns, int result, const struct conn *conn,
				     const struct owner *owner)
{
	__u64 now = bpf_ktime_get_ns();
	struct connlat_event event = {
		.ts_ns = now,
		.latency_ns = now - start_ns,
		.result = result,
	};

	if ((target_failed && !result) || event.latency_ns < targ_min_us * 1000)
		return;
	describe(&event, conn, owner);
	emit(ctx, &event, sizeof(event));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
