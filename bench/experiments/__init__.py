"""What is measured of Outrigger beside the comparison of hops: one module for each experiment, with a `run` of its own.

A module starts what it needs and answers with a `Found`; it judges no bar (bars.py) and writes no page (page.py).
"""

from dataclasses import dataclass, field


@dataclass
class Found:
    """What an experiment gave: a table for people, figures for the bars, and what went wrong."""

    title: str
    # What was done, in a few sentences for the page.
    text: str
    header: tuple = ()
    # Cells, as text.
    rows: list = field(default_factory=list)
    # By name; what a bar is judged by is in its plain unit: bytes, seconds, ratios.
    figures: dict = field(default_factory=dict)
    problems: list = field(default_factory=list)


@dataclass
class Bench:
    """What every experiment is handed."""

    options: object
    # A folder that is removed after the run.
    directory: str
    # The contestants that take part, by name.
    field: dict
    # The program `outrigger`, which has the control API; None if there is none.
    control: str | None = None


def services(count, endpoints, moved=0):
    """`count` service documents with static endpoints each, as one text of YAML; another `moved` moves the endpoints."""
    return "---\n".join(service(number, endpoints, moved) for number in range(count))


def service(number, endpoints, moved=0):
    addresses = ", ".join(
        f'"10.{number // 250}.{number % 250}.{each + 1}:{15000 + moved}"' for each in range(endpoints)
    )  # fmt: skip
    return (
        f"kind: Service\nname: {service_name(number)}\nprotocol: http\nbackends:\n"
        f"  - name: v1\n    discover: {{ static: [{addresses}] }}\n    tls: none\n"
    )


def service_name(number):
    return f"service-{number:05}"
