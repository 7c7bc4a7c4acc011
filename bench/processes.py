"""Starting programs on one core, stopping them whatever happens, and what the kernel says about them.

It knows nothing of proxies.
"""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# Longer than any contestant takes to start on a busy machine (Envoy: about a second).
START_SECONDS_MAX = 20
# After SIGTERM. All load has ended by then, so nobody has anything to finish.
STOP_SECONDS_MAX = 3
# Sockets for 1,000 connections on both sides, and for 10,000 of the control API; a container's usual limit is 1024.
OPEN_FILES = 20_000


class Failed(Exception):
    """The comparison cannot go on; the text says why."""


def free_port():
    """A port nobody listens on. Another program could still take it, and its user would say so when it starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Program:
    """A program and its children in a session of their own, pinned to one core; stopped when the `with` ends."""

    def __init__(self, name, command, core, directory):
        self.name = name
        self.log = Path(directory) / f"{name}.log"
        pinned = ["taskset", "-c", str(core), *command]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                pinned, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, preexec_fn=raise_limits
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.signal_all(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            pass
        # Those that did not listen, and children that outlived their parent.
        self.signal_all(signal.SIGKILL)
        self.process.wait()

    def signal_all(self, number):
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def wait_until(self, ready, every=0.05):
        """Waits for `ready()` to be true, as long as the program lives; asks `every` so many seconds."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while not ready():
            if self.process.poll() is not None:
                raise Failed(f"{self.name} ended with {self.process.returncode}: {self.last_words()}")
            if time.monotonic() > deadline:
                raise Failed(f"{self.name} did not answer within {START_SECONDS_MAX} s: {self.last_words()}")
            time.sleep(every)

    def last_words(self):
        return self.log.read_text(errors="replace").strip()[-1000:] or "it wrote nothing"

    def members(self):
        """Every process of the session: the program, its workers, whatever they started."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                fields = stat_fields(entry)
                if fields and int(fields[3]) == self.process.pid:
                    found.append(entry)
        return found

    def cpu_seconds(self):
        """User and system time of all threads of all members so far."""
        spent = [stat_fields(entry) for entry in self.members()]
        return sum(int(fields[11]) + int(fields[12]) for fields in spent if fields) / TICKS_PER_SECOND

    def memory_bytes(self):
        """(RSS, PSS): PSS counts a page that members share once, RSS once for each."""
        rss = pss = 0
        for entry in self.members():
            try:
                rollup = (entry / "smaps_rollup").read_text()
            except OSError:
                continue
            for line in rollup.splitlines():
                if line.startswith("Rss:"):
                    rss += int(line.split()[1]) * 1024
                elif line.startswith("Pss:"):
                    pss += int(line.split()[1]) * 1024
        return rss, pss


def stat_fields(entry):
    """The fields of /proc/PID/stat from the third on: what is before may hold spaces. None if it has ended."""
    try:
        return (entry / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def raise_limits():
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
