"""One scenario: clients outside, a fault that comes and is healed, and what became of each request.

0        1                 4           4 + lasts           + 3            + 2      + 1
|  warm  |  before (3 s)   |   fault   |   after (3 s)     |  no load     | probes |
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeVar

from benchmarks.cascade.faults import FAULTS, Fault, inflict
from benchmarks.cascade.shape import Plans, Shape
from benchmarks.cascade.system import System, instance_names
from benchmarks.cascade.timeline import Timeline
from synchromesh.errors import SynchromeshError
from synchromesh.resilience import Policy
from synchromesh.testing import SimRuntime, run

T = TypeVar("T")

WARM_S, FAULT_AT_S, AFTER_S, REST_S = 1.0, 4.0, 3.0, 2.0
# The fault has been met by then: what is measured while it lasts is measured from there on.
SETTLE_S, SETTLE_REPLICA_S = 1.0, 2.0
# Attempts at a service that is down as a whole are counted for so long before the healing.
COUNT_S = 4.0
# Probes come slowly enough for the culprit to answer them all: at half of what it can do.
PROBES, PROBES_EVERY_S, PROBES_LOAD = 20, 0.05, 0.5
CLIENT_TRIES, CLIENT_BACKOFF_S = 3, 0.1
STEPS_MAX = 50_000_000


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run.

    Attributes:
        culprit: the service that the fault strikes; `is_replica`: only the last of its instances.
        load: what clients ask of the culprit, as a share of what it can do.
        deadline_s: of the clients; None for none.
        is_retrying: whether they ask again, up to three times within their deadline.
        layers: how calls are guarded: a name of `LAYERS`.
    """

    name: str
    shape: Shape
    culprit: str
    fault: str
    load: float
    deadline_s: float | None
    is_retrying: bool = False
    is_replica: bool = False
    layers: str = "all"
    seed: int = 0

    @property
    def rate_per_s(self) -> float:
        """How many requests a second come from outside."""
        capacity = self.shape.part(self.culprit).capacity_per_s
        return self.load * capacity / self.shape.shares()[self.culprit]


@dataclass(frozen=True, slots=True)
class Layers:
    """How calls are guarded; whether a client's deadline travels, and callees limit themselves."""

    guard: Callable[[Policy], Policy]
    is_travelling: bool


def _only(**kept: Any) -> Callable[[Policy], Policy]:
    """Leave out every layer of the default policy but those given."""

    def guard(default: Policy) -> Policy:
        left_out = {field.name: None for field in fields(default)}
        own = {
            name: getattr(default, name) if value is True else value for name, value in kept.items()
        }
        return replace(default, **{**left_out, **own})

    return guard


LAYERS = {
    "nothing": Layers(_only(), is_travelling=False),
    "time-outs": Layers(_only(timeout_s=True), is_travelling=False),
    "retries": Layers(_only(timeout_s=True, retry=True), is_travelling=False),
    "breaker": Layers(_only(timeout_s=True, retry=True, breaker=True), is_travelling=False),
    "all": Layers(lambda default: default, is_travelling=True),
}


class Asked(NamedTuple):
    """What became of one request."""

    began_s: float
    ended_s: float
    is_dependent: bool
    is_good: bool

    @property
    def took_s(self) -> float:
        """How long the client waited."""
        return self.ended_s - self.began_s


@dataclass
class Observed:
    """What one run came to, for `claims` to judge.

    Attributes:
        visits: how often a request that needs the culprit comes to it, on average.
        attempts: by instance, between `counted_s` and the healing.
        opened: when an edge opened: seconds, caller, callee.
        probes_good: how many of the probes in the end were answered.
    """

    scenario: Scenario
    fault: Fault
    asked: list[Asked]
    visits: float
    attempts: dict[str, int]
    opened: list[tuple[float, str, str]]
    probes_good: int

    @property
    def counted_s(self) -> float:
        """From when on attempts were counted."""
        return FAULT_AT_S + _counted_after_s(self.scenario, self.fault)

    @property
    def healed_s(self) -> float:
        """When the fault was healed."""
        return FAULT_AT_S + self.fault.lasts_s

    @property
    def load_ended_s(self) -> float:
        """When clients stopped asking."""
        return self.healed_s + AFTER_S


def observe(scenario: Scenario, timeline: Timeline | None = None) -> Observed:
    """Run a scenario in virtual time; a timeline takes down what happens."""
    seed = f"{scenario.name}/{scenario.seed}"

    async def main(runtime: SimRuntime) -> Observed:
        return await _Run(scenario, runtime, seed, timeline).run()

    return run(main, seed=seed, steps_max=STEPS_MAX)


def _counted_after_s(scenario: Scenario, fault: Fault) -> float:
    return SETTLE_REPLICA_S if scenario.is_replica else fault.lasts_s - COUNT_S


class _Run:
    def __init__(
        self, scenario: Scenario, runtime: SimRuntime, seed: str, timeline: Timeline | None
    ) -> None:
        self._scenario, self._seed, self._timeline = scenario, seed, timeline
        self._fault = FAULTS[scenario.fault]
        self._rng = random.Random(f"{seed}/clients")
        self._plans = Plans(scenario.shape, random.Random(f"{seed}/plans"))
        self._rate_per_s = scenario.rate_per_s
        self._layers = LAYERS[scenario.layers]
        self._system = System(
            scenario.shape,
            self._plans,
            runtime,
            self._layers.guard,
            is_default=self._layers.is_travelling,
        )
        self._asked: list[Asked] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._visits = self._dependents = 0
        self._counted: dict[str, int] = {}
        # How requests that need the culprit have ended since the timeline's last row.
        self._ends: Counter[str] = Counter()
        self._began_s = self._load_ends_s = 0.0

    async def run(self) -> Observed:
        scenario, fault, system = self._scenario, self._fault, self._system
        loop = asyncio.get_running_loop()
        await system.start(self._seed)
        self._began_s = loop.time()
        self._load_ends_s = self._began_s + FAULT_AT_S + fault.lasts_s + AFTER_S
        self._arrive_later()
        if self._timeline is not None:
            self._look(self._timeline)
        await asyncio.sleep(FAULT_AT_S)
        settled = loop.call_later(_counted_after_s(scenario, fault), self._count)
        await inflict(fault, self._strike, self._heal)
        settled.cancel()
        attempts = {
            name: count - self._counted.get(name, 0)
            for name, count in system.transport.attempts.items()
        }
        await asyncio.sleep(AFTER_S + REST_S)
        visits = self._visits / max(1, self._dependents)
        capacity = scenario.shape.part(scenario.culprit).capacity_per_s
        every_s = max(PROBES_EVERY_S, visits / (PROBES_LOAD * capacity))
        probes = [self._probe(number * every_s) for number in range(PROBES)]
        probes_good = sum(await asyncio.gather(*probes))
        await self._end()
        return Observed(
            scenario,
            fault,
            self._asked,
            visits,
            attempts,
            [(at_s - self._began_s, source, to) for at_s, source, to in system.opened],
            probes_good,
        )

    # -- clients ---------------------------------------------------------------------------------

    def _arrive_later(self) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(self._rng.expovariate(self._rate_per_s), self._arrive)

    def _arrive(self) -> None:
        if asyncio.get_running_loop().time() < self._load_ends_s:
            self._start(self._request(self._plans.draw()))
            self._arrive_later()

    def _look(self, timeline: Timeline) -> None:
        loop = asyncio.get_running_loop()
        at_s = loop.time() - self._began_s
        timeline.look(at_s, self._system, self._scenario.culprit, self._ends)
        if loop.time() < self._load_ends_s:
            loop.call_later(timeline.every_s, self._look, timeline)

    def _start(self, coro: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(coro)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _request(self, plan: int) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        visits = self._plans.visits(plan, self._scenario.culprit)
        if visits:
            self._visits += visits
            self._dependents += 1
        is_good = False
        try:
            is_good = await self._tried(plan, began_s)
        finally:
            ended_s = loop.time()
            self._asked.append(
                Asked(began_s - self._began_s, ended_s - self._began_s, visits > 0, is_good)
            )

    async def _tried(self, plan: int, began_s: float) -> bool:
        """Ask until there is an answer, the deadline has passed or the patience is over."""
        loop, deadline_s = asyncio.get_running_loop(), self._scenario.deadline_s
        tries = CLIENT_TRIES if self._scenario.is_retrying else 1
        while True:
            left_s = None if deadline_s is None else began_s + deadline_s - loop.time()
            if await self._asked_once(plan, left_s):
                return True
            tries -= 1
            backoff_s = CLIENT_BACKOFF_S * (1 + self._rng.random())
            if not tries or (
                deadline_s is not None and loop.time() + backoff_s >= began_s + deadline_s
            ):
                return False
            await asyncio.sleep(backoff_s)

    async def _asked_once(self, plan: int, left_s: float | None) -> bool:
        if self._layers.is_travelling or left_s is None:
            return await self._answered(plan, left_s)
        # The client gives up and the system is not told.
        task = self._start(self._answered(plan, None))
        await asyncio.wait((task,), timeout=left_s)
        return task.done() and task.result()

    async def _answered(self, plan: int, left_s: float | None) -> bool:
        needs = self._plans.visits(plan, self._scenario.culprit) > 0
        try:
            await self._system.ask(plan, left_s)
        except SynchromeshError as error:
            self._ends[error.code] += needs
            return False
        self._ends["ok"] += needs
        return True

    async def _probe(self, after_s: float) -> bool:
        await asyncio.sleep(after_s)
        plan = self._plans.drawn_with(self._scenario.culprit)
        return await self._answered(plan, self._scenario.deadline_s)

    async def _end(self) -> None:
        """Stop it all; what still waits for an answer has none."""
        while self._tasks:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.wait(self._tasks)
        await self._system.stop()

    # -- the fault -------------------------------------------------------------------------------

    def _struck(self) -> list[tuple[str, Any]]:
        part = self._scenario.shape.part(self._scenario.culprit)
        each = list(zip(instance_names(part), self._system.resources[part.name], strict=True))
        return each[-1:] if self._scenario.is_replica else each

    def _strike(self) -> None:
        for name, resource in self._struck():
            self._fault.strike(resource)
            if self._fault.is_refusing:
                self._system.refuse(name)

    def _heal(self) -> None:
        for name, resource in self._struck():
            resource.heal()
            if self._fault.is_refusing:
                self._system.accept(name)

    def _count(self) -> None:
        self._counted = dict(self._system.transport.attempts)
