"""One push to ten thousand simulated sidecars of one control API: how long until all have acknowledged it, and what it costs."""

import http.client
import json
import re
import statistics
import time

import install
import measure
from processes import Failed, Program

from . import Found, service, service_name, services
from .push import control_api, put

SIDECARS = 10_000
# What each of them knows: all of it, as is the default.
SERVICES, ENDPOINTS = 100, 10
PUSHES = 5
# The first answer to all, each of all documents, takes longest; a push is expected to take less than two.
ALL_SECONDS_MAX = 60
# The list of all sidecars is some megabytes.
LIST_SECONDS_MAX = 20
# Between two looks at the list, which takes the control API some time to write.
LOOK_SECONDS = 0.05


def run(bench):
    found = Found(
        "A push to a fleet",
        f"One `outrigger serve` on a core of its own, and {SIDECARS:,} simulated sidecars ([bench/fleet.c](../bench/fleet.c)) on the "
        f"other, each with a connection and a long poll of its own. They hold {SERVICES} services; one of them is pushed, "
        f"{PUSHES} times, and the median and the slowest are told. The time counts from before the `PUT` is sent: to the last sidecar "
        "that was told, to the last acknowledgement sent, and to the first of the control API's own lists, asked for again and "
        "again from then on, that shows that all hold the new version.",
        ("", "median", "slowest"),
    )
    if not bench.control:
        found.problems.append("outrigger does not take part")
        return found
    try:
        spans, memory, cpu = measured(bench)
    except (Failed, OSError, http.client.HTTPException, ValueError) as failure:
        found.problems.append(str(failure))
        return found
    names = ("PUT answered", "last sidecar told", "last acknowledgement sent", "all listed as up to date")
    for name, each in zip(names, zip(*spans)):
        found.rows.append([name, f"{statistics.median(each):.3f} s", f"{max(each):.3f} s"])
    found.rows.append(["CPU of the control API for a push", f"{statistics.median(cpu):.2f} s", f"{max(cpu):.2f} s"])
    found.rows.append(["memory of the control API (RSS)", "", f"{memory / 1024 / 1024:.0f} MiB"])
    listed = [span[3] for span in spans]
    found.figures = {
        "acknowledged_seconds": max(span[2] for span in spans), "listed_seconds": max(listed), "rss": memory,
        "cpu_seconds": statistics.median(cpu),
    }  # fmt: skip
    return found


def measured(bench):
    """The spans of each push in seconds, the most memory, and the CPU of each push."""
    spans, cpu, memory = [], [], 0
    with control_api(bench, bench.options.proxy_cpu) as (api, port):
        put(port, services(SERVICES, ENDPOINTS))
        line = [install.built("fleet"), str(port), str(SIDECARS)]
        with Program("fleet", line, bench.options.load_cpu, bench.directory) as fleet:
            acknowledged(fleet, 1)
            for number in range(1 if bench.options.short else PUSHES):
                before = api.cpu_seconds()
                spans.append(push(fleet, port, number))
                cpu.append(api.cpu_seconds() - before)
                memory = max(memory, api.memory_bytes()[0])
    return spans, memory, cpu


def push(fleet, port, number):
    """Pushes one service; gives the seconds from then to each of the four moments."""
    began = time.monotonic()
    put(port, service(0, ENDPOINTS, moved=number + 1), f"/v1/services/{service_name(0)}")
    stored = time.monotonic()
    version, told, last = acknowledged(fleet, number + 2)
    return stored - began, told - began, last - began, all_listed(port, version) - began


def acknowledged(fleet, count):
    """Waits for the simulator's line number `count`; gives version, when the last was told, when all had acknowledged."""
    deadline = time.monotonic() + ALL_SECONDS_MAX
    while time.monotonic() < deadline:
        lines = re.findall(r"^version (\S+) told \S+ (\S+) acknowledged (\S+)$", fleet.log.read_text(), re.MULTILINE)
        if len(lines) >= count:
            version, told, last = lines[count - 1]
            return version, float(told), float(last)
        if fleet.process.poll() is not None:
            break
        time.sleep(0.01)
    raise Failed(f"not all of {SIDECARS:,} sidecars acknowledged within {ALL_SECONDS_MAX} s: {fleet.last_words()}")


def all_listed(port, version):
    """When the control API's own list shows that all hold `version`: an acknowledgement that was sent may wait to be read."""
    deadline = time.monotonic() + ALL_SECONDS_MAX
    while True:
        holders, read = listed(port, version)
        if holders == SIDECARS:
            return read
        if read > deadline:
            raise Failed(f"the control API says that {holders:,} of {SIDECARS:,} sidecars hold version {version}")
        time.sleep(LOOK_SECONDS)


def listed(port, version):
    """How many sidecars hold `version` by the control API's own list, and when that was read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIST_SECONDS_MAX)
    try:
        connection.request("GET", "/v1/nodes")
        text = connection.getresponse().read()
    finally:
        connection.close()
    read = time.monotonic()
    return sum(node["holds"] == version for node in json.loads(text)["nodes"]), read
