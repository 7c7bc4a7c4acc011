"""How figures are written, and the text of docs/performance.md around them.

It computes nothing but ratios and differences of two figures that stand in one table.
"""

TITLES = {
    "outrigger": "Outrigger",
    "haproxy": "HAProxy",
    "nginx": "nginx",
    "envoy": "Envoy",
    "floor": "floor",
    "direct": "direct",
    "control": "the control API",
}
HEADER = (
    "contestant", "version", "requests/s", "CPU µs/request", "× HAProxy", "× Envoy", "× floor",
    "core busy", "p50 µs", "p99 µs", "idle RSS", "loaded RSS", "loaded PSS", "errors",
)  # fmt: skip
PACED_HEADER = (
    "contestant", "version", "requests/s", "CPU µs/request", "p50 µs", "p99 µs", "p99.9 µs",
    "added p50", "added p99", "added p99.9", "errors",
)  # fmt: skip
LATENCIES = ("p50_us", "p99_us", "p999_us")

TOP = """# Performance

Written by `bench/run --write`; do not edit by hand. What runs, and why each contestant is set as it is, stands in
[bench/README.md](../bench/README.md).

```
{command}
```

{date}, {cpu}, {cores} cores{virtual}, {system}, Linux {kernel}. Medians of {rounds} rounds of {seconds} s each, of three
rounds for works that no bar stands on. The proxy has one core and one worker thread; load and backend share the other.

<picture>
  <source media="(prefers-color-scheme: dark)" srcset="performance-dark.svg">
  <img src="performance-light.svg" alt="CPU per request of each contestant for each work; the tables below have the figures">
</picture>
"""

WORK = """
## {title}

{sentence}

"""

EXPERIMENT = """
## {title}

{text}

"""

AGAIN = """
## A second run

The ratios of the CPU that Outrigger took for a request, in this run and in another on {date}, of {rounds} rounds of {seconds} s:
of the medians, and the lowest and highest of a single round. How far rounds lie apart is the noise of the machine, and how far to trust
a ratio; the second run has the same figure if its medians' ratio lies between the rounds of the first.

| work | against | ratio | rounds | again | rounds | the same |
| --- | --- | --: | --: | --: | --: | --- |
"""

READING = """
## How to read it

- **CPU µs/request** is the figure to compare: user and system time of every process and thread of the contestant,
  divided by the requests it answered. It does not depend on how fast the load generator is.
- **requests/s, p50 and p99** are those of a whole machine with connections that ask again as soon as they are answered. The
  higher the rate, the longer the queue for the shared other core: compare them only between rows. What a caller of a moderately
  used service would see is the table at a fixed rate.
- **core busy** is how much of its core the contestant used. Well below 100 %, the load was the limit and not the proxy.
- **floor** is a bare epoll byte forwarder in C (bench/floor.c): what a hop costs at the least. **direct** is no proxy. Where
  connections are shared or messages change (HTTP/2, gRPC), a proxy that sends more with one system call can cost less.
- **idle RSS** is read after the first answer, **loaded** right after the load. PSS counts pages that processes share
  once, RSS once for each process.
- **errors** are answers other than 2xx and 3xx, and socket errors. A row with any is invalid and has no ratios.
- Figures of two machines, or of two runs, are not comparable to the percent; the ratios of one run are.

## Bars

All of the design. The bars on CPU are against the same run.

| bar | measured | |
|---|---|---|
"""


def markdown(result):
    """The whole page."""
    facts = {**result, **result["machine"]}
    facts["virtual"] = " (virtual machine)" if result["machine"]["virtual"] else ""
    lines = [TOP.format(**facts).rstrip("\n")]
    for work in result["works"]:
        lines.append(WORK.format(**work).rstrip("\n") + "\n")
        lines += [table(header(work)), table(["---"] * 2 + ["--:"] * (len(header(work)) - 2))]
        lines += [table(cells(row, work)) for row in work["rows"]]
        lines += ["", ranges(work)]
    for experiment in result["experiments"]:
        lines.append(EXPERIMENT.format(**experiment).rstrip("\n") + "\n")
        lines += [table(experiment["header"]), table(["---"] + ["--:"] * (len(experiment["header"]) - 1))]
        lines += [table(row) for row in experiment["rows"]]
        lines += [f"\nINVALID: {problem}" for problem in experiment["problems"]]
    if "again" in result:
        lines.append(AGAIN.format(**result["again"]).rstrip("\n"))
        lines += [table(row) for row in second_run(result["works"], result["again"]["works"])]
    lines += [f"\nNot measured, {TITLES[name]}: {reason}" for name, reason in result["absent"].items()]
    lines.append(READING.rstrip("\n"))
    lines += [table([bar["bar"], bar["measured"], verdict(bar["met"])]) for bar in result["bars"]]
    return "\n".join(lines) + "\n"


def second_run(works, again):
    """A line for each work that both runs have and each anchor: the ratio and how far its rounds lie apart, by each run."""
    others = {work["work"]: work for work in again}
    for work in works:
        other = others.get(work["work"])
        if other is None or work["paced"]:
            continue
        for anchor in ("haproxy", "envoy"):
            first, second = (times(*(find(run, name) for name in ("outrigger", anchor))) for run in (work, other))
            noise = [ratios(run, anchor) for run in (work, other)]
            if "-" in (first, second) or not all(noise):
                continue
            same = "yes" if min(noise[0]) <= float(second) <= max(noise[0]) else "NO"
            spread = [f"{min(rounds):.2f}–{max(rounds):.2f}" for rounds in noise]
            yield [work["title"], TITLES[anchor], first, spread[0], second, spread[1], same]


def ratios(work, anchor):
    """The ratio of each round in which both were measured."""
    spent = {(sample["name"], sample["round"]): sample["cpu_us"] for sample in work["samples"]}
    pairs = [(spent.get(("outrigger", number)), spent.get((anchor, number))) for number in range(1, work["rounds"] + 1)]
    return [ours / theirs for ours, theirs in pairs if ours and theirs]


def find(work, name):
    """The row of a contestant, or none."""
    return next((row for row in work["rows"] if row["name"] == name), None)


def table(row):
    return f"| {' | '.join(row)} |"


def ranges(work):
    """How far the rounds lay apart: whether the medians can be trusted."""
    spread = [
        f"{TITLES[row['name']]} {row['cpu_us_range'][0]:.1f}–{row['cpu_us_range'][1]:.1f}"
        for row in work["rows"]
        if row["cpu_us_range"]
    ]
    return f"CPU µs/request, lowest and highest of {work['rounds']} rounds: {', '.join(spread)}."


def header(work):
    return PACED_HEADER if work["paced"] else HEADER


def cells(row, work):
    """One line of the table, as text."""
    anchors = {each["name"]: each for each in work["rows"]}
    begin = [TITLES[row["name"]], row["version"] or "-", number(row["requests_per_second"], 0), number(row["cpu_us"], 1)]
    errors = "none" if row["valid"] else "INVALID"
    if work["paced"]:
        direct = anchors.get("direct")
        return begin + [number(row[name], 0) for name in LATENCIES] + [added(row, direct, name) for name in LATENCIES] + [errors]
    against = [times(row, anchors.get(anchor)) for anchor in ("haproxy", "envoy", "floor")]
    busy = "-" if row["core_busy"] is None else f"{row['core_busy']:.0%}".replace("%", " %")
    memory = [mebibytes(row[name]) for name in ("idle_rss", "loaded_rss", "loaded_pss")]
    return [*begin, *against, busy, number(row["p50_us"], 0), number(row["p99_us"], 0), *memory, errors]


def times(row, anchor):
    if not row or not anchor or not anchor["valid"] or not row["valid"] or not anchor["cpu_us"] or not row["cpu_us"]:
        return "-"
    return f"{row['cpu_us'] / anchor['cpu_us']:.2f}"


def added(row, direct, name):
    """How much more a latency is than without a proxy."""
    if not direct or row is direct or not direct["valid"] or not row["valid"]:
        return "-"
    return f"{row[name] - direct[name]:+,.0f}"


def number(value, digits):
    return "-" if not value else f"{value:,.{digits}f}"


def mebibytes(value):
    return "-" if value is None else f"{value / 1024 / 1024:.1f} MiB"


def verdict(met):
    return {True: "met", False: "NOT met", None: "not judged"}[met]
