// SPDX-License-Identifier: BSD-2-Clause
/*
 * Connections over loopback that live longer than those of storm.c:
 *
 * traffic bulk ADDRESS SECONDS: one sends as fast as it can; prints MB per second.
 * traffic requests ADDRESS SECONDS: CLIENTS send small requests and get small responses, each in
 *     turn; prints requests per second.
 * traffic idle ADDRESS CONNECTIONS: that many open connections, until standard input ends; prints a
 *     line when they are there.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CLIENTS 16
#define MESSAGE 64

static struct sockaddr_in target = {.sin_family = AF_INET};
static volatile int is_over;

static int check(int result, const char *call)
{
	if (result < 0) {
		perror(call);
		exit(1);
	}
	return result;
}

static int listener(struct sockaddr_in *address)
{
	socklen_t size = sizeof(*address);
	int fd = check(socket(AF_INET, SOCK_STREAM, 0), "socket");

	*address = target;
	check(bind(fd, (struct sockaddr *)address, size), "bind");
	check(listen(fd, 128), "listen");
	check(getsockname(fd, (struct sockaddr *)address, &size), "getsockname");
	return fd;
}

/* ends: the client's and the server's. */
static void connection(int server, const struct sockaddr_in *address, int ends[2])
{
	int one = 1;

	ends[0] = check(socket(AF_INET, SOCK_STREAM, 0), "socket");
	check(connect(ends[0], (const struct sockaddr *)address, sizeof(*address)), "connect");
	ends[1] = check(accept(server, NULL, NULL), "accept");
	for (int i = 0; i < 2; i++)
		setsockopt(ends[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static void *swallow(void *fd)
{
	static char buffer[1 << 18];

	while (read((int)(long)fd, buffer, sizeof(buffer)) > 0)
		;
	return NULL;
}

static void *echo(void *fd)
{
	char message[MESSAGE];
	ssize_t size;

	while ((size = read((int)(long)fd, message, sizeof(message))) > 0)
		if (write((int)(long)fd, message, size) != size)
			break;
	return NULL;
}

static void *ask(void *ends)
{
	char message[MESSAGE] = {};
	long *asked = calloc(1, sizeof(*asked));
	int fd = *(int *)ends;

	for (; !is_over; ++*asked) {
		check(write(fd, message, sizeof(message)), "write");
		check(recv(fd, message, sizeof(message), MSG_WAITALL), "recv");
	}
	return asked;
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static double bulk(double seconds)
{
	static char buffer[1 << 17];
	struct sockaddr_in address;
	pthread_t reader;
	double begin, sent = 0;
	int ends[2];

	connection(listener(&address), &address, ends);
	pthread_create(&reader, NULL, swallow, (void *)(long)ends[1]);
	for (begin = now(); now() - begin < seconds;)
		sent += check(write(ends[0], buffer, sizeof(buffer)), "write");
	return sent / (now() - begin) / 1e6;
}

static double requests(double seconds)
{
	struct sockaddr_in address;
	int server = listener(&address), ends[CLIENTS][2];
	pthread_t clients[CLIENTS], servers[CLIENTS];
	double begin = now(), all = 0;
	void *asked;

	for (int i = 0; i < CLIENTS; i++) {
		connection(server, &address, ends[i]);
		pthread_create(&servers[i], NULL, echo, (void *)(long)ends[i][1]);
		pthread_create(&clients[i], NULL, ask, &ends[i][0]);
	}
	usleep(seconds * 1e6);
	is_over = 1;
	for (int i = 0; i < CLIENTS; i++) {
		pthread_join(clients[i], &asked);
		all += *(long *)asked;
	}
	return all / (now() - begin);
}

static void idle(long count)
{
	struct sockaddr_in address;
	int server = listener(&address), ends[2];

	for (long i = 0; i < count; i++)
		connection(server, &address, ends);
	printf("%ld\n", count);
	fflush(stdout);
	while (getchar() != EOF)
		;
}

int main(int argc, char **argv)
{
	double number = argc == 4 ? atof(argv[3]) : 0;

	if (number <= 0 || !inet_aton(argv[2], &target.sin_addr)) {
		fprintf(stderr, "usage: traffic bulk|requests|idle ADDRESS NUMBER\n");
		return 2;
	}
	if (!strcmp(argv[1], "bulk"))
		printf("%.1f\n", bulk(number));
	else if (!strcmp(argv[1], "requests"))
		printf("%.0f\n", requests(number));
	else
		idle(number);
	return 0;
}
