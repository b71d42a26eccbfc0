"""servo-works as many simulated machines behind its gateway, any of which can be switched off.

Every instance of a service, the registry, the gateway and the credit provider is a node of its own;
all of them speak HTTP over the simulated network. Services and the gateway are the shipped
`Process`, as the supervisor starts it, under the policies of `synchromesh.toml`; the part of the
supervisor is the test's.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import random
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

import gateway as works_gateway
import shop
from contracts.inventory import Inventory, Receive
from contracts.orders import Orders
from contracts.production import OpenSlots, Production
from credit_provider import CreditProviderServer, Ledger

from gateway_fakes import Token
from servo_works_world import FOLDER, KEY, SERVICES, SIGNER
from synchromesh.calls import Call, Reply
from synchromesh.discovery import Endpoint, MemoryRegistry
from synchromesh.errors import RemoteFailed
from synchromesh.http import (
    AsgiHandler,
    Handler,
    HttpRequest,
    HttpResponse,
    HttpServer,
    error_response,
)
from synchromesh.identity import REGISTRY as TO_REGISTRY
from synchromesh.identity import Credential
from synchromesh.system import RunDir, load_config
from synchromesh.system.host.host import Host
from synchromesh.system.host.process import Process
from synchromesh.system.leases_api.server import RegistryServer
from synchromesh.system.supervise.messages import ProcessSpec
from synchromesh.testing import Node, SimDisk, SimRuntime, World

R = TypeVar("R")
T = TypeVar("T")

PROVIDER, GATEWAY, REGISTRY = "credit_provider", "gateway", "registry"
REPLICAS = ("quoting#1", "quoting#2", "quoting#3")
SINGLE = tuple(name for name in SERVICES if name != "quoting")
NODES = (REGISTRY, PROVIDER, *SINGLE, *REPLICAS, GATEWAY)
SKU = "SX90"
RUNDIR = RunDir(FOLDER)
SCOPES = {scope for route in works_gateway.gateway.routes for scope in route.scopes}
# Keys and their hashes are another test's; here a name is enough.
OPEN_TO_NAMES = replace(works_gateway.gateway, auth=[Token(desk=SCOPES, other=SCOPES)])
FAILS = RemoteFailed("this fails on purpose")
PORTS = {name: 7000 + number for number, name in enumerate(NODES)}


def nodes_of(part: str) -> list[str]:
    """Return the nodes of a part: itself, or each of its replicas."""
    return [name for name in NODES if part in (name, name.partition("#")[0])]


def url_of(name: str) -> str:
    return f"http://127.0.0.1:{PORTS[name]}"


class Gate:
    """Stands before a handler: lets requests in, keeps them without an answer, or fails them."""

    def __init__(self) -> None:
        self.way = ""
        self.opened = asyncio.Event()

    def before(self, handle: Callable[..., Awaitable[T]], failure: T) -> Callable[..., Any]:
        async def handle_later(*request: Any) -> T:
            while self.way == "stalled":
                await self.opened.wait()
            return failure if self.way == "failing" else await handle(*request)

        return handle_later


class Site:
    """The system in a world: a node for each part, started by `start`.

    Attributes:
        hosts: of the services and the gateway, by name.
        failures: why a process ended by itself.
    """

    def __init__(self, seed: str, *, opened: bool = True) -> None:
        self.world = World(seed, steps_max=20_000_000)
        ports = [f"services.{name}.port={PORTS[name]}" for name in SINGLE]
        gateway = [f"gateway.port={PORTS[GATEWAY]}", "gateway.app=degradation_world:OPEN_TO_NAMES"]
        self.config = load_config(FOLDER, flags=[*ports, *gateway])
        self.gates = {name: Gate() for name in NODES}
        self.hosts: dict[str, Host] = {}
        self.failures: list[str] = []
        self.registry: MemoryRegistry | None = None
        self._off: list[str] = []
        self._disk = self.world.disk = NotingDisk(random.Random(f"{seed}/disk"))
        mains = {REGISTRY: self._run_registry, PROVIDER: self._run_provider}
        for name in NODES:
            self.world.node(name, mains.get(name, self._run_process))
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
        self._off = nodes_of(name)
        for node in self._off:
            if way == "killed":
                self.nodes[node].crash()
                self._evict(node)
            elif way == "unwritable":
                self._set_writable(node, is_writable=False)
            elif way == "stalled" and node == REGISTRY:
                # What waits there is not answered either, and nothing of it goes on.
                self.nodes[node].pause()
            else:
                self.gates[node].way = way

    def switch_on(self, name: str) -> None:
        """Bring it back, and touch nothing else."""
        for node in nodes_of(name):
            self.nodes[node].start()
            self.nodes[node].resume()
            self._set_writable(node, is_writable=True)
            gate = self.gates[node]
            gate.way = ""
            gate.opened.set()
            gate.opened.clear()

    async def call(self, call: Call[R], *, key: str = "", timeout_s: float | None = None) -> R:
        """Call a service as an operator does, past the gateway, at a process that is on."""
        caller = next(
            host for name, host in self.hosts.items() if name not in self._off
        ).control.caller
        context = caller.root(principal="ada", key=key or None)
        return await caller.call(call, context=context, timeout_s=timeout_s)

    def rows(self, name: str, sql: str, *values: Any) -> list[Any]:
        """Query the database of a service, or of the provider."""
        return self.world.disk.rows(RUNDIR.database(name), sql, *values)

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

        async def handle(request: HttpRequest) -> HttpResponse:
            if request.path.startswith("/services/"):
                # Every process is let in: here all have one release of each contract.
                return HttpResponse(200, [("content-type", "application/json")], b"[]")
            return await server.handle(request)

        await self._serve(runtime, handle)
        await registry.run()

    async def _run_provider(self, runtime: SimRuntime) -> None:
        provider = CreditProviderServer(Ledger(runtime.disk.connect(RUNDIR.database(PROVIDER))))
        await self._serve(runtime, AsgiHandler(provider))
        await asyncio.Event().wait()

    async def _run_process(self, runtime: SimRuntime) -> None:
        name, key = runtime.name, base64.b64encode(KEY).decode()
        spec = ProcessSpec(name, self.config, key, url_of(REGISTRY), "token")
        process = Process(spec, FOLDER, runtime, loaded=lambda: None)
        await process.start()
        self.hosts[name] = process.host
        if name != GATEWAY:
            dispatcher: Any = process.host.instances[name].dispatcher
            gated = self.gates[name].before(dispatcher.dispatch, Reply.of_error(FAILS))
            dispatcher.dispatch = gated
        self.failures.append(await process.wait(asyncio.Event()))

    async def _serve(self, runtime: SimRuntime, handler: Handler) -> None:
        gated = self.gates[runtime.name].before(handler, error_response(FAILS))
        await HttpServer(gated, network=runtime.network).start(port=PORTS[runtime.name])

    # -- what supervisors and operators do -------------------------------------------------------

    def _evict(self, name: str) -> None:
        """See the end of a process, as its supervisor does at once (R6)."""
        if self.registry is not None and self.nodes[REGISTRY].is_up:
            service = name.partition("#")[0]
            names = (name, f"{name}#1")
            self.registry.evict(service, lambda endpoint: endpoint.instance in names)

    def _set_writable(self, name: str, *, is_writable: bool) -> None:
        for connection in self._disk.noted.get(RUNDIR.database(name), ()):
            try:
                connection.execute(f"pragma query_only = {'off' if is_writable else 'on'}")
            except sqlite3.ProgrammingError:
                continue  # it was closed with its process


class NotingDisk(SimDisk):
    """Is a disk that can be made read-only while databases on it are open."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.noted: dict[str, list[sqlite3.Connection]] = {}

    def connect(
        self, path: str, *, read_only: bool = False, is_private: bool = False
    ) -> sqlite3.Connection:
        connection = super().connect(path, read_only=read_only, is_private=is_private)
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
    paths = map(RUNDIR.database, (PROVIDER, *SINGLE))
    return {path: site.world.disk.image(path) for path in paths}
