/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a task says of itself. */
#ifndef TCPCORE_TASK_BPF_H
#define TCPCORE_TASK_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

static __always_inline struct task_struct *current_task(void)
{
	return (struct task_struct *)bpf_get_current_task();
}

/* It may close a socket for others, as when the file was left in the queue of a unix socket. */
static __always_inline bool is_kernel_thread(void)
{
	return BPF_CORE_READ(current_task(), flags) & PF_KTHREAD;
}

static __always_inline __u64 mount_namespace(struct task_struct *task)
{
	return BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum);
}

/* The socket of an open file, NULL if it is no socket. */
static __always_inline struct sock *sock_of_file(struct file *file)
{
	/*
	 * The private data of another file is something else. Only a struct socket points back to
	 * its file from that place.
	 */
	struct socket *socket = BPF_CORE_READ(file, private_data);

	return file && BPF_CORE_READ(socket, file) == file ? BPF_CORE_READ(socket, sk) : NULL;
}

/* The socket of current's file descriptor, NULL if it is no socket. */
static __always_inline struct sock *sock_of_fd(__u32 fd)
{
	struct fdtable *table = BPF_CORE_READ(current_task(), files, fdt);
	struct file **files, *file = NULL;

	if (fd >= BPF_CORE_READ(table, max_fds))
		return NULL;
	files = BPF_CORE_READ(table, fd);
	bpf_probe_read_kernel(&file, sizeof(file), files + fd);
	return sock_of_file(file);
}

#endif /* TCPCORE_TASK_BPF_H */
