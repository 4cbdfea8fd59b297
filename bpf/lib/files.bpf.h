/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* TCP sockets of open files. */
#ifndef TCPCORE_FILES_BPF_H
#define TCPCORE_FILES_BPF_H

#include "lib/sock.bpf.h"
#include "lib/task.bpf.h"

/* The TCP socket of an open file, NULL if it is none. */
static __always_inline struct sock *tcp_sock_of_file(struct file *file)
{
	struct sock *sk = sock_of_file(file);

	return sk && !is_tcp(sk, BY_HELPER) ? first_subflow(sk, BY_HELPER) : sk;
}

#endif /* TCPCORE_FILES_BPF_H */
