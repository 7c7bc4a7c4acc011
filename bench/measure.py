"""One contestant, one round: start it, prove that it forwards, load it, read what it cost.

It does not choose who takes part (install.py) and draws no conclusions (report.py).
"""

import http.client
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field

import pki
from contestants import BODY, command
from install import which
from load import load
from processes import Failed, Program, free_port

# Connections are made, pools are filled, pages are touched and caches are warm before anything is counted.
WARM_SECONDS = 1
# A program that is up answers at once.
FETCH_SECONDS = 2


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
    idle_rss: int | None = None
    idle_pss: int | None = None
    loaded_rss: int | None = None
    loaded_pss: int | None = None
    upstream_connections: int = 0
    problems: list = field(default_factory=list)

    def as_dict(self):
        return asdict(self)


def run(work, contestants, options, directory):
    """All rounds of one work. The order turns with each, so that no contestant always follows the same one."""
    samples = []
    ports = {"BACKEND": free_port(), "COUNTS": free_port()}
    if work.pair:
        pki.make(directory)
    backend = command(work, "backend", which("nginx"), directory, ports)
    with Program("backend", backend, options.load_cpu, directory) as server:
        server.wait_until(lambda: answers(work, ports["BACKEND"]))
        for number in range(options.rounds):
            turn = number % max(len(contestants), 1)
            for contestant in contestants[turn:] + contestants[:turn]:
                sample = one(work, contestant, number + 1, ports, options, directory)
                samples.append(sample)
                progress(work, sample, options.rounds)
    return samples


def one(work, contestant, number, backend, options, directory):
    sample = Sample(work.key, contestant.name, number)
    try:
        if contestant.program is None:
            load_and_count(work, sample, None, backend["BACKEND"], backend, options, directory)
            return sample
        ports = {**backend, "PORT": free_port(), "ADMIN": free_port(), "FAR": free_port()}
        line = command(work, contestant.name, contestant.program, directory, ports)
        with Program(contestant.name, line, options.proxy_cpu, directory) as proxy:
            proxy.wait_until(lambda: answers(work, ports["PORT"]))
            sample.idle_rss, sample.idle_pss = proxy.memory_bytes()
            port = ports["FAR" if work.handshakes else "PORT"]
            load_and_count(work, sample, proxy, port, backend, options, directory)
            sample.loaded_rss, sample.loaded_pss = proxy.memory_bytes()
    except Failed as failure:
        sample.problems.append(str(failure))
    return sample


def load_and_count(work, sample, proxy, port, backend, options, directory):
    """Loads `port` and reads what it cost: the warm-up is a load of its own, before the first reading."""
    load(work, port, WARM_SECONDS, options, directory)
    connections_before, requests_before = backend_counts(backend["COUNTS"])
    cpu_before, began = (proxy.cpu_seconds() if proxy else 0), time.monotonic()
    seen = load(work, port, options.seconds, options, directory)
    elapsed = time.monotonic() - began
    if proxy:
        cpu = proxy.cpu_seconds() - cpu_before
    connections_after, requests_after = backend_counts(backend["COUNTS"])
    sample.requests, sample.requests_per_second = seen.requests, seen.per_second
    sample.p50_us, sample.p99_us = seen.p50_us, seen.p99_us
    sample.problems += seen.problems
    if proxy and sample.requests:
        sample.cpu_us = cpu * 1e6 / sample.requests
        sample.core_busy = cpu / elapsed
    sample.upstream_connections = connections_after - connections_before
    reached = requests_after - requests_before
    if reached < sample.requests:
        sample.problems.append(f"{sample.requests} answers were counted, the backend saw {reached} requests")


def fetch(port, path):
    """(status, body) of one HTTP/1.1 request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=FETCH_SECONDS)
    try:
        connection.request("GET", path, headers={"Host": "bench"})
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    finally:
        connection.close()


def fetch_http2(port, path):
    """The same by HTTP/2 with prior knowledge."""
    line = ["curl", "-s", "--http2-prior-knowledge", "-m", str(FETCH_SECONDS), "-H", "Host: bench"]
    line += ["-w", "%{http_code}", f"http://127.0.0.1:{port}{path}"]
    said = subprocess.run(line, capture_output=True, text=True, timeout=2 * FETCH_SECONDS)
    return int(said.stdout[-3:] or 0), said.stdout[:-3]


def answers(work, port):
    """Whether the backend's answer comes back from `port`, byte for byte."""
    ask = fetch_http2 if work.clients else fetch
    try:
        return ask(port, "/hello") == (200, BODY)
    except (OSError, http.client.HTTPException, subprocess.TimeoutExpired):
        return False


def backend_counts(port):
    """(connections accepted, requests seen) by the backend so far."""
    _, text = fetch(port, "/")
    accepted, _, requests = re.search(r"(\d+) (\d+) (\d+)", text).groups()
    return int(accepted), int(requests)


def progress(work, sample, rounds):
    cost = f"{sample.cpu_us:.1f} us of CPU each" if sample.cpu_us else "-"
    fault = f"  INVALID: {'; '.join(sample.problems)}" if sample.problems else ""
    print(
        f"{work.title}  round {sample.round}/{rounds}  {sample.name:<10} {sample.requests_per_second:>8.0f} requests/s  {cost}{fault}",
        file=sys.stderr,
        flush=True,
    )
