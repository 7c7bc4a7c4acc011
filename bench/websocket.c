/* WebSocket messages (RFC 6455): an echo server, and a load that sends a message on each connection as soon as the one
 * before it came back.
 *
 * It knows as much of the protocol as the comparison needs: one handshake with the key of the RFC's example, and text
 * frames of at most 125 bytes. What comes back must be what was sent.
 *
 * Usage: websocket serve PORT, or websocket load PORT SECONDS CONNECTIONS BYTES, on 127.0.0.1.
 */
#include "sockets.h"

/* Any head of the handshake, and many frames. */
#define BUFFER 16384
/* A longer payload has its length in further bytes (section 5.2). */
#define PAYLOAD_MAX 125
#define TEXT 0x81
#define MASKED 0x80
/* Section 5.3 asks for a mask that cannot be foreseen, to protect intermediaries; here it only has to be one. */
#define MASK "\x5a\xc3\x3c\xa5"

/* The example of section 1.3: this key has this answer, so no hash is needed. */
static const char ASK[] =
    "GET /hello HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
static const char SWITCHED[] =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

struct peer {
    int fd, open;
    size_t held;
    int64_t sent;
    char bytes[BUFFER];
};

static int poller;

static struct peer *new_peer(int fd) {
    struct peer *peer = calloc(1, sizeof *peer);
    if (!peer) die("calloc");
    peer->fd = fd;
    no_delay(fd);
    watch(poller, fd, peer);
    return peer;
}

static void say(struct peer *peer, const void *bytes, size_t length) {
    if (send(peer->fd, bytes, length, MSG_NOSIGNAL) != (ssize_t)length) die("send");
}

/* Reads what has come; false at the end of the connection. */
static int more(struct peer *peer) {
    ssize_t n = recv(peer->fd, peer->bytes + peer->held, BUFFER - 1 - peer->held, MSG_DONTWAIT);
    if (n <= 0) return n < 0 && (errno == EAGAIN || errno == EINTR);
    peer->held += (size_t)n;
    return 1;
}

static void drop(struct peer *peer, size_t length) {
    peer->held -= length;
    memmove(peer->bytes, peer->bytes + length, peer->held);
}

/* The length of the head of the handshake, 0 while it is not whole. */
static size_t head(struct peer *peer) {
    peer->bytes[peer->held] = 0;
    char *end = strstr(peer->bytes, "\r\n\r\n");
    return end ? (size_t)(end + 4 - peer->bytes) : 0;
}

static void echo(struct peer *peer) {
    size_t length;
    if (!peer->open) {
        if (!(length = head(peer))) return;
        peer->open = 1;
        drop(peer, length);
        say(peer, SWITCHED, sizeof SWITCHED - 1);
    }
    while (peer->held >= 2 && peer->held >= (length = 6 + (size_t)(peer->bytes[1] & PAYLOAD_MAX))) {
        char frame[2 + PAYLOAD_MAX] = {(char)TEXT, (char)(length - 6)};
        for (size_t i = 0; i < length - 6; i++) frame[2 + i] = peer->bytes[6 + i] ^ peer->bytes[2 + i % 4];
        say(peer, frame, length - 4);
        drop(peer, length);
    }
}

static void serve(int port) {
    int listener = listen_on(port);
    watch(poller, listener, NULL);
    struct epoll_event ready[EVENTS];
    for (;;) {
        int count = epoll_wait(poller, ready, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct peer *peer = ready[i].data.ptr;
            if (!peer) {
                int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
                if (fd >= 0) new_peer(fd);
            } else if (more(peer)) {
                echo(peer);
            } else {
                close(peer->fd);
                free(peer);
            }
        }
    }
}

static void open_up(struct peer *peer) {
    size_t length;
    say(peer, ASK, sizeof ASK - 1);
    while (!(length = head(peer))) {
        ssize_t n = recv(peer->fd, peer->bytes + peer->held, BUFFER - 1 - peer->held, 0);
        if (n <= 0) die("the handshake was not answered");
        peer->held += (size_t)n;
    }
    if (strncmp(peer->bytes, "HTTP/1.1 101 ", 13) || !strstr(peer->bytes, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")) {
        fprintf(stderr, "the handshake was refused: %.200s\n", peer->bytes);
        exit(1);
    }
    drop(peer, length);
}

static void load(int port, double seconds, int connections, size_t length) {
    char payload[PAYLOAD_MAX], out[6 + PAYLOAD_MAX] = {(char)TEXT, (char)(MASKED | length), MASK[0], MASK[1], MASK[2], MASK[3]};
    for (size_t i = 0; i < length; i++) payload[i] = (char)('a' + i % 26), out[6 + i] = payload[i] ^ MASK[i % 4];
    struct latencies took = {0};
    long errors = 0;
    struct peer **all = calloc((size_t)connections, sizeof *all);
    if (!all) die("calloc");
    for (int i = 0; i < connections; i++) open_up(all[i] = new_peer(connect_to(port)));
    int64_t began = now_ns(), end = began + (int64_t)(seconds * 1e9), now = began;
    for (int i = 0; i < connections; i++) all[i]->sent = began, say(all[i], out, 6 + length);
    struct epoll_event ready[EVENTS];
    while ((now = now_ns()) < end) {
        int count = epoll_wait(poller, ready, EVENTS, 100);
        for (int i = 0; i < count; i++) {
            struct peer *peer = ready[i].data.ptr;
            if (!more(peer)) {
                errors++;
                epoll_ctl(poller, EPOLL_CTL_DEL, peer->fd, NULL);
            } else if (peer->held >= 2 + length) {
                int good = peer->held == 2 + length && (size_t)peer->bytes[1] == length && !memcmp(peer->bytes + 2, payload, length);
                errors += !good;
                peer->held = 0;
                int64_t moment = now_ns();
                note(&took, moment - peer->sent);
                peer->sent = moment;
                say(peer, out, 6 + length);
            }
        }
    }
    tell(&took, errors, (double)(now - began) / 1e9);
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "serve")) {
        poller = new_poller();
        serve(atoi(argv[2]));
    }
    if (argc != 6 || strcmp(argv[1], "load") || atoi(argv[5]) < 1 || atoi(argv[5]) > PAYLOAD_MAX) {
        fprintf(stderr, "usage: websocket serve PORT, or websocket load PORT SECONDS CONNECTIONS BYTES (at most 125)\n");
        return 2;
    }
    poller = new_poller();
    load(atoi(argv[2]), atof(argv[3]), atoi(argv[4]), (size_t)atoi(argv[5]));
    return 0;
}
