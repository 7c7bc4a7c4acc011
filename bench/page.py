"""How figures are written, and the text of docs/performance.md around them.

It computes nothing but ratios of two figures that stand in one table.
"""

TITLES = {
    "outrigger": "Outrigger",
    "haproxy": "HAProxy",
    "nginx": "nginx",
    "envoy": "Envoy",
    "floor": "floor",
    "direct": "direct",
}
HEADER = (
    "contestant", "version", "requests/s", "CPU µs/request", "× HAProxy", "× Envoy", "× floor",
    "core busy", "p50 µs", "p99 µs", "idle RSS", "loaded RSS", "loaded PSS", "errors",
)  # fmt: skip

TOP = """# Performance

Written by `bench/run --write`; do not edit by hand. What runs, and why each contestant is set as it is, stands in
[bench/README.md](../bench/README.md).

```
{command}
```

{date}, {cpu}, {cores} cores{virtual}, {system}, Linux {kernel}. {rounds} rounds of {seconds} s each, medians. The proxy
has one core and one worker thread; load and backend (nginx) share the other.
"""

WORK = """
## One {title} {goes}

{load}

"""

READING = """
## How to read it

- **CPU µs/request** is the figure to compare: user and system time of every process and thread of the contestant,
  divided by the requests it answered. It does not depend on how fast the load generator is.
- **requests/s, p50 and p99** are those of a whole machine with connections that ask again as soon as they are answered. The higher the rate, the longer the queue for the shared other core: compare them only between rows.
- **core busy** is how much of its core the contestant used. Well below 100 %, the load was the limit and not the proxy.
- **floor** is a bare epoll byte forwarder in C (bench/floor.c): what a hop costs at the least. **direct** is no proxy.
- **idle RSS** is read after the first answer, **loaded** right after the load. PSS counts pages that processes share
  once, RSS once for each process.
- **errors** are answers other than 2xx and 3xx, and socket errors. A row with any is invalid and has no ratios.
- Figures of two machines, or of two runs, are not comparable to the percent; the ratios of one run are.

## Bars

Those of the design that this run can judge. The CPU bars are against the same run.

| bar | measured | |
|---|---|---|
"""

BOTTOM = """
Bars that this comparison does not measure yet: memory with 1,000 services, route cost at
5,000 routes, a push under load, a push to 10,000 sidecars.
"""


def markdown(result):
    """The whole page."""
    facts = {**result, **result["machine"]}
    facts["virtual"] = " (virtual machine)" if result["machine"]["virtual"] else ""
    lines = [TOP.format(**facts).rstrip("\n")]
    for work in result["works"]:
        lines.append(WORK.format(title=work["title"], goes=work["goes"], load=load(work, result)).rstrip("\n") + "\n")
        lines += [table(HEADER), table(["---"] * 2 + ["--:"] * (len(HEADER) - 2))]
        lines += [table(cells(row, work)) for row in work["rows"]]
        lines += ["", ranges(work)]
    lines += [f"\n{TITLES[name]} was not measured: {reason}" for name, reason in result["absent"].items()]
    lines.append(READING.rstrip("\n"))
    bars = [bar for work in result["works"] for bar in work["bars"]]
    lines += [table([bar["bar"], bar["measured"], verdict(bar["met"])]) for bar in bars]
    return "\n".join(lines) + "\n" + BOTTOM


def load(work, result):
    """What the load of a work is, in a sentence."""
    if work["handshakes"]:
        return (
            "`openssl s_time`, eight at a time: each request by a new TLS 1.3 connection with client certificates (P-256), "
            "straight to the service's sidecar. CPU is that of both sidecars, of which one is idle."
        )
    if work["pair"]:
        return (
            f"wrk with {result['connections']} connections, HTTP/1.1 to the caller's sidecar, mTLS (TLS 1.3, kept connections) to "
            "the service's, HTTP/1.1 to the backend. Both sidecars, a process each, on the one core: CPU and memory are of both."
        )
    if not work["clients"]:
        return f"wrk with {result['connections']} connections, one request on each at a time."
    return f"h2load with {work['clients']} connections and {work['streams']} streams on each at a time; HTTP/2 on both sides."


def table(row):
    return f"| {' | '.join(row)} |"


def ranges(work):
    """How far the rounds lay apart: whether the medians can be trusted."""
    spread = [
        f"{TITLES[row['name']]} {row['cpu_us_range'][0]:.1f}–{row['cpu_us_range'][1]:.1f}"
        for row in work["rows"]
        if row["cpu_us_range"]
    ]
    return f"CPU µs/request, lowest and highest round: {', '.join(spread)}."


def cells(row, work):
    """One line of the table, as text."""
    anchors = {each["name"]: each for each in work["rows"]}
    against = [times(row, anchors.get(anchor)) for anchor in ("haproxy", "envoy", "floor")]
    busy = "-" if row["core_busy"] is None else f"{row['core_busy']:.0%}".replace("%", " %")
    return [
        TITLES[row["name"]],
        row["version"] or "-",
        number(row["requests_per_second"], 0),
        number(row["cpu_us"], 1),
        *against,
        busy,
        number(row["p50_us"], 0),
        number(row["p99_us"], 0),
        mebibytes(row["idle_rss"]),
        mebibytes(row["loaded_rss"]),
        mebibytes(row["loaded_pss"]),
        "none" if row["valid"] else "INVALID",
    ]


def times(row, anchor):
    if not anchor or not anchor["valid"] or not row["valid"] or not anchor["cpu_us"] or not row["cpu_us"]:
        return "-"
    return f"{row['cpu_us'] / anchor['cpu_us']:.2f}"


def number(value, digits):
    return "-" if not value else f"{value:,.{digits}f}"


def mebibytes(value):
    return "-" if value is None else f"{value / 1024 / 1024:.1f} MiB"


def verdict(met):
    return {True: "met", False: "NOT met", None: "not judged"}[met]
