/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Counters by key, summed up here and reported now and then. No report loses or repeats anything.
 *
 * Two maps take turns: programs add to the one that is in the array, user space reads the other one
 * (src/tcpcore/loader/aggregate.py). As long as none is there it is the first one's turn: to put it
 * there at the start would take an RCU grace period, a sixth of the start.
 */
#ifndef TCPCORE_AGGREGATE_BPF_H
#define TCPCORE_AGGREGATE_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

/*
 * Declare the aggregate `name`. The key has no padding, as all of its bytes tell keys apart; the
 * value is __u64 counters alone. User space sets max_entries, and only of what a run needs. Where a
 * run has no keys it makes arrays of the maps, whose place 0 the key of zeros finds, too.
 */
#define AGGREGATE(name, key_type, value_type)                                                      \
	_Static_assert(sizeof(value_type) % sizeof(__u64) == 0, "counters are __u64");             \
	_Static_assert(sizeof(key_type) > sizeof(__u32), "else it looks like an array's");         \
	struct name##_map {                                                                        \
		__uint(type, BPF_MAP_TYPE_PERCPU_HASH);                                            \
		__uint(max_entries, 1);                                                            \
		__type(key, key_type);                                                             \
		__type(value, value_type);                                                         \
	};                                                                                         \
	struct name##_map name##_one SEC(".maps");                                                 \
	struct name##_map name##_two SEC(".maps");                                                 \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);                                          \
		__uint(max_entries, 1);                                                            \
		__type(key, __u32);                                                                \
		__array(values, struct name##_map);                                                \
	} name SEC(".maps")

/*
 * This CPU's counters of a key, to be used in this run of the program only. none: a value of zeros.
 *
 * NULL: there is no room for the key. Count that as a loss, or among the rest: that is the key of
 * zeros, which user space keeps a place for. (An update also fails, with EBUSY, when it interrupts
 * another one on this CPU, since Linux 5.11, 20b6cc34ea74.)
 */
#define counters_of(aggregate, key, none) counters_in(&aggregate, &aggregate##_one, key, none)

static __always_inline void *counters_in(void *turns, void *first, const void *key,
					 const void *none)
{
	const __u32 only = 0;
	void *map = bpf_map_lookup_elem(turns, &only) ?: first;
	void *found = bpf_map_lookup_elem(map, key);

	if (found)
		return found;
	/* Another CPU, or an interrupt here, may be first; its entry is as good. */
	bpf_map_update_elem(map, key, none, BPF_NOEXIST);
	return bpf_map_lookup_elem(map, key);
}

/* The same, where `key` finds no room among the rest: then it is all zeros. */
#define counters_or_rest(aggregate, key, none)                                                     \
	(counters_of(aggregate, key, none) ?: ({                                                   \
		__builtin_memset(key, 0, sizeof(*(key)));                                          \
		counters_of(aggregate, key, none);                                                 \
	}))

/*
 * Atomic, although no other CPU adds here: an interrupt may come between load and store, and bring a
 * program that adds to the same counter. So may another task since Linux 7.0 (a46023d5616e), where
 * tracepoints can be preempted.
 */
static __always_inline void add(__u64 *counter, __u64 number)
{
	__sync_fetch_and_add(counter, number);
}

#endif /* TCPCORE_AGGREGATE_BPF_H */
