"""What the number of a service's routes costs a request: five thousand against ten."""

import statistics
from dataclasses import replace

import measure
from load import load
from processes import Failed
from works import WORKS

from . import Found

FEW, MANY = 10, 5000


def run(bench):
    found = Found(
        "Routes",
        f"One service with {FEW} and with {MANY:,} routes by prefix of the path, Outrigger alone: wrk with 64 connections asks for "
        "what the last one matches, so that a search from the first would find it last.",
        ("routes", "requests/s", "CPU µs/request", "p50 µs", "p99 µs"),
    )
    if "outrigger" not in bench.field:
        found.problems.append("outrigger does not take part")
        return found
    samples = {FEW: [], MANY: []}
    with measure.backend(WORKS["http1"], bench.options, bench.directory) as ports:
        for _ in range(bench.options.rounds):
            for count, seen in samples.items():
                try:
                    seen.append(one(bench, count, ports))
                except Failed as failure:
                    found.problems.append(f"{count} routes: {failure}")
    for count, seen in samples.items():
        if seen:
            rate, cost, p50, p99 = map(statistics.median, zip(*seen))
            found.rows.append([f"{count:,}", f"{rate:,.0f}", f"{cost:.1f}", f"{p50:,.0f}", f"{p99:,.0f}"])
            found.figures[f"cpu_us_{count}"] = cost
    if len(found.figures) == 2:
        found.figures["ratio"] = found.figures[f"cpu_us_{MANY}"] / found.figures[f"cpu_us_{FEW}"]
    return found


def one(bench, count, ports):
    """(requests a second, CPU, p50, p99) of one load."""
    work = replace(WORKS["http1"], words={**WORKS["http1"].words, "ROUTES": routes(count)})
    path = f"{prefix(count - 1)}/hello"
    with measure.proxy(work, bench.field["outrigger"], ports, bench.options, bench.directory) as (running, own):
        load(work, own["PORT"], measure.WARM_SECONDS, bench.options, bench.directory, path=path)
        before = running.cpu_seconds()
        seen = load(work, own["PORT"], bench.options.seconds, bench.options, bench.directory, path=path)
        spent = running.cpu_seconds() - before
    if seen.problems:
        raise Failed("; ".join(seen.problems))
    return seen.per_second, spent * 1e6 / seen.requests, seen.p50_us, seen.p99_us


def routes(count):
    """Routes by prefix, the last of them for everything that no other matches: it answers the first question."""
    lines = ["routes:"]
    for number in range(count):
        lines.append(f"  - {{ name: r{number}, match: [{{ path: {{ prefix: {prefix(number)} }} }}], to: [{{ backend: one }}] }}")
    lines.append("  - { name: default, to: [{ backend: one }] }")
    return "\n".join(lines) + "\n"


def prefix(number):
    """None is the beginning of another."""
    return f"/route-{number:05}"
