"""Whether requests notice pushes: their latency while a large table is pushed again and again, against the same without."""

import http.client
import os
import re
import statistics
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

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


def run(bench):
    found = Found(
        "A push under load",
        f"Outrigger with {SERVICES:,} services of {ENDPOINTS} endpoints each, held by `outrigger serve`. An open loop asks "
        f"{RATE:,} times a second; in half of the rounds one of the services is pushed every {EVERY_SECONDS * 1000:.0f} ms, and each time "
        "the sidecar reads that service and compiles the whole table anew. It has one core for the worker and the control thread; the control "
        "API shares the other with the load and the backend, and yields to them.",
        ("", "requests/s", "pushes applied", "p50 µs", "p99 µs", "p99.9 µs", "failed"),
    )
    if "outrigger" not in bench.field or not bench.control:
        found.problems.append("outrigger-proxy or outrigger does not take part")
        return found
    try:
        samples = measured(bench)
    except (Failed, OSError, http.client.HTTPException) as failure:
        found.problems.append(str(failure))
        return found
    for pushing, title in ((False, "without pushes"), (True, "with pushes")):
        loads = [seen for seen, _ in samples[pushing]]
        pushes = statistics.median(applied for _, applied in samples[pushing])
        rate, p50, p99, p999 = (
            statistics.median(getattr(seen, name) for seen in loads)
            for name in ("per_second", "p50_us", "p99_us", "p999_us")
        )
        problems = [problem for seen in loads for problem in seen.problems]
        found.problems += problems
        found.rows.append([title, *(f"{value:,.0f}" for value in (rate, pushes, p50, p99, p999)), "; ".join(problems) or "none"])
        found.figures["with" if pushing else "without"] = {"p99_us": p99, "p999_us": p999, "pushes": pushes}
    found.figures["ratio"] = found.figures["with"]["p99_us"] / found.figures["without"]["p99_us"]
    if not found.figures["with"]["pushes"]:
        found.problems.append("no push was applied")
    return found


def measured(bench):
    """The loads of all rounds and how many pushes were applied meanwhile, by whether there were any."""
    options, samples = bench.options, {False: [], True: []}
    work = replace(WORKS["http1"], folder="push")
    with measure.backend(work, options, bench.directory) as ports, control_api(bench, options.load_cpu, ASIDE) as (_, api):
        put(api, everything(ports["BACKEND"]))
        with measure.proxy(work, bench.field["outrigger"], {**ports, "API": api}, options, bench.directory) as (_, own):
            for number in range(2 * options.rounds):
                # The order turns, as everywhere: with, without, without, with.
                pushing = number % 4 in (0, 3)
                before = applied(own["ADMIN"])
                with pushes(api, number) if pushing else quiet():
                    seen = pace(own["PORT"], RATE, max(options.seconds, SECONDS_MIN), CONNECTIONS, options)
                samples[pushing].append((seen, applied(own["ADMIN"]) - before))
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


def applied(admin_port):
    """How many pushes the sidecar has applied so far, by its own metrics."""
    _, text = measure.fetch(admin_port, "/metrics")
    counted = re.search(r'^outrigger_config_pushes_total\{result="applied"\} (\d+)', text, re.MULTILINE)
    if not counted:
        raise Failed("the sidecar's metrics do not say how many pushes it applied")
    return int(counted.group(1))
