"""The only place that wires: makes a running system out of a configuration.

    run directory → key, telemetry → external services → registry → instances → their HTTP servers
    → control socket → opening → gateway → run.json

and back in the other order. What was started before something failed is stopped again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from synchromesh.calls import (
    Call,
    Caller,
    FaultTable,
    HttpEdge,
    HttpTransport,
    InProcessTransport,
    Policies,
    Transport,
)
from synchromesh.calls.forwarding import HTTP
from synchromesh.discovery import Endpoint, MemoryRegistry, Registration
from synchromesh.errors import ConfigError
from synchromesh.gateway import Gateway
from synchromesh.gateway.check import CompiledRoute
from synchromesh.http import HttpPool, HttpServer
from synchromesh.identity import REGISTRY, Credential, Signer
from synchromesh.runtime import DiskRuntime
from synchromesh.service import KEEP_S, Child, Deps, Service, ServiceInstance, Supervisor
from synchromesh.store import SqliteStores, StoreOptions
from synchromesh.system.config.definitions import (
    check_keep,
    load_gateway,
    load_opening,
    load_services,
    policies_of,
)
from synchromesh.system.config.gateway_check import check_gateway
from synchromesh.system.config.rundir import RunDir, RunInfo
from synchromesh.system.config.schema import CLIENT, GATEWAY, ExternalSection, SystemConfig
from synchromesh.system.config.secrets import signing_key
from synchromesh.system.control.api import Control
from synchromesh.system.control.faults import faults_of
from synchromesh.system.control.status import Overview
from synchromesh.system.host.gateway import ServedGateway
from synchromesh.system.host.logs import log_to
from synchromesh.system.host.waits import all_of, first_of
from synchromesh.system.host.watchdog import watch_loop
from synchromesh.system.supervise.external import ExternalProcess
from synchromesh.telemetry import SqliteRing

R = TypeVar("R")

# Together with what children may take to end, these stay below the 10 s of `System.stop`.
GATEWAY_WITHIN_S = 2.0
ANSWER_WITHIN_S = 3.0
DRAIN_WITHIN_S = 1.5
CONTROL_HOST = "127.0.0.1"

_log = logging.getLogger("synchromesh.system")


class System:
    """Runs all services of a folder in this process; `start`, then `wait`, then `stop`.

    Every background failure that is beyond restarting ends `wait` with its reason.

    Args:
        store: the bounds of every database; `pages_max` of a service's section goes first.
    """

    _registry: MemoryRegistry

    def __init__(
        self,
        config: SystemConfig,
        folder: Path,
        runtime: DiskRuntime,
        *,
        store: StoreOptions = StoreOptions(),  # noqa: B008  frozen
    ) -> None:
        self._config = config
        self._folder = folder.resolve()
        self._runtime = runtime
        self._store = store
        self._rundir = RunDir(self._folder)
        self._exit = AsyncExitStack()
        self._stopping = asyncio.Lock()
        self._failed = asyncio.Event()
        self._failure = ""
        self._urls: dict[str, str] = {}
        self._servers: list[HttpServer] = []
        self._registrations: list[Registration] = []
        self._definition: Gateway | None = None
        self._entries: tuple[CompiledRoute, ...] = ()
        self._gateway: ServedGateway | None = None
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
            ConfigError: the configuration, a definition or a port is wrong, or it runs already.
            StoreError: a database cannot be used.
            ContractError: a service does not fit its contract.

        What was started is stopped again.
        """
        if self._info is not None:
            raise ConfigError(f"{self!r} runs already; stop it first")
        services = load_services(self._config, self._folder)
        opening = load_opening(self._config, self._folder)
        for service in services:
            service.check()
        check_keep(services, KEEP_S)
        self._definition = load_gateway(self._config, self._folder)
        if self._definition is not None:
            self._entries = await check_gateway(
                self._definition, self._config, self._rundir, self._runtime
            )
        self._failed.clear()
        self._failure = ""
        try:
            await self._start(services, opening)
        except BaseException:
            await self._close()
            raise

    async def wait(self, stop: asyncio.Event) -> str:
        """Wait for `stop`, or for a failure beyond restarting; return its reason, "" for none."""
        await first_of(stop, self._failed)
        return self._failure

    async def stop(self) -> None:
        """Drain and stop everything, within 10 seconds. May be repeated."""
        async with self._stopping:
            if self._info is not None:
                self._info = None
                self._rundir.withdraw()
                await self._drain()
            await self._close()

    def cut(self) -> None:
        """End what runs beside this process at once, before this process is ended too.

        It is as after a power cut: what was not finished continues at the next start.
        """
        self._rundir.withdraw()

    async def _close(self) -> None:
        await self._exit.aclose()
        self._gateway = None
        self.instances.clear()
        self._servers.clear()
        self._registrations.clear()
        self._urls.clear()

    async def _drain(self) -> None:
        """Let what was taken come to its end, from the outside in.

        Connections of clients first, while all that they need still answers; then no instance is
        listed any more; and only then none takes calls, so that no caller is sent to one that
        drains.
        """
        # What it has taken needs all the others.
        if self._gateway is not None:
            await self._gateway.drain(GATEWAY_WITHIN_S)
        await all_of(server.drain(ANSWER_WITHIN_S) for server in self._servers)
        await all_of(registration.drain() for registration in self._registrations)
        await all_of(instance.drain(DRAIN_WITHIN_S) for instance in self.instances.values())

    async def _start(
        self, services: list[Service], opening: Callable[[Any], Awaitable[None]] | None
    ) -> None:
        rundir, runtime, enter = self._rundir, self._runtime, self._exit
        signer = Signer(self._take_folder())
        ring = SqliteRing(str(rundir.telemetry / "spans.db"), runtime)
        enter.push_async_callback(ring.close)
        externals: list[ExternalProcess] = []
        enter.push_async_callback(lambda: all_of(process.stop() for process in externals))
        # Ended before what it watches is stopped, or it would start that again.
        background = Supervisor("system", escalate=self._fail)
        enter.push_async_callback(background.close)
        self._registry = MemoryRegistry(verify=self._verifier(signer))
        background.start(Child("registry", self._registry.run))
        await self._start_externals(background, externals)
        pool = HttpPool(network=runtime.network)
        enter.push_async_callback(pool.close)
        inproc = InProcessTransport()
        transports: dict[str, Transport] = {
            "inproc": inproc,
            "http": HttpTransport(pool, runtime=runtime),
        }
        faults = FaultTable()
        deps = Deps(
            runtime=runtime,
            services={service.name: service for service in services},
            signer=signer,
            sink=ring,
            stores=SqliteStores(runtime, rundir.database, self._store_options),
            resolver=self._registry,
            transports=transports,
            policies=self._policies,
            escalate=lambda service, child, error: self._fail(f"{service}/{child}", error),
            faults=faults,
        )
        for service in services:
            await self._start_service(service, deps, inproc)
        leases = await self._register(signer)
        overview = self._overview(deps, ring, (background, leases), faults)
        control = await self._start_control(overview)
        if opening is not None:
            await self._open(opening, overview.caller)
        if self._gateway is not None:
            await self._start_gateway(self._gateway, background)
            control = msgspec.structs.replace(control, gateway=self._gateway.url)
        rundir.publish(control)
        enter.callback(rundir.withdraw)
        self._info = control

    def _take_folder(self) -> bytes:
        """Take the run directory for this system alone, begin its log, and return its key."""
        rundir, enter = self._rundir, self._exit
        rundir.create()
        enter.callback(rundir.lock(self._runtime.disk).release)
        # One that a killed process left would lead callers astray.
        rundir.withdraw()
        enter.callback(log_to(rundir.telemetry / "log.jsonl"))
        enter.callback(watch_loop())
        return signing_key(self._config.system.key, rundir, self._folder, os.environ)

    def _verifier(self, signer: Signer) -> Callable[[str], Credential]:
        """Return what reads the credentials that the registry is shown."""
        runtime = self._runtime
        return lambda token: signer.verify(token, audience=REGISTRY, now_us=runtime.wall_us())

    def _gateway_client(self, deps: Deps) -> dict[str, Caller]:
        """Return the gateway's caller by its name; nothing where there is no gateway."""
        if self._definition is None:
            return {}
        tracer = deps.tracer(GATEWAY)
        caller = deps.caller(GATEWAY, tracer)
        self._gateway = ServedGateway(
            self._definition,
            caller=caller,
            tracer=tracer,
            runtime=self._runtime,
            rundir=self._rundir,
            network=self._runtime.network,
            externals=self._config.external,
        )
        return {GATEWAY: caller}

    async def _start_gateway(self, gateway: ServedGateway, background: Supervisor) -> None:
        self._exit.push_async_callback(gateway.close)
        await gateway.start(self._config.system.host, self._config.gateway.port, self._entries)
        background.start(Child("gateway/keys", gateway.run))

    async def _register(self, signer: Signer) -> Supervisor:
        leases = Supervisor("leases", escalate=self._fail)
        self._exit.push_async_callback(
            lambda: all_of(registration.end() for registration in self._registrations)
        )
        self._exit.push_async_callback(leases.close)
        for name in self.instances:
            token = signer.token(name, audience=REGISTRY, now_us=self._runtime.wall_us())
            registration = await self._registry.register(
                Endpoint(f"{name}-1", name, f"inproc://{name}-1", ((HTTP, self._urls[name]),)),
                credential=token,
            )
            self._registrations.append(registration)
            leases.start(Child(f"lease/{name}", registration.run))
        return leases

    async def _open(self, opening: Callable[[Any], Awaitable[None]], caller: Caller) -> None:
        try:
            await opening(OpeningClient(caller))
        except Exception as error:
            _log.exception("the opening failed")
            raise ConfigError(
                f"the opening of the system, {self._config.dev.opening!r}, failed: "
                f"{type(error).__name__}: {error}; see {self._rundir.telemetry / 'log.jsonl'}"
            ) from error

    def _store_options(self, service: str) -> StoreOptions:
        pages_max = self._config.services[service].pages_max or self._store.pages_max
        return replace(self._store, pages_max=pages_max)

    async def _start_service(
        self, service: Service, deps: Deps, inproc: InProcessTransport
    ) -> None:
        instance = await ServiceInstance.start(service, deps)
        self._exit.push_async_callback(instance.stop)
        self.instances[service.name] = instance
        inproc.add(f"{service.name}-1", instance.dispatcher)
        edge = HttpEdge(runtime=deps.runtime)
        edge.mount(instance.dispatcher, instance.offered)
        server = HttpServer(edge, network=deps.runtime.network)
        await server.start(self._config.system.host, self._config.services[service.name].port)
        self._exit.push_async_callback(server.close)
        self._servers.append(server)
        self._urls[service.name] = server.url

    async def _start_externals(
        self, background: Supervisor, started: list[ExternalProcess]
    ) -> None:
        for name, section in self._config.external.items():
            if section.url:
                self._external_moved(name, section.url)
                continue
            process = self._external(name, section)
            started.append(process)
            await process.start()
            background.start(Child(f"external/{name}", process.run))

    def _external(self, name: str, section: ExternalSection) -> ExternalProcess:
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
            moved=lambda url: self._external_moved(name, url),
        )

    def _external_moved(self, name: str, url: str) -> None:
        self._urls[name] = url
        self._registry.fix(Endpoint(name, name, url))

    def _overview(
        self,
        deps: Deps,
        ring: SqliteRing,
        supervisors: tuple[Supervisor, ...],
        faults: FaultTable,
    ) -> Overview:
        tracer = deps.tracer(CLIENT)
        caller = deps.caller(CLIENT, tracer)
        clients = {CLIENT: caller, **self._gateway_client(deps)}
        return Overview(
            name=self._config.system.name,
            caller=caller,
            tracer=tracer,
            clients=clients,
            ring=ring,
            instances=self.instances,
            gateway=self._gateway,
            urls=self._urls,
            externals=tuple(self._config.external),
            resolver=deps.resolver,
            supervisors=supervisors,
            faults=faults_of(self._config, faults),
            signer=deps.signer,
            runtime=deps.runtime,
        )

    async def _start_control(self, overview: Overview) -> RunInfo:
        token = secrets.token_urlsafe(32)
        control = Control(overview, token=token, authority=lambda: f"{server.host}:{server.port}")
        server = HttpServer(control.handle, network=self._runtime.network)
        await server.start(CONTROL_HOST, self._config.system.control_port)
        self._exit.push_async_callback(server.close)
        self._servers.append(server)
        return RunInfo(
            pid=os.getpid(),
            system=self._config.system.name,
            control=server.url,
            token=token,
            services=self._urls_in_order(),
        )

    def _urls_in_order(self) -> dict[str, str]:
        """Return who listens where, in the order of the configuration: external services last."""
        names = (*self._config.services, *self._config.external)
        return {name: self._urls[name] for name in names if name in self._urls}

    def _policies(self, service: str) -> Policies:
        return policies_of(self._config, service)

    def _fail(self, child: str, error: BaseException) -> None:
        if not self._failure:
            log = self._rundir.telemetry / "log.jsonl"
            self._failure = f"{child} failed too often: {type(error).__name__}: {error}; see {log}"
        self._failed.set()

    def __repr__(self) -> str:
        return f"<System {self._config.system.name}: {', '.join(self.instances) or 'not started'}>"


class OpeningClient:
    """What the opening of a system calls its services with; it waits for no one else's deadline."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def call(self, call: Call[R], *, key: str) -> R:
        """Send a command under an idempotency key and return its answer."""
        return await self._caller.call(call, context=self._caller.root(key=key), timeout_s=10.0)
