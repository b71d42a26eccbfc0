"""A configured system as simulated machines, any part of which can be taken away and brought back.

Every instance of a service, the gateway, the registry and each external service is a node of its
own; all of them speak HTTP over the simulated network. Services and the gateway are the `Process`
that a supervisor starts, under the policies of `synchromesh.toml`; the supervisor's part is played
here. External services are stood in for.
"""

from __future__ import annotations

import asyncio
import base64
import random
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import msgspec

from synchromesh.calls import Call, Reply
from synchromesh.discovery import Endpoint, MemoryRegistry
from synchromesh.errors import ConfigError, RemoteFailed, SynchromeshError
from synchromesh.gateway import Authenticator, Folders, Gateway
from synchromesh.http import (
    AsgiHandler,
    Handler,
    HttpExchange,
    HttpRequest,
    HttpResponse,
    HttpServer,
    error_response,
)
from synchromesh.http.asgi import AsgiApp
from synchromesh.identity import REGISTRY as TO_REGISTRY
from synchromesh.identity import Credential, Principal, Signer
from synchromesh.runtime import DiskRuntime, Runtime
from synchromesh.system.config.definitions import load_gateway
from synchromesh.system.config.parts import parts_of
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.schema import GATEWAY, SystemConfig
from synchromesh.system.host.host import Host
from synchromesh.system.host.process import Process
from synchromesh.system.leases_api.server import RegistryServer
from synchromesh.system.supervise.messages import ProcessSpec
from synchromesh.telemetry.observed import ObservedCall, merged
from synchromesh.testing.disk import SimDisk
from synchromesh.testing.sim_runtime import SimRuntime
from synchromesh.testing.world import Node, World

R = TypeVar("R")
T = TypeVar("T")

REGISTRY = "registry"
KILLED, STALLED, FAILING, UNWRITABLE = "killed", "stalled", "failing", "cannot write"
FIRST_PORT = 7000
STARTED_WITHIN_S = 5.0
FAILS = RemoteFailed("this fails on purpose")

StandIn: TypeAlias = Callable[[DiskRuntime, str], AsgiApp]
"""Makes what answers for an external service: on a runtime, with a path for a file of its own."""

_KEY = b"the key of a simulated system..."


class NamedPrincipals:
    """Takes whoever a request names in `Authorization` for that; keys are another test's.

    Args:
        scopes: what each of them may do.
    """

    def __init__(self, scopes: Mapping[str, AbstractSet[str]]) -> None:
        self._who = {name: Principal(name, frozenset(held)) for name, held in scopes.items()}

    def open(self, folders: Folders, runtime: Runtime) -> Authenticator:  # noqa: ARG002
        """Go to work."""
        return self

    async def authenticate(self, request: HttpRequest) -> Principal | None:
        """Return who asks."""
        return self._who.get(request.headers.get("authorization") or "")

    def known(self, exchange: HttpExchange) -> Principal | None:
        """Return who asks."""
        given = [value for name, value in exchange.pairs if name == b"authorization"]
        return self._who.get(given[0].decode("latin-1")) if given else None

    def refresh(self) -> None:
        """Do nothing: there is no file."""

    async def close(self) -> None:
        """Do nothing: nothing runs."""


class _Gate:
    """Stands before a handler: lets requests in, keeps them without an answer, or fails them."""

    def __init__(self) -> None:
        self.way = ""
        self.opened = asyncio.Event()

    def before(self, handle: Callable[..., Awaitable[T]], failure: T) -> Callable[..., Any]:
        async def handle_later(*request: Any) -> T:
            while self.way == STALLED:
                await self.opened.wait()
            return failure if self.way == FAILING else await handle(*request)

        return handle_later


class SimSystem:
    """Runs a configured system in a world of its own; `start`, then `switch_off` and `switch_on`.

    Args:
        config: of the system; TLS, the kinds of credentials of its gateway, and engines beside it
            are left out: each service has a SQLite file.
        folder: where its code is.
        seed: decides all that is left to chance.
        stand_ins: by name, what answers for each external service.
        scopes: by name, what those may do who ask at the gateway: see `NamedPrincipals`.
        files: databases to begin with, by path, as `files` returns them.

    Attributes:
        ports: where each node listens, by its name.
        hosts: of the services and the gateway, by name, once they have started.
        failures: why a process ended by itself.

    Raises:
        ConfigError: an external service has no stand-in.
    """

    def __init__(
        self,
        config: SystemConfig,
        folder: Path,
        *,
        seed: str,
        stand_ins: Mapping[str, StandIn] | None = None,
        scopes: Mapping[str, AbstractSet[str]] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        self.world = World(seed, steps_max=20_000_000)
        self.folder, self.rundir = folder, RunDir(folder)
        self.instances = [part.name for name in config.services for part in parts_of(config, name)]
        self.externals = list(config.external)
        self._stand_ins = dict(stand_ins or {})
        for name in self.externals:
            if name not in self._stand_ins:
                raise ConfigError(
                    f"external service {name!r} cannot be simulated; name what stands in for it, "
                    f'as [stand_ins] {name} = "module:function"'
                )
        gateway = [GATEWAY] if config.gateway.app else []
        names = [REGISTRY, *self.externals, *self.instances, *gateway]
        self.ports = {name: FIRST_PORT + number for number, name in enumerate(names)}
        self.config = self._simulated(config)
        self._auth = NamedPrincipals(scopes or {})
        self.hosts: dict[str, Host] = {}
        self.failures: list[str] = []
        self._gates = {name: _Gate() for name in names}
        self._registry: MemoryRegistry | None = None
        self._off: list[str] = []
        self._signer = Signer(_KEY)
        self._disk = self.world.disk = _NotingDisk(random.Random(f"{seed}/disk"))
        for path, image in (files or {}).items():
            self._disk.install(path, image)
        for name in names:
            self.world.node(name, self._main_of(name))

    @property
    def nodes(self) -> dict[str, Node]:
        """All machines, by name: "registry", "gateway", instances and external services."""
        return self.world.nodes

    def nodes_of(self, part: str) -> list[str]:
        """Return the nodes of a part: itself, or each of its replicas."""
        return [name for name in self.nodes if part in (name, name.partition("#")[0])]

    async def start(self) -> None:
        """Start all, and wait until they have found each other.

        Raises:
            ConfigError: a process could not be started; the message says why.
        """
        for node in self.nodes.values():
            node.start()
        await asyncio.sleep(STARTED_WITHIN_S)
        if self.failures:
            raise ConfigError(self.failures[0])

    async def switch_off(self, part: str, way: str) -> None:
        """Take a part away: `KILLED`, `STALLED`, `FAILING`, or `UNWRITABLE` for its disk."""
        self._off = self.nodes_of(part)
        for name in self._off:
            if way == KILLED:
                self.nodes[name].crash()
                self._evict(name)
            elif way == UNWRITABLE:
                self._set_writable(name, is_writable=False)
            elif way == STALLED and name == REGISTRY:
                # What waits there is not answered either, and nothing of it goes on.
                self.nodes[name].pause()
            else:
                self._gates[name].way = way

    async def switch_on(self, part: str) -> None:
        """Bring it back, and touch nothing else."""
        for name in self.nodes_of(part):
            self.nodes[name].start()
            self.nodes[name].resume()
            self._set_writable(name, is_writable=True)
            gate = self._gates[name]
            gate.way = ""
            gate.opened.set()
            gate.opened.clear()
        self._off = []

    async def call(self, call: Call[R], *, key: str = "", timeout_s: float | None = 10.0) -> R:
        """Call a service as an operator does, past the gateway, at a process that is on."""
        on = next(host for name, host in self.hosts.items() if name not in self._off)
        caller = on.control.caller
        context = caller.root(principal="operator", key=key or None)
        return await caller.call(call, context=context, timeout_s=timeout_s)

    def rows(self, name: str, sql: str, *values: Any) -> list[Any]:
        """Query the database of a service, or of what stands in for an external one."""
        return self._disk.rows(self.rundir.database(name), sql, *values)

    def files(self) -> dict[str, bytes]:
        """Return all databases, to begin another system with, once its world has run."""
        found = {}
        for name in (*self.externals, *self.instances):
            path = self.rundir.database(name)
            if path in self._disk.noted:
                found[path] = self._disk.image(path)
        return found

    async def open_breakers(self) -> set[str]:
        """Return the edges whose breaker is not closed: "orders → billing"."""
        callers = {
            name: host.gateway.caller if host.gateway else host.instances[name].caller
            for name, host in self.hosts.items()
            if host.gateway or name in host.instances
        }
        return {
            f"{name.partition('#')[0]} → {callee}"
            for name, caller in callers.items()
            for callee, breaker in caller.edges.items()
            if breaker.state.value != "closed"
        }

    async def observed(self) -> list[ObservedCall]:
        """Return what the processes that run have called, as far as their spans are kept."""
        rings = [host.local.ring for host in self.hosts.values()]
        return merged([call for ring in rings for call in await ring.observed()])

    def _simulated(self, config: SystemConfig) -> SystemConfig:
        """Return the configuration with fixed ports, and without what is not simulated."""
        structs = msgspec.structs
        services = {
            name: structs.replace(section, port=self.ports.get(name, 0))
            for name, section in config.services.items()
        }
        given, empty = config.gateway, type(config.gateway)()
        gateway = structs.replace(given, port=self.ports.get(GATEWAY, 0), tls=empty.tls)
        engine = type(config.engine)()
        return structs.replace(config, services=services, gateway=gateway, engine=engine)

    def _main_of(self, name: str) -> Callable[[SimRuntime], Any]:
        if name == REGISTRY:
            return self._run_registry
        return self._run_external if name in self.externals else self._run_process

    # -- the nodes -------------------------------------------------------------------------------

    async def _run_registry(self, runtime: SimRuntime) -> None:
        def admit(token: str, audience: str) -> Credential:
            return self._signer.admit(token, audience=audience, now_us=runtime.wall_us())

        registry = self._registry = MemoryRegistry(verify=lambda token: admit(token, TO_REGISTRY))
        for name in self.externals:
            registry.fix(Endpoint(name, name, self._url_of(name)))
        server = RegistryServer(registry, admit=admit, wall_us=runtime.wall_us)

        async def handle(request: HttpRequest) -> HttpResponse:
            if request.path.startswith("/services/"):
                # Every process is let in: here all have one release of each contract.
                return HttpResponse(200, [("content-type", "application/json")], b"[]")
            return await server.handle(request)

        await self._serve(runtime, handle)
        await registry.run()

    async def _run_external(self, runtime: SimRuntime) -> None:
        app = self._stand_ins[runtime.name](runtime, self.rundir.database(runtime.name))
        await self._serve(runtime, AsgiHandler(app))
        await asyncio.Event().wait()

    async def _run_process(self, runtime: SimRuntime) -> None:
        name, key = runtime.name, base64.b64encode(_KEY).decode()
        spec = ProcessSpec(name, self.config, key, self._url_of(REGISTRY), "token")
        process = Process(spec, self.folder, runtime, say=lambda _: None, gateway=self._opened)
        try:
            await process.start()
        except SynchromeshError as error:
            self.failures.append(f"{name} could not be started: {error.message}")
            await asyncio.Event().wait()
        self.hosts[name] = process.host
        if name != GATEWAY:
            dispatcher: Any = process.host.instances[name].dispatcher
            gated = self._gates[name].before(dispatcher.dispatch, Reply.of_error(FAILS))
            dispatcher.dispatch = gated
        self.failures.append(f"{name} ended: {await process.wait(asyncio.Event())}")

    def _opened(self, config: SystemConfig, folder: Path) -> Gateway | None:
        gateway = load_gateway(config, folder)
        return None if gateway is None else replace(gateway, auth=[self._auth])

    async def _serve(self, runtime: SimRuntime, handler: Handler) -> None:
        gated = self._gates[runtime.name].before(handler, error_response(FAILS))
        server = HttpServer(gated, network=runtime.network)
        await server.start(port=self.ports[runtime.name])

    def _url_of(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    # -- what supervisors do ---------------------------------------------------------------------

    def _evict(self, name: str) -> None:
        """See the end of a process, as its supervisor does at once (R6)."""
        if self._registry is not None and self.nodes[REGISTRY].is_up:
            service = name.partition("#")[0]
            names = (name, f"{name}#1")
            self._registry.evict(service, lambda endpoint: endpoint.instance in names)

    def _set_writable(self, name: str, *, is_writable: bool) -> None:
        for connection in self._disk.noted.get(self.rundir.database(name), ()):
            try:
                connection.execute(f"pragma query_only = {'off' if is_writable else 'on'}")
            except sqlite3.ProgrammingError:
                continue  # it was closed with its process

    def __repr__(self) -> str:
        return f"<SimSystem {self.config.system.name}, {len(self.nodes)} nodes>"


class _NotingDisk(SimDisk):
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
