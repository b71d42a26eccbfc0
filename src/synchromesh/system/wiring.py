"""The only place that wires: makes a running system out of a configuration.

    run directory → key, telemetry → external services → registry → instances → their HTTP servers
    → control socket → run.json → opening

and back in the other order. What was started before something failed is stopped again.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from synchromesh.calls import (
    Call,
    Caller,
    HttpEdge,
    HttpTransport,
    InProcessTransport,
    Policies,
    Transport,
)
from synchromesh.discovery import CachedResolver, Endpoint, MemoryRegistry, Resolved
from synchromesh.errors import ConfigError
from synchromesh.http import HttpPool, HttpServer
from synchromesh.identity import Signer
from synchromesh.runtime import Runtime
from synchromesh.saga import SagaDefinition
from synchromesh.service import KEEP_S, Child, Service, ServiceInstance, Supervisor, Surroundings
from synchromesh.system.children import ExternalProcess
from synchromesh.system.config import (
    ExternalSection,
    SystemConfig,
    load_opening,
    load_services,
)
from synchromesh.system.control import Control
from synchromesh.system.logs import log_to
from synchromesh.system.rundir import RunDir, RunInfo
from synchromesh.telemetry import SqliteRing, Tracer

R = TypeVar("R")

DRAIN_WITHIN_S = 8.0
CLIENT = "control"


class System:
    """Runs all services of a folder in this process; `start`, then `wait`, then `stop`.

    Every background failure that is beyond restarting ends `wait` with its reason.
    """

    def __init__(self, config: SystemConfig, folder: Path, runtime: Runtime) -> None:
        self._config = config
        self._folder = folder.resolve()
        self._runtime = runtime
        self._rundir = RunDir(self._folder)
        self._exit = AsyncExitStack()
        self._failed = asyncio.Event()
        self._failure = ""
        self._urls: dict[str, str] = {}
        self._info: RunInfo | None = None
        self.instances: dict[str, ServiceInstance] = {}

    @property
    def info(self) -> RunInfo:
        """Where the running system is reached.

        Raises:
            ConfigError: it does not run.
        """
        if self._info is None:
            raise ConfigError("the system does not run; start it first")
        return self._info

    async def start(self) -> None:
        """Start everything; when this returns, every service answers.

        Raises:
            ConfigError: the configuration, a definition, a port or a database is wrong. What was
                started is stopped again.
        """
        services = load_services(self._config, self._folder)
        opening = load_opening(self._config, self._folder)
        for service in services:
            service.check()
        check_keep(services, KEEP_S)
        try:
            await self._start(services, opening)
        except BaseException:
            await self._exit.aclose()
            raise

    async def wait(self, stop: asyncio.Event) -> str:
        """Wait for `stop`, or for a failure beyond restarting; return its reason, "" for none."""
        waits = [asyncio.ensure_future(event.wait()) for event in (stop, self._failed)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return self._failure

    async def stop(self) -> None:
        """Drain and stop everything, within 10 seconds. May be repeated."""
        self._info = None
        await self._exit.aclose()

    async def _start(
        self, services: list[Service], opening: Callable[[Any], Awaitable[None]] | None
    ) -> None:
        rundir, runtime, enter = self._rundir, self._runtime, self._exit
        rundir.create()
        enter.callback(rundir.lock(runtime.disk).release)
        enter.callback(log_to(rundir.telemetry / "log.jsonl"))
        signer = Signer(rundir.key())
        ring = SqliteRing(str(rundir.telemetry / "spans.db"), runtime)
        enter.push_async_callback(ring.close)
        background = Supervisor("system", escalate=lambda child, error: self._fail(child, error))
        enter.push_async_callback(background.close)

        externals = await self._start_externals(background)

        def verify(token: str) -> None:
            signer.verify(token, now_us=runtime.wall_us())

        registry = MemoryRegistry(verify=verify)
        background.start(Child("registry", registry.run))
        resolver = SystemResolver(CachedResolver(registry), externals)
        pool = HttpPool(network=runtime.network)
        enter.push_async_callback(pool.close)
        inproc = InProcessTransport()
        transports: dict[str, Transport] = {
            "inproc": inproc,
            "http": HttpTransport(pool, runtime=runtime),
        }
        around = Surroundings(
            runtime=runtime,
            signer=signer,
            sink=ring,
            resolver=resolver,
            transports=transports,
            policies=self._policies,
            subscribers={s.name: frozenset(s.subscriptions) for s in services if s.subscriptions},
            escalate=lambda service, child, error: self._fail(f"{service}/{child}", error),
        )
        for service in services:
            await self._start_service(service, around, inproc)
        for name in self.instances:
            token = signer.token(name, now_us=runtime.wall_us())
            registration = await registry.register(
                Endpoint(f"{name}-1", name, f"inproc://{name}-1"), credential=token
            )
            background.start(Child(f"lease/{name}", registration.run))

        tracer = Tracer(CLIENT, runtime, ring)
        caller = Caller(
            CLIENT,
            resolver=resolver,
            transports=transports,
            signer=signer,
            tracer=tracer,
            runtime=runtime,
            policies=self._policies(CLIENT),
        )
        await self._start_control(caller, tracer, ring, signer)
        if opening is not None:
            await opening(OpeningClient(caller))
        rundir.publish(self.info)
        enter.callback(rundir.withdraw)

    async def _start_service(
        self, service: Service, around: Surroundings, inproc: InProcessTransport
    ) -> None:
        instance = await ServiceInstance.start(service, self._rundir.database(service.name), around)
        self._exit.push_async_callback(instance.stop)
        self.instances[service.name] = instance
        inproc.add(f"{service.name}-1", instance.dispatcher)
        edge = HttpEdge(runtime=around.runtime)
        edge.mount(instance.dispatcher, instance.offered)
        server = HttpServer(edge, network=around.runtime.network)
        await server.start(self._config.system.host, self._config.services[service.name].port)
        self._exit.push_async_callback(server.close)
        self._exit.push_async_callback(server.drain, DRAIN_WITHIN_S)
        self._exit.push_async_callback(instance.drain, DRAIN_WITHIN_S)
        self._urls[service.name] = server.url

    async def _start_externals(self, background: Supervisor) -> dict[str, str]:
        urls: dict[str, str] = {}
        for name, section in self._config.external.items():
            if section.url:
                urls[name] = section.url
                continue
            process = self._external(name, section, urls)
            await process.start()
            self._exit.push_async_callback(process.stop)
            background.start(Child(f"external/{name}", process.run))
        self._urls.update(urls)
        return urls

    def _external(
        self, name: str, section: ExternalSection, urls: dict[str, str]
    ) -> ExternalProcess:
        def filled(text: str) -> str:
            return text.replace("{python}", sys.executable).replace(
                "{data}", str(self._rundir.data)
            )

        return ExternalProcess(
            name,
            command=[filled(word) for word in section.command],
            env={key: filled(value) for key, value in section.env.items()},
            folder=self._folder,
            log=self._rundir.telemetry / f"{name}.log",
            moved=lambda url: urls.__setitem__(name, url),
        )

    async def _start_control(
        self, caller: Caller, tracer: Tracer, ring: SqliteRing, signer: Signer
    ) -> None:
        token = secrets.token_urlsafe(32)
        control = Control(
            token=token,
            authority=lambda: f"{server.host}:{server.port}",
            caller=caller,
            tracer=tracer,
            ring=ring,
            instances=self.instances,
            signer=signer,
            runtime=self._runtime,
        )
        server = HttpServer(control.handle, network=self._runtime.network)
        await server.start(self._config.system.host, self._config.system.control_port)
        self._exit.push_async_callback(server.close)
        self._info = RunInfo(
            pid=os.getpid(),
            system=self._config.system.name,
            control=server.url,
            token=token,
            services=dict(self._urls),
        )

    def _policies(self, service: str) -> Policies:
        """Return how the calls of one service are guarded: its edges, as the configuration says."""
        edges = {}
        for edge, section in self._config.policies.items():
            caller, _, callee = edge.partition(":")
            if caller == service:
                edges[callee] = section.compile()
        return Policies(edges=edges)

    def _fail(self, child: str, error: BaseException) -> None:
        if not self._failure:
            self._failure = f"{child} failed too often: {type(error).__name__}: {error}"
        self._failed.set()

    def __repr__(self) -> str:
        return f"<System {self._config.system.name}: {', '.join(self.instances) or 'not started'}>"


class SystemResolver:
    """Resolves this system's services by the registry, and external ones by their URL of now."""

    def __init__(self, registry: CachedResolver, externals: Mapping[str, str]) -> None:
        self._registry = registry
        self._externals = externals

    async def resolve(self, service: str) -> Resolved:
        """Return the endpoints of a service."""
        url = self._externals.get(service)
        if url is not None:
            return Resolved((Endpoint(service, service, url),))
        return await self._registry.resolve(service)


class OpeningClient:
    """What the opening of a system calls its services with; it waits for no one else's deadline."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def call(self, call: Call[R], *, key: str) -> R:
        """Send a command under an idempotency key and return its answer."""
        return await self._caller.call(call, context=self._caller.root(key=key), timeout_s=10.0)


def check_keep(services: list[Service], keep_s: float) -> None:
    """Check that inboxes remember longer than any saga may still ask or undo (S6).

    Raises:
        ConfigError: a saga outlives them.
    """
    for service in services:
        for definition in service.sagas.values():
            longest_s = _longest_s(definition)
            if longest_s >= keep_s:
                raise ConfigError(
                    f"saga {service.name}.{definition.name} may take {longest_s:g} s, but inboxes "
                    f"forget after {keep_s:g} s; shorten its deadlines"
                )


def _longest_s(definition: SagaDefinition[Any, Any]) -> float:
    policy = definition.policy
    return definition.deadline_s + max(policy.undo_deadline_s, policy.after_pivot_deadline_s)
