// SPDX-License-Identifier: BSD-2-Clause
/*
 * A storm of loopback connections: in each pair of threads one connects, the other accepts, and
 * both close with a reset. That leaves no TIME_WAIT behind, so that the ephemeral ports last for
 * any number of connections.
 *
 * storm ADDRESS CONNECTIONS PAIRS: prints connections per second.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BACKLOG 1024

static struct sockaddr_in target = {.sin_family = AF_INET};
static long share; /* connections per pair */

struct pair {
	pthread_t client, server;
	struct sockaddr_in address;
	int listener;
	_Atomic long served;
};

static int check(int result, const char *call)
{
	if (result < 0) {
		perror(call);
		exit(1);
	}
	return result;
}

static int tcp_socket(void)
{
	return check(socket(AF_INET, SOCK_STREAM, 0), "socket");
}

static void reset(int fd)
{
	struct linger at_once = {.l_onoff = 1, .l_linger = 0};

	check(setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once)), "setsockopt");
	check(close(fd), "close");
}

static int listener(struct sockaddr_in *address)
{
	socklen_t size = sizeof(*address);
	int fd = tcp_socket();

	*address = target;
	check(bind(fd, (struct sockaddr *)address, size), "bind");
	check(listen(fd, BACKLOG), "listen");
	check(getsockname(fd, (struct sockaddr *)address, &size), "getsockname");
	return fd;
}

static void *serve(void *arg)
{
	struct pair *pair = arg;

	for (long i = 0; i < share; i++) {
		reset(check(accept(pair->listener, NULL, NULL), "accept"));
		pair->served = i + 1;
	}
	return NULL;
}

static void *call(void *arg)
{
	struct pair *pair = arg;
	const struct sockaddr *address = (const struct sockaddr *)&pair->address;

	for (long i = 0; i < share; i++) {
		int fd = tcp_socket();

		/* A full accept queue would drop the SYN and cost a second. */
		while (i - pair->served >= BACKLOG / 2)
			sched_yield();
		/* The other end's reset may come before connect() returns. */
		if (connect(fd, address, sizeof(pair->address)) < 0 && errno != ECONNRESET)
			check(-1, "connect");
		reset(fd);
	}
	return NULL;
}

static void start(struct pair *pair)
{
	pair->listener = listener(&pair->address);
	check(-pthread_create(&pair->server, NULL, serve, pair), "pthread_create");
	check(-pthread_create(&pair->client, NULL, call, pair), "pthread_create");
}

static void finish(struct pair *pair)
{
	pthread_join(pair->client, NULL);
	pthread_join(pair->server, NULL);
	close(pair->listener);
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	long count = argc > 3 ? atol(argv[2]) : 0, pairs = argc > 3 ? atol(argv[3]) : 0;

	if (count < 1 || pairs < 1 || !inet_aton(argv[1], &target.sin_addr)) {
		fprintf(stderr, "usage: storm ADDRESS CONNECTIONS PAIRS\n");
		return 2;
	}
	share = count / pairs;

	struct pair *all = calloc(pairs, sizeof(*all));
	double begin = seconds();

	for (long i = 0; i < pairs; i++)
		start(&all[i]);
	for (long i = 0; i < pairs; i++)
		finish(&all[i]);
	printf("%.0f\n", share * pairs / (seconds() - begin));
	free(all);
	return 0;
}
