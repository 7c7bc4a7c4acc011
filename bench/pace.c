/* An open-loop load: HTTP/1.1 requests at a fixed rate, each timed from the moment it was due.
 *
 * A closed loop asks again when it is answered, so it asks less while the server is slow and forgets what would have
 * waited (coordinated omission). Here the schedule does not know of the answers: a request that finds no free connection
 * waits for one, and its wait is part of its latency.
 *
 * Usage: pace PORT RATE SECONDS CONNECTIONS PATH, on 127.0.0.1.
 */
#include "sockets.h"
#include <sys/prctl.h>

/* A head and a small body; a longer body is counted and dropped. */
#define BUFFER 16384
/* What is still unanswered so long after the last request was due is an error. */
#define GRACE_NS 2000000000LL

struct connection {
    int fd;
    int64_t due;      /* When the request under way was due; 0 while it is free. */
    size_t held;      /* Bytes of the answer's head so far. */
    int64_t missing;  /* Bytes of the body that are still to come; -1 before the head is read. */
    char head[BUFFER];
};

static int poller, port;
static char request[1024];
static size_t request_length;
static struct connection **idle;
static size_t idle_first, idle_count, all_count;
static struct latencies took;
static long errors;
/* What the first error was, for people. */
static char why[128];

static void set_free(struct connection *one) {
    one->due = 0;
    idle[(idle_first + idle_count++) % all_count] = one;
}

static void open_one(struct connection *one) {
    one->fd = connect_to(port);
    watch(poller, one->fd, one);
    set_free(one);
}

static void failed(struct connection *one, const char *how) {
    if (!errors++) snprintf(why, sizeof why, "%s: %.*s", how, (int)strcspn(one->head, "\r\n"), one->held ? one->head : "");
    close(one->fd);
    open_one(one);
}

static void ask(int64_t due) {
    struct connection *one = idle[idle_first];
    idle_first = (idle_first + 1) % all_count;
    idle_count--;
    one->due = due;
    one->held = 0;
    one->missing = -1;
    one->head[0] = 0;
    if (send(one->fd, request, request_length, MSG_NOSIGNAL) != (ssize_t)request_length) failed(one, "a request could not be sent");
}

/* Reads the head once it is whole; false if this is no answer that can be timed. */
static int read_head(struct connection *one) {
    one->head[one->held] = 0;
    char *end = strstr(one->head, "\r\n\r\n");
    if (!end) return one->held < BUFFER - 1;
    char *length = strcasestr(one->head, "\r\ncontent-length:");
    if (strncmp(one->head, "HTTP/1.1 200 ", 13) || !length || length > end) return 0;
    one->missing = atoll(length + 17) - (int64_t)(one->held - (size_t)(end + 4 - one->head));
    return one->missing >= 0;
}

static void hear(struct connection *one) {
    char body[BUFFER];
    int in_head = one->missing < 0;
    char *into = in_head ? one->head + one->held : body;
    size_t room = in_head ? BUFFER - 1 - one->held : sizeof body;
    ssize_t n = recv(one->fd, into, room, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n > 0 && one->due) {
        one->held += in_head ? (size_t)n : 0;
        one->missing -= in_head ? 0 : n;
        int good = in_head ? read_head(one) : one->missing >= 0;
        if (good && one->missing == 0) {
            note(&took, now_ns() - one->due);
            set_free(one);
        }
        if (good) return;
    }
    if (!one->due) {
        /* It stands in the ring of the free ones, so that another cannot just take its place. */
        fprintf(stderr, "a connection was closed, or said something, while nothing was asked of it\n");
        exit(1);
    }
    failed(one, n > 0 ? "an answer that is none" : "closed before an answer");
}

static void wait_and_hear(int64_t until) {
    struct epoll_event ready[EVENTS];
    int64_t left = until - now_ns();
    if (left < 0) left = 0;
    struct timespec wait = {.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
    int count = epoll_pwait2(poller, ready, EVENTS, &wait, NULL);
    for (int i = 0; i < count; i++) hear(ready[i].data.ptr);
}

int main(int argc, char **argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: pace PORT RATE SECONDS CONNECTIONS PATH\n");
        return 2;
    }
    port = atoi(argv[1]);
    int64_t every = 1000000000LL / atoll(argv[2]), total = atoll(argv[2]) * atoll(argv[3]);
    all_count = (size_t)atoi(argv[4]);
    const char *form = "GET %s HTTP/1.1\r\nHost: bench\r\n\r\n";
    request_length = (size_t)snprintf(request, sizeof request, form, argv[5]);
    /* The kernel may wake a thread 50 us late by default, which would count as latency. */
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    poller = new_poller();
    struct connection *all = calloc(all_count, sizeof *all);
    if (!all || !(idle = calloc(all_count, sizeof(void *)))) die("calloc");
    for (size_t i = 0; i < all_count; i++) open_one(&all[i]);
    int64_t began = now_ns(), next = 0, end = began + total * every + GRACE_NS;
    while ((int64_t)took.count + errors < total && now_ns() < end) {
        while (next < total && idle_count && began + next * every <= now_ns()) {
            ask(began + next * every);
            next++;
        }
        /* With no connection free, only an answer can help. */
        wait_and_hear(next < total && idle_count ? began + next * every : end);
    }
    long unanswered = (long)(total - (int64_t)took.count) - errors;
    tell(&took, errors + unanswered, (double)(now_ns() - began) / 1e9);
    if (errors) printf("%s\n", why);
    if (unanswered) printf("%ld unanswered, %ld of them never asked\n", unanswered, (long)(total - next));
    return 0;
}
