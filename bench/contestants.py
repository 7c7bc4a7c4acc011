"""Who takes part, and how each is started. The reasons for their settings stand in README.md.

It installs nothing and measures nothing.
"""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent

# In the order of the table: ours, those it is compared with, then the two anchors.
NAMES = ("outrigger", "haproxy", "nginx", "envoy", "floor", "direct")

# A few hundred bytes, as a small JSON answer has.
BODY = "outrigger-bench " * 20


@dataclass
class Contestant:
    """One row of the table: its program (none for `direct`) and what it says its version is."""

    name: str
    program: str | None
    version: str




@dataclass
class Work:
    """What is asked of the contestants: which protocol, by whom, and what it may cost us."""

    key: str
    title: str
    # Who takes part. nginx cannot speak HTTP/2 to its upstream.
    names: tuple
    # Our CPU per request against each anchor, at most.
    cpu_bars: dict
    # The words of the configurations that differ between the works.
    words: dict = field(default_factory=dict)
    # Of an HTTP/2 load: connections, and streams on each at a time.
    clients: int = 0
    streams: int = 0
    # Whether each contestant is two sidecars that speak mTLS, each a process of its own.
    pair: bool = False
    # Whether each request comes by a connection of its own, straight to the service's sidecar by mTLS.
    handshakes: bool = False
    # What a request goes through.
    goes: str = "hop"


# HTTP/1.1 without TLS.
PLAIN = {"HTTP": "http", "PROTO": "", "CODEC": "HTTP1", "UPSTREAM": "http_protocol_options", "H2": ""}

WORKS = {
    "http1": Work(
        key="http1",
        title="HTTP/1.1",
        names=NAMES,
        cpu_bars={"haproxy": 1.0, "envoy": 0.28, "floor": 1.5},
        words=PLAIN,
    ),
    "http2": Work(
        key="http2",
        title="HTTP/2",
        names=tuple(name for name in NAMES if name != "nginx"),
        cpu_bars={"haproxy": 1.25, "envoy": 0.22},
        words={
            "HTTP": "http2",
            "PROTO": "proto h2",
            "CODEC": "HTTP2",
            "UPSTREAM": "http2_protocol_options",
            "H2": "http2",
        },
        # A sidecar meets few connections with many calls on each. A thousand at a time keep every contestant's core
        # busy and stay below the 1,024 that Envoy lets wait.
        clients=10,
        streams=100,
    ),
    "mtls": Work(
        key="mtls",
        title="mTLS",
        names=("outrigger", "haproxy", "envoy"),
        cpu_bars={"haproxy": 1.1, "envoy": 0.27},
        words=PLAIN,
        pair=True,
        goes="pair",
    ),
    "handshakes": Work(
        key="handshakes",
        title="mTLS handshake",
        names=("outrigger", "haproxy", "envoy"),
        # The design has none for them.
        cpu_bars={},
        words=PLAIN,
        pair=True,
        handshakes=True,
        goes="and request",
    ),
}

# Those of a pair: the caller's sidecar, then the service's.
PAIR = {
    "outrigger": ("outrigger-near.yaml", "outrigger-far.yaml"),
    "haproxy": ("haproxy-near.cfg", "haproxy-far.cfg"),
    "envoy": ("envoy-near.yaml", "envoy-far.yaml"),
}

# The file of contestants/ that each program reads first.
CONFIGURATION = {
    "backend": "backend.conf",
    "outrigger": "outrigger-proxy.yaml",
    "haproxy": "haproxy.cfg",
    "nginx": "nginx.conf",
    "envoy": "envoy.yaml",
}


def command(work, name, program, directory, ports):
    """The command line of a contestant, its configuration written into `directory`."""
    words = {**work.words, **ports}
    if work.pair and name in PAIR:
        return pair(name, program, directory, words)
    if name == "floor":
        return [program, str(ports["PORT"]), str(ports["BACKEND"])]
    if name == "outrigger":
        fill("outrigger-service.yaml", directory, words)
    return started(name, program, directory, fill(CONFIGURATION[name], directory, words))


def started(name, program, directory, path):
    return {
        "backend": [program, "-p", directory, "-c", path],
        "outrigger": [program, "--config", path],
        "haproxy": [program, "-db", "-q", "-f", path],
        "nginx": [program, "-p", directory, "-c", path],
        "envoy": [program, "-c", path, "--concurrency", "1", "--disable-hot-restart", "-l", "error"],
    }[name]


def pair(name, program, directory, words):
    """Both sidecars as one session: a shell that starts the two and waits, and costs nothing more."""
    if name == "outrigger":
        fill("pair/outrigger-service.yaml", directory, words)
    lines = [
        shlex.join(started(name, program, directory, fill(f"pair/{file}", directory, words))) for file in PAIR[name]
    ]
    return ["sh", "-c", f"{lines[0]} & {lines[1]} & wait"]


def fill(template, directory, words):
    """Copies a configuration into `directory`, its @NAMES@ replaced; answers its path."""
    text = (HERE / "contestants" / template).read_text()
    for name, value in {**words, "DIR": directory, "BODY": BODY}.items():
        text = text.replace(f"@{name}@", str(value))
    path = Path(directory) / Path(template).name
    path.write_text(text)
    return str(path)
