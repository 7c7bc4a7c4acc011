"""The text of docs/discovery-compared.md: two parts, each written by a run of its own.

It computes nothing; the words around the figures are written for what was measured and must be read again with them.
"""

import datetime
import statistics

from contestants import HERE
from dns_names import TTL_MAX, TTL_MIN
from dns_scenarios import DRAIN_SECONDS, SAMPLE, SAMPLED, STEPS, TTL
from dns_traffic import RATE
from page import mebibytes, table
from report import machine, shown_command

PAGE = HERE.parent / "docs" / "discovery-compared.md"
TOP = """# Discovery by DNS, compared

What Outrigger and Envoy's `STRICT_DNS` do under a steady load when DNS changes, fails and lies. Written by
`bench/dns --write` and `bench/dns --names 5000 --write`; do not edit by hand. How discovery works stands in
[discovery.md](discovery.md), how this is measured in [bench/README.md](../bench/README.md#discovery).
"""
MARK = "<!-- {} -->"
PARTS = ("scenarios", "names")


def facts(versions, argv):
    here = machine()
    virtual = " (virtual machine)" if here["virtual"] else ""
    named = ", ".join(f"{name.capitalize()} {version}" for name, version in sorted(versions.items(), reverse=True))
    command = shown_command(argv).replace("bench/run", "bench/dns", 1)
    build = " `--binary` may be a development build: behaviour is the same, CPU and memory are not." if "--binary" in argv else ""
    return (
        f"```\n{command}\n```\n\n{datetime.date.today().isoformat()}; {named}; {here['cpu']}, {here['cores']} cores{virtual}, "
        f"{here['system']}, Linux {here['kernel']}.{build}"
    )


def scenarios_part(results, contestants, versions, argv):
    names = {each.key: each.title for each in contestants}
    lines = ["## Changes and failures", "", facts(versions, argv), ""]
    lines += [f"- **{each.title}**: {each.settings}" for each in contestants]
    lines += [
        "",
        f"Each has {RATE} requests a second on kept connections, a TTL of {TTL} s where nothing else is said, and a DNS server, "
        "backends and a fresh process of its own; all live through a scenario at the same time. **failed** counts every request "
        "without an answer of a backend. **seen after** is the time until a new endpoint has answered a request, in the "
        "failures counted from their end; of several changes the median and the longest. Questions are A and AAAA together.",
        "",
    ]
    for title in dict.fromkeys(each.scenario for each in results):
        rows = [each for each in results if each.scenario == title]
        lines += [f"### {heading(title)}", "", EXPLAINED.get(title, FAULT), ""]
        columns = [column for column in COLUMNS if any(column[2](row) is not None for row in rows)]
        lines += [table(["", *(head(column, title) for column in columns)]), table(["---"] + ["--:"] * len(columns))]
        for row in rows:
            lines.append(table([names[row.contestant], *(cell(column, row) for column in columns)]))
        lines.append("")
    lines += ["### Where Envoy is as good, or better", "", unfailing(results, names), NOT_LISTED, ""]
    lines += verdicts(results, names)
    return "\n".join(lines).rstrip() + "\n"


NOT_LISTED = (
    "Below, the best of Envoy's rows against Outrigger's, figure by figure; within a tenth counts as equal, and nothing failed on "
    "both sides is not listed. After a failure there is one change, found sooner or later by chance within the time between two "
    "questions: while DNS fails that is up to 5 s for Outrigger and Envoy, up to 2 s for Envoy tuned. The price of health checks "
    "is that an instance which has left DNS is asked until it ends, and that a new one waits for its first check."
)


def unfailing(results, names):
    failed = {}
    for each in results:
        failed[each.contestant] = failed.get(each.contestant, 0) + each.failed
    good = [names[key] for key, count in failed.items() if not count]
    return f"No request failed in any scenario with: {'; '.join(good) or 'nobody'}."


def verdicts(results, names):
    """In which figures the best of Envoy's settings is as good as Outrigger, or better: a list of sentences."""
    said = []
    for title in dict.fromkeys(each.scenario for each in results):
        rows = {each.contestant: each for each in results if each.scenario == title}
        ours = rows.pop("outrigger", None)
        if ours is None or not rows:
            continue
        for what, figure in JUDGED:
            if title == "scale down" and what == SEEN:
                what = "last asked"
            best = min(rows.values(), key=figure)
            own, other = figure(ours), figure(best)
            if float("inf") in (own, other) or own == other == 0:
                continue
            if other < own * (1 - ALIKE):
                said.append(f"- {heading(title)}, {what}: **{names[best.contestant]}** is better.")
            elif other <= own * (1 + ALIKE):
                said.append(f"- {heading(title)}, {what}: {names[best.contestant]} is equal.")
    return said


def failing(row):
    return row.failed / max(row.requests, 1)


def median(row):
    """Of changes that were seen; those that never were count as for ever."""
    if not row.converged:
        return float("inf")
    return statistics.median(float("inf") if each is None else each for each in row.converged)


SEEN = "seen after"
# Figures nearer than this share of one another are alike: chance in when a record changes is larger.
ALIKE = 0.1
# Lower is better; infinite is what was not measured.
JUDGED = (
    ("failed requests", failing),
    (SEEN, median),
    ("endpoints out of use", lambda row: float("inf") if row.used is None else SAMPLED - row.used),
    ("endpoints added and removed", lambda row: float("inf") if row.changes_per_minute is None else row.changes_per_minute),
    ("connections opened", lambda row: float("inf") if row.connections_per_minute is None else row.connections_per_minute),
)
FAULT = "For 20 s each question meets this. Then DNS answers again, with one endpoint more."
EXPLAINED = {
    "scale up": f"A record more, {STEPS} times, at any moment of the TTL.",
    "scale down": f"A record less, {STEPS} times; its instance ends {DRAIN_SECONDS} s later.",
    f"{SAMPLE} of {SAMPLED} at random": f"Each answer has {SAMPLE} of {SAMPLED} records, chosen at random, as some DNS services do. "
    "Half a minute to learn, half a minute to be judged by; changes and connections are those of the second, to "
    "which an address that no answer of the first named is an addition. Outrigger closes a connection that "
    "was idle for 3 s, Envoy after an hour.",
    "TTL 0": f"Three records with a TTL of 0; after 20 s one more, {STEPS} times.",
}


def heading(title):
    return title[0].upper() + title[1:]


def requests(row):
    return f"{row.failed:,} of {row.requests:,}"


def seconds(values):
    """The median, and the longest of several."""
    if not values:
        return None
    if None in values:
        return f"never, {values.count(None)} of {len(values)}"
    if len(values) == 1:
        return f"{values[0]:.1f} s"
    return f"{statistics.median(values):.1f} s (at most {max(values):.1f} s)"


def rate(value):
    return None if value is None else f"{value:.1f}"


def whole(value):
    return None if value is None else f"{value:,.0f}"


# (heading, heading of scale down or None, what stands there)
COLUMNS = (
    ("failed", None, requests),
    ("seen after", "last asked after", lambda row: seconds(row.converged)),
    ("questions/s before", None, lambda row: rate(row.asked_before)),
    ("questions/s then", None, lambda row: rate(row.asked_after)),
    ("fewest endpoints held then", None, lambda row: whole(row.fewest)),
    ("distinct endpoints used", None, lambda row: whole(row.used)),
    ("endpoints added and removed/min", None, lambda row: whole(row.changes_per_minute)),
    ("connections opened/min", None, lambda row: whole(row.connections_per_minute)),
)


def head(column, title):
    return column[1] if column[1] and title == "scale down" else column[0]


def cell(column, row):
    said = column[2](row)
    return "-" if said is None else said


def names_part(result, versions, argv):
    rows = [
        ("ready after", f"{result.ready_seconds:.1f} s"),
        ("names with an endpoint at the end", f"{result.found:,} of {result.names:,}"),
        ("questions/s by the TTLs (A and AAAA, 1/TTL each)", f"{result.expected:.0f}"),
        ("questions/s, steady", f"{result.steady:.0f} (seconds of {result.steady_lowest} to {result.steady_highest})"),
        ("questions in the first minute", f"{result.burst:,}"),
        ("questions in the busiest second", f"{result.busiest_second:,}"),
        ("CPU in the first minute", f"{result.cpu_first:.1f} s"),
        ("CPU, steady", f"{result.cpu_steady:.1%} of a core".replace("%", " %", 1)),
        ("RSS when ready, at the end", f"{mebibytes(result.rss_idle)}, {mebibytes(result.rss)}"),
    ]
    lines = ["## Many names", "", facts(versions, argv), ""]
    lines += [
        f"{result.names:,} names with TTLs of {TTL_MIN} s to {TTL_MAX} s and one address each, in one sidecar with one data thread, "
        f"without requests, for {result.minutes} minutes.",
        "",
        table(["", "measured"]),
        table(["---", "--:"]),
        *(table(row) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def write(part, text):
    """Puts one part in its place and leaves the other as it is."""
    old = PAGE.read_text() if PAGE.exists() else ""
    kept = {}
    for name in PARTS:
        _, _, after = old.partition(MARK.format(name) + "\n")
        kept[name] = after.partition("<!-- ")[0].strip()
    kept[part] = text.strip()
    parts = [f"{MARK.format(name)}\n{kept[name]}\n" for name in PARTS if kept[name]]
    PAGE.write_text(TOP + "\n" + "\n".join(parts))
