"""From samples to figures: medians, ratios, bars; as a table, as JSON, as docs/performance.md.

It measures nothing.
"""

import datetime
import json
import os
import platform
import re
import statistics
import sys
from pathlib import Path

import page
from contestants import HERE

# Resident memory of an idle sidecar, at most.
IDLE_MEMORY_BAR = 12 * 1024 * 1024
MEDIANS = (
    "requests_per_second", "cpu_us", "core_busy", "p50_us", "p99_us",
    "idle_rss", "idle_pss", "loaded_rss", "loaded_pss", "upstream_connections",
)  # fmt: skip


def say(text):
    print(f"bench/run: {text}", file=sys.stderr)


def summarise_work(work, field, samples):
    """What is known of one work: a row for each contestant, and the bars."""
    rows = [row(contestant, [s for s in samples if s.name == contestant.name]) for contestant in field]
    return {
        "work": work.key,
        "title": work.title,
        "clients": work.clients,
        "streams": work.streams,
        "goes": work.goes,
        "handshakes": work.handshakes,
        "pair": work.pair,
        "rows": rows,
        "bars": bars(work, {row["name"]: row for row in rows}),
        "samples": [sample.as_dict() for sample in samples],
    }


def summarise(works, absent, options, argv):
    """Everything that is known after a run, ready for any of the three outputs."""
    return {
        "command": shown_command(argv),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "connections": options.connections,
        "works": works,
        "absent": absent,
    }


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


def ratio(rows, name, anchor):
    """CPU per request of one against another, or None where either is missing or invalid."""
    ours, theirs = rows.get(name), rows.get(anchor)
    if not (ours and theirs and ours["valid"] and theirs["valid"] and ours["cpu_us"] and theirs["cpu_us"]):
        return None
    return ours["cpu_us"] / theirs["cpu_us"]


def bars(work, rows):
    """Each bar that this work can judge: what it is, what was measured, whether it is met (None: not judged)."""
    judged = []
    for anchor, limit in work.cpu_bars.items():
        value = ratio(rows, "outrigger", anchor)
        judged.append(
            {
                "bar": f"{work.title} {work.goes}, CPU per request: at most {limit:g} × {page.TITLES[anchor]}",
                "measured": "not measured" if value is None else f"{value:.2f} ×",
                "met": None if value is None else round(value, 2) <= limit,
            }
        )
    if work.pair:
        return judged
    ours = rows.get("outrigger")
    idle = ours["idle_rss"] if ours and ours["valid"] else None
    judged.append(
        {
            "bar": f"resident memory, idle, one service by {work.title}: at most 12 MiB",
            "measured": "not measured" if idle is None else page.mebibytes(idle),
            "met": None if idle is None else idle <= IDLE_MEMORY_BAR,
        }
    )
    return judged


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
    """The table of each work for the terminal, and the bars below it."""
    lines = [line for work in result["works"] for line in terminal_work(work)]
    return "\n".join(lines + [f"{name}: not measured: {reason}" for name, reason in result["absent"].items()])


def terminal_work(work):
    rows = [page.HEADER, *(page.cells(row, work) for row in work["rows"])]
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(page.HEADER))]
    lines = ["", f"{work['title']} {work['goes']}"]
    lines += ["  ".join(pad(cell, width, n) for n, (cell, width) in enumerate(zip(cells, widths))) for cells in rows]
    for each in work["rows"]:
        lines += [f"{each['name']}: INVALID: {problem}" for problem in each["problems"]]
    return lines + [""] + [f"{page.verdict(bar['met']):<12} {bar['bar']}: {bar['measured']}" for bar in work["bars"]]


def pad(cell, width, column):
    return cell.ljust(width) if column < 2 else cell.rjust(width)


def write_json(result, path):
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    if path == "-":
        sys.stdout.write(text)
    else:
        Path(path).write_text(text)


def write_page(result):
    path = HERE.parent / "docs" / "performance.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(page.markdown(result))
    say("wrote docs/performance.md")
