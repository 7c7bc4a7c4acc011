"""The bars of the design, all of them, and whether a run meets each.

It measures nothing. A bar whose work did not run, or not without an error, is not judged.
"""

from dataclasses import dataclass
from typing import Callable

MEBIBYTE = 1024 * 1024
TITLES = {"haproxy": "HAProxy", "envoy": "Envoy", "floor": "a bare epoll forwarder"}


@dataclass
class Bar:
    """One line of the design's table."""

    text: str
    # The work or the experiment that judges it.
    key: str
    limit: float
    # The value of a run's result, or None.
    value: Callable
    # How a value is written.
    shown: str = "{:.2f} ×"
    scale: float = 1


def cpu(key, title, anchor, limit):
    def value(result):
        rows = rows_of(result, key)
        ours, theirs = rows.get("outrigger"), rows.get(anchor)
        if not (ours and theirs and ours["valid"] and theirs["valid"] and ours["cpu_us"] and theirs["cpu_us"]):
            return None
        return ours["cpu_us"] / theirs["cpu_us"]

    return Bar(f"{title}, CPU per request: at most {limit:g} × {TITLES[anchor]}", key, limit, value)


def of(key, *path):
    """A figure of an experiment that had no problem."""

    def value(result):
        found = next((each for each in result["experiments"] if each["key"] == key), None)
        if found is None or found["problems"]:
            return None
        figures = found["figures"]
        for name in path:
            figures = figures.get(name) if figures else None
        return figures

    return value


def idle_memory(result):
    ours = rows_of(result, "http1").get("outrigger")
    return ours["idle_rss"] if ours and ours["valid"] else None


def failures(result):
    """How many kinds of failure the requests under pushes had: any problem of the experiment is one."""
    found = next((each for each in result["experiments"] if each["key"] == "push"), None)
    return len(found["problems"]) if found else None


def rows_of(result, key):
    work = next((each for each in result["works"] if each["work"] == key), {"rows": []})
    return {row["name"]: row for row in work["rows"]}


MEMORY = {"shown": "{:.1f} MiB", "scale": MEBIBYTE}
BARS = (
    cpu("http1", "HTTP/1.1 hop", "haproxy", 1.0),
    cpu("http1", "HTTP/1.1 hop", "envoy", 0.28),
    cpu("http1", "HTTP/1.1 hop", "floor", 1.5),
    cpu("http2", "HTTP/2 hop", "haproxy", 1.25),
    cpu("http2", "HTTP/2 hop, the next bar", "haproxy", 1.0),
    cpu("http2", "HTTP/2 hop", "envoy", 0.22),
    cpu("mtls", "mTLS pair", "haproxy", 1.1),
    cpu("mtls", "mTLS pair, the next bar", "haproxy", 1.0),
    cpu("mtls", "mTLS pair", "envoy", 0.27),
    Bar("resident memory, idle: at most 12 MiB", "http1", 12 * MEBIBYTE, idle_memory, **MEMORY),
    Bar(
        "resident memory with 1,000 services of 10 endpoints: at most 40 MiB", "footprint", 40 * MEBIBYTE,
        of("footprint", "outrigger-large", "idle_rss"), **MEMORY,
    ),
    Bar("CPU per request with 5,000 routes: at most 1.1 × that with 10", "routes", 1.1, of("routes", "ratio")),
    Bar("a push while loaded: no failed request", "push", 0, failures, shown="{:.0f} failures"),
    Bar("a push while loaded, p99 of requests: at most 1.2 × that without", "push", 1.2, of("push", "ratio")),
    Bar(
        "a push to 10,000 sidecars of one control API: all acknowledged within 2 s", "fleet", 2,
        of("fleet", "listed_seconds"), shown="{:.2f} s",
    ),
    Bar("memory of that control API: under 1 GiB", "fleet", 1024 * MEBIBYTE, of("fleet", "rss"), **MEMORY),
)  # fmt: skip


def judge(result):
    """Every bar with what was measured and whether it is met; None where it is not judged."""
    return [judged(bar, bar.value(result)) for bar in BARS]


def judged(bar, value):
    return {
        "bar": bar.text,
        "key": bar.key,
        "measured": "not measured" if value is None else bar.shown.format(value / bar.scale),
        # What is shown decides: 1.004 is written 1.00, and would not be understood as a miss.
        "met": None if value is None else round(value / bar.scale, 2) <= bar.limit / bar.scale,
    }
