"""The loads: wrk, h2load, openssl's clients, and our own pace and websocket; and what their reports say.

It starts no contestant and judges none.
"""

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from install import built
from processes import Failed, raise_limits
from works import BODY

# A load generator ends by itself after its seconds; this much longer means that it hangs.
GRACE_SECONDS = 20
# Clients that shake hands one after the other; so many keep the core of the proxy busy.
HANDSHAKING = 8
# The text of a WebSocket message: a small event.
MESSAGE_BYTES = 64
# What h2load writes about a request that got a good answer.
GOOD_STATUSES = range(200, 400)
PATH = "/hello"


@dataclass
class Load:
    """What one load saw; times in microseconds. A tool that does not say a time leaves it at 0."""

    requests: int = 0
    per_second: float = 0.0
    p50_us: float = 0.0
    p99_us: float = 0.0
    p999_us: float = 0.0
    problems: list = field(default_factory=list)


def load(work, port, seconds, options, directory, rate=0, path=PATH):
    """Loads `port` for some seconds from the core of the load; `rate` is that of an open loop."""
    found = {
        "wrk": lambda: wrk(work, port, seconds, options, path),
        "h2load": lambda: h2load(work, port, seconds, options, directory),
        "openssl": lambda: handshakes(port, seconds, options, directory),
        "pace": lambda: pace(port, rate, seconds, work.connections, options),
        "websocket": lambda: websocket(port, seconds, work.connections, options),
    }[work.tool]()
    if not found.requests:
        found.problems.append("no request was answered")
    return found


def wrk(work, port, seconds, options, path=PATH):
    line = ["wrk", "-t1", f"-c{work.connections}", f"-d{seconds}s", "--latency", "-H", "Host: bench"]
    for header in work.headers:
        line += ["-H", header]
    said = run([*line, f"http://127.0.0.1:{port}{path}"], seconds, options)
    total = re.search(r"(\d+) requests in ", said)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    if not total or not rate:
        raise Failed(f"wrk said something unexpected: {said[-300:]}")
    # What it calls an error makes the round invalid.
    problems = [line.strip() for line in said.splitlines() if "Non-2xx" in line or "Socket errors" in line]
    return Load(int(total.group(1)), float(rate.group(1)), percentile(said, 50), percentile(said, 99), problems=problems)


def percentile(said, which_one):
    """A line of wrk's latency table, such as `99%   1.23ms`, in microseconds."""
    found = re.search(rf"^\s+{which_one}%\s+([\d.]+)(us|ms|s|m)$", said, re.MULTILINE)
    if not found:
        return 0.0
    return float(found.group(1)) * {"us": 1, "ms": 1e3, "s": 1e6, "m": 60e6}[found.group(2)]


def h2load(work, port, seconds, options, directory):
    log = Path(directory) / "h2load.log"
    log.unlink(missing_ok=True)
    line = ["h2load", "-t1", f"-c{work.connections}", f"-m{work.streams}", f"-D{seconds}", f"--log-file={log}"]
    for header in (":authority: bench", *work.headers):
        line += ["-H", header]
    if work.posts:
        message = Path(directory) / "message"
        message.write_text(work.body)
        line.append(f"--data={message}")
    said = run([*line, f"http://127.0.0.1:{port}{PATH}"], seconds, options)
    rate = re.search(r"^finished in .*?, ([\d.]+) req/s", said, re.MULTILINE)
    totals = re.search(r"(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", said)
    if not rate or not totals:
        raise Failed(f"h2load said something unexpected: {said[-300:]}")
    done, succeeded, failed, errored, late = map(int, totals.groups())
    problems = []
    if failed or errored or late or succeeded != done:
        problems.append(f"h2load: {totals.group(0)}")
    took = sorted(times(log))
    at = lambda share: took[min(int(len(took) * share), len(took) - 1)] if took else 0.0
    return Load(succeeded, float(rate.group(1)), at(0.50), at(0.99), problems=problems)


def times(log):
    """How long each request took that got a good answer, in microseconds."""
    try:
        lines = log.read_text().splitlines()
    except OSError as error:
        raise Failed(f"h2load wrote no log: {error}") from error
    rows = (line.split("\t") for line in lines)
    return [int(row[2]) for row in rows if len(row) == 3 and int(row[1]) in GOOD_STATUSES]


def handshakes(port, seconds, options, directory):
    """A TLS 1.3 connection with a client certificate for each request, by several of openssl's own clients."""
    line = ["openssl", "s_time", "-connect", f"127.0.0.1:{port}", "-tls1_3", "-new", "-time", str(seconds)]
    line += ["-www", PATH, "-CAfile", f"{directory}/root.pem"]
    line += ["-cert", f"{directory}/caller.pem", "-key", f"{directory}/caller.key"]
    with ThreadPoolExecutor(HANDSHAKING) as clients:
        said = list(clients.map(lambda _: run(line, seconds, options), range(HANDSHAKING)))
    found = Load()
    for words in said:
        total = re.search(r"(\d+) connections in (\d+) real seconds, (\d+) bytes read per connection", words)
        if not total:
            raise Failed(f"openssl s_time said something unexpected: {words[-300:]}")
        found.requests += int(total.group(1))
        found.per_second += int(total.group(1)) / max(int(total.group(2)), 1)
        if int(total.group(3)) < len(BODY):
            found.problems.append(f"an answer had {total.group(3)} bytes")
    return found


def pace(port, rate, seconds, connections, options, path=PATH):
    """The open loop: `rate` requests a second are due, whether the ones before are answered or not."""
    line = [built("pace"), str(port), str(rate), str(seconds), str(connections), path]
    return own("pace", run(line, seconds, options))


def websocket(port, seconds, connections, options):
    line = [built("websocket"), "load", str(port), str(seconds), str(connections), str(MESSAGE_BYTES)]
    return own("websocket", run(line, seconds, options))


def own(name, said):
    """The line that our own loads tell: words, each with its number. What follows says what the errors were."""
    line, _, reasons = said.partition("\n")
    words = line.split()
    try:
        numbers = {word: float(number) for word, number in zip(words[::2], words[1::2], strict=True)}
        problems = [f"{name}: {numbers['errors']:.0f} errors; {'; '.join(reasons.splitlines())}"] if numbers["errors"] else []
        requests, rate = int(numbers["requests"]), numbers["requests"] / numbers["seconds"]
        return Load(requests, rate, numbers["p50"], numbers["p99"], numbers["p999"], problems)
    except (KeyError, ValueError) as error:
        raise Failed(f"{name} said something unexpected: {said[-300:]}") from error


def run(line, seconds, options):
    line = ["taskset", "-c", str(options.load_cpu), *line]
    try:
        done = subprocess.run(
            line, capture_output=True, text=True, timeout=seconds + GRACE_SECONDS, preexec_fn=raise_limits
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        raise Failed(f"{Path(line[3]).name} did not end within {GRACE_SECONDS} s of its time") from late
    if done.returncode:
        raise Failed(f"{Path(line[3]).name} failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout
