"""One contestant, one round: start it, prove that it forwards, load it, read what it cost.

It does not choose who takes part (install.py) and draws no conclusions (report.py, bars.py).
"""

import http.client
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pki
from contestants import command
from install import built, which
from load import PATH, load
from processes import Failed, Program, free_port
from works import WORKS

# Connections are made, pools are filled, pages are touched and caches are warm before anything is counted.
WARM_SECONDS = 1
# A program that is up answers at once.
FETCH_SECONDS = 2
# Some messages and their echoes.
MOMENT_SECONDS = 0.05
# Rounds of a work that no bar of the design stands on.
UNJUDGED_ROUNDS_MAX = 3
# What part of the slowest contestant's most the open loop asks for: a service that is used and not worn out.
PACE_SHARE = 0.3


@dataclass
class Sample:
    """What one round of one contestant gave. Absent figures are None: `direct` has no proxy to look at."""

    work: str
    name: str
    round: int
    requests: int = 0
    requests_per_second: float = 0.0
    cpu_us: float | None = None
    core_busy: float | None = None
    p50_us: float = 0.0
    p99_us: float = 0.0
    p999_us: float = 0.0
    idle_rss: int | None = None
    idle_pss: int | None = None
    loaded_rss: int | None = None
    loaded_pss: int | None = None
    upstream_connections: int | None = None
    problems: list = field(default_factory=list)

    def as_dict(self):
        return asdict(self)


def rounds_of(work, options):
    return options.rounds if work.judged else min(options.rounds, UNJUDGED_ROUNDS_MAX)


def run(work, contestants, options, directory):
    """All rounds of one work. The order turns with each, so that no contestant always follows the same one."""
    samples = []
    if work.pair:
        pki.make(directory)
    with backend(work, options, directory) as ports:
        rate = moderate_rate(contestants, ports, options, directory) if work.tool == "pace" else 0
        for number in range(rounds_of(work, options)):
            turn = number % max(len(contestants), 1)
            for contestant in contestants[turn:] + contestants[:turn]:
                sample = Sample(work.key, contestant.name, number + 1)
                one(work, contestant, sample, ports, rate, options, directory)
                samples.append(sample)
                progress(work, sample, options)
    return samples


@contextmanager
def backend(work, options, directory):
    """The one that answers in the end, on the core of the load; gives its ports."""
    ports = {"BACKEND": free_port(), "COUNTS": free_port()}
    (Path(directory) / "answer").write_text(work.body)
    line = command(work, "backend", which("nginx"), directory, ports)
    if not work.counted:
        line = [built("websocket"), "serve", str(ports["BACKEND"])]
    with Program("backend", line, options.load_cpu, directory) as server:
        server.wait_until(lambda: answers(work, ports["BACKEND"], options))
        yield ports


@contextmanager
def proxy(work, contestant, ports, options, directory):
    """A contestant that forwards, and its ports."""
    ports = {**ports, "PORT": free_port(), "ADMIN": free_port(), "FAR": free_port()}
    line = command(work, contestant.name, contestant.program, directory, ports)
    with Program(contestant.name, line, options.proxy_cpu, directory) as running:
        running.wait_until(lambda: answers(work, ports["PORT"], options))
        yield running, ports


def one(work, contestant, sample, ports, rate, options, directory):
    try:
        if contestant.program is None:
            load_and_count(work, sample, None, ports["BACKEND"], ports, rate, options, directory)
            return
        with proxy(work, contestant, ports, options, directory) as (running, own):
            sample.idle_rss, sample.idle_pss = running.memory_bytes()
            port = own["FAR" if work.tool == "openssl" else "PORT"]
            load_and_count(work, sample, running, port, ports, rate, options, directory)
            sample.loaded_rss, sample.loaded_pss = running.memory_bytes()
    except Failed as failure:
        sample.problems.append(str(failure))


def moderate_rate(contestants, ports, options, directory):
    """Requests a second for the open loop, in whole hundreds: a share of the most that the slowest can answer."""
    most, work = [], replace(WORKS["paced"], tool="wrk")
    for contestant in (each for each in contestants if each.program):
        with proxy(work, contestant, ports, options, directory) as (_, own):
            load(work, own["PORT"], WARM_SECONDS, options, directory)
            most.append(load(work, own["PORT"], WARM_SECONDS, options, directory).per_second)
    return max(int(min(most, default=0) * PACE_SHARE / 100) * 100, 100)


def load_and_count(work, sample, proxy, port, backend, rate, options, directory):
    """Loads `port` and reads what it cost: the warm-up is a load of its own, before the first reading."""
    load(work, port, WARM_SECONDS, options, directory, rate)
    before = backend_counts(work, backend["COUNTS"])
    cpu_before, began = (proxy.cpu_seconds() if proxy else 0), time.monotonic()
    seen = load(work, port, options.seconds, options, directory, rate)
    elapsed = time.monotonic() - began
    if proxy:
        cpu = proxy.cpu_seconds() - cpu_before
    after = backend_counts(work, backend["COUNTS"])
    sample.requests, sample.requests_per_second = seen.requests, seen.per_second
    sample.p50_us, sample.p99_us, sample.p999_us = seen.p50_us, seen.p99_us, seen.p999_us
    sample.problems += seen.problems
    if proxy and sample.requests:
        sample.cpu_us = cpu * 1e6 / sample.requests
        sample.core_busy = cpu / elapsed
    if work.counted:
        sample.upstream_connections = after[0] - before[0]
        reached = after[1] - before[1]
        if reached < sample.requests:
            sample.problems.append(f"{sample.requests} answers were counted, the backend saw {reached} requests")


def fetch(port, path=PATH):
    """(status, body) of one HTTP/1.1 request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=FETCH_SECONDS)
    try:
        connection.request("GET", path, headers={"Host": "bench"})
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    finally:
        connection.close()


def fetch_http2(work, port):
    """The same by HTTP/2 with prior knowledge."""
    line = ["curl", "-s", "--http2-prior-knowledge", "-m", str(FETCH_SECONDS), "-H", "Host: bench"]
    for header in work.headers:
        line += ["-H", header]
    line += ["--data-binary", "@-"] if work.posts else []
    line += ["-w", "%{http_code}", f"http://127.0.0.1:{port}{PATH}"]
    said = subprocess.run(line, input=work.body, capture_output=True, text=True, timeout=2 * FETCH_SECONDS)
    return int(said.stdout[-3:] or 0), said.stdout[:-3]


def answers(work, port, options):
    """Whether the backend's answer comes back from `port`, byte for byte."""
    try:
        if work.tool == "websocket":
            return not load(replace(work, connections=1), port, MOMENT_SECONDS, options, None).problems
        status_and_body = fetch_http2(work, port) if work.http2 else fetch(port)
        return status_and_body == (200, work.body)
    except (OSError, http.client.HTTPException, subprocess.TimeoutExpired, Failed):
        return False


def backend_counts(work, port):
    """(connections accepted, requests seen) by the backend so far."""
    if not work.counted:
        return 0, 0
    _, text = fetch(port, "/")
    accepted, _, requests = re.search(r"(\d+) (\d+) (\d+)", text).groups()
    return int(accepted), int(requests)


def progress(work, sample, options):
    cost = f"{sample.cpu_us:.1f} us of CPU each" if sample.cpu_us else "-"
    fault = f"  INVALID: {'; '.join(sample.problems)}" if sample.problems else ""
    print(
        f"{work.key}  round {sample.round}/{rounds_of(work, options)}  {sample.name:<10} "
        f"{sample.requests_per_second:>8.0f} requests/s  {cost}{fault}",
        file=sys.stderr,
        flush=True,
    )
