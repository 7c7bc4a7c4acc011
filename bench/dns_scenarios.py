"""The scenarios: what happens to DNS, and what is read from load, questions and endpoints then.

All contestants live through a scenario at the same time, each with a DNS server, backends and a load of its own.
"""

import asyncio
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from dns_contestants import command, endpoints, endpoints_page
from dns_server import Server
from dns_traffic import Backends, Load, fetch
from processes import Failed, Program, free_port

# Seconds that a record may be believed in all scenarios but one.
TTL = 2
# Load and questions before the change: three TTLs.
STEADY_SECONDS = 6
# The longest wait for a change to be seen. Envoy's c-ares may have a question of 20 s under way.
CONVERGE_SECONDS_MAX = 40
# An instance that has left DNS lives on for this long: orchestrators drain for ten seconds and more.
DRAIN_SECONDS = 10
# Between two looks at the endpoints that a proxy holds.
LOOK_SECONDS = 0.2
SAMPLE, SAMPLED = 8, 30
# Changes of a scenario that has several: when in its TTL a record changes is chance.
STEPS = 5


@dataclass
class Result:
    """What one contestant gave in one scenario; what does not apply is None."""

    scenario: str
    contestant: str
    requests: int = 0
    failed: int = 0
    failures: dict = field(default_factory=dict)
    # Seconds of each change; None: not seen at all.
    converged: list = field(default_factory=list)
    # Questions a second before the change, and while the fault lasts or in the end.
    asked_before: float | None = None
    asked_after: float | None = None
    used: int | None = None
    changes_per_minute: float | None = None
    connections_per_minute: float | None = None
    fewest: int | None = None


class World:
    """One contestant with everything around it."""

    def __init__(self, contestant, program, number, directory):
        self.contestant, self.program = contestant, program
        self.addresses = [f"127.0.{10 + number}.{last}" for last in range(1, SAMPLED + 1)]
        self.directory = Path(directory) / contestant.key
        # (time, addresses) each time that the proxy was asked which endpoints it has.
        self.held = []

    async def start(self, records, ttl, manner="answers"):
        self.directory.mkdir(exist_ok=True)
        self.dns = await Server(self.addresses[:records], ttl).start()
        self.dns.manner, self.dns.sample = manner, SAMPLE
        port = free_port()
        self.backends = await Backends(self.addresses, port).start()
        self.words = {"PORT": free_port(), "ADMIN": free_port(), "DNS": self.dns.port, "BACKEND": port}
        line = command(self.contestant, self.program, str(self.directory), self.words)
        self.proxy = Program(self.contestant.key, line, "0-1", self.directory)
        deadline = time.monotonic() + CONVERGE_SECONDS_MAX
        while not await self.serves():
            if self.proxy.process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"{self.contestant.title} does not serve: {self.proxy.last_words()}")
            await asyncio.sleep(0.1)
        self.load = Load(self.words["PORT"]).start()
        self.looking = asyncio.create_task(self.look())
        return self

    async def serves(self):
        try:
            return (await fetch(self.words["PORT"], "/"))[0] == 200
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            return False

    async def look(self):
        while True:
            try:
                _, text = await fetch(self.words["ADMIN"], endpoints_page(self.contestant))
                self.held.append((time.monotonic(), endpoints(self.contestant, text)))
            except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
                pass
            await asyncio.sleep(LOOK_SECONDS)

    async def stop(self):
        try:
            if hasattr(self, "load"):
                self.looking.cancel()
                await self.load.stop()
        finally:
            # Whatever happened before, the process ends.
            if hasattr(self, "proxy"):
                await asyncio.to_thread(self.proxy.__exit__)
            self.backends.stop_all()
            self.dns.close()

    async def until(self, seen):
        """Waits until `seen()`, or no longer than is worth it; answers whether."""
        deadline = time.monotonic() + CONVERGE_SECONDS_MAX
        while not seen():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.05)
        return True

    async def one_more(self, count):
        """Makes it so many records, which is one more; answers how long until the new one answered, or None."""
        changed, new = time.monotonic(), self.addresses[count - 1]
        self.dns.addresses = self.addresses[:count]
        found = await self.until(lambda: self.load.first_of(new, changed))
        return self.load.first_of(new, changed) - changed if found else None

    def result(self, scenario, began):
        """What is the same in every scenario."""
        outcomes = [each for each in self.load.outcomes if each.at >= began]
        bad = [each for each in outcomes if each.backend is None]
        result = Result(scenario, self.contestant.key, len(outcomes), len(bad))
        for each in bad:
            result.failures[each.trouble] = result.failures.get(each.trouble, 0) + 1
        return result

    def changes(self, begin, end):
        """Endpoints that came and went, by the proxy's own page."""
        seen = [held for at, held in self.held if begin <= at < end]
        return sum(len(before ^ after) for before, after in zip(seen, seen[1:]))

    def fewest(self, begin, end):
        return min((len(held) for at, held in self.held if begin <= at < end), default=None)


async def scale_up(world, options):
    """A record more, several times: how long until it has answered?"""
    await world.start(3, TTL)
    began = time.monotonic()
    await asyncio.sleep(STEADY_SECONDS)
    steady = time.monotonic()
    times = []
    for count in range(4, 4 + STEPS):
        times.append(await world.one_more(count))
        # The next change comes at any moment of the TTL.
        await asyncio.sleep(TTL * random.random())
    result = world.result("scale up", began)
    result.asked_before = world.dns.per_second(began, steady)
    result.converged = times
    return result


async def scale_down(world, options):
    """A record less, several times, its instance ending later: how long is it asked, and does anyone notice?"""
    await world.start(3 + STEPS, TTL)
    began = time.monotonic()
    await asyncio.sleep(STEADY_SECONDS)
    steady = time.monotonic()
    left = {}
    for count in reversed(range(3, 3 + STEPS)):
        address = world.addresses[count]
        world.dns.addresses = world.addresses[:count]
        left[address] = time.monotonic()
        asyncio.get_running_loop().call_later(DRAIN_SECONDS, world.backends.stop, address)
        await asyncio.sleep(TTL + TTL * random.random())
    await asyncio.sleep(DRAIN_SECONDS + STEADY_SECONDS)
    result = world.result("scale down", began)
    result.asked_before = world.dns.per_second(began, steady)
    result.converged = [world.load.last_of({address}, at) - at for address, at in left.items()]
    return result


def fault(manner, title):
    async def run(world, options):
        await world.start(3, TTL)
        began = time.monotonic()
        await asyncio.sleep(STEADY_SECONDS)
        changed = time.monotonic()
        world.dns.manner = manner
        await asyncio.sleep(options.fault)
        over = time.monotonic()
        # Meanwhile there is one more, so that it shows when DNS is believed again.
        world.dns.addresses, world.dns.manner = world.addresses[:4], "answers"
        new = world.addresses[3]
        found = await world.until(lambda: world.load.first_of(new, over))
        result = world.result(title, began)
        result.asked_before = world.dns.per_second(began, changed)
        result.asked_after = world.dns.per_second(changed, over)
        result.fewest = world.fewest(changed, over)
        result.converged = [world.load.first_of(new, over) - over if found else None]
        return result

    return run


async def sampled(world, options):
    """8 of 30 at random in each answer, for half a minute to learn and half a minute to be judged."""
    await world.start(SAMPLED, TTL, "sample")
    began = time.monotonic()
    await asyncio.sleep(options.sampled)
    half = time.monotonic()
    connections = world.backends.connections
    await asyncio.sleep(options.sampled)
    end = time.monotonic()
    minutes = (end - half) / 60
    result = world.result(f"{SAMPLE} of {SAMPLED} at random", began)
    result.asked_after = world.dns.per_second(half, end)
    result.used = len(world.load.answered_by(began, half))
    result.changes_per_minute = world.changes(half, end) / minutes
    result.connections_per_minute = (world.backends.connections - connections) / minutes
    result.fewest = world.fewest(half, end)
    return result


async def ttl_zero(world, options):
    """A TTL of 0: how often is it asked, and how soon is a change found?"""
    await world.start(3, 0)
    began = time.monotonic()
    await asyncio.sleep(options.fault)
    steady = time.monotonic()
    times = []
    for count in range(4, 4 + STEPS):
        times.append(await world.one_more(count))
        await asyncio.sleep(TTL * random.random())
    result = world.result("TTL 0", began)
    result.asked_before = world.dns.per_second(began, steady)
    result.converged = times
    return result


SCENARIOS = {
    "up": scale_up,
    "down": scale_down,
    "servfail": fault("servfail", "SERVFAIL"),
    "timeout": fault("timeout", "no answer"),
    "nxdomain": fault("nxdomain", "NXDOMAIN"),
    "empty": fault("empty", "empty answer"),
    "sampled": sampled,
    "truncated": fault("truncated", "truncated, no TCP"),
    "ttl0": ttl_zero,
}


async def one(run, world, options):
    try:
        return await run(world, options)
    finally:
        await world.stop()


async def everything(field, options, directory):
    """Every scenario in turn, all contestants at the same time: [(contestant, program)] in `field`."""
    results = []
    for key in options.scenarios:
        worlds = [World(each, program, number, directory) for number, (each, program) in enumerate(field)]
        done = await asyncio.gather(*(one(SCENARIOS[key], world, options) for world in worlds))
        for result in done:
            results.append(result)
            print(
                f"{result.scenario:<20} {result.contestant:<14} {result.failed:>5} of {result.requests} failed, "
                f"converged {result.converged}, asked {result.asked_before} then {result.asked_after}, "
                f"fewest {result.fewest}, used {result.used}, changes {result.changes_per_minute} {result.failures or ''}",
                file=sys.stderr,
                flush=True,
            )
    return results
