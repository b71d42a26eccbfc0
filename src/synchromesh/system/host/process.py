"""One part of a system, a service or its gateway, as a process of its own; `main` runs in it.

It is started by the supervisor (`split`), which hands it its `ProcessOrders` as one line on
standard input, and holds that open: where it closes, the supervisor is gone, and the process ends
too. It says `Loaded` where it has to wait for the process before, and once it answers `Ready`, each
as one line; or why not, `StartFailed`. What else is printed goes to standard error.

    orders → log, spans → registry → the part → admin socket → the part is known → ready
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
from pathlib import Path
from typing import BinaryIO

import msgspec

from synchromesh.calls import FaultTable, HttpTransport
from synchromesh.errors import SynchromeshError
from synchromesh.http import HttpPool, HttpServer
from synchromesh.identity import REGISTRY, Signer
from synchromesh.runtime import DiskRuntime, RealRuntime
from synchromesh.service import Child, Deps, Supervisor
from synchromesh.store import SqliteStores, StoreOptions
from synchromesh.system.config.definitions import load_services, policies_of
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.schema import GATEWAY
from synchromesh.system.control.api import Control
from synchromesh.system.control.faults import FaultInjector, faults_of
from synchromesh.system.control.status import Overview
from synchromesh.system.host.gateway_part import GatewayPart
from synchromesh.system.host.logs import log_to
from synchromesh.system.host.loops import loop_factory
from synchromesh.system.host.part import Ground, Part
from synchromesh.system.host.service_part import ServicePart
from synchromesh.system.host.waits import first_of
from synchromesh.system.host.watchdog import watch_loop
from synchromesh.system.host.wiring import CONTROL_HOST
from synchromesh.system.leases_api.client import RemoteRegistry
from synchromesh.system.supervise.orders import (
    FAILED,
    FAILED_SAYS,
    Loaded,
    ProcessOrders,
    Ready,
    StartFailed,
)
from synchromesh.telemetry import SqliteRing

REGISTRY_WITHIN_S = 5.0

MISTAKE = 2

_log = logging.getLogger("synchromesh.system")


class Process:
    """Runs one part of a system in this process; `start`, then `wait`, then `stop`.

    Args:
        loaded: called when only what the process before holds is still waited for.
    """

    def __init__(
        self,
        orders: ProcessOrders,
        folder: Path,
        runtime: DiskRuntime,
        *,
        loaded: Callable[[], None],
    ) -> None:
        self._loaded = loaded
        self._orders = orders
        self._folder = folder
        self._runtime = runtime
        self._rundir = RunDir(folder)
        self._exit = AsyncExitStack()
        self._failed = asyncio.Event()
        self._failure = ""
        self._part: Part | None = None

    async def start(self) -> Ready:
        """Start the part; when this returns, it is known and answers.

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
        await first_of(stop, self._failed)
        return self._failure

    async def stop(self, hurry: asyncio.Event) -> None:
        """Answer what was taken, until `hurry`, and end."""
        assert self._part is not None
        draining = asyncio.ensure_future(self._part.drain())
        draining.add_done_callback(lambda _: hurry.set())
        try:
            await hurry.wait()
            draining.cancel()
            (outcome,) = await asyncio.gather(draining, return_exceptions=True)
            if isinstance(outcome, Exception):
                _log.error("the drain failed", exc_info=outcome)
        finally:
            await self._exit.aclose()

    async def _start(self) -> Ready:
        orders, runtime, enter = self._orders, self._runtime, self._exit
        name, telemetry = orders.name, self._rundir.telemetry
        enter.callback(log_to(telemetry / f"log-{name}.jsonl"))
        enter.callback(watch_loop())
        services = load_services(orders.config, self._folder)
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
        table = FaultTable()
        faults = faults_of(orders.config, table)
        faults.resume(orders.faults, wall_us=runtime.wall_us())
        ground = Ground(
            orders=orders,
            folder=self._folder,
            runtime=runtime,
            rundir=self._rundir,
            deps=Deps(
                runtime=runtime,
                services={service.name: service for service in services},
                signer=signer,
                sink=ring,
                stores=SqliteStores(runtime, self._rundir.database, self._store_options),
                resolver=registry,
                transports={"http": HttpTransport(pool, runtime=runtime)},
                policies=lambda caller: policies_of(orders.config, caller),
                escalate=lambda _, child, error: self._fail(child, error),
                faults=table,
            ),
            ring=ring,
            registry=registry,
            background=background,
            exit=enter,
            fail=self._fail,
            loaded=self._loaded,
        )
        part = self._part = GatewayPart(ground) if name == GATEWAY else ServicePart(ground)
        await part.start()
        admin = await self._admin(ground, part, faults)
        return Ready(admin.port, await part.open())

    def _store_options(self, service: str) -> StoreOptions:
        return StoreOptions(pages_max=self._orders.config.services[service].pages_max)

    async def _admin(self, ground: Ground, part: Part, faults: FaultInjector) -> HttpServer:
        overview = Overview(
            name=ground.orders.config.system.name,
            caller=part.caller,
            tracer=part.tracer,
            clients={} if part.gateway is None else {GATEWAY: part.caller},
            ring=ground.ring,
            instances=part.instances,
            gateway=part.gateway,
            urls={},
            externals=(),
            resolver=ground.registry,
            supervisors=(ground.background,),
            faults=faults,
            signer=ground.deps.signer,
            runtime=ground.runtime,
        )
        control = Control(
            overview, token=self._orders.token, authority=lambda: f"{server.host}:{server.port}"
        )
        server = HttpServer(control.handle, network=self._runtime.network)
        await server.start(CONTROL_HOST, 0)
        self._exit.push_async_callback(server.close)
        return server

    def _fail(self, child: str, error: BaseException) -> None:
        if not self._failure:
            self._failure = f"{child} failed too often: {type(error).__name__}: {error}"
        self._failed.set()

    def __repr__(self) -> str:
        return f"<Process {self._orders.name}>"


def main() -> None:
    """Run one part until SIGTERM, or until the supervisor is gone; a second SIGTERM cuts it."""
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    # What users print must not fill a pipe that nobody reads.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    orders = msgspec.json.decode(sys.stdin.buffer.readline(), type=ProcessOrders)
    with asyncio.Runner(loop_factory=loop_factory(orders.config.system.loop)) as runner:
        sys.exit(runner.run(_run(orders, answer)))


async def _run(orders: ProcessOrders, answer: BinaryIO) -> int:
    stop, hurry, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()

    def told() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, told)

    def abandoned() -> None:
        loop.remove_reader(sys.stdin.fileno())
        stop.set()

    loop.add_reader(sys.stdin.fileno(), abandoned)

    def say(what: Loaded | Ready | StartFailed) -> None:
        answer.write(msgspec.json.encode(what) + b"\n")

    process = Process(orders, Path.cwd(), RealRuntime(), loaded=lambda: say(Loaded()))
    with answer:
        try:
            ready: Ready | StartFailed = await process.start()
        except (SynchromeshError, TimeoutError) as error:
            _log.exception("it could not be started")
            ready = StartFailed(str(error) or "the registry did not answer in time")
        say(ready)
    if isinstance(ready, StartFailed):
        return MISTAKE
    try:
        failure = await process.wait(stop)
    finally:
        await process.stop(hurry)
    if failure:
        sys.stderr.write(f"{FAILED_SAYS}{orders.name}: {failure}\n")
        return FAILED
    return 0
