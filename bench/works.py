"""What is asked of the contestants: every work, who takes part in it, and by which load.

It knows neither how a contestant is started (contestants.py) nor what a figure must be (bars.py).
"""

from dataclasses import dataclass, field

# In the order of the table: ours, those it is compared with, then the two anchors.
NAMES = ("outrigger", "haproxy", "nginx", "envoy", "floor", "direct")
WITHOUT_NGINX = tuple(name for name in NAMES if name != "nginx")
PAIRS = ("outrigger", "haproxy", "envoy")

# A few hundred bytes, as a small JSON answer has.
BODY = "outrigger-bench " * 20
# A gRPC message (five bytes say that it is not compressed and how long it is) with one string of protobuf.
TEXT = "outrigger-bench " * 4
GRPC_BODY = f"\0\0\0\0{chr(len(TEXT) + 2)}\n{chr(len(TEXT))}{TEXT}"

# HTTP/1.1 without TLS, answered by a short text.
PLAIN = {
    "HTTP": "http", "PROTO": "", "CODEC": "HTTP1", "UPSTREAM": "http_protocol_options", "H2": "",
    "MODULE": "", "TYPE": "text/plain", "ANSWER": 'return 200 "@BODY@";', "CONNECTION": '""', "UPGRADES": "",
    # Of Outrigger's service file: routes of the service, and further services.
    "ROUTES": "", "MORE": "",
}  # fmt: skip
# nginx's configuration takes no word longer than a page, so a long answer comes from a file.
FROM_FILE = {**PLAIN, "ANSWER": "root @DIR@; rewrite ^ /answer break;"}
HTTP2 = {**PLAIN, "HTTP": "http2", "PROTO": "proto h2", "CODEC": "HTTP2", "UPSTREAM": "http2_protocol_options", "H2": "http2"}
# A server of gRPC reads the call before it answers, and nginx's grpc_pass fails where it does not; its own `return` does not.
GRPC = {
    **HTTP2,
    "HTTP": "grpc",
    "MODULE": "load_module /usr/lib/nginx/modules/ngx_http_echo_module.so;",
    "TYPE": "application/grpc",
    "ANSWER": 'add_trailer grpc-status 0; echo_read_request_body; echo_duplicate 1 "@BODY@";',
}
TCP = {**PLAIN, "HTTP": "tcp"}
WEBSOCKET = {
    **PLAIN,
    "UPGRADES": "{ upgrade_type: websocket }",
    "CONNECTION": '"upgrade"; proxy_set_header Upgrade $http_upgrade',
}


@dataclass(frozen=True)
class Work:
    """One kind of load on every contestant that can take it."""

    key: str
    # The heading of its table.
    title: str
    # What the load is, as a sentence for the page.
    sentence: str
    names: tuple = NAMES
    # wrk, h2load, openssl, pace or websocket.
    tool: str = "wrk"
    connections: int = 64
    # Of an HTTP/2 load: streams on each connection at a time.
    streams: int = 0
    # Headers that the load adds.
    headers: tuple = ()
    body: str = BODY
    # The words of the configurations that differ between the works.
    words: dict = field(default_factory=lambda: PLAIN)
    # Where configurations of its own stand; one that is not there is the common one.
    folder: str = ""
    # Whether each contestant is two sidecars that speak mTLS, each a process of its own.
    pair: bool = False
    # Whether a bar of the design stands on it: the others are measured in fewer rounds.
    judged: bool = False

    @property
    def http2(self):
        return self.words["H2"] == "http2"

    @property
    def posts(self):
        """Whether the load sends the body too: a call of gRPC is a message for a message."""
        return self.words["HTTP"] == "grpc"

    @property
    def counted(self):
        """Whether the backend is nginx, which says how many requests it saw; the other is the echo of messages."""
        return self.tool != "websocket"


def all_works():
    """In the order of the page."""
    yield Work("http1", "HTTP/1.1 hop", "wrk with 64 connections, one request on each at a time.", judged=True)
    yield Work("http1-1k", "HTTP/1.1 hop, answers of 1 KiB", "wrk with 64 connections, answers of 1 KiB.", body="k" * 1024)
    yield Work(
        "http1-64k", "HTTP/1.1 hop, answers of 64 KiB", "wrk with 64 connections, answers of 64 KiB, which the backend sends from a file.",
        body="k" * 65536, words=FROM_FILE,
    )  # fmt: skip
    yield Work("http1-1", "HTTP/1.1 hop, one connection", "wrk with a single connection.", connections=1)
    yield Work("http1-1000", "HTTP/1.1 hop, 1,000 connections", "wrk with 1,000 connections.", connections=1000)
    yield Work(
        "connections", "HTTP/1.1 hop, new connections",
        "wrk with 64 connections that end with each answer (`Connection: close`): every request comes by a new one. "
        "Connections to the backend are kept, except by the floor.",
        headers=("Connection: close",),
    )  # fmt: skip
    yield Work(
        "paced", "HTTP/1.1 hop at a fixed rate",
        "An open loop ([bench/pace.c](../bench/pace.c)): requests are due at 30 % of what the slowest contestant can answer, "
        "whatever the answers do, and a latency counts from the moment the request was due, so that none is left out "
        "(no coordinated omission). *Added* is over direct.",
        tool="pace",
    )  # fmt: skip
    yield Work(
        "http2", "HTTP/2 hop", "h2load with 10 connections and 100 streams on each at a time; HTTP/2 on both sides.",
        # A sidecar meets few connections with many calls on each. A thousand at a time keep every contestant's core busy
        # and stay below the 1,024 that Envoy lets wait. nginx cannot speak HTTP/2 to its upstream.
        names=WITHOUT_NGINX, tool="h2load", connections=10, streams=100, words=HTTP2, judged=True,
    )  # fmt: skip
    yield Work(
        "grpc", "gRPC call",
        "h2load with 10 connections and 100 calls on each at a time; a message of 66 bytes each way, the status in trailers.",
        tool="h2load", connections=10, streams=100, words=GRPC, body=GRPC_BODY, folder="grpc",
        headers=("content-type: application/grpc", "te: trailers"),
    )  # fmt: skip
    yield Work(
        "tcp", "TCP hop", "wrk with 64 connections through `protocol: tcp` and its like: bytes that nobody reads.",
        words=TCP, folder="tcp",
    )  # fmt: skip
    yield Work(
        "websocket", "WebSocket message and its echo",
        "[bench/websocket.c](../bench/websocket.c) with 64 connections: a message of 64 bytes each way, the next as soon as it "
        "is back. A request is one message with its echo.",
        tool="websocket", words=WEBSOCKET,
    )  # fmt: skip
    yield Work(
        "mtls", "mTLS pair",
        "wrk with 64 connections, HTTP/1.1 to the caller's sidecar, mTLS (TLS 1.3, kept connections) to the service's, HTTP/1.1 "
        "to the backend. Both sidecars, a process each, on the one core: CPU and memory are of both.",
        names=PAIRS, pair=True, judged=True,
    )  # fmt: skip
    yield Work(
        "handshakes", "mTLS handshake and request",
        "`openssl s_time`, eight at a time: each request by a new TLS 1.3 connection with client certificates (P-256), "
        "straight to the service's sidecar. CPU is that of both sidecars, of which one is idle.",
        names=PAIRS, tool="openssl", pair=True,
    )  # fmt: skip


WORKS = {work.key: work for work in all_works()}
