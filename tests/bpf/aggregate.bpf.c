// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* An aggregate under load, for tests/live/test_aggregate.py. */
#include "lib/aggregate.bpf.h"

#define ROUNDS 256

struct number {
	__u64 value;
};

struct tally {
	__u64 times;
	__u64 sum; /* of the keys: times the key's value */
};

AGGREGATE(numbers, struct number, struct tally);

__u64 added;	   /* all that the reports have to add up to */
__u64 refused;	   /* what found no room */
__u64 interrupted; /* of those added, in an interrupt */

static __always_inline struct tally *tally_of(__u64 value)
{
	const struct number key = {.value = value};
	const struct tally none = {};

	return counters_of(numbers, &key, &none);
}

static __always_inline void count(__u64 value, bool with_rest)
{
	struct tally *tally = tally_of(value);

	if (!tally && with_rest)
		tally = tally_of(0);
	if (!tally) {
		add(&refused, 1);
		return;
	}
	add(&tally->times, 1);
	add(&tally->sum, value);
	add(&added, 1);
}

/* Run by the test: counts the numbers from 1 to the given one, again and again. */
SEC("raw_tp")
int count_numbers(struct bpf_raw_tracepoint_args *ctx)
{
	const __u64 most = ctx->args[0];
	const bool with_rest = ctx->args[1];

	for (__u64 i = 0; i < ROUNDS; i++)
		count(i % most + 1, with_rest);
	return 0;
}

/* The same in timer interrupts, those of the test's own counters alone: they may be at work. */
SEC("raw_tp/hrtimer_expire_entry")
int count_in_interrupt(void *ctx)
{
	char comm[16] = {};

	bpf_get_current_comm(comm, sizeof(comm));
	if (__builtin_memcmp(comm, "tcpcore-counter", sizeof(comm)))
		return 0;
	for (__u64 value = 1; value <= 8; value++)
		count(value, true);
	add(&interrupted, 1);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
