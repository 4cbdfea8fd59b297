// SPDX-License-Identifier: BSD-2-Clause
/* A library for Python: system calls the way a 32-bit program makes them, and the other way. */

/* Returns what the kernel does: an error is negative. All arguments are 32 bits wide. */
int compat_call(int number, int one, int two, int three, int four)
{
	int result;

	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "0"(number), "b"(one), "c"(two), "d"(three), "S"(four)
			 : "memory", "r8", "r9", "r10", "r11");
	return result;
}

/* The same number in a 64-bit call, with a 32-bit call's first argument. */
long native_call(int number, int one)
{
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"((long)number), "b"((long)one)
			 : "memory", "rcx", "r11");
	return result;
}
