"""What a system on PostgreSQL and NATS costs: processes as `dev --split` runs them.

Rows of `benchmarks.postgres`: how soon an event that is published has its effect in another
process, and what a second replica of a service adds on this machine.
"""

from __future__ import annotations

import time

from benchmarks import app, effects_app
from benchmarks.harness import Measures, Report, at_least, at_most, in_turn, percentile, size
from benchmarks.processes import System, running

ENGINES = ("--engine", "all")
ONE = "one replica"
# What is measured is how many, not how long one waits for the others.
PATIENT = """
[policies."probe:shelf"]
timeout = "30s"
"""
IN_FLIGHT = 32
EVENTS, WRITES = 20, 400


def measure_effects(report: Report) -> None:
    """Publish one event at a time, and wait for its effect in the subscriber's process."""
    took: list[float] = []
    with running(effects_app.CONFIG, split=True, words=ENGINES) as system:
        for turn in range(size(16, 2)):
            some = system.ask("/effects", {"first": turn * EVENTS, "count": EVENTS})
            took += some if turn else []  # the first ones connect
    figure = "publish to effect in another process, over NATS"
    report.alone(f"{figure}, p50", "ms", percentile(took, 50), at_most(5))
    report.alone(f"{figure}, p99", "ms", percentile(took, 99))


def measure_replicas(report: Report) -> None:
    """Have a service write rows, as one process and as two, through the same caller."""
    results = in_turn({"ours": lambda: _writes(2), ONE: lambda: _writes(1)}, rounds=size(5, 1))
    report.against(
        f"units a second of two replicas, {IN_FLIGHT} in flight", "/s", results, "rate",
        peer=ONE, goal=at_least(1.0),
    )  # fmt: skip


def _writes(replicas: int) -> Measures:
    settings = [f"services.shelf.replicas={replicas}"]
    with running(app.CONFIG + PATIENT, split=True, settings=settings, words=ENGINES) as system:
        _write(system, size(4, 1))
        return {"rate": _write(system, size(20, 1))}


def _write(system: System, turns: int) -> float:
    """Write so many times so many rows, and return how many there were a second."""
    began_s = time.perf_counter()
    for _ in range(turns):
        system.ask("/writes", {"count": WRITES, "in_flight": IN_FLIGHT})
    return turns * (WRITES // IN_FLIGHT * IN_FLIGHT) / (time.perf_counter() - began_s)
