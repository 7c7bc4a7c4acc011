"""Whether requests notice pushes: their latency while a large table is pushed again and again, against the same without."""

import http.client
import os
import re
import statistics
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import measure
from load import pace
from processes import Failed, Program, free_port
from works import WORKS

from . import Found, service, service_name, services

SERVICES, ENDPOINTS = 1000, 10
EVERY_SECONDS = 0.2
# Busy, and far from what the one core can answer: what waits is a request that the push held up, not one behind others.
RATE, CONNECTIONS = 10_000, 64
# What pushes stands on the core of the load for want of a third, and must not hold the load up: it takes what is left.
NICENESS = 19
ASIDE = ("nice", "-n", str(NICENESS))
# So that even a short round has some pushes.
SECONDS_MIN = 2
PUT_SECONDS_MAX = 10


# What a round is loaded with, in the order of the table. What pushes, and the control API that takes them, share the core of the load
# and the backend for want of a third, and hold both up though they yield: so the same is done in the rounds that are compared, to a
# control API that no sidecar listens to.
QUIET, ELSEWHERE, HERE = "without pushes", "pushes to a control API of its own", "pushes to this sidecar"


def run(bench):
    found = Found(
        "A push under load",
        f"Outrigger with {SERVICES:,} services of {ENDPOINTS} endpoints each, held by `outrigger serve`. An open loop asks "
        f"{RATE:,} times a second; in a third of the rounds one of the services is pushed every {EVERY_SECONDS * 1000:.0f} ms, and each "
        "time the sidecar reads that service and compiles the whole table anew. It has one core for the worker and the control thread. "
        "The control API shares the other with the load and the backend, and holds them up though it yields: so another third of the "
        "rounds have the same pushes to a second one that no sidecar listens to, and the ratio is between these two. "
        "*Core waited for* is what the kernel counted of the data thread: ready to run, while the control thread ran on its core. It does "
        "not depend on what else disturbs the machine, as a p99 of milliseconds does.",
        ("", "requests/s", "pushes applied", "p50 µs", "p99 µs", "p99.9 µs", "core waited for, ms/s", "failed"),
    )
    if "outrigger" not in bench.field or not bench.control:
        found.problems.append("outrigger-proxy or outrigger does not take part")
        return found
    try:
        samples = measured(bench)
    except (Failed, OSError, http.client.HTTPException) as failure:
        found.problems.append(str(failure))
        return found
    for key, title in (("without", QUIET), ("elsewhere", ELSEWHERE), ("with", HERE)):
        loads = [seen for seen, _, _ in samples[title]]
        pushes = statistics.median(applied for _, applied, _ in samples[title])
        waited = statistics.median(waited for _, _, waited in samples[title])
        rate, p50, p99, p999 = (
            statistics.median(getattr(seen, name) for seen in loads)
            for name in ("per_second", "p50_us", "p99_us", "p999_us")
        )
        problems = [problem for seen in loads for problem in seen.problems]
        found.problems += problems
        figures = (f"{value:,.0f}" for value in (rate, pushes, p50, p99, p999))
        found.rows.append([title, *figures, f"{waited:.1f}", "; ".join(problems) or "none"])
        found.figures[key] = {
            "p99_us": p99, "p999_us": p999, "pushes": pushes, "waited_ms_per_second": waited,
            "p99_us_of_rounds": [seen.p99_us for seen in loads],
        }  # fmt: skip
    found.figures["ratio"] = found.figures["with"]["p99_us"] / found.figures["elsewhere"]["p99_us"]
    if not found.figures["with"]["pushes"]:
        found.problems.append("no push was applied")
    if found.figures["elsewhere"]["pushes"]:
        found.problems.append("a push to a control API of its own was applied by the sidecar")
    return found


def measured(bench):
    """Of each round the load, how many pushes the sidecar applied meanwhile, and how long its data thread waited for its core in each
    second (ms); by what the round was loaded with."""
    options, samples = bench.options, {QUIET: [], ELSEWHERE: [], HERE: []}
    work = replace(WORKS["http1"], folder="push")
    with (
        measure.backend(work, options, bench.directory) as ports,
        control_api(bench, options.load_cpu, ASIDE) as (_, here),
        control_api(bench, options.load_cpu, ASIDE) as (_, elsewhere),
    ):
        put(here, everything(ports["BACKEND"]))
        put(elsewhere, everything(ports["BACKEND"]))
        with measure.proxy(work, bench.field["outrigger"], {**ports, "API": here}, options, bench.directory) as (program, own):
            for number in range(len(samples) * options.rounds):
                # The order turns: each kind comes after each other one as often as before it.
                kinds = list(samples) if number // len(samples) % 2 == 0 else list(samples)[::-1]
                kind = kinds[number % len(samples)]
                before, waited_before = applied(own["ADMIN"]), waited(program.process.pid)
                to = {HERE: here, ELSEWHERE: elsewhere}.get(kind)
                seconds = max(options.seconds, SECONDS_MIN)
                with pushes(to, number) if to else quiet():
                    seen = pace(own["PORT"], RATE, seconds, CONNECTIONS, options)
                waits = (waited(program.process.pid) - waited_before) / seconds
                samples[kind].append((seen, applied(own["ADMIN"]) - before, waits))
    return samples


def everything(backend_port):
    """What is pushed first: the service that is loaded, and the large table."""
    loaded = (
        "kind: Service\nname: bench\nhosts: [bench, 127.0.0.1]\nbackends:\n"
        f'  - name: one\n    discover: {{ static: ["127.0.0.1:{backend_port}"] }}\n    tls: none\n'
    )
    return f"{loaded}---\n{services(SERVICES, ENDPOINTS)}"


@contextmanager
def control_api(bench, core, before=()):
    """A control API of its own with an empty store, started by `before`; gives the program and its port."""
    port = free_port()
    data = f"{bench.directory}/store-{port}"
    line = [*before, bench.control, "serve", "--listen", f"127.0.0.1:{port}", "--data", data]
    with Program("control-api", line, core, bench.directory) as running:
        running.wait_until(lambda: is_ready(port))
        yield running, port


def is_ready(port):
    try:
        return measure.fetch(port, "/ready")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def put(port, text, path="/v1/config"):
    """Pushes documents and gives what the control API answered; its answer comes once they are stored."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PUT_SECONDS_MAX)
    try:
        connection.request("PUT", path, text.encode(), {"Content-Type": "application/yaml"})
        answer = connection.getresponse()
        said = answer.read().decode(errors="replace")
    finally:
        connection.close()
    if answer.status >= 300:
        raise Failed(f"PUT {path} was answered with {answer.status}: {said[:300]}")
    return said


@contextmanager
def pushes(api, seed):
    """While it lasts, one of the services changes every 200 ms."""
    stop, failed = threading.Event(), []

    def push():
        # Of this thread alone.
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
        due, number = time.monotonic(), seed * 100
        while not stop.wait(max(due - time.monotonic(), 0)):
            due += EVERY_SECONDS
            number += 1
            which = number % SERVICES
            try:
                put(api, service(which, ENDPOINTS, moved=number % 50 + 1), f"/v1/services/{service_name(which)}")
            except (Failed, OSError, http.client.HTTPException) as failure:
                failed.append(f"a push failed: {failure}")
                return

    thread = threading.Thread(target=push)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failed:
        raise Failed(failed[0])


@contextmanager
def quiet():
    yield


def waited(process):
    """How long the data threads of a sidecar have been ready to run and did not, in ms since they began."""
    waits = 0
    for task in Path(f"/proc/{process}/task").iterdir():
        if (task / "comm").read_text().startswith("worker-"):
            # Time on the processor, time waited for it, both in ns (Documentation/scheduler/sched-stats.rst).
            waits += int((task / "schedstat").read_text().split()[1])
    return waits / 1e6


def applied(admin_port):
    """How many pushes the sidecar has applied so far, by its own metrics."""
    _, text = measure.fetch(admin_port, "/metrics")
    counted = re.search(r'^outrigger_config_pushes_total\{result="applied"\} (\d+)', text, re.MULTILINE)
    if not counted:
        raise Failed("the sidecar's metrics do not say how many pushes it applied")
    return int(counted.group(1))
