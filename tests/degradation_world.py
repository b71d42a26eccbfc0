"""servo-works as many simulated machines behind its gateway, any of which can be switched off.

Every service, the registry, the gateway and the credit provider is a node of its own; all of them
speak HTTP over the simulated network, through the shipped servers, pools and transports, under the
policies of `synchromesh.toml`.
"""

from __future__ import annotations

import asyncio
import functools
import random
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import shop
from contracts.inventory import Inventory, Receive
from contracts.orders import Orders
from contracts.production import OpenSlots, Production
from credit_provider import CreditProviderServer, Ledger
from gateway import gateway

from gateway_fakes import Token
from servo_works_world import FOLDER, SERVICES, SIGNER
from synchromesh.calls import Call, Caller, HttpEdge, HttpTransport
from synchromesh.discovery import Endpoint, MemoryRegistry
from synchromesh.gateway import GatewayEngine
from synchromesh.http import (
    AsgiHandler,
    Handler,
    HttpPool,
    HttpRequest,
    HttpResponse,
    HttpServer,
    problem_response,
)
from synchromesh.identity import REGISTRY as TO_REGISTRY
from synchromesh.identity import Credential
from synchromesh.service import Deps, ServiceInstance
from synchromesh.store import SqliteStores
from synchromesh.system.config.definitions import policies_of
from synchromesh.system.config.reading import load_config
from synchromesh.system.leases_api.client import RemoteRegistry
from synchromesh.system.leases_api.server import RegistryServer
from synchromesh.telemetry import MemoryRing
from synchromesh.testing import Node, SimDisk, SimRuntime, World

R = TypeVar("R")

PROVIDER, GATEWAY, REGISTRY, OPERATOR = "credit_provider", "gateway", "registry", "operator"
NODES = (REGISTRY, PROVIDER, *SERVICES, GATEWAY, OPERATOR)
SKU = "SX90"
PORTS = {name: 7000 + number for number, name in enumerate(NODES)}


def url_of(name: str) -> str:
    return f"http://127.0.0.1:{PORTS[name]}"


class Gate:
    """Stands before a server: it lets requests in, keeps them without an answer, or fails them."""

    def __init__(self) -> None:
        self.way = ""
        self.opened = asyncio.Event()

    def before(self, handler: Handler) -> Handler:
        async def handle(request: HttpRequest) -> HttpResponse:
            while self.way == "stalled":
                await self.opened.wait()
            if self.way == "failing":
                return problem_response(500, "this fails on purpose", code="remote_failed")
            return await handler(request)

        return handle


class Site:
    """The system in a world: a node for each part, started by `start`.

    Attributes:
        beyond: background children that failed too often, which would end their process.
    """

    def __init__(self, seed: str, *, opened: bool = True) -> None:
        self.world = World(seed, steps_max=20_000_000)
        self.config = load_config(FOLDER)
        self.gates: dict[str, Gate] = {}
        self.beyond: list[str] = []
        self.registry: MemoryRegistry | None = None
        self.operator: Caller | None = None
        self.callers: dict[str, Caller] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._disk = self.world.disk = NotingDisk(random.Random(f"{seed}/disk"))
        mains: dict[str, Callable[[SimRuntime], Any]] = {
            REGISTRY: self._run_registry,
            PROVIDER: self._run_provider,
            GATEWAY: self._run_gateway,
            OPERATOR: self._run_operator,
        }
        for name in NODES:
            main = mains.get(name) or functools.partial(self._run_service, name)
            self.world.node(name, main)
        if opened:
            for path, image in opened_shop().items():
                self.world.disk.install(path, image)

    @property
    def nodes(self) -> dict[str, Node]:
        return self.world.nodes

    async def start(self) -> None:
        """Start all, and wait until they have found each other."""
        for name in NODES:
            self.nodes[name].start()
        await asyncio.sleep(5.0)

    def switch_off(self, name: str, way: str) -> None:
        """Take a part away: "killed", "stalled", "failing", or "unwritable" for its disk."""
        if way == "killed":
            self.nodes[name].crash()
            self._evict(name)
        elif way == "unwritable":
            self._set_writable(name, is_writable=False)
        elif way == "stalled" and name == REGISTRY:
            # What waits there is not answered either, and nothing of it goes on.
            self.nodes[name].pause()
        else:
            self.gates[name].way = way

    def switch_on(self, name: str) -> None:
        """Bring it back, and touch nothing else."""
        self.nodes[name].start()
        self.nodes[name].resume()
        self._set_writable(name, is_writable=True)
        gate = self.gates[name]
        gate.way = ""
        gate.opened.set()
        gate.opened.clear()

    async def call(self, call: Call[R], *, key: str = "", timeout_s: float | None = None) -> R:
        """Call a service as an operator does, past the gateway."""
        assert self.operator is not None
        context = self.operator.root(principal="ada", key=key or None)
        return await self.operator.call(call, context=context, timeout_s=timeout_s)

    # -- the nodes -------------------------------------------------------------------------------

    async def _run_registry(self, runtime: SimRuntime) -> None:
        def verify(token: str) -> Credential:
            return SIGNER.verify(token, audience=TO_REGISTRY, now_us=runtime.wall_us())

        def check(token: str) -> None:
            verify(token)

        registry = self.registry = MemoryRegistry(verify=check)
        for name in self.config.external:
            registry.fix(Endpoint(name, name, url_of(name)))
        server = RegistryServer(registry, verify=verify, started_us=runtime.wall_us())
        await self._serve(runtime, server.handle)
        await registry.run()

    async def _run_provider(self, runtime: SimRuntime) -> None:
        provider = CreditProviderServer(Ledger(runtime.disk.connect(f"/{PROVIDER}.db")))
        await self._serve(runtime, AsgiHandler(provider))
        await asyncio.Event().wait()

    async def _run_service(self, name: str, runtime: SimRuntime) -> None:
        registry, deps = await self._join(runtime)
        instance = await ServiceInstance.start(SERVICES[name], deps)
        self.callers[name] = instance.caller
        edge = HttpEdge(runtime=runtime)
        edge.mount(instance.dispatcher, instance.offered)
        await self._serve(runtime, edge)
        metadata = (("pid", str(runtime.epoch)),)
        endpoint = Endpoint(f"{name}-1", name, url_of(name), metadata)
        registration = await registry.register(endpoint, credential="")
        await registration.run()

    async def _run_gateway(self, runtime: SimRuntime) -> None:
        _, deps = await self._join(runtime)
        tracer = deps.tracer(GATEWAY)
        caller = deps.caller(GATEWAY, tracer)
        self.callers[GATEWAY] = caller
        scopes = {scope for route in gateway.routes for scope in route.scopes}
        engine = GatewayEngine(
            # Keys and their hashes are another test's; here a name is enough.
            replace(gateway, auth=[Token()]),
            caller=caller,
            tracer=tracer,
            authenticators=[Token(desk=scopes, other=scopes)],
        )
        await self._serve(runtime, engine)
        await asyncio.Event().wait()

    async def _run_operator(self, runtime: SimRuntime) -> None:
        _, deps = await self._join(runtime)
        self.operator = deps.caller("control")
        await asyncio.Event().wait()

    async def _join(self, runtime: SimRuntime) -> tuple[RemoteRegistry, Deps]:
        """Find the registry, and return what all that runs on a node is built from."""
        pool = HttpPool(network=runtime.network)
        registry = RemoteRegistry(
            url_of(REGISTRY),
            pool=pool,
            credential=lambda: SIGNER.token(
                runtime.name, audience=TO_REGISTRY, now_us=runtime.wall_us()
            ),
            runtime=runtime,
        )
        await registry.refresh()
        self._tasks.append(asyncio.create_task(registry.run()))
        deps = Deps(
            runtime=runtime,
            services=SERVICES,
            signer=SIGNER,
            sink=MemoryRing(),
            stores=SqliteStores(runtime, "/{}.db".format),
            resolver=registry,
            transports={"http": HttpTransport(pool, runtime=runtime)},
            policies=functools.partial(policies_of, self.config),
            escalate=self._escalate,
        )
        return registry, deps

    async def _serve(self, runtime: SimRuntime, handler: Handler) -> None:
        gate = self.gates[runtime.name] = Gate()
        server = HttpServer(gate.before(handler), network=runtime.network)
        await server.start(port=PORTS[runtime.name])

    # -- what supervisors and operators do -------------------------------------------------------

    def _evict(self, name: str) -> None:
        """See the end of a process, as its supervisor does at once (R6)."""
        if self.registry is not None and self.nodes[REGISTRY].is_up:
            self.registry.evict(name, lambda _: True)

    def _escalate(self, service: str, child: str, error: BaseException) -> None:
        self.beyond.append(f"{service}/{child}: {error!r}")

    def _set_writable(self, name: str, *, is_writable: bool) -> None:
        for connection in self._disk.noted.get(f"/{name}.db", ()):
            try:
                connection.execute(f"pragma query_only = {'off' if is_writable else 'on'}")
            except sqlite3.ProgrammingError:
                continue  # it was closed with its process


class NotingDisk(SimDisk):
    """Is a disk that can be made read-only while databases on it are open."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.noted: dict[str, list[sqlite3.Connection]] = {}

    def connect(self, path: str, *, read_only: bool = False) -> sqlite3.Connection:
        connection = super().connect(path, read_only=read_only)
        if not read_only:
            self.noted.setdefault(path, []).append(connection)
        return connection


class Opener:
    """What the shop opens with, and the first order."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def call(self, call: Call[R], *, key: str) -> R:
        return await self._site.call(call, key=key, timeout_s=10.0)


@functools.cache
def opened_shop() -> dict[str, bytes]:
    """Return the databases of a shop that has opened and taken its first order."""
    site = Site("the shop opens", opened=False)

    async def main() -> None:
        await site.start()
        await shop.open_shop(Opener(site))
        await site.call(Orders.place(shop.order_book()[0]), key="first")
        # Enough for whoever asks: what runs out is another test's.
        await site.call(Production.open_slots(OpenSlots(SKU, 4, 1_000)), key="slots")
        await site.call(Inventory.receive(Receive("more", SKU, 1_000)), key="stock")
        await asyncio.sleep(5.0)

    site.world.run(main())
    return {path: site.world.disk.image(path) for path in site.world.disk.paths()}
