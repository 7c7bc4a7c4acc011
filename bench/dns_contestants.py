"""Who takes part in the comparison of discovery, with which settings, and what each says about its endpoints.

It installs nothing (install.py) and measures nothing.
"""

import json
from dataclasses import dataclass

from contestants import fill

# Envoy asks again this often when there is no TTL to go by; its default.
ENVOY_DEFAULTS = {"REFRESH": "      dns_refresh_rate: 5s", "CARES": "", "CHECK": ""}
# As quick as Outrigger is by default: a second between questions that fail or have no TTL, and two attempts of two
# seconds where c-ares has longer ones.
ENVOY_TUNED = {
    "REFRESH": "      dns_refresh_rate: 1s\n      dns_failure_refresh_rate: { base_interval: 1s, max_interval: 2s }",
    "CARES": "          query_timeout_seconds: 2\n          query_tries: 2",
    "CHECK": "",
}
# The same with active health checks: Envoy then keeps an endpoint that DNS has dropped for as long as it is well.
ENVOY_CHECKED = {
    **ENVOY_TUNED,
    # Without traffic it would check but once a minute, and the first check comes before there is any.
    "CHECK": "      health_checks:\n"
    "        - { timeout: 1s, interval: 1s, no_traffic_interval: 1s, unhealthy_threshold: 2, healthy_threshold: 1, http_health_check: { path: /health } }",
}


@dataclass
class Contestant:
    """One column of the table."""

    key: str
    title: str
    # What install.py calls its program.
    program: str
    # Its settings, in a sentence.
    settings: str
    words: dict


CONTESTANTS = (
    Contestant("outrigger", "Outrigger", "outrigger", "`discover: { dns, port }` and nothing else.", {}),
    Contestant(
        "envoy",
        "Envoy",
        "envoy",
        "`STRICT_DNS`, `respect_dns_ttl: true`, `dns_refresh_rate: 5s` (the default), no other setting of DNS.",
        ENVOY_DEFAULTS,
    ),
    Contestant(
        "envoy-tuned",
        "Envoy, tuned",
        "envoy",
        "the same with `dns_refresh_rate: 1s`, `dns_failure_refresh_rate` of 1 s to 2 s, c-ares with two attempts of 2 s.",
        ENVOY_TUNED,
    ),
    Contestant(
        "envoy-checked",
        "Envoy, tuned, with health checks",
        "envoy",
        "the tuned one with active health checks each second, two failures to be out: Envoy keeps an endpoint that "
        "has left DNS until its check fails.",
        ENVOY_CHECKED,
    ),
)


def command(contestant, program, directory, words):
    """The command line, its configuration written into `directory`."""
    if contestant.program == "envoy":
        path = fill("dns/envoy.yaml", directory, {**contestant.words, **words})
        return [program, "-c", path, "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    return outrigger(program, fill("dns/outrigger-service.yaml", directory, words), words)


def outrigger(program, path, words):
    ports = [("--outbound", words["PORT"]), ("--admin", words["ADMIN"]), ("--scrape", 0), ("--dns", words["DNS"])]
    addresses = [word for flag, port in ports for word in (flag, f"127.0.0.1:{port}")]
    return [program, "--node-id", "bench", "--path", path, "--workers", "1", *addresses]


def endpoints_page(contestant):
    return "/clusters?format=json" if contestant.program == "envoy" else "/clusters"


def endpoints(contestant, text):
    """The addresses that it holds at the moment, by its own page."""
    page = json.loads(text)
    if contestant.program == "envoy":
        hosts = [host for cluster in page["cluster_statuses"] for host in cluster.get("host_statuses", ())]
        return {host["address"]["socket_address"]["address"] for host in hosts}
    held = [endpoint["address"] for cluster in page["clusters"] for endpoint in cluster["endpoints"]]
    return {address.rpartition(":")[0] for address in held}
