"""Many names in one sidecar: how often it asks, against what the TTLs say, and what that costs.

The DNS server is a process of its own, so that its work is not in the way of what is measured.
"""

import asyncio
import multiprocessing
import random
import time
from dataclasses import dataclass
from pathlib import Path

from dns_contestants import outrigger
from dns_server import Server
from dns_traffic import fetch
from processes import Failed, Program, free_port

# A name is a document of some lines; more than this is no sidecar's.
NAMES_MAX = 20_000
TTL_MIN, TTL_MAX = 5, 60
# Each name is asked for A and for AAAA.
TYPES = 2
# The longest that the sidecar may take until it is ready.
START_SECONDS_MAX = 120
MINUTE = 60
# The load of TTLs is the same in each run.
SEED = 7


@dataclass
class Result:
    """What the names cost."""

    names: int
    minutes: int
    expected: float
    burst: int
    busiest_second: int
    steady: float
    steady_lowest: int
    steady_highest: int
    ready_seconds: float
    found: int
    cpu_first: float
    cpu_steady: float
    rss_idle: int
    rss: int


class Names(Server):
    """Each name has one address, and a TTL that its first label tells."""

    def __init__(self, ttls):
        super().__init__(["127.0.0.1"])
        self.ttls = ttls

    def records(self, question):
        # One octet of length, then `n` and the number.
        number = int(question[2 : 1 + question[0]])
        return [f"127.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"], self.ttls[number]


def serve(ttls, pipe):
    """The process of the DNS server: tells its port, then on demand when it was asked."""

    async def run():
        server = await Names(ttls).start()
        pipe.send(server.port)
        while await asyncio.to_thread(pipe.recv):
            pipe.send([at for at, _ in server.asked])

    asyncio.run(run())


def write_services(directory, count):
    """Ten backends to a service, as a mesh has several versions of each."""
    folder = Path(directory) / "services"
    folder.mkdir()
    for begin in range(0, count, 10):
        lines = ["kind: Service", f"name: s{begin // 10}", "backends:"]
        lines += [
            f"  - {{ name: b{number}, discover: {{ dns: n{number}.mesh.test, port: 9 }} }}"
            for number in range(begin, min(begin + 10, count))
        ]
        targets = ", ".join(f"{{ backend: b{number}, weight: 1 }}" for number in range(begin, min(begin + 10, count)))
        lines += ["routes:", f"  - {{ name: all, to: [{targets}] }}"]
        (folder / f"s{begin // 10}.yaml").write_text("\n".join(lines) + "\n")
    return str(folder)


async def measure(program, options, directory):
    count = options.names
    choose = random.Random(SEED)
    ttls = [choose.randint(TTL_MIN, TTL_MAX) for _ in range(count)]
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(ttls, theirs), daemon=True)
    server.start()
    try:
        return await watch(program, options, directory, ttls, ours)
    finally:
        ours.send(False)
        server.terminate()
        server.join()


async def watch(program, options, directory, ttls, dns):
    words = {"PORT": free_port(), "ADMIN": free_port(), "DNS": dns.recv()}
    line = outrigger(program, write_services(directory, options.names), words)
    began = time.monotonic()
    with Program("outrigger", line, "0-1", directory) as proxy:
        ready = await until_ready(proxy, words["ADMIN"])
        rss_idle, _ = proxy.memory_bytes()
        await asyncio.sleep(max(0.0, began + MINUTE - time.monotonic()))
        cpu_first, first = proxy.cpu_seconds(), time.monotonic()
        await asyncio.sleep((options.minutes - 1) * MINUTE)
        cpu, end = proxy.cpu_seconds(), time.monotonic()
        rss, _ = proxy.memory_bytes()
        found = await holding(words["ADMIN"])
    dns.send(True)
    asked = dns.recv()
    seconds = [0] * (int(end - began) + 1)
    for at in asked:
        if began <= at < end:
            seconds[int(at - began)] += 1
    steady = seconds[MINUTE:-1]
    return Result(
        names=options.names,
        minutes=options.minutes,
        expected=sum(TYPES / ttl for ttl in ttls),
        burst=sum(seconds[:MINUTE]),
        busiest_second=max(seconds),
        steady=sum(steady) / len(steady),
        steady_lowest=min(steady),
        steady_highest=max(steady),
        ready_seconds=ready - began,
        found=found,
        cpu_first=cpu_first,
        cpu_steady=(cpu - cpu_first) / (end - first),
        rss_idle=rss_idle,
        rss=rss,
    )


async def until_ready(proxy, admin):
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            if (await fetch(admin, "/ready"))[0] == 200:
                return time.monotonic()
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            pass
        if proxy.process.poll() is not None or time.monotonic() > deadline:
            raise Failed(f"the sidecar is not ready: {proxy.last_words()}")
        await asyncio.sleep(0.05)


async def holding(admin):
    """How many names have an endpoint, by the sidecar's metrics."""
    _, text = await fetch(admin, "/metrics")
    lines = [line for line in text.splitlines() if line.startswith("outrigger_endpoints{")]
    return sum(float(line.rpartition(" ")[2]) > 0 for line in lines)
