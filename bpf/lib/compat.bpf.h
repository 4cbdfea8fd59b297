/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The socket calls of 32-bit programs. The tracepoints of single system calls do not fire for them,
 * as their numbers are others (arch_trace_is_compat_syscall). Those of all system calls do. Whatever
 * the host calls comes by there: so what the tracepoint passes is asked first, then the number. (A
 * tp_btf program, which could load that directly, is hardly faster.)
 *
 * Take what a call returns as an int: arm64 extended it with zeros before Linux 5.14 (e30e8d46cf60).
 */
#ifndef TCPCORE_COMPAT_BPF_H
#define TCPCORE_COMPAT_BPF_H

#include "lib/sock.bpf.h"
#include "lib/task.bpf.h"
#include <bpf/bpf_tracing.h>

/* As socketcall(2) numbers them, include/uapi/linux/net.h. */
enum socket_call {
	SYS_NONE = 0,
	SYS_CONNECT = 3,
	SYS_LISTEN = 4,
	SYS_ACCEPT = 5,
	SYS_ACCEPT4 = 18
};

/* One of the registers that the task entered the kernel with. */
#define register_read(regs, name)                                                                  \
	({                                                                                         \
		typeof((regs)->name) _value = 0;                                                   \
		bpf_probe_read_kernel(&_value, sizeof(_value), &(regs)->name);                     \
		_value;                                                                            \
	})

#if defined(__TARGET_ARCH_x86)
#define COMPAT_NUMBER orig_ax
#define COMPAT_ARGUMENT_1 bx
#define COMPAT_ARGUMENT_2 cx
#define COMPAT_SOCKETCALL 102
#define TS_COMPAT 2 /* arch/x86/include/asm/thread_info.h: also of int $0x80 in a 64-bit program */

/* arch/x86/entry/syscalls/syscall_32.tbl; accept(2) has no number of its own. */
static __always_inline __u32 call_of_number(__u32 number)
{
	switch (number) {
	case 362:
		return SYS_CONNECT;
	case 363:
		return SYS_LISTEN;
	case 364:
		return SYS_ACCEPT4;
	default:
		return SYS_NONE;
	}
}

static __always_inline bool is_compat(void)
{
	return BPF_CORE_READ(current_task(), thread_info.status) & TS_COMPAT;
}
#elif defined(__TARGET_ARCH_arm64)
#define COMPAT_NUMBER user_regs.regs[7]
#define COMPAT_ARGUMENT_1 user_regs.regs[0]
#define COMPAT_ARGUMENT_2 user_regs.regs[1]
#define TIF_32BIT 22 /* arch/arm64/include/asm/thread_info.h */

/* arch/arm/tools/syscall.tbl. EABI programs have no socketcall(2). */
static __always_inline __u32 call_of_number(__u32 number)
{
	switch (number) {
	case 283:
		return SYS_CONNECT;
	case 284:
		return SYS_LISTEN;
	case 285:
		return SYS_ACCEPT;
	case 366:
		return SYS_ACCEPT4;
	default:
		return SYS_NONE;
	}
}

static __always_inline bool is_compat(void)
{
	return BPF_CORE_READ(current_task(), thread_info.flags) & 1UL << TIF_32BIT;
}
#endif

static __always_inline bool is_socketcall(__u32 number)
{
#ifdef COMPAT_SOCKETCALL
	return number == COMPAT_SOCKETCALL;
#else
	return false;
#endif
}

/* What a 32-bit program calls, by enum socket_call; SYS_NONE: something else, or none calls. */
static __always_inline __u32 compat_call(struct pt_regs *regs, __u32 number)
{
	__u32 call = call_of_number(number);

	if (is_socketcall(number))
		call = register_read(regs, COMPAT_ARGUMENT_1);
	return call && is_compat() ? call : SYS_NONE;
}

/* The same, where a call returns. */
static __always_inline __u32 compat_returning(struct pt_regs *regs)
{
	return compat_call(regs, register_read(regs, COMPAT_NUMBER));
}

/* The first two arguments of a call: socketcall(2) has them in memory. */
struct compat_arguments {
	__u32 first, second;
};

static __always_inline struct compat_arguments compat_arguments(struct pt_regs *regs, __u32 number)
{
	struct compat_arguments found = {.second = register_read(regs, COMPAT_ARGUMENT_2)};

	if (is_socketcall(number))
		bpf_probe_read_user(&found, sizeof(found), (const void *)(__u64)found.second);
	else
		found.first = register_read(regs, COMPAT_ARGUMENT_1);
	return found;
}

#endif /* TCPCORE_COMPAT_BPF_H */
