/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Events to user space, and an honest count of those that could not be sent. */
#ifndef TCPCORE_OUTPUT_BPF_H
#define TCPCORE_OUTPUT_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
} events SEC(".maps");

#define UNKNOWN_NS (~0ULL) /* a duration whose start was not seen */

/* Puts the event's layout into the object's BTF, where tests compare it with the Python mirror. */
#define EVENT(name) const struct name *event_layout __attribute__((unused))

__u64 lost_ring;   /* events that found the perf ring full */
__u64 lost_output; /* events that the kernel took for no ring at all */
__u64 lost_map;	   /* sockets that found a map full: nothing can be told of them */
/* Skipped programs whose work another program did: the kernel counts them as missed all the same. */
__u64 made_up_for;

/*
 * The kernel's own PERF_RECORD_LOST comes only with the next event that fits, which a trace that
 * ends may never see; the helper's return value is there at once. A full ring is ENOSPC. A CPU that
 * came after the start has no ring (ENOENT, or E2BIG beyond the possible ones); other errors are
 * refusals, too (EOPNOTSUPP, EBUSY when too many are under way): kernel/trace/bpf_trace.c.
 */
static __always_inline void emit(void *ctx, void *event, __u64 size)
{
	long error = bpf_perf_event_output(ctx, &events, BPF_F_CURRENT_CPU, event, size);

	if (error == -ENOSPC)
		__sync_fetch_and_add(&lost_ring, 1);
	else if (error)
		__sync_fetch_and_add(&lost_output, 1);
}

static __always_inline void lose_socket(void)
{
	__sync_fetch_and_add(&lost_map, 1);
}

/* bpf_map_update_elem that counts its failures; true when the entry is in the map. */
static __always_inline bool remember(void *map, const void *key, const void *value)
{
	if (bpf_map_update_elem(map, key, value, BPF_ANY) == 0)
		return true;
	lose_socket();
	return false;
}

#endif /* TCPCORE_OUTPUT_BPF_H */
