"""One service of a system as a process of its own; `main` is what runs in it.

It is started by the supervisor (`split`), which hands it its `Orders` as one line on standard
input, and holds that open: where it closes, the supervisor is gone, and the process ends too. It
says `Loaded`, and once the service is registered `Ready`, each as one line; or why not, `Unready`.
What else is printed goes to standard error.

    orders → log, spans → registry → database → HTTP server → admin → registered → ready
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import msgspec

from synchromesh.calls import FaultTable, HttpEdge, HttpTransport, Transport, faulty
from synchromesh.discovery import Endpoint, Registration
from synchromesh.errors import (
    ConfigError,
    DiscoveryError,
    StaleIncarnation,
    StoreLocked,
    SynchromeshError,
)
from synchromesh.http import HttpPool, HttpServer
from synchromesh.identity import REGISTRY, Signer
from synchromesh.runtime import RealRuntime, Runtime
from synchromesh.service import Child, Service, ServiceInstance, Supervisor, Surroundings
from synchromesh.store import StoreOptions
from synchromesh.system.config import GATEWAY, SystemConfig, load_services
from synchromesh.system.control import Control
from synchromesh.system.faults import Faults
from synchromesh.system.logs import log_to
from synchromesh.system.loops import loop_factory
from synchromesh.system.remote_registry import RemoteRegistry
from synchromesh.system.rundir import RunDir
from synchromesh.system.status import Parts
from synchromesh.system.watchdog import watch_loop
from synchromesh.system.wiring import CLIENT, CONTROL_HOST, policies_of
from synchromesh.telemetry import SqliteRing, Tracer

# What the one before may take to drain and let go of the database.
LOCKED_WITHIN_S = 15.0
LOCK_EVERY_S = 0.02
REGISTRY_WITHIN_S = 5.0
# How long callers may take to hear that this instance gets no more calls.
HEARD_WITHIN_S = 0.1
# Together below the 10 s of a stop.
ANSWER_WITHIN_S = 4.0
DRAIN_WITHIN_S = 1.5

FAILED = 3
MISTAKE = 2

_log = logging.getLogger("synchromesh.system")


class Orders(msgspec.Struct, frozen=True):
    """What a process is told by its supervisor.

    Attributes:
        service: which service it is.
        config: of the whole system.
        key: signs every hop, in base64.
        control: the URL of the control socket, where the registry is.
        token: what the supervisor shows at the admin socket.
        port: where to listen, if that is free; the configured port goes first.
    """

    service: str
    config: SystemConfig
    key: str
    control: str
    token: str
    port: int = 0

    def __repr__(self) -> str:
        return f"<Orders {self.service} by {self.control}>"  # neither the key nor the token


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """Tells that all is imported, and that the service starts as soon as its database is free."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Tells that the service is registered, and the ports of its admin socket and of itself."""

    admin: int
    port: int


class Unready(msgspec.Struct, frozen=True, tag="unready"):
    """Tells why the service could not be started."""

    message: str


class ServiceProcess:
    """Runs one service of a system in this process; `start`, then `wait`, then `stop`.

    Args:
        loaded: called when only the database is still waited for.
    """

    def __init__(
        self, orders: Orders, folder: Path, runtime: Runtime, *, loaded: Callable[[], None]
    ) -> None:
        self._loaded = loaded
        self._orders = orders
        self._folder = folder
        self._runtime = runtime
        self._rundir = RunDir(folder)
        self._exit = AsyncExitStack()
        self._failed = asyncio.Event()
        self._failure = ""
        self._instance: ServiceInstance | None = None
        self._server: HttpServer | None = None
        self._registration: Registration | None = None

    async def start(self) -> Ready:
        """Start the service; when this returns, it is registered and answers.

        Raises:
            ConfigError, StoreError, ContractError, DiscoveryError: as `System.start` does.
        """
        try:
            return await self._start()
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
        """Leave the list, answer what was taken, and end, within 10 seconds."""
        try:
            if self._registration is not None:
                await self._leave(self._registration)
            if self._server is not None:
                await self._server.drain(ANSWER_WITHIN_S)
            if self._instance is not None:
                await self._instance.drain(DRAIN_WITHIN_S)
        finally:
            await self._exit.aclose()

    async def _leave(self, registration: Registration) -> None:
        try:
            await registration.drain()
        except DiscoveryError as error:
            _log.warning("the registry was not told of the drain: %s", error)
        else:
            await asyncio.sleep(HEARD_WITHIN_S)

    async def _start(self) -> Ready:
        orders, runtime, enter = self._orders, self._runtime, self._exit
        name, telemetry = orders.service, self._rundir.telemetry
        enter.callback(log_to(telemetry / f"log-{name}.jsonl"))
        enter.callback(watch_loop())
        services = load_services(orders.config, self._folder)
        service = next(each for each in services if each.name == name)
        signer = Signer(base64.b64decode(orders.key))
        ring = SqliteRing(str(telemetry / f"spans-{name}.db"), runtime)
        enter.push_async_callback(ring.close)
        pool = HttpPool(network=runtime.network)
        enter.push_async_callback(pool.close)
        registry = RemoteRegistry(
            orders.control,
            pool=pool,
            credential=lambda: signer.token(name, audience=REGISTRY, now_us=runtime.wall_us()),
            runtime=runtime,
        )
        async with asyncio.timeout(REGISTRY_WITHIN_S):
            await registry.refresh()
        background = Supervisor(name, escalate=self._fail)
        enter.push_async_callback(background.close)
        background.start(Child("registry", registry.run))
        faults = FaultTable()
        transports: dict[str, Transport] = {"http": HttpTransport(pool, runtime=runtime)}
        around = Surroundings(
            runtime=runtime,
            signer=signer,
            sink=ring,
            resolver=registry,
            transports=faulty(transports, name, faults, runtime.rng),
            policies=lambda caller: policies_of(orders.config, caller),
            subscribers={s.name: frozenset(s.subscriptions) for s in services if s.subscriptions},
            escalate=lambda _, child, error: self._fail(child, error),
            store=replace(StoreOptions(), pages_max=orders.config.services[name].pages_max),
        )
        self._loaded()
        instance = self._instance = await self._own(service, around)
        enter.push_async_callback(instance.stop)
        server = self._server = await self._serve(instance)
        parts = self._parts(instance, server, around, ring, background, faults)
        admin = await self._admin(parts)
        await self._register(registry, server.url, background)
        return Ready(admin.port, server.port)

    async def _own(self, service: Service, around: Surroundings) -> ServiceInstance:
        """Start the instance, once the process before has let go of its database."""
        path = self._rundir.database(service.name)
        until_s = asyncio.get_running_loop().time() + LOCKED_WITHIN_S
        while True:
            try:
                return await ServiceInstance.start(service, path, around)
            except StoreLocked:
                if asyncio.get_running_loop().time() >= until_s:
                    raise
            await asyncio.sleep(LOCK_EVERY_S)

    async def _serve(self, instance: ServiceInstance) -> HttpServer:
        edge = HttpEdge(runtime=self._runtime)
        edge.mount(instance.dispatcher, instance.offered)
        server = HttpServer(edge, network=self._runtime.network)
        host = self._orders.config.system.host
        fixed = self._orders.config.services[self._orders.service].port
        try:
            await server.start(host, fixed or self._orders.port)
        except ConfigError:
            if fixed or not self._orders.port:
                raise
            # Somebody has taken the port that it had by chance.
            await server.start(host, 0)
        self._exit.push_async_callback(server.close)
        return server

    def _parts(
        self,
        instance: ServiceInstance,
        server: HttpServer,
        around: Surroundings,
        ring: SqliteRing,
        background: Supervisor,
        faults: FaultTable,
    ) -> Parts:
        config, name = self._orders.config, self._orders.service
        caller = instance.caller
        services, externals = tuple(config.services), tuple(config.external)
        clients = (CLIENT, GATEWAY) if config.gateway.app else (CLIENT,)
        return Parts(
            name=config.system.name,
            caller=caller,
            tracer=Tracer(name, self._runtime, ring),
            clients={},
            ring=ring,
            instances={name: instance},
            urls={name: server.url},
            externals=(),
            resolver=around.resolver,
            supervisors=(background,),
            faults=Faults(faults, callers=(*services, *clients), callees=(*services, *externals)),
            signer=around.signer,
            runtime=self._runtime,
        )

    async def _admin(self, parts: Parts) -> HttpServer:
        control = Control(
            parts, token=self._orders.token, authority=lambda: f"{server.host}:{server.port}"
        )
        server = HttpServer(control.handle, network=self._runtime.network)
        await server.start(CONTROL_HOST, 0)
        self._exit.push_async_callback(server.close)
        return server

    async def _register(self, registry: RemoteRegistry, url: str, background: Supervisor) -> None:
        name = self._orders.service
        # The number of the process tells the supervisor whose lease to end when it has ended.
        endpoint = Endpoint(f"{name}-1", name, url, (("pid", str(os.getpid())),))
        registration = await registry.register(endpoint, credential="")
        self._registration = registration
        self._exit.push_async_callback(self._end, registration)

        async def renew() -> None:
            try:
                await registration.run()
            except StaleIncarnation as error:
                self._fail("lease", error)
            await asyncio.Event().wait()

        background.start(Child("lease", renew))

    async def _end(self, registration: Registration) -> None:
        try:
            await registration.end()
        except DiscoveryError as error:
            _log.warning("the lease was not ended and will expire: %s", error)

    def _fail(self, child: str, error: BaseException) -> None:
        if not self._failure:
            self._failure = f"{child} failed too often: {type(error).__name__}: {error}"
        self._failed.set()

    def __repr__(self) -> str:
        return f"<ServiceProcess {self._orders.service}>"


def main() -> None:
    """Run one service until SIGTERM, or until the supervisor is gone."""
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    # What users print must not fill a pipe that nobody reads.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    orders = msgspec.json.decode(sys.stdin.buffer.readline(), type=Orders)
    with asyncio.Runner(loop_factory=loop_factory(orders.config.system.loop)) as runner:
        sys.exit(runner.run(_run(orders, answer)))


async def _run(orders: Orders, answer: BinaryIO) -> int:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)

    def abandoned() -> None:
        loop.remove_reader(sys.stdin.fileno())
        stop.set()

    loop.add_reader(sys.stdin.fileno(), abandoned)

    def say(what: Loaded | Ready | Unready) -> None:
        answer.write(msgspec.json.encode(what) + b"\n")

    process = ServiceProcess(orders, Path.cwd(), RealRuntime(), loaded=lambda: say(Loaded()))
    with answer:
        try:
            ready: Ready | Unready = await process.start()
        except (SynchromeshError, TimeoutError) as error:
            _log.exception("the service could not be started")
            ready = Unready(str(error) or "the registry did not answer in time")
        say(ready)
    if isinstance(ready, Unready):
        return MISTAKE
    try:
        failure = await process.wait(stop)
    finally:
        await process.stop()
    if failure:
        sys.stderr.write(f"synchromesh: {orders.service}: {failure}\n")
        return FAILED
    return 0
