// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Who connects where, and with what result. */
#include "lib/aggregate.bpf.h"
#include "lib/connecting.bpf.h"
#include "lib/flow.bpf.h"
#include "connect.h"

EVENT(connect_event);

/* Count flows in the kernel rather than send events; the local port tells flows apart, too. */
const volatile bool count_flows, count_lports;

AGGREGATE(flows, struct flow, struct flow_count);

static __always_inline void count(int result, const struct conn *conn)
{
	const bool failed = result && result != EINPROGRESS;
	const struct flow_count none = {};
	struct flow_count *counters;
	struct flow flow;

	set_flow(&flow, conn);
	if (!count_lports)
		flow.lport = 0;
	counters = counters_or_rest(flows, &flow, &none);
	if (!counters) {
		lose_socket();
		return;
	}
	add(&counters->connects, 1);
	if (failed)
		add(&counters->failed, 1);
}

static __always_inline void finished(void *ctx, __u64 start_ns, int result, const struct conn *conn,
				     const struct owner *owner)
{
	__u64 now = bpf_ktime_get_ns();
	struct connect_event event = {
		.ts_ns = now,
		.duration_ns = now - start_ns,
		.cgroup_id = owner->cgroup_id,
		.tid = owner->tid,
		.result = result,
	};

	if (count_flows) {
		count(result, conn);
		return;
	}
	describe(&event, conn, owner);
	emit(ctx, &event, sizeof(event));
}

/* Run by user space at the end of the trace, on each socket that has no answer yet. */
SEC("raw_tp")
int send_pending(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (struct sock *)ctx->args[0];
	struct entry *start = find(sk);

	if (start)
		end(ctx, sk, start, EINPROGRESS, PEER_OF_SOCKET, BY_HELPER);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
