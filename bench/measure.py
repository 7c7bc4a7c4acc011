"""One contestant, one round: start it, prove that it forwards, load it, read what it cost.

It does not choose who takes part (install.py) and draws no conclusions (report.py).
"""

import http.client
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field

from contestants import BODY, command
from install import which
from processes import Failed, Program, free_port

# Connections are made, pools are filled, pages are touched and caches are warm before anything is counted.
WARM_SECONDS = 1
# wrk ends by itself after its seconds; this much longer means that it hangs.
LOAD_GRACE_SECONDS = 20


@dataclass
class Sample:
    """What one round of one contestant gave. Absent figures are None: `direct` has no proxy to look at."""

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


def run(contestants, options, directory):
    """All rounds. The order turns with each, so that no contestant always follows the same one."""
    samples = []
    ports = {"BACKEND": free_port()}
    backend = command("backend", which("nginx"), directory, ports)
    with Program("backend", backend, options.load_cpu, directory) as server:
        server.wait_until(lambda: answers(ports["BACKEND"]))
        for number in range(options.rounds):
            turn = number % max(len(contestants), 1)
            for contestant in contestants[turn:] + contestants[:turn]:
                sample = one(contestant, number + 1, ports["BACKEND"], options, directory)
                samples.append(sample)
                progress(sample, options.rounds)
    return samples


def one(contestant, number, backend_port, options, directory):
    sample = Sample(contestant.name, number)
    try:
        if contestant.program is None:
            load_and_count(sample, None, backend_port, backend_port, options)
            return sample
        ports = {"BACKEND": backend_port, "PORT": free_port(), "ADMIN": free_port()}
        line = command(contestant.name, contestant.program, directory, ports)
        with Program(contestant.name, line, options.proxy_cpu, directory) as proxy:
            proxy.wait_until(lambda: answers(ports["PORT"]))
            sample.idle_rss, sample.idle_pss = proxy.memory_bytes()
            load_and_count(sample, proxy, ports["PORT"], backend_port, options)
            sample.loaded_rss, sample.loaded_pss = proxy.memory_bytes()
    except Failed as failure:
        sample.problems.append(str(failure))
    return sample


def load_and_count(sample, proxy, port, backend_port, options):
    """Loads `port` and reads what it cost: the warm-up is a load of its own, before the first reading."""
    wrk(port, WARM_SECONDS, options)
    connections_before, requests_before = backend_counts(backend_port)
    cpu_before, began = (proxy.cpu_seconds() if proxy else 0), time.monotonic()
    said = wrk(port, options.seconds, options)
    elapsed = time.monotonic() - began
    if proxy:
        cpu = proxy.cpu_seconds() - cpu_before
    connections_after, requests_after = backend_counts(backend_port)
    read_wrk(said, sample)
    if proxy and sample.requests:
        sample.cpu_us = cpu * 1e6 / sample.requests
        sample.core_busy = cpu / elapsed
    sample.upstream_connections = connections_after - connections_before
    reached = requests_after - requests_before
    if reached < sample.requests:
        sample.problems.append(f"wrk counted {sample.requests} answers, the backend saw {reached} requests")


def wrk(port, seconds, options):
    line = ["taskset", "-c", str(options.load_cpu), "wrk", "-t1", f"-c{options.connections}", f"-d{seconds}s"]
    line += ["--latency", "-H", "Host: bench", f"http://127.0.0.1:{port}/hello"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=seconds + LOAD_GRACE_SECONDS)
    except subprocess.TimeoutExpired as late:
        raise Failed(f"wrk did not end within {LOAD_GRACE_SECONDS} s of its time") from late
    if done.returncode:
        raise Failed(f"wrk failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def read_wrk(said, sample):
    """Takes wrk's report apart. What it calls an error makes the round invalid."""
    total = re.search(r"(\d+) requests in ", said)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    if not total or not rate:
        raise Failed(f"wrk said something unexpected: {said[-300:]}")
    sample.requests, sample.requests_per_second = int(total.group(1)), float(rate.group(1))
    sample.p50_us, sample.p99_us = percentile(said, 50), percentile(said, 99)
    for line in said.splitlines():
        if "Non-2xx" in line or "Socket errors" in line:
            sample.problems.append(line.strip())
    if not sample.requests:
        sample.problems.append("no request was answered")


def percentile(said, which_one):
    """A line of wrk's latency table, such as `99%   1.23ms`, in microseconds."""
    found = re.search(rf"^\s+{which_one}%\s+([\d.]+)(us|ms|s|m)$", said, re.MULTILINE)
    if not found:
        return 0.0
    return float(found.group(1)) * {"us": 1, "ms": 1e3, "s": 1e6, "m": 60e6}[found.group(2)]


def fetch(port, path):
    """(status, body) of one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path, headers={"Host": "bench"})
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    finally:
        connection.close()


def answers(port):
    """Whether the backend's answer comes back from `port`, byte for byte."""
    try:
        return fetch(port, "/hello") == (200, BODY)
    except (OSError, http.client.HTTPException):
        return False


def backend_counts(port):
    """(connections accepted, requests seen) by the backend so far."""
    _, text = fetch(port, "/backend-counts")
    accepted, _, requests = re.search(r"(\d+) (\d+) (\d+)", text).groups()
    return int(accepted), int(requests)


def progress(sample, rounds):
    cost = f"{sample.cpu_us:.1f} us of CPU each" if sample.cpu_us else "-"
    fault = f"  INVALID: {'; '.join(sample.problems)}" if sample.problems else ""
    print(
        f"round {sample.round}/{rounds}  {sample.name:<10} {sample.requests_per_second:>8.0f} requests/s  {cost}{fault}",
        file=sys.stderr,
        flush=True,
    )
