/* The floor: what a hop costs at the least.
 *
 * One thread, one epoll, two sockets for each downstream connection, bytes moved from one to the other. It does not
 * parse, route, time, count or retry anything, so no proxy on this kernel can be cheaper by much; the distance of a
 * proxy to it is what that proxy's own work costs.
 *
 * Usage: floor LISTEN_PORT BACKEND_PORT, both on 127.0.0.1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

/* 16 KiB holds any request or answer of the comparison whole. */
#define BUFFER 16384
/* As many events as there are likely to be sockets ready at once; more come with the next wait. */
#define EVENTS 256

/* One end of a pair. */
struct end {
    int fd;
    struct end *peer;
};

static int poller;
static char buffer[BUFFER];

static void die(const char *what) {
    perror(what);
    exit(1);
}

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static void watch(struct end *end, int operation, unsigned events) {
    struct epoll_event event = {.events = events, .data.ptr = end};
    if (epoll_ctl(poller, operation, end->fd, &event) < 0) die("epoll_ctl");
}

static struct end *new_end(int fd) {
    int one = 1;
    struct end *end = malloc(sizeof *end);
    if (!end) die("malloc");
    end->fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return end;
}

static void accept_one(int listener, int backend_port) {
    int down = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (down < 0) return;
    int up = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = loopback(backend_port);
    /* A blocking connect: on loopback it ends at once, and only happens before the load is measured. */
    if (up < 0 || connect(up, (struct sockaddr *)&address, sizeof address) < 0) die("connect to the backend");
    struct end *a = new_end(down), *b = new_end(up);
    a->peer = b;
    b->peer = a;
    watch(a, EPOLL_CTL_ADD, EPOLLIN);
    watch(b, EPOLL_CTL_ADD, EPOLLIN);
}

/* Moves bytes from this end to its peer; false when the pair is to be closed. A message of this comparison always
 * fits the empty socket buffer of a peer that waits for it; a pair where it does not is closed, and wrk reports it. */
static int forward(struct end *end) {
    ssize_t n = recv(end->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n <= 0) return n < 0 && (errno == EAGAIN || errno == EINTR);
    return send(end->peer->fd, buffer, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT) == n;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: floor LISTEN_PORT BACKEND_PORT\n");
        return 2;
    }
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = loopback(atoi(argv[1]));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0) die("bind");
    if (listen(listener, 1024) < 0) die("listen");
    if ((poller = epoll_create1(EPOLL_CLOEXEC)) < 0) die("epoll_create1");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, ready[EVENTS];
    if (epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event) < 0) die("epoll_ctl");
    for (;;) {
        int count = epoll_wait(poller, ready, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct end *end = ready[i].data.ptr;
            if (!end) {
                accept_one(listener, atoi(argv[2]));
            } else if (end->fd >= 0 && !forward(end)) {
                /* The memory of a closed pair is kept: an event for its other end may still be in this batch. */
                close(end->fd);
                close(end->peer->fd);
                end->fd = end->peer->fd = -1;
            }
        }
    }
}
