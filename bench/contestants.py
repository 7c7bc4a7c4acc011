"""How each contestant is started. The reasons for their settings stand in README.md.

It installs nothing and measures nothing.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TEMPLATES = HERE / "contestants"


@dataclass
class Contestant:
    """One row of the table: its program (none for `direct`) and what it says its version is."""

    name: str
    program: str | None
    version: str


# Those of a pair: the caller's sidecar, then the service's.
PAIR = {
    "outrigger": ("outrigger-near.yaml", "outrigger-far.yaml"),
    "haproxy": ("haproxy-near.cfg", "haproxy-far.cfg"),
    "envoy": ("envoy-near.yaml", "envoy-far.yaml"),
}

# The file of contestants/ that each program reads first.
CONFIGURATION = {
    "backend": "backend.conf",
    "outrigger": "outrigger-proxy.yaml",
    "haproxy": "haproxy.cfg",
    "nginx": "nginx.conf",
    "envoy": "envoy.yaml",
}


def command(work, name, program, directory, ports):
    """The command line of a contestant, its configuration written into `directory`."""
    words = {**work.words, **ports, "BODY": work.body}
    if work.pair and name in PAIR:
        return pair(name, program, directory, words)
    if name == "floor":
        return [program, str(ports["PORT"]), str(ports["BACKEND"])]
    if name == "outrigger":
        fill(template("outrigger-service.yaml", work.folder), directory, words)
    return started(name, program, directory, fill(template(CONFIGURATION[name], work.folder), directory, words))


def started(name, program, directory, path):
    return {
        "backend": [program, "-p", directory, "-c", path],
        "outrigger": [program, "--config", path],
        "haproxy": [program, "-db", "-q", "-f", path],
        "nginx": [program, "-p", directory, "-c", path],
        "envoy": [program, "-c", path, "--concurrency", "1", "--disable-hot-restart", "-l", "error"],
    }[name]


def pair(name, program, directory, words):
    """Both sidecars as one session: a shell that starts the two and waits, and costs nothing more."""
    if name == "outrigger":
        fill(template("outrigger-service.yaml", "pair"), directory, words)
    lines = [
        shlex.join(started(name, program, directory, fill(template(file, "pair"), directory, words))) for file in PAIR[name]
    ]
    return ["sh", "-c", f"{lines[0]} & {lines[1]} & wait"]


def template(file, folder):
    """The name of a folder's own configuration, or of the common one."""
    own = Path(folder) / file
    return str(own) if (TEMPLATES / own).exists() else file


def fill(template, directory, words):
    """Copies a configuration of contestants/ into `directory`, its @NAMES@ replaced; answers its path."""
    text = (TEMPLATES / template).read_text()
    # A word may hold others, which come after it.
    for name, value in {**words, "DIR": directory}.items():
        text = text.replace(f"@{name}@", str(value))
    path = Path(directory) / Path(template).name
    path.write_text(text)
    return str(path)
