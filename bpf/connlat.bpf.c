// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* How long active connects take, and how they end. */
#include "connecting.bpf.h"
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
		.pid = owner->pid,
		.uid = owner->uid,
		.netns = conn->netns,
		.lport = conn->lport,
		.rport = conn->rport,
		.family = conn->family,
		.result = result,
	};

	if ((target_failed && !result) || event.latency_ns < targ_min_us * 1000)
		return;
	__builtin_memcpy(event.laddr, &conn->laddr, sizeof(event.laddr));
	__builtin_memcpy(event.raddr, &conn->raddr, sizeof(event.raddr));
	__builtin_memcpy(event.comm, owner->comm, sizeof(event.comm));
	emit(ctx, &event, sizeof(event));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
