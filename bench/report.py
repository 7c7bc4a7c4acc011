"""From samples to figures: medians of the rounds; as a table, as JSON, as docs/performance.md.

It measures nothing and judges nothing (bars.py).
"""

import datetime
import json
import os
import platform
import re
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

import bars
import page
import plot
from contestants import HERE

DOCS = HERE.parent / "docs"
MEDIANS = (
    "requests_per_second", "cpu_us", "core_busy", "p50_us", "p99_us", "p999_us",
    "idle_rss", "idle_pss", "loaded_rss", "loaded_pss", "upstream_connections",
)  # fmt: skip


def say(text):
    print(f"bench/run: {text}", file=sys.stderr)


def summarise_work(work, field, samples):
    """What is known of one work: a row for each contestant."""
    return {
        "work": work.key,
        "title": work.title,
        "sentence": work.sentence,
        "paced": work.tool == "pace",
        "rounds": max((sample.round for sample in samples), default=0),
        "rows": [row(contestant, [s for s in samples if s.name == contestant.name]) for contestant in field],
        "samples": [sample.as_dict() for sample in samples],
    }


def summarise_experiment(key, found):
    return {"key": key, **asdict(found)}


def summarise(works, experiments, absent, options, argv):
    """Everything that is known after a run, ready for any of the outputs."""
    result = {
        "command": shown_command(argv),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "works": works,
        "experiments": experiments,
        "absent": absent,
    }
    return {**result, "bars": bars.judge(result)}


def is_clean(result):
    """Whether everything ran without an error; a bar that is not met is no error."""
    rows = [row["valid"] for work in result["works"] for row in work["rows"]]
    return all(rows) and not result["absent"] and not any(each["problems"] for each in result["experiments"])


def row(contestant, samples):
    """The medians of one contestant over its rounds; valid only if no round had an error."""
    problems = [problem for sample in samples for problem in sample.problems]
    result = {"name": contestant.name, "version": contestant.version, "valid": not problems, "problems": problems}
    for figure in MEDIANS:
        values = [getattr(sample, figure) for sample in samples if getattr(sample, figure) is not None]
        result[figure] = statistics.median(values) if values else None
    spent = [sample.cpu_us for sample in samples if sample.cpu_us is not None]
    result["cpu_us_range"] = [min(spent), max(spent)] if spent else None
    return result


def shown_command(argv):
    """The command as a reader can repeat it: a path of this machine says nothing to them."""
    words = ["bench/run", *argv]
    for index, word in enumerate(words):
        for flag in ("--binary", "--json"):
            if word == flag and index + 1 < len(words):
                words[index + 1] = Path(words[index + 1]).name
            elif word.startswith(f"{flag}="):
                words[index] = f"{flag}={Path(word).name}"
    return " ".join(words)


def machine():
    """Cores, CPU model, kernel and distribution; neither a name nor an address of the machine."""
    cpus = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.*)$", cpus, re.MULTILINE)
    system = re.search(r'^PRETTY_NAME="?(.*?)"?$', Path("/etc/os-release").read_text(), re.MULTILINE)
    return {
        "cpu": model.group(1) if model else platform.machine(),
        "cores": os.cpu_count(),
        "virtual": " hypervisor" in cpus,
        "kernel": platform.release().split("-")[0],
        "system": system.group(1) if system else "Linux",
    }


def terminal(result):
    """Every table for the terminal, and below them the bars that this run judges."""
    lines = [line for work in result["works"] for line in terminal_work(work)]
    lines += [line for experiment in result["experiments"] for line in terminal_experiment(experiment)]
    lines.append("")
    lines += [f"{page.verdict(bar['met']):<12} {bar['bar']}: {bar['measured']}" for bar in judged(result)]
    return "\n".join(lines + [f"{name}: not measured: {reason}" for name, reason in result["absent"].items()])


def judged(result):
    """The bars whose work ran."""
    ran = {work["work"] for work in result["works"]} | {each["key"] for each in result["experiments"]}
    return [bar for bar in result["bars"] if bar["key"] in ran]


def terminal_work(work):
    lines = ["", work["title"], *aligned([page.header(work), *(page.cells(row, work) for row in work["rows"])], 2)]
    return lines + [f"{each['name']}: INVALID: {problem}" for each in work["rows"] for problem in each["problems"]]


def terminal_experiment(experiment):
    lines = ["", experiment["title"], *aligned([experiment["header"], *experiment["rows"]], 1)]
    return lines + [f"INVALID: {problem}" for problem in experiment["problems"]]


def aligned(rows, texts):
    """The rows as lines, the first `texts` columns to the left and the numbers to the right."""
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(rows[0]))]
    pad = lambda cell, width, column: cell.ljust(width) if column < texts else cell.rjust(width)
    return ["  ".join(pad(cell, width, n) for n, (cell, width) in enumerate(zip(cells, widths))) for cells in rows]


def write_json(result, path):
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    if path == "-":
        sys.stdout.write(text)
    else:
        Path(path).write_text(text)


def read_json(path):
    """A result as `write_json` left it, judged anew."""
    result = json.loads(Path(path).read_text())
    return {**result, "bars": bars.judge(result)}


def write_page(result):
    """docs/performance.md and its plot, which has one file for a light page and one for a dark one."""
    DOCS.mkdir(exist_ok=True)
    (DOCS / "performance.md").write_text(page.markdown(result))
    for theme in plot.THEMES:
        (DOCS / f"performance-{theme}.svg").write_text(plot.svg(result, theme))
    say("wrote docs/performance.md, docs/performance-light.svg and docs/performance-dark.svg")
