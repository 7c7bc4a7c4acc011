"""The front door of the comparison of discovery: reads the arguments and shows the order of steps.

It decides nothing about a contestant (dns_contestants.py), measures nothing (dns_scenarios.py, dns_names.py) and
writes no table (dns_page.py).
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile

import dns_names
import dns_page
import dns_scenarios
import install
from dns_contestants import CONTESTANTS
from processes import Failed

# Seconds of a fault, and of each half of the sampled answers; and of a smoke test.
FAULT_SECONDS, SAMPLED_SECONDS, SHORT_SECONDS = 20, 30, 4
# Minutes that the many names are watched: the first is the burst, the others are steady.
NAMES_MINUTES = 3


def arguments(argv):
    keys = [each.key for each in CONTESTANTS]
    parser = argparse.ArgumentParser(
        prog="bench/dns",
        description="Compares what outrigger-proxy and Envoy's STRICT_DNS do under a steady load when DNS changes, fails and "
        "lies; and, with --names, says what many names cost one sidecar.",
    )
    parser.add_argument("--binary", metavar="PATH", help="this outrigger-proxy, instead of building one")
    parser.add_argument("--only", metavar="NAMES", default=",".join(keys), help=f"some of {','.join(keys)}")
    parser.add_argument(
        "--scenario", metavar="NAMES", default=",".join(dns_scenarios.SCENARIOS), help=f"some of {','.join(dns_scenarios.SCENARIOS)}"
    )
    parser.add_argument("--names", type=int, metavar="COUNT", help="instead: so many names with TTLs of 5 s to 60 s in one sidecar")
    parser.add_argument("--minutes", type=int, default=NAMES_MINUTES, help=f"how long --names watches ({NAMES_MINUTES})")
    parser.add_argument("--short", action="store_true", help="faults of 4 s: a smoke test, not a measurement")
    parser.add_argument("--write", action="store_true", help="write this part of docs/discovery-compared.md")
    options = parser.parse_args(argv)
    options.fault, options.sampled = (SHORT_SECONDS,) * 2 if options.short else (FAULT_SECONDS, SAMPLED_SECONDS)
    options.scenarios = chosen(parser, "--scenario", options.scenario, list(dns_scenarios.SCENARIOS))
    options.keys = chosen(parser, "--only", options.only, keys)
    if options.names is not None and not 1 <= options.names <= dns_names.NAMES_MAX:
        parser.error(f"--names must be 1 to {dns_names.NAMES_MAX}")
    if options.minutes < 2:
        parser.error("--minutes must be at least 2: the first is the burst")
    whole = options.keys == keys and options.scenarios == list(dns_scenarios.SCENARIOS)
    if options.write and options.names is None and (options.short or not whole):
        parser.error("--write is for a whole run: without --short, --only and --scenario")
    return options


def chosen(parser, flag, text, known):
    names = text.split(",")
    for name in names:
        if name not in known:
            parser.error(f"{flag}: there is no `{name}`; there are {', '.join(known)}")
    return names


def programs(options):
    """[(contestant, program)] and the versions, by program."""
    wanted = [each for each in CONTESTANTS if each.key in options.keys]
    if options.names is not None:
        wanted = wanted[:1]
    find = {"outrigger": lambda: install.outrigger(options.binary), "envoy": install.envoy}
    try:
        found = {name: find[name]() for name in {each.program for each in wanted}}
    except install.Absent as reason:
        raise Failed(str(reason)) from reason
    return [(each, found[each.program][0]) for each in wanted], {name: version for name, (_, version) in found.items()}


def main(argv):
    options = arguments(argv)
    # A kill from outside must run the same clean-up as an error does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    field, versions = programs(options)
    with tempfile.TemporaryDirectory(prefix="outrigger-bench-") as directory:
        os.chmod(directory, 0o755)
        if options.names is not None:
            result = asyncio.run(dns_names.measure(field[0][1], options, directory))
            part = dns_page.names_part(result, versions, argv)
        else:
            results = asyncio.run(dns_scenarios.everything(field, options, directory))
            part = dns_page.scenarios_part(results, [each for each, _ in field], versions, argv)
    print(part)
    if options.write:
        dns_page.write("names" if options.names is not None else "scenarios", part)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failed as failure:
        sys.exit(f"bench/dns: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
