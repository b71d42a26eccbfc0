"""Who is blamed for what comes too late: in trees of services, under any time-outs and deadlines.

`benchmarks.cascade` draws no time-out and no deadline that is shorter than what the work takes
usually, so that nobody there is impatient with a service that is as quick as ever. Here most are.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from functools import cache

import pytest
from benchmarks.cascade.faults import FAULTS
from benchmarks.cascade.shape import Part, Plans, Shape
from benchmarks.cascade.system import System

from synchromesh.errors import SynchromeshError
from synchromesh.testing import SimRuntime, run

SEEDS = 15
# A time-out of so many times what the work takes on average is enough for nearly all of it.
AMPLE = 3.0
RATE_PER_S, WELL_S, LASTS_S = 60.0, 3.0, 5.0
WRONG = ("stall", "slow 5 s", "errors", "flapping", "25 % capacity", "slow database")


def drawn_s(rng: random.Random, least_s: float, most_s: float) -> float:
    """Return a time from a range in which each factor is as likely as any other."""
    return float(least_s * (most_s / least_s) ** rng.random())


def tree(rng: random.Random) -> Shape:
    """Return a tree of services, each with a time-out of its own for what it calls."""
    names = [f"s{number}" for number in range(rng.randint(3, 7))]
    caller = {name: rng.choice(names[:at]) for at, name in enumerate(names) if at}
    return Shape(
        "tree",
        tuple(
            Part(
                name,
                tuple(each for each in names if caller.get(each) == name),
                calls_all=rng.random() < 0.4,
                places=32,
                mean_s=drawn_s(rng, 0.002, 0.05),
                timeout_s=drawn_s(rng, 0.01, 4.0),
            )
            for name in names
        ),
    )


def way_s(shape: Shape, name: str) -> float:
    """Return the mean time that a service takes with all that it calls."""
    part = shape.part(name)
    return part.mean_s + max((way_s(shape, each) for each in part.calls), default=0.0)


class Blamed:
    """What one tree came to.

    Attributes:
        edges: those that opened, each with how often.
        fits: those whose own time-out is enough for a callee that is well.
        ends: how requests ended, each with how often.
    """

    def __init__(self, seed: int) -> None:
        rng = random.Random(f"blame {seed}")
        self.shape = shape = tree(rng)
        self.culprit = rng.choice(shape.parts[1:]).name
        self.fault = FAULTS[rng.choice(WRONG)]
        self.edges: Counter[tuple[str, str]] = Counter()
        self.fits = {("gateway", "s0")} | {
            (part.name, callee)
            for part in shape.parts
            for callee in part.calls
            if (part.timeout_s or 0.0) >= AMPLE * way_s(shape, callee)
        }
        self.ends: Counter[str] = Counter()
        self._rng = rng
        run(self._run, seed=f"blame {seed}", steps_max=20_000_000)

    async def _run(self, runtime: SimRuntime) -> None:
        plans = Plans(self.shape, random.Random(self._rng.random()))
        system = System(self.shape, plans, runtime, lambda default: default, is_default=True)
        await system.start("blame")
        loop, rng = asyncio.get_running_loop(), self._rng
        (culprit,) = system.resources[self.culprit]
        strikes_s, ends_s = loop.time() + WELL_S, loop.time() + WELL_S + LASTS_S
        struck = loop.call_at(strikes_s, self.fault.strike, culprit)
        asked = set()
        while loop.time() < ends_s:
            deadline_s = None if rng.random() < 0.2 else drawn_s(rng, 0.005, 5.0)
            asked.add(asyncio.ensure_future(self._ask(system, plans.draw(), deadline_s)))
            await asyncio.sleep(rng.expovariate(RATE_PER_S))
        struck.cancel()
        culprit.heal()
        await asyncio.gather(*asked)
        self.edges.update((caller, callee) for _, caller, callee in system.opened)
        await system.stop()

    async def _ask(self, system: System, plan: int, deadline_s: float | None) -> None:
        try:
            await system.ask(plan, deadline_s)
        except SynchromeshError as error:
            self.ends[error.code] += 1
        else:
            self.ends["ok"] += 1


@cache
def blamed(seed: int) -> Blamed:
    """Return what the tree of a seed came to."""
    return Blamed(seed)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_edge_opens_but_those_to_the_culprit(seed: int) -> None:
    """Whatever the time-outs and however short the deadlines.

    Those apart that give a callee that is well less than its work takes: they fail without a fault.
    """
    told = blamed(seed)
    wrong = {edge for edge in told.edges if edge[1] != told.culprit}
    assert wrong & told.fits == set(), (told.fault.name, told.culprit, told.shape)


def test_there_is_something_to_blame_and_something_to_excuse() -> None:
    """Edges to the culprit open in most trees; most time-outs do not nest, and clients give up."""
    trees = [blamed(seed) for seed in range(SEEDS)]
    assert sum(any(edge[1] == each.culprit for edge in each.edges) for each in trees) > SEEDS / 2
    not_nested = sum(
        bool(below.calls) and (above.timeout_s or 0.0) < (below.timeout_s or 0.0)
        for each in trees
        for above in each.shape.parts
        for below in map(each.shape.part, above.calls)
    )
    assert not_nested > SEEDS / 2
    assert sum(each.ends["timed_out"] for each in trees) > 10 * SEEDS
