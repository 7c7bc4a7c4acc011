"""The comparison's front door: reads the arguments and shows the order of steps.

It decides nothing about a contestant (contestants.py, works.py), measures nothing (measure.py, experiments/), writes no
table (report.py).
"""

import argparse
import os
import signal
import sys
import tempfile

import install
import measure
import report
from experiments import Bench, fleet, footprint, push, routes
from processes import Failed
from works import NAMES, WORKS

# What is measured of Outrigger beside the hops, in the order of the page.
EXPERIMENTS = {"footprint": footprint, "routes": routes, "push": push, "fleet": fleet}
# A smoke test answers "does every contestant serve without an error", not "how fast": one short round will do.
SHORT_ROUNDS, SHORT_SECONDS = 1, 1
# An idle machine stays below; a build that has just ended for this run may lift it, hence a word and no refusal.
BUSY_LOAD = 0.7


def arguments(argv):
    every = [*WORKS, *EXPERIMENTS]
    parser = argparse.ArgumentParser(
        prog="bench/run",
        description="Compares one hop through outrigger-proxy, Envoy, HAProxy, nginx, a bare epoll forwarder (floor) and no proxy "
        "(direct), then pairs of sidecars that speak mTLS, then what pushes, routes and services cost Outrigger; in one run on one "
        "machine.",
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds, each measuring every contestant (5)")
    parser.add_argument("--seconds", type=int, default=3, help="seconds of load in each round (3)")
    parser.add_argument("--work", metavar="WORKS", default=",".join(every), help=f"some of {','.join(every)}")
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(NAMES)}, separated by commas")
    parser.add_argument("--binary", metavar="PATH", help="this outrigger-proxy, and the `outrigger` beside it, instead of building")
    parser.add_argument("--short", action="store_true", help="one round of 1 s: a smoke test, not a measurement")
    parser.add_argument("--json", metavar="FILE", help="every round's figures as JSON; - is standard output")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md and its plot")
    parser.add_argument("--from", metavar="FILE", dest="source", help="measure nothing: take the figures that --json wrote")
    parser.add_argument("--again", metavar="FILE", help="set the ratios of a second run beside these: what --json wrote of it")
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
        if work not in every:
            parser.error(f"--work: no work is called `{work}`; there are {', '.join(every)}")
    if min(options.rounds, options.seconds) < 1:
        parser.error("--rounds and --seconds must be at least 1")
    if options.write and (options.short or options.only or options.works != every):
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


def control_api(options, absent):
    """The program that has the control API, where something is asked of it."""
    if not {"push", "fleet"} & set(options.works):
        return None
    try:
        return install.control_api(options.binary)
    except install.Absent as reason:
        absent["control"] = str(reason)
        return None


def measured(options, argv):
    """The result of a run of all works and experiments that are asked for."""
    field, absent = install.everything(options)
    control = control_api(options, absent)
    for name, reason in absent.items():
        report.say(f"{name} is not measured: {reason}")
    quiet_enough()
    # What this program does itself, such as pushing, must not take time from the proxy.
    os.sched_setaffinity(0, {options.load_cpu})
    works, experiments = [], []
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as directory:
        # nginx's worker gives up root and must still reach its folders.
        os.chmod(directory, 0o755)
        for work in (WORKS[key] for key in options.works if key in WORKS):
            who = [contestant for contestant in field if contestant.name in work.names]
            works.append(report.summarise_work(work, who, measure.run(work, who, options, directory)))
        bench = Bench(options, directory, {contestant.name: contestant for contestant in field}, control)
        for key in (key for key in options.works if key in EXPERIMENTS):
            report.say(key)
            experiments.append(report.summarise_experiment(key, EXPERIMENTS[key].run(bench)))
    return report.summarise(works, experiments, absent, options, argv)


def main(argv):
    options = arguments(argv)
    # A kill from outside must run the same clean-up as an error does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    result = report.read_json(options.source) if options.source else measured(options, argv)
    if options.again:
        result["again"] = report.read_json(options.again)
    # With --json - standard output is for a program that reads it.
    print(report.terminal(result), file=sys.stderr if options.json == "-" else sys.stdout)
    if options.json:
        report.write_json(result, options.json)
    if options.write:
        report.write_page(result)
    return 0 if report.is_clean(result) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failed as failure:
        sys.exit(f"bench/run: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
