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

from credit_provider import CreditProviderServer, Ledger, ProviderFaults
from services.orders import sagas

from synchromesh.calls import Caller, HttpEdge, HttpTransport, Policies
from synchromesh.discovery import Endpoint, Resolved
from synchromesh.errors import StoreLocked, SynchromeshError
from synchromesh.http import AsgiHandler, HttpPool, HttpServer
from synchromesh.identity import Signer
from synchromesh.saga import SagaPolicy
from synchromesh.service import Deps, Service, ServiceInstance
from synchromesh.store import SqliteStores
from synchromesh.system.config.definitions import load_services, policies_of
from synchromesh.system.config.reading import load_config
from synchromesh.telemetry import SpanRow, to_record
from synchromesh.testing import Node, SimProcess, SimRuntime, World
from universes.proxy import Proxy

FOLDER = Path(__file__).resolve().parents[1]
SERVICES = ("orders", "inventory", "billing", "production")
PROVIDER, CLIENTS = "credit_provider", "clients"
SIGNER = Signer(b"0123456789abcdef0123456789abcdef")
# Less patient than in production, so that a universe has time for every way out of a saga.
POLICY = SagaPolicy(step_timeout_s=0.4, attempts_max=2, backoff_cap_s=1.0)
DEADLINE_S = 60.0

ClientMain = Callable[[Caller], Awaitable[None]]


class Cluster:
    """Runs servo-works in a world.

    Args:
        world: gets the nodes; none is started.
        clients: what the clients do, on a node of their own.

    Attributes:
        broken: what no run may come to, such as a background loop that is beyond restarting.
    """

    def __init__(self, world: World, clients: ClientMain) -> None:
        self.world = world
        self.broken: list[str] = []
        self._clients = clients
        self._instances: list[tuple[SimProcess, ServiceInstance]] = []
        self._urls: dict[str, str] = {}
        self._stops: dict[str, asyncio.Event] = {}
        self._provider: CreditProviderServer | None = None
        for service in services().values():
            for number in (1, 2):
                main = functools.partial(self._run, service)
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

    async def _run(self, service: Service, runtime: SimRuntime) -> None:
        """Run one life of a service's node: open the database, serve, and stop when asked to."""
        stop = self._stops[runtime.name] = asyncio.Event()
        has_waited = runtime.disk.owner_of(f"/{service.name}.db") != "nobody"
        instance = await self._instance(service, runtime)
        self.world.count["takeover"] += has_waited
        self._instances.append((runtime.process, instance))
        edge = HttpEdge(runtime=runtime)
        edge.mount(instance.dispatcher, instance.offered)
        server = HttpServer(Proxy(edge, self.world.wire), network=runtime.network)
        await server.start()
        self._urls[service.name] = server.url
        await stop.wait()
        self.world.count["ended in good order"] += 1
        await instance.drain(1.0)
        await instance.stop()
        await server.close()
        self.world.nodes[runtime.name].crash()

    async def _instance(self, service: Service, runtime: SimRuntime) -> ServiceInstance:
        deps = self._deps(runtime, policies)
        while True:
            try:
                return await ServiceInstance.start(service, deps)
            except StoreLocked:
                self.world.count["waited in vain for a file"] += 1

    def _escalate(self, service: str, child: str, error: BaseException) -> None:
        self.broken.append(f"{service}/{child} is beyond restarting: {error!r}")

    async def _run_provider(self, runtime: SimRuntime) -> None:
        ledger = Ledger(runtime.disk.connect(f"/{PROVIDER}.db"))
        self._provider = CreditProviderServer(ledger)
        server = HttpServer(AsgiHandler(self._provider), network=runtime.network)
        await server.start()
        self._urls[PROVIDER] = server.url
        await asyncio.Event().wait()

    async def _run_clients(self, runtime: SimRuntime) -> None:
        await self._clients(self._deps(runtime, lambda _: Policies()).caller(CLIENTS))

    # -- what the nodes are handed ---------------------------------------------------------------

    def _deps(self, runtime: SimRuntime, policies: Callable[[str], Policies]) -> Deps:
        return Deps(
            runtime=runtime,
            services=services(),
            signer=SIGNER,
            sink=self,
            stores=SqliteStores(runtime, "/{}.db".format),
            resolver=self,
            transports={"http": HttpTransport(HttpPool(network=runtime.network), runtime=runtime)},
            policies=policies,
            escalate=self._escalate,
        )

    async def resolve(self, service: str) -> Resolved:
        """Return the instance that served a service last; none where it has never served."""
        url = self._urls.get(service)
        return Resolved(() if url is None else (Endpoint(service, service, url),))

    def add(self, span: SpanRow) -> None:
        """Count the spans that are rare."""
        record = to_record(span)
        if record.status == "key_undone" and record.kind == "handle":
            self.world.count["tombstone hit"] += 1
        elif record.status == "circuit_open":
            self.world.count["breaker open"] += 1


@functools.cache
def services() -> dict[str, Service]:
    """Return the shipped services that orders go through, with a saga that is less patient."""
    shipped = load_services(load_config(FOLDER), FOLDER)
    found = {service.name: service for service in shipped if service.name in SERVICES}
    impatient = replace(sagas.place_order, policy=POLICY, deadline_s=DEADLINE_S)
    # The handler of Orders.place starts what this name stands for.
    sagas.place_order = found["orders"].sagas[impatient.name] = impatient
    return found


@functools.cache
def subscribers() -> dict[str, frozenset[str]]:
    """Return the events that each service takes."""
    return {s.name: frozenset(s.subscriptions) for s in services().values() if s.subscriptions}


@functools.cache
def policies(service: str) -> Policies:
    """Return how the calls of a service are guarded, as `synchromesh.toml` says."""
    return policies_of(load_config(FOLDER), service)
