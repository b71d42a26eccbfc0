"""A system of the shipped modules in virtual time: services, instances, and what may go wrong.

Instances are `ServiceInstance`s and calls go through `Caller`s with the default `Policies`; only
what a handler does (it takes a place of a resource for a while, then calls) is this module's.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from benchmarks.cascade.shape import Part, Plans, Shape
from benchmarks.cascade.sharing import Sharing
from synchromesh import Contract, Service, query
from synchromesh.calls import (
    Call,
    Caller,
    InProcessTransport,
    Operation,
    Policies,
    Reply,
    Request,
    operations_of,
)
from synchromesh.discovery import Endpoint, Resolved
from synchromesh.identity import KEY_BYTES_MIN, Signer
from synchromesh.resilience import AdaptiveLimitOptions, Policy, Transition
from synchromesh.service import Context, Deps, ServiceInstance
from synchromesh.store import SqliteStores
from synchromesh.telemetry import SpanRow
from synchromesh.testing import SimRuntime

FAILS_AFTER_S = 0.001
UNLIMITED = AdaptiveLimitOptions(initial=1000, limit_min=1000, limit_max=1000)


class Broken(Exception):
    """What a handler raises during an error burst."""


class Resource:
    """What an instance needs for each request: so many places, each taken for a while, or shared.

    Attributes:
        places, factor, fixed_s, is_stalled, is_failing: changed by faults; `factor` multiplies the
            time that is drawn, `fixed_s` replaces it.
        busy: how many places are taken.
    """

    def __init__(self, part: Part, rng: random.Random) -> None:
        self._sharing = Sharing(part.places) if part.is_shared else None
        self._places = part.places
        self.factor = 1.0
        self.fixed_s: float | None = None
        self.is_stalled = self.is_failing = False
        self.busy = 0
        self._part, self._rng = part, rng
        self._mu = mu_of(part)
        self._queue: deque[asyncio.Future[None]] = deque()
        self._opened = asyncio.Event()

    @property
    def places(self) -> int:
        """How many requests it works on at once."""
        return self._places

    @places.setter
    def places(self, places: int) -> None:
        self._places = places
        if self._sharing is not None:
            self._sharing.places = places
            self._sharing.admit()

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return sum(not turn.done() for turn in self._queue)

    def heal(self) -> None:
        """End every fault."""
        self.places, self.factor, self.fixed_s = self._part.places, 1.0, None
        self.is_stalled = self.is_failing = False
        self._opened.set()
        self._opened.clear()
        self._hand_on()

    async def use(self) -> None:
        """Work on one request. Raises Broken during an error burst."""
        if self.is_failing:
            await asyncio.sleep(FAILS_AFTER_S)
            raise Broken
        if self._sharing is not None:
            await self._shared(self._sharing)
            return
        if self.busy < self.places:
            self.busy += 1
        else:
            await self._turn()
        try:
            while self.is_stalled:
                await self._opened.wait()
            await asyncio.sleep(self._takes_s())
        finally:
            self.busy -= 1
            self._hand_on()

    async def _shared(self, sharing: Sharing) -> None:
        self.busy += 1
        try:
            while self.is_stalled:
                await self._opened.wait()
            await sharing.serve(self._takes_s())
        finally:
            self.busy -= 1

    def _takes_s(self) -> float:
        if self.fixed_s is not None:
            return self.fixed_s
        return self._rng.lognormvariate(self._mu, self._part.sigma) * self.factor

    async def _turn(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it had got its place in that moment
                self.busy -= 1
                self._hand_on()
            raise

    def _hand_on(self) -> None:
        while self._queue and self.busy < self.places:
            turn = self._queue.popleft()
            if not turn.done():
                self.busy += 1
                turn.set_result(None)


def mu_of(part: Part) -> float:
    """Return the parameter of the log-normal time of a service, whose mean is given."""
    return math.log(part.mean_s) - part.sigma**2 / 2


class CountingTransport(InProcessTransport):
    """Counts the attempts at each instance."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts: Counter[str] = Counter()

    def send(self, endpoint: Endpoint, request: Request) -> Awaitable[Reply]:
        """Send a request and return its reply."""
        self.attempts[endpoint.instance] += 1
        return super().send(endpoint, request)


class NoSpans:
    """Drops spans: nobody reads them here."""

    def add(self, span: SpanRow, /) -> None:
        """Drop a span."""


class System:
    """The services of a shape, running, and the caller through which outside clients come in.

    Attributes:
        gateway: the caller at the edge of the system, with the defaults too.
        resources: those of each service, one an instance.
        running: the instances, by name.
        opened: when an edge opened, and which: seconds, caller, callee.
    """

    def __init__(
        self,
        shape: Shape,
        plans: Plans,
        runtime: SimRuntime,
        layers: Callable[[Policy], Policy],
        *,
        is_default: bool,
    ) -> None:
        self._is_default = is_default
        self.shape, self._plans, self._runtime = shape, plans, runtime
        self.transport = CountingTransport()
        self.resources: dict[str, list[Resource]] = {}
        self.opened: list[tuple[float, str, str]] = []
        self._layers = layers
        self._contracts = {part.name: _contract(part.name) for part in shape.parts}
        self._operations: dict[str, Operation[[int], int]] = {
            name: operations_of(contract)["work"] for name, contract in self._contracts.items()
        }
        self._listed = {
            part.name: Resolved(
                tuple(
                    Endpoint(name, part.name, f"inproc://{name}") for name in instance_names(part)
                )
            )
            for part in shape.parts
        }
        self.running: dict[str, ServiceInstance] = {}
        self._deps = Deps(
            runtime=runtime,
            services={},
            signer=Signer(runtime.secret_rng.randbytes(KEY_BYTES_MIN)),
            sink=NoSpans(),
            stores=SqliteStores(runtime, "/{}.db".format),
            resolver=self,
            transports={"inproc": self.transport},
            policies=self._policies,
            gave_up=_gave_up,
        )
        self.gateway = self._watched(self._deps.caller("gateway"))

    async def resolve(self, service: str) -> Resolved:
        """Return the instances of a service, whether they answer or not."""
        return self._listed[service]

    async def start(self, seed: str) -> None:
        """Start every instance."""
        for part in self.shape.parts:
            resources = self.resources[part.name] = []
            for name in instance_names(part):
                resource = Resource(part, random.Random(f"{seed}/{name}"))
                resources.append(resource)
                stores = SqliteStores(self._runtime, f"/{name}-{{}}.db".format)
                service = self._service(part, resource)
                deps = replace(self._deps, services={part.name: service}, stores=stores)
                instance = self.running[name] = await ServiceInstance.start(service, deps)
                if not self._is_default:
                    # Without the default layers no callee limits itself either.
                    instance.dispatcher._limits = UNLIMITED
                self._watched(instance.caller)
                self.transport.add(name, instance.dispatcher)

    async def stop(self) -> None:
        """Stop every instance."""
        for instance in reversed(self.running.values()):
            await instance.stop()

    async def ask(self, plan: int, timeout_s: float | None) -> None:
        """Send a request in from outside. Raises what the call raises."""
        call = self._operations[self.shape.parts[0].name](plan)
        await self.gateway.call(call, context=self.gateway.root(), timeout_s=timeout_s)

    def refuse(self, instance: str) -> None:
        """Let an instance refuse connections, as one that is dead and still listed does."""
        self.transport.remove(instance)

    def accept(self, instance: str) -> None:
        """Let it take connections again."""
        self.transport.add(instance, self.running[instance].dispatcher)

    def _service(self, part: Part, resource: Resource) -> Service:
        operations, steps = self._operations, self._plans.steps
        service = Service(part.name, implements=self._contracts[part.name])

        async def work(ctx: Context, plan: int) -> int:
            await resource.use()
            calls = [operations[steps[onward][0]](onward) for onward in steps[plan][1]]
            if not calls:
                return 1
            if len(calls) == 1:
                return 1 + await ctx.call(calls[0])
            return 1 + sum(await _all(ctx, calls))

        service.handles(operations[part.name])(work)
        return service

    def _policies(self, caller: str) -> Policies:
        policies = Policies()
        part = next((part for part in self.shape.parts if part.name == caller), None)
        default = self._layers(policies.default)
        if part is not None and part.timeout_s is not None:
            default = replace(default, timeout_s=part.timeout_s)
        return policies if default is policies.default else replace(policies, default=default)

    def _watched(self, caller: Caller) -> Caller:
        def note(transition: Transition) -> None:
            if transition.after.value == "open":
                source, _, target = transition.name.partition(" -> ")
                self.opened.append((transition.at_s, source, target))

        caller.on_transition = note
        return caller


def instance_names(part: Part) -> list[str]:
    """Return the names of the instances of a service."""
    return [f"{part.name}-{number}" for number in range(1, part.instances + 1)]


def _contract(name: str) -> type[object]:
    class Made(Contract, Protocol, service=name, version="1.0"):
        @query("GET /asks/{plan}")
        async def work(self, plan: int) -> int: ...

    return Made


async def _all(ctx: Context, calls: list[Call[int]]) -> list[int]:
    """Make calls at once; where one fails the others are cancelled."""
    failed: list[Exception] = []

    async def one(call: Call[int]) -> int:
        try:
            return await ctx.call(call)
        except Exception as error:  # noqa: BLE001 - it is raised below
            failed.append(error)
            for task in tasks:
                if task is not asyncio.current_task():
                    task.cancel()
            return 0

    tasks = [asyncio.ensure_future(one(call)) for call in calls]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    if failed:
        raise failed[0]
    return [answer for answer in answers if isinstance(answer, int)]


def _gave_up(service: str, child: str, error: BaseException) -> None:
    raise AssertionError(f"{service}/{child} failed too often") from error
