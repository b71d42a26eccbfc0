"""The nodes of one universe: the shipped services, wired as in production, on a simulated machine.

Every service runs from its definition down to its SQL, and calls go over HTTP; replaced are the
disk, the network, the writer's thread, the clocks and randomness. A service has two nodes that
share its file, so that one can take over from the other; the credit provider and the clients have a
node each. A proxy before each service repeats, delays and loses requests, which TCP never does.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from credit_provider import CreditProviderServer, Ledger, ProviderFaults
from services.orders import sagas

from synchromesh.calls import Caller
from synchromesh.discovery import Endpoint, MemoryRegistry
from synchromesh.errors import StoreError, SynchromeshError
from synchromesh.http import AsgiHandler, HttpServer
from synchromesh.identity import Signer
from synchromesh.saga import SagaPolicy
from synchromesh.service import Service, ServiceInstance
from synchromesh.system import RunDir, SystemConfig, load_config
from synchromesh.system.config.definitions import load_services
from synchromesh.system.control.action_table import find_action
from synchromesh.system.control.actions import ReadAction
from synchromesh.system.host.host import Definitions, Host
from synchromesh.testing import Node, Proxy, SimProcess, SimRuntime, World
from universes.releases import orders_with, two_releases
from universes.weather import DEADLINE_S

FOLDER = Path(__file__).resolve().parents[1]
RUNDIR = RunDir(FOLDER)
SERVICES = ("orders", "inventory", "billing", "production")
PROVIDER, CLIENTS = "credit_provider", "clients"
SIGNER = Signer(b"0123456789abcdef0123456789abcdef")
# Less patient than in production, so that a universe has time for every way out of a saga.
POLICY = SagaPolicy(step_timeout_s=0.4, attempts_max=2, backoff_cap_s=1.0)
PATIENCE_S = 60.0

ClientMain = Callable[[Caller], Awaitable[None]]


class Cluster:
    """Runs servo-works in a world.

    Args:
        world: gets the nodes; none is started.
        clients: what the clients do, on a node of their own.

    Attributes:
        broken: what no run may come to, such as a background loop that is beyond restarting.
        releases: "old" or "new" for each service that starts as another release than the shipped.
    """

    def __init__(self, world: World, clients: ClientMain) -> None:
        self.world = world
        self.broken: list[str] = []
        # By service, the release that its nodes start; of the others there is only one.
        self.releases: dict[str, str] = {}
        self._running: dict[str, str] = {}
        # A service that is away: its nodes are up, and nothing runs on them until it is present.
        self.away = ""
        self.present = asyncio.Event()
        self.present.set()
        # What every node has otherwise than a system that is configured so, such as "retention".
        self.otherwise: dict[str, Any] = {}
        self._clients = clients
        self._instances: list[tuple[SimProcess, ServiceInstance]] = []
        self._registry = MemoryRegistry(verify=lambda _: None)
        self._stops: dict[str, asyncio.Event] = {}
        self._provider: CreditProviderServer | None = None
        for service in services().values():
            for number in (1, 2):
                main = functools.partial(self._run, service.name)
                world.node(f"{service.name}-{number}", main)
        world.node(PROVIDER, self._run_provider)
        world.node(CLIENTS, self._run_clients)

    def start(self) -> None:
        """Start one node of each service, the provider and the clients."""
        for name in SERVICES:
            if not self.pair(name)[0].is_up:
                self.world.nodes[f"{name}-1"].start()
        self.world.nodes[PROVIDER].start()
        self.world.nodes[CLIENTS].start()

    def pair(self, service: str) -> tuple[Node, Node]:
        """Return a node of a service that is up, where one is, and the other one."""
        first, second = (self.world.nodes[f"{service}-{number}"] for number in (1, 2))
        return (first, second) if first.is_up or not second.is_up else (second, first)

    def stop(self, node: Node) -> None:
        """Stop a service's node gracefully, as SIGTERM does."""
        if node.is_up and node.name in self._stops:
            self._stops[node.name].set()

    def finish_releases(self) -> None:
        """Have all nodes run the newer release."""
        for service in self.releases:
            self.releases[service] = "new"
            for node in self.pair(service):
                if node.is_up and self._running.get(node.name) != "new":
                    node.crash(0.1)

    def cancel(self, saga: str) -> None:
        """Cancel a saga, where its engine runs at this moment."""
        node = self.pair("orders")[0]
        for process, instance in self._instances:
            if process is node.process and instance.service.name == "orders":
                self.world.loop.spawn(process, self._cancel(instance, saga))

    async def _cancel(self, instance: ServiceInstance, saga: str) -> None:
        try:
            await instance.engine.cancel(saga, "a person changed their mind")
            self.world.count["saga cancelled"] += 1
        except SynchromeshError as error:
            self.world.count[f"not cancelled: {error.code}"] += 1

    def verify(self, service: str) -> None:
        """Verify the database of a service that runs: a fault that is found is broken."""
        node = self.pair(service)[0]
        for process, instance in self._instances:
            if process is node.process and instance.service.name == service:
                self.world.loop.spawn(process, self._verify(instance))

    async def _verify(self, instance: ServiceInstance) -> None:
        action = find_action("db.verify")
        assert isinstance(action, ReadAction)
        try:
            found: Any = await action.run(instance.store, action.request())
        except SynchromeshError as error:
            self.world.count[f"not verified: {error.code}"] += 1
            return
        self.world.count["verified"] += 1
        self.broken += [f"verify finds in {instance.service.name}: {f}" for f in found["faults"]]

    def set_provider_faults(self, faults: ProviderFaults) -> None:
        """Set the provider's faults."""
        if self._provider is not None:
            self._provider.faults = faults

    def counts(self) -> Counter[str]:
        """Return the counts of the saga engines of all lives."""
        counts: Counter[str] = Counter()
        for _, instance in self._instances:
            counts.update({f"saga {what}": n for what, n in instance.engine.counts.items()})
        return counts

    # -- the nodes -------------------------------------------------------------------------------

    async def _run(self, service: str, runtime: SimRuntime) -> None:
        """Run one life of a service's node: open the database, serve, and stop when asked to."""
        if service == self.away:
            await asyncio.Event().wait()
        stop = self._stops[runtime.name] = asyncio.Event()
        has_waited = runtime.disk.owner_of(RUNDIR.database(service)) != "nobody"
        host = await self._open(runtime)
        try:
            await host.run(service)
        except StoreError as error:
            # Whoever watches over it starts it again, as over any process that could not start.
            self.world.count[f"did not start: {error.code}"] += 1
            self.world.nodes[runtime.name].crash(0.1)
            return
        self.world.count["takeover"] += has_waited
        instance = host.instances[service]
        self._instances.append((runtime.process, instance))
        dispatcher: Any = instance.dispatcher
        dispatcher.dispatch = Proxy(dispatcher.dispatch, runtime, self.world.wire).dispatch
        failure = await host.wait(stop)
        if failure:
            self.broken.append(f"{runtime.name} ended by itself: {failure}")
        self.world.count["ended in good order"] += 1
        await host.drain()
        await host.close()
        self.world.nodes[runtime.name].crash()

    async def _run_provider(self, runtime: SimRuntime) -> None:
        ledger = Ledger(runtime.disk.connect(RUNDIR.database(PROVIDER)))
        self._provider = CreditProviderServer(ledger)
        server = HttpServer(AsgiHandler(self._provider), network=runtime.network)
        await server.start()
        self._registry.fix(Endpoint(PROVIDER, PROVIDER, server.url))
        await asyncio.Event().wait()

    async def _run_clients(self, runtime: SimRuntime) -> None:
        await self._clients((await self._open(runtime)).deps.caller(CLIENTS))

    async def _open(self, runtime: SimRuntime) -> Host:
        host = Host(config(), FOLDER, runtime, name=runtime.name)
        release = self.releases.get(runtime.name.rpartition("-")[0], "")
        self._running[runtime.name] = release
        # A process knows the others as they were when its own release was made.
        found = releases()[release] if release else services()
        if release and runtime.name == "orders-2":
            # This one's folder is never brought up to date: that inventory takes more, it hears.
            found = {**found, "inventory": releases()["old"]["inventory"]}
        if "keep_s" in self.otherwise:
            found = hurried()
        definitions = Definitions(list(found.values()))
        await host.open(definitions, SIGNER, lambda _: self._registry)
        host.deps = replace(host.deps, **self.otherwise)
        return host


@functools.cache
def services() -> dict[str, Service]:
    """Return the shipped services that orders go through, with a saga that is less patient."""
    shipped = load_services(config(), FOLDER)
    found = {service.name: service for service in shipped if service.name in SERVICES}
    impatient = replace(sagas.place_order, policy=POLICY, deadline_s=PATIENCE_S)
    # The handler of Orders.place starts what this name stands for.
    sagas.place_order = impatient
    found["orders"].sagas.replace(impatient)
    return found


@functools.cache
def hurried() -> dict[str, Service]:
    """Return the services with a saga that takes no longer than inboxes remember in an absence."""
    shipped = services()
    (saga,) = shipped["orders"].sagas
    policy = replace(POLICY, undo_deadline_s=DEADLINE_S, after_pivot_deadline_s=DEADLINE_S)
    return {**shipped, "orders": orders_with(replace(saga, policy=policy, deadline_s=DEADLINE_S))}


@functools.cache
def releases() -> dict[str, dict[str, Service]]:
    """Return the services of two releases, "old" and "new"."""
    return two_releases(services())


@functools.cache
def subscribers() -> dict[str, frozenset[str]]:
    """Return the events that each service takes."""
    return {s.name: frozenset(s.subscriptions) for s in services().values() if s.subscriptions}


@functools.cache
def config() -> SystemConfig:
    """Return the shipped configuration; what fails too often is no weather, and ends a node."""
    shipped = load_config(FOLDER)
    return msgspec.structs.replace(
        shipped, system=msgspec.structs.replace(shipped.system, on_failure="stop")
    )
