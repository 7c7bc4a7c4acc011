"""What a sidecar takes while it does nothing: time to start, memory at rest, with connections, with a large table; its size."""

import os
import socket
import statistics
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import measure
from contestants import command
from page import TITLES
from processes import Failed, Program, free_port
from works import WORKS

from . import Found, services

# As many as the largest work has.
CONNECTIONS = 1000
SERVICES, ENDPOINTS = 1000, 10
# Of a start: what a start takes varies more than what a request does.
STARTS = 5
# The longest wait for the answer on one of the idle connections.
ANSWER_SECONDS = 5


def run(bench):
    found = Found(
        "Footprint",
        f"One service by HTTP/1.1. *Start* is the time from starting the program to the first answer that came through it "
        f"(median of {STARTS}); the size is that of the file alone, and what a program links from the system is not in it. "
        f"*Idle* is after the first answer; *connections* with {CONNECTIONS:,} connections that asked once and wait; the last row "
        f"is Outrigger with {SERVICES:,} services of {ENDPOINTS} listed endpoints each, all known to the one worker.",
        ("contestant", "binary", "start", "idle RSS", "idle PSS", f"RSS, {CONNECTIONS:,} connections", f"PSS, {CONNECTIONS:,} connections"),
    )
    work = WORKS["http1"]
    with measure.backend(work, bench.options, bench.directory) as ports:
        for contestant in bench.field.values():
            if contestant.program:
                attempt(found, bench, work, contestant, ports, contestant.name)
        if "outrigger" in bench.field:
            large = replace(work, words={**work.words, "MORE": f"---\n{services(SERVICES, ENDPOINTS)}"})
            attempt(found, bench, large, bench.field["outrigger"], ports, "outrigger-large")
    return found


def attempt(found, bench, work, contestant, ports, key):
    try:
        starts = [started_in(bench, work, contestant, ports) for _ in range(1 if bench.options.short else STARTS)]
        with measure.proxy(work, contestant, ports, bench.options, bench.directory) as (running, own):
            idle = running.memory_bytes()
            with ExitStack() as kept:
                for _ in range(CONNECTIONS):
                    kept.enter_context(asked_once(own["PORT"]))
                connected = running.memory_bytes()
    except (Failed, OSError) as failure:
        found.problems.append(f"{key}: {failure}")
        return
    size = os.path.getsize(Path(contestant.program).resolve())
    figures = {"start_seconds": statistics.median(starts), "idle_rss": idle[0], "connected_rss": connected[0], "size": size}
    found.figures[key] = figures
    title = TITLES["outrigger"] + f", {SERVICES:,} services" if key == "outrigger-large" else TITLES[contestant.name]
    start = f"{figures['start_seconds'] * 1000:.0f} ms"
    found.rows.append([title, mib(size), start, *map(mib, (*idle, *connected))])


def started_in(bench, work, contestant, ports):
    own = {**ports, "PORT": free_port(), "ADMIN": free_port(), "FAR": free_port()}
    line = command(work, contestant.name, contestant.program, bench.directory, own)
    began = time.monotonic()
    with Program(contestant.name, line, bench.options.proxy_cpu, bench.directory) as running:
        running.wait_until(lambda: measure.answers(work, own["PORT"], bench.options), every=0.002)
        return time.monotonic() - began


def asked_once(port):
    connection = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS)
    connection.sendall(b"GET /hello HTTP/1.1\r\nHost: bench\r\n\r\n")
    if not connection.recv(4096).startswith(b"HTTP/1.1 200 "):
        raise Failed("a connection was not answered with 200")
    return connection


def mib(size):
    # The floor's program has some kilobytes.
    return f"{size / 1024 / 1024:.1f} MiB" if size > 100_000 else f"{size / 1024:.0f} KiB"
