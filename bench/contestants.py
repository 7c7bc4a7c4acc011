"""Who takes part, and how each is started. The reasons for their settings stand in README.md.

It installs nothing and measures nothing.
"""

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent

# In the order of the table: ours, those it is compared with, then the two anchors.
NAMES = ("outrigger", "haproxy", "nginx", "envoy", "floor", "direct")

# A few hundred bytes, as a small JSON answer has.
BODY = "outrigger-bench " * 20


@dataclass
class Contestant:
    """One row of the table: its program (none for `direct`) and what it says its version is."""

    name: str
    program: str | None
    version: str


# The file of contestants/ that each program reads first.
CONFIGURATION = {
    "backend": "backend.conf",
    "outrigger": "outrigger-proxy.yaml",
    "haproxy": "haproxy.cfg",
    "nginx": "nginx.conf",
    "envoy": "envoy.yaml",
}


def command(name, program, directory, ports):
    """The command line of a contestant, its configuration written into `directory`."""
    if name == "floor":
        return [program, str(ports["PORT"]), str(ports["BACKEND"])]
    if name == "outrigger":
        fill("outrigger-service.yaml", directory, ports)
    path = fill(CONFIGURATION[name], directory, ports)
    return {
        "backend": [program, "-p", directory, "-c", path],
        "outrigger": [program, "--config", path],
        "haproxy": [program, "-db", "-q", "-f", path],
        "nginx": [program, "-p", directory, "-c", path],
        "envoy": [program, "-c", path, "--concurrency", "1", "--disable-hot-restart", "-l", "error"],
    }[name]


def fill(template, directory, ports):
    """Copies a configuration into `directory`, its @NAMES@ replaced; answers its path."""
    text = (HERE / "contestants" / template).read_text()
    for name, value in {**ports, "DIR": directory, "BODY": BODY}.items():
        text = text.replace(f"@{name}@", str(value))
    path = Path(directory) / template
    path.write_text(text)
    return str(path)
