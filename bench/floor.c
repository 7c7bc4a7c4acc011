/* The floor: what a hop costs at the least.
 *
 * One thread, one epoll, two sockets for each downstream connection, bytes moved from one to the other. It does not
 * parse, route, time, count or retry anything, so no proxy on this kernel can be cheaper by much; the distance of a
 * proxy to it is what that proxy's own work costs.
 *
 * Usage: floor LISTEN_PORT BACKEND_PORT, both on 127.0.0.1.
 */
#include "sockets.h"

/* 128 KiB holds any request or answer of the comparison whole, and so does a socket's buffer of that size. */
#define BUFFER (128 * 1024)

/* One end of a pair. */
struct end {
    int fd;
    struct end *peer;
};

static int poller;
static char buffer[BUFFER];

static struct end *new_end(int fd) {
    int room = BUFFER;
    struct end *end = malloc(sizeof *end);
    if (!end) die("malloc");
    end->fd = fd;
    no_delay(fd);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    return end;
}

static void accept_one(int listener, int backend_port) {
    int down = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (down < 0) return;
    struct end *a = new_end(down), *b = new_end(connect_to(backend_port));
    a->peer = b;
    b->peer = a;
    watch(poller, a->fd, a);
    watch(poller, b->fd, b);
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
    int listener = listen_on(atoi(argv[1]));
    poller = new_poller();
    watch(poller, listener, NULL);
    struct epoll_event ready[EVENTS];
    struct end *closed = NULL;
    for (;;) {
        int count = epoll_wait(poller, ready, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct end *end = ready[i].data.ptr;
            if (!end) {
                accept_one(listener, atoi(argv[2]));
            } else if (end->fd >= 0 && !forward(end)) {
                close(end->fd);
                close(end->peer->fd);
                end->fd = end->peer->fd = -1;
                /* Freed after the batch: an event for its other end may still be in it. */
                struct end *next = closed;
                closed = end;
                end->peer->peer = next;
            }
        }
        while (closed) {
            struct end *pair = closed;
            closed = pair->peer->peer;
            free(pair->peer);
            free(pair);
        }
    }
}
