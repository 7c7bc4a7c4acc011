"""The comparison's front door: reads the arguments and shows the order of steps.

It decides nothing about a contestant (contestants.py), measures nothing (measure.py), writes no table (report.py).
"""

import argparse
import os
import signal
import sys
import tempfile

import install
import measure
from processes import Failed
import report
from contestants import NAMES, WORKS

# A smoke test answers "does every contestant serve without an error", not "how fast": one short round will do.
SHORT_ROUNDS, SHORT_SECONDS = 1, 2
# An idle machine stays below; a build that has just ended for this run may lift it, hence a word and no refusal.
BUSY_LOAD = 0.7


def arguments(argv):
    parser = argparse.ArgumentParser(
        prog="bench/run",
        description="Compares one hop, by HTTP/1.1 and by HTTP/2, through outrigger-proxy, Envoy, HAProxy, nginx, a bare epoll "
        "forwarder (floor) and no proxy (direct), then pairs of sidecars that speak mTLS, in one run on one machine.",
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds, each measuring every contestant (5)")
    parser.add_argument("--seconds", type=int, default=5, help="seconds of load in each round (5)")
    parser.add_argument("--connections", type=int, default=64, help="connections of the HTTP/1.1 load (64)")
    parser.add_argument("--work", metavar="WORKS", default=",".join(WORKS), help=f"some of {','.join(WORKS)}")
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(NAMES)}, separated by commas")
    parser.add_argument("--binary", metavar="PATH", help="this outrigger-proxy, instead of building one")
    parser.add_argument("--short", action="store_true", help="one round of 2 s: a smoke test, not a measurement")
    parser.add_argument("--json", metavar="FILE", help="every round's figures as JSON; - is standard output")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md")
    parser.add_argument("--proxy-cpu", type=int, help="the core of the proxy (the first that we may use)")
    parser.add_argument("--load-cpu", type=int, help="the core of the load and the backend (the second)")
    options = parser.parse_args(argv)
    if options.short:
        options.rounds, options.seconds = SHORT_ROUNDS, SHORT_SECONDS
    options.names = options.only.split(",") if options.only else list(NAMES)
    for name in options.names:
        if name not in NAMES:
            parser.error(f"--only: no contestant is called `{name}`; there are {', '.join(NAMES)}")
    options.works = options.work.split(",")
    for work in options.works:
        if work not in WORKS:
            parser.error(f"--work: no work is called `{work}`; there are {', '.join(WORKS)}")
    if min(options.rounds, options.seconds, options.connections) < 1:
        parser.error("--rounds, --seconds and --connections must be at least 1")
    if options.write and (options.short or options.only or options.works != list(WORKS)):
        parser.error("--write is for a whole run: without --short, --only and --work")
    choose_cores(parser, options)
    return options


def choose_cores(parser, options):
    allowed = sorted(os.sched_getaffinity(0))
    if options.proxy_cpu is None:
        options.proxy_cpu = allowed[0]
    if options.load_cpu is None:
        options.load_cpu = next((core for core in allowed if core != options.proxy_cpu), None)
    if options.load_cpu is None or options.load_cpu == options.proxy_cpu:
        parser.error("two cores are needed: one for the proxy, one for the load and the backend")


def quiet_enough():
    busy = os.getloadavg()[0]
    if busy > BUSY_LOAD:
        report.say(f"the load average of this machine is {busy:.1f}: others are at work, and the figures will show it")


def main(argv):
    options = arguments(argv)
    # A kill from outside must run the same clean-up as an error does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    field, absent = install.everything(options)
    for name, reason in absent.items():
        report.say(f"{name} is not measured: {reason}")
    quiet_enough()
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as directory:
        # nginx's worker gives up root and must still reach its folders.
        os.chmod(directory, 0o755)
        done = []
        for work in (WORKS[key] for key in options.works):
            who = [contestant for contestant in field if contestant.name in work.names]
            done.append(report.summarise_work(work, who, measure.run(work, who, options, directory)))
    result = report.summarise(done, absent, options, argv)
    # With --json - standard output is for a program that reads it.
    print(report.terminal(result), file=sys.stderr if options.json == "-" else sys.stdout)
    if options.json:
        report.write_json(result, options.json)
    if options.write:
        report.write_page(result)
    return 0 if all(row["valid"] for work in done for row in work["rows"]) and not absent else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failed as failure:
        sys.exit(f"bench/run: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
