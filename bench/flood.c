// SPDX-License-Identifier: BSD-2-Clause
/*
 * A flood of TCP segments that the receiving kernel drops, each once: their header claims to be
 * shorter than one can be (RFC 9293, 3.1), which nobody answers.
 *
 * flood ADDRESS PACKETS: prints packets per second.
 */
#define _GNU_SOURCE /* sendmmsg */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

#define BATCH 64
#define TOO_SHORT 4 /* words */

struct packet {
	struct iphdr ip; /* the kernel fills in what is left out: raw(7) */
	struct tcphdr tcp;
};

static int check(int result, const char *call)
{
	if (result < 0) {
		perror(call);
		exit(1);
	}
	return result;
}

static void flood(const struct sockaddr_in *target, long count)
{
	struct packet packet = {
		.ip = {.version = 4,
		       .ihl = 5,
		       .ttl = 64,
		       .protocol = IPPROTO_TCP,
		       .daddr = target->sin_addr.s_addr},
		.tcp = {.th_sport = htons(9), .th_dport = htons(9), .th_off = TOO_SHORT},
	};
	struct iovec data = {.iov_base = &packet, .iov_len = sizeof(packet)};
	struct mmsghdr messages[BATCH] = {};
	int fd = check(socket(AF_INET, SOCK_RAW, IPPROTO_RAW), "socket");

	for (int i = 0; i < BATCH; i++) {
		messages[i].msg_hdr.msg_iov = &data;
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	check(connect(fd, (const struct sockaddr *)target, sizeof(*target)), "connect");
	while (count > 0)
		count -=
			check(sendmmsg(fd, messages, count < BATCH ? count : BATCH, 0), "sendmmsg");
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	struct sockaddr_in target = {.sin_family = AF_INET};
	long count = argc == 3 ? atol(argv[2]) : 0;
	double begin = seconds();

	if (count < 1 || !inet_aton(argv[1], &target.sin_addr)) {
		fprintf(stderr, "usage: flood ADDRESS PACKETS\n");
		return 2;
	}
	flood(&target, count);
	printf("%.0f\n", count / (seconds() - begin));
	return 0;
}
