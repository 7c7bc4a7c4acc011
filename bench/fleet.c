/* Many simulated sidecars of one control API: each holds a long poll (POST /v1/discovery) and acknowledges what it is told.
 *
 * It applies nothing, so that what is measured is the control API: how fast it tells them all, and what holding them costs.
 * On standard output: a line `version V told FIRST LAST acknowledged LAST` for every version that all have acknowledged, the
 * first for what there was when they came; in seconds of the clock that Python calls time.monotonic().
 *
 * Usage: fleet PORT SIDECARS, on 127.0.0.1; it runs until it is killed.
 */
#include "sockets.h"

/* The head of an answer and the beginning of its body, where version, nonce and store stand. */
#define BUFFER 1024
/* The longest of them. */
#define WORD 80
#define REQUEST 1024

struct sidecar {
    int fd, number;
    size_t held;
    int64_t missing; /* Bytes of the body that are still to come; -1 before the head is read. */
    int status;
    char version[WORD], nonce[WORD], store[WORD], bytes[BUFFER];
};

static int poller, count;
/* The newest version, how many have acknowledged it, and when the first and the last were told. */
static char newest[WORD];
static int acknowledged;
static int64_t told_first, told_last;

static void fail(struct sidecar *one, const char *what) {
    fprintf(stderr, "sidecar %d: %s: %.300s\n", one->number, what, one->bytes);
    exit(1);
}

static void poll_again(struct sidecar *one) {
    char body[REQUEST], request[2 * REQUEST];
    const char *form = "{\"node\":{\"id\":\"sidecar-%05d\",\"service\":\"service-0001\",\"instance\":\"%d\"},\"want\":[\"*\"],"
                       "\"version\":\"%s\",\"nonce\":\"%s\",\"store\":\"%s\",\"hold\":\"55s\"}";
    int length = snprintf(body, sizeof body, form, one->number, one->number, one->version, one->nonce, one->store);
    const char *head = "POST /v1/discovery HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                       "Content-Length: %d\r\n\r\n%s";
    length = snprintf(request, sizeof request, head, length, body);
    one->held = 0;
    one->missing = -1;
    if (send(one->fd, request, (size_t)length, MSG_NOSIGNAL) != length) fail(one, "cannot poll");
}

/* The string that follows `"name":"` at the beginning of a body. */
static int word(const char *body, const char *name, char *into) {
    const char *at = strstr(body, name);
    if (!at) return 0;
    at += strlen(name);
    size_t length = strcspn(at, "\"");
    if (length >= WORD || !at[length]) return 0;
    memcpy(into, at, length);
    into[length] = 0;
    return 1;
}

static void acknowledge(struct sidecar *one) {
    char *body = strstr(one->bytes, "\r\n\r\n") + 4;
    if (!word(body, "\"version\":\"", one->version) || !word(body, "\"nonce\":\"", one->nonce) ||
        !word(body, "\"store\":\"", one->store))
        fail(one, "an answer without version, nonce and store");
    int64_t now = now_ns();
    if (strcmp(newest, one->version)) {
        strcpy(newest, one->version);
        acknowledged = 0;
        told_first = now;
    }
    told_last = now;
    poll_again(one);
    if (++acknowledged == count) {
        printf("version %s told %.6f %.6f acknowledged %.6f\n", newest, (double)told_first / 1e9, (double)told_last / 1e9,
               (double)now_ns() / 1e9);
        fflush(stdout);
    }
}

static void answered(struct sidecar *one) {
    if (one->status == 204)
        poll_again(one);
    else if (one->status == 200)
        acknowledge(one);
    else
        fail(one, "an answer other than 200 and 204");
}

static void hear(struct sidecar *one) {
    static char rest[65536];
    int in_head = one->missing < 0;
    char *into = in_head ? one->bytes + one->held : rest;
    ssize_t n = recv(one->fd, into, in_head ? BUFFER - 1 - one->held : sizeof rest, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) fail(one, "the connection was closed");
    if (in_head) {
        one->held += (size_t)n;
        one->bytes[one->held] = 0;
        char *end = strstr(one->bytes, "\r\n\r\n"), *length = strcasestr(one->bytes, "\r\ncontent-length:");
        if (!end) return;
        one->status = atoi(one->bytes + 9);
        int64_t whole = length && length < end ? atoll(length + 17) : 0;
        if (one->status == 200 && !whole) fail(one, "an answer without a length");
        /* Version, nonce and store must be in what is kept. */
        size_t body = one->held - (size_t)(end + 4 - one->bytes);
        if (whole > 0 && body < 300 && (int64_t)body < whole && one->held < BUFFER - 1) return;
        one->missing = whole - (int64_t)body;
    } else {
        one->missing -= n;
    }
    if (one->missing == 0) answered(one);
}

static void hear_all(int wait_ms) {
    struct epoll_event ready[EVENTS];
    int events = epoll_wait(poller, ready, EVENTS, wait_ms);
    for (int i = 0; i < events; i++) hear(ready[i].data.ptr);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: fleet PORT SIDECARS\n");
        return 2;
    }
    count = atoi(argv[2]);
    poller = new_poller();
    for (int i = 0; i < count; i++) {
        struct sidecar *one = calloc(1, sizeof *one);
        if (!one) die("calloc");
        one->number = i;
        one->fd = connect_to(atoi(argv[1]));
        watch(poller, one->fd, one);
        poll_again(one);
        /* Those that are told something read it, so that what waits in sockets does not grow with the fleet. */
        hear_all(0);
    }
    for (;;) hear_all(-1);
}
