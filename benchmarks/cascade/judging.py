"""Runs scenarios side by side, and sums up an experiment: all scenarios of one shape and fault."""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from benchmarks.cascade.claims import Claim, claims
from benchmarks.cascade.experiment import Observed, Scenario, observe
from benchmarks.cascade.timeline import Timeline

BIN_S = 0.1


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of one scenario.

    Attributes:
        series: for what is pictured: when it healed, and by kind of traffic the share that was
            answered in time, in bins of `BIN_S` by the time of asking; None where nobody asked.
    """

    name: str
    experiment: str
    claims: list[Claim]
    cpu_s: float
    series: dict[str, Any] | None = None


def judge(scenario: Scenario, timeline: Timeline | None = None) -> Judged:
    """Run a scenario and judge it; a timeline takes down what happens."""
    logging.disable(logging.CRITICAL)  # thousands of calls fail on purpose
    began_s = time.process_time()
    observed = observe(scenario, timeline)
    told = claims(observed)
    cpu_s = time.process_time() - began_s
    is_pictured = " with " in scenario.name
    return Judged(
        scenario.name,
        experiment_of(scenario),
        told,
        cpu_s,
        series(observed) if is_pictured else None,
    )


def experiment_of(scenario: Scenario) -> str:
    """Return the name of the experiment that a scenario belongs to."""
    if scenario.name.startswith("system "):
        return f"random systems / {scenario.fault}"
    return " / ".join(scenario.name.split(" / ")[:2])


def series(observed: Observed) -> dict[str, Any]:
    """Return the goodput over time, as a share of what was asked for."""
    bins = round(observed.load_ended_s / BIN_S)
    found: dict[str, Any] = {"healed_s": observed.healed_s}
    for kind, is_dependent in (("dependent", True), ("unrelated", False)):
        asked, good = [0] * bins, [0] * bins
        for each in observed.asked:
            if each.is_dependent is is_dependent:
                at = min(bins - 1, int(each.began_s / BIN_S))
                asked[at] += 1
                good[at] += each.is_good
        found[kind] = [round(g / a, 2) if a else None for g, a in zip(good, asked, strict=True)]
    return found


def judged(scenarios: list[Scenario]) -> Iterator[Judged]:
    """Judge scenarios, one a core at a time, in their order."""
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        yield from pool.map(judge, scenarios)


def table(all_judged: Iterable[Judged]) -> list[dict[str, Any]]:
    """Return the rows of an experiment: how often each claim was kept, and where it was worst."""
    found: dict[str, list[tuple[Claim, str]]] = {}
    for each in all_judged:
        for claim in each.claims:
            found.setdefault(claim.name, []).append((claim, each.name))
    rows = []
    for name, told in found.items():
        values = [claim.value for claim, _ in told]
        worst, where = (max if told[0][0].at_most else min)(told, key=lambda each: each[0].value)
        rows.append(
            {
                "claim": name,
                "kept": sum(claim.is_kept for claim, _ in told),
                "made": len(told),
                "median": figure(statistics.median(values)),
                "worst": figure(worst.value),
                "bound": ("<= " if worst.at_most else ">= ") + f"{worst.bound:.3g}",
                "worst_in": where.split(" / ", 2)[-1],
            }
        )
    return rows


def figure(value: float) -> float | None:
    """Return a value that JSON can say; None is "never"."""
    return float(f"{value:.3g}") if abs(value) < 1e300 else None
