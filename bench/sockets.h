/* What the small programs of the comparison share: sockets on loopback, a clock, latencies and their percentiles.
 *
 * It knows no protocol. Everything here may end the program: a load that is not what it says it is must not be reported.
 */
#ifndef SOCKETS_H
#define SOCKETS_H
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* As many events as there are likely to be sockets ready at once; more come with the next wait. */
#define EVENTS 256
/* The longest queue of connections that nobody has accepted yet: all of the largest load at once. */
#define BACKLOG 4096

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

static inline struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static inline void no_delay(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static inline int listen_on(int port) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = loopback(port);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) die("bind");
    if (listen(fd, BACKLOG) < 0) die("listen");
    return fd;
}

/* A blocking connect: on loopback it ends at once, and only happens before anything is measured. */
static inline int connect_to(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = loopback(port);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0) die("connect");
    no_delay(fd);
    return fd;
}

static inline int new_poller(void) {
    int poller = epoll_create1(EPOLL_CLOEXEC);
    if (poller < 0) die("epoll_create1");
    return poller;
}

static inline void watch(int poller, int fd, void *what) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0) die("epoll_ctl");
}

/* The clock of Python's time.monotonic(), so that moments of two programs can be compared. */
static inline int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Every latency of a load, in nanoseconds. */
struct latencies {
    int64_t *each;
    size_t count, room;
};

static inline void note(struct latencies *all, int64_t ns) {
    if (all->count == all->room) {
        all->room = all->room ? 2 * all->room : 65536;
        if (!(all->each = realloc(all->each, all->room * sizeof *all->each))) die("realloc");
    }
    all->each[all->count++] = ns;
}

static inline int by_size(const void *a, const void *b) {
    int64_t left = *(const int64_t *)a, right = *(const int64_t *)b;
    return (left > right) - (left < right);
}

/* One line that load.py reads: `requests 10 errors 0 p50 1.0 …`, the latencies in microseconds. */
static inline void tell(struct latencies *all, long errors, double seconds) {
    static const double shares[] = {0.5, 0.9, 0.99, 0.999, 1};
    static const char *names[] = {"p50", "p90", "p99", "p999", "max"};
    if (all->count) qsort(all->each, all->count, sizeof *all->each, by_size);
    printf("requests %zu errors %ld seconds %.3f", all->count, errors, seconds);
    for (int i = 0; i < 5; i++) {
        size_t at = (size_t)((double)all->count * shares[i]);
        if (at >= all->count) at = all->count ? all->count - 1 : 0;
        printf(" %s %.1f", names[i], all->count ? (double)all->each[at] / 1000 : 0.0);
    }
    printf("\n");
}
#endif
