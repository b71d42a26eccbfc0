"""Tries a system under power cuts at each of its steps, and under storms between its services.

def test_an_order_is_all_or_nothing() -> None:
    survive(place_an_order, inventory, billing, orders, check=all_or_nothing)
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from synchromesh.errors import CallError, SagaError, StoreError
from synchromesh.saga.inspection import list_runs
from synchromesh.saga.records import ENDED, SagaStatus
from synchromesh.service import Service
from synchromesh.store import Row, SqlValue
from synchromesh.testing.disk import SimDisk
from synchromesh.testing.escapes import SimulationError
from synchromesh.testing.proxy import Proxy
from synchromesh.testing.serving import InProcess
from synchromesh.testing.sim_runtime import SimRuntime
from synchromesh.testing.wire import CALM, STORMY, NetworkFaults
from synchromesh.testing.world import Node, World

STORM = replace(STORMY, loss=0.1, duplication=0.15, tail=0.1)
# The weather of a storm; then it is calm, and the system has to come to rest.
STORM_S = 10.0
DOWN_S = 0.3
LOOK_EVERY_S = 0.5
# What storms are for: where none of it came, they showed nothing.
RARE = ("crash", "message lost", "message duplicated", "message late")

AT_REST = frozenset(status.value for status in (*ENDED, SagaStatus.STUCK))

Main = Callable[[InProcess], Awaitable[None]]


class NotSurvived(AssertionError):
    """Raised when a system is not as it must be after a fault; the message says which one.

    Example:
        >>> print(NotSurvived("only='cut 17': AssertionError: sold twice"))
        only='cut 17': AssertionError: sold twice
    """


class Books:
    """The databases of services after a universe has ended.

    Example:
        >>> def sold(books: Books) -> int:
        ...     return len(books.rows("orders", "select 1 from orders"))
    """

    def __init__(self, disk: SimDisk) -> None:
        self._disk = disk

    def rows(self, service: str, sql: str, *values: SqlValue) -> list[Row]:
        """Query the database of a service."""
        found: list[Row] = self._disk.rows(f"/{service}.db", sql, *values)
        return found


@dataclass(frozen=True, slots=True)
class Survival:
    """What a system has survived.

    Attributes:
        cuts: the steps before which the power was cut.
        storms: how many storms there were.
        count: how often rare things happened in all of them.

    Example:
        >>> Survival((1, 2, 3), 20, Counter({"crash": 23})).count["crash"]
        23
    """

    cuts: tuple[int, ...]
    storms: int
    count: Counter[str]


def survive(
    main: Main,
    *services: Service,
    check: Callable[[Books], None],
    cuts_max: int = 100,
    storms: int = 20,
    seed: int = 0,
    settle_s: float = 600.0,
    only: str = "",
) -> Survival:
    """Run `main` in a calm universe, in one for each power cut, and in one for each storm.

    `main` is a client that does not give up: it is begun anew after a power cut, and a second later
    where a call failed, so that its commands need keys of its own. A `SagaError` is an answer, and
    ends it. In a storm requests between services are lost, repeated and late, and the power fails.

    In the end of each universe all sagas are completed or undone and none is stuck, no message is
    left or parked, no background loop has failed (S5, O1, O5), and `check` finds the books right.

    Args:
        cuts_max: how many steps are tried, spread evenly over those of the calm universe.
        storms: how many seeds are tried, from `seed` on.
        settle_s: the virtual time in which all must come to rest after the last fault.
        only: the one universe to run, such as "cut 17" or "storm 3", as a failure names it.

    Raises:
        NotSurvived: something was not as it must be; its cause is what `main` or `check` raised.
        ValueError: `only` names no universe.

    Example:
        >>> from typing import Protocol
        >>> from synchromesh.calls import Contract, command
        >>> from synchromesh.service import Context, Transaction
        >>> from synchromesh.store import Migration
        >>> class Till(Contract, Protocol, service="till", version="1.0"):
        ...     @command("POST /sales")
        ...     async def sell(self, cents: int) -> int: ...
        >>> table = ("create table sale(cents integer)",)
        >>> till = Service("till", implements=Till, migrations=[Migration(1, table, 1)])
        >>> @till.writes(Till.sell)
        ... async def sell(tx: Transaction, cents: int) -> int:
        ...     await tx.execute("insert into sale values (?)", cents)
        ...     return cents
        >>> async def one_sale(client: InProcess) -> None:
        ...     await client.call(Till.sell(5), key="sale-1")
        >>> def once(books: Books) -> None:
        ...     assert books.rows("till", "select cents from sale") == [(5,)]
        >>> survive(one_sale, till, check=once, storms=40).storms
        40
    """
    trial = _Trial(main, services, check, settle_s)
    steps = trial.run("calm", 0)
    if only:
        kind, _, number = only.partition(" ")
        if kind not in ("cut", "storm") or not number.isdecimal():
            raise ValueError(f"only={only!r} names no universe; use such as 'cut 17' or 'storm 3'")
        trial.run(kind, int(number))
        return Survival(trial.cuts, int(kind == "storm"), trial.count)
    for step in _spread(steps, cuts_max):
        trial.run("cut", step)
    for storm in range(seed, seed + storms):
        trial.run("storm", storm)
    missing = [what for what in RARE if storms and not trial.count[what]]
    if missing:
        raise NotSurvived(
            f"in {storms} storms this never happened: {', '.join(missing)}; try more of them, or "
            "let main do more"
        )
    return Survival(trial.cuts, storms, trial.count)


class _Trial:
    def __init__(
        self,
        main: Main,
        services: tuple[Service, ...],
        check: Callable[[Books], None],
        settle_s: float,
    ) -> None:
        self._main, self._services, self._check = main, services, check
        self._settle_s = settle_s
        self.cuts: tuple[int, ...] = ()
        self.count: Counter[str] = Counter()
        self._steps = 0

    def run(self, kind: str, number: int) -> int:
        """Run one universe; return how many steps the system took."""
        universe = _Universe(kind, number, self._main, self._services, self._settle_s)
        if kind == "cut":
            self.cuts = (*self.cuts, number)
            universe.doom(number)
        elif kind == "storm":
            universe.doom(*universe.world.rng.sample(range(1, 2 * self._steps + 2), 2))
        try:
            universe.run()
            self._check(Books(universe.world.disk))
        except Exception as error:
            named = "the calm universe" if kind == "calm" else f"only={f'{kind} {number}'!r}"
            raise NotSurvived(f"{named}: {type(error).__name__}: {error}") from error
        self.count.update(universe.world.count)
        if kind == "calm":
            self._steps = universe.node.steps
        return universe.node.steps


class _Universe:
    """One run of the system, on one node, to its rest."""

    def __init__(
        self, kind: str, number: int, main: Main, services: tuple[Service, ...], settle_s: float
    ) -> None:
        is_storm = kind == "storm"
        self._faults: NetworkFaults = STORM if is_storm else CALM
        # A cut universe is the calm one up to its cut.
        seed = f"storm {number}" if is_storm else "calm"
        self.world = World(f"survive/{seed}", faults=self._faults)
        self._main, self._services, self._settle_s = main, services, settle_s
        self.node = self.world.node("system", self._live)
        self._served: InProcess | None = None
        self._failure: Exception | None = None
        self._is_done = False
        self._doomed: set[int] = set()
        self._is_storm = is_storm
        self.world.on_step = self._before_step

    def doom(self, *steps: int) -> None:
        """Cut the power before these steps."""
        self._doomed.update(steps)

    def run(self) -> None:
        """Run it, and raise what is not as it must be."""
        self.node.start()
        self.world.run(self._story(), until_s=STORM_S + 2 * self._settle_s)

    def _before_step(self, node: Node) -> None:
        if node.steps in self._doomed:
            self._doomed.discard(node.steps)
            self._served = None
            node.crash(DOWN_S)

    async def _live(self, runtime: SimRuntime) -> None:
        served = InProcess(runtime, self._services)
        await served.start(*served.services)
        self._served = served
        for name, instance in served.up.items():
            # What TCP never does, and whatever stands between a caller and a service may.
            dispatcher: Any = instance.dispatcher
            dispatcher.dispatch = Proxy(dispatcher.dispatch, runtime, self.world.wire).dispatch
            served.transport.add(f"{name}-1", dispatcher)
        try:
            while not await self._is_answered(served):  # noqa: ASYNC110  it asks, and does not poll
                await asyncio.sleep(self.world.rng.uniform(0.1, 1.0))
        except Exception as error:  # noqa: BLE001  it is what the test is told
            self._failure = error
        self._is_done = True
        await asyncio.Event().wait()

    async def _is_answered(self, served: InProcess) -> bool:
        try:
            await self._main(served)
        except SagaError as error:
            self.world.count[f"client: {error.code}"] += 1
            return not isinstance(error, CallError)
        except (CallError, StoreError) as error:
            self.world.count[f"client: {error.code}"] += 1
            return False
        return True

    async def _story(self) -> None:
        loop, world = self.world.loop, self.world
        while self._is_storm and loop.time() < STORM_S and not self._is_done:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_EVERY_S)
        if self._is_storm:
            self._doomed.clear()
        world.heal()
        # Messages that are late still come: rest counts after the last of them.
        least_s = loop.time() + self._faults.tail_s
        most_s = loop.time() + self._settle_s
        while (unrest := await self._unrest()) or loop.time() < least_s:
            if loop.time() > most_s:
                raise SimulationError(
                    f"no rest {self._settle_s:g} s after the last fault: {'; '.join(unrest)}"
                )
            await asyncio.sleep(LOOK_EVERY_S)
        if findings := await self._findings():
            raise SimulationError("; ".join(findings))

    async def _unrest(self) -> list[str]:
        """Return what still goes on, in words; raise what `main` raised."""
        if self._failure is not None:
            raise self._failure
        served = self._served
        if served is None or not self.node.is_up or self._doomed:
            return ["the power is not back"]
        found = [] if self._is_done else ["main has no answer"]
        for name, instance in served.up.items():
            statuses = await instance.sagas()
            found += [
                f"{name}: sagas that are {status}: {count}"
                for status, count in statuses.items()
                if status not in AT_REST
            ]
            behind = await instance.behind()
            found += [f"{name}: {child} is behind by {n}" for child, n in behind.items() if n]
        return found

    async def _findings(self) -> list[str]:
        """Return what needs a person, in words."""
        assert self._served is not None
        found = [
            f"{service}/{child} failed too often: {error!r}"
            for service, child, error in self._served.failures
        ]
        for name, instance in self._served.up.items():
            aside = await instance.set_aside(0)
            found += [
                f"{name}: messages that are {each.state}: {each.count} ({each.event}: {each.error})"
                for each in aside.groups
            ]
            if instance.has_database:
                found += [
                    f"saga {run.id} of {name} is stuck: {run.reason}"
                    for run in await list_runs(instance.store, SagaStatus.STUCK.value)
                ]
        return found


def _spread(steps: int, count_max: int) -> range:
    """Return up to so many steps from 1 on, evenly spread."""
    return range(1, steps + 1, max(1, -(-steps // max(1, count_max))))
