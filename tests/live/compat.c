// SPDX-License-Identifier: BSD-2-Clause
/*
 * compat PORT: accepts a connection on 127.0.0.1:PORT the way a 32-bit program does, writes a
 * byte, reads to its end and closes it. Exit code 77: this kernel takes no 32-bit calls.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define COMPAT_ACCEPT4 364 /* arch/x86/entry/syscalls/syscall_32.tbl */

static int compat_accept(int listener)
{
	int result;

	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "0"(COMPAT_ACCEPT4), "b"(listener), "c"(0), "d"(0), "S"(0)
			 : "memory", "r8", "r9", "r10", "r11");
	return result;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1, connection;
	char byte;

	address.sin_port = htons(argc > 1 ? atoi(argv[1]) : 0);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 1))
		return 1;
	puts("listening");
	fflush(stdout);
	connection = compat_accept(listener);
	if (connection < 0)
		return 77;
	write(connection, "x", 1);
	while (read(connection, &byte, 1) > 0)
		;
	return 0;
}
