"""A whole system with a process for each service: the supervisor, the registry, one control socket.

    run directory → key, telemetry → registry on the control socket → external services
    → a process for each service → opening → gateway → run.json

A process that ends is started again, up to the restart intensity; beyond that the system ends and
says which. What runs in the processes is `process`.
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from synchromesh.calls import FaultTable, HttpTransport, Transport
from synchromesh.discovery import MemoryRegistry
from synchromesh.http import HttpPool, HttpServer
from synchromesh.identity import REGISTRY, Credential, Signer
from synchromesh.runtime import Runtime
from synchromesh.service import Child, Service, Supervisor
from synchromesh.system.children import ExternalProcess
from synchromesh.system.clients import Clients
from synchromesh.system.config import SystemConfig
from synchromesh.system.faults import Faults
from synchromesh.system.logs import log_to
from synchromesh.system.process import Orders
from synchromesh.system.references import signing_key
from synchromesh.system.registry import RegistryServer
from synchromesh.system.rundir import RunInfo
from synchromesh.system.service_child import ServiceChild
from synchromesh.system.split_control import SplitControl
from synchromesh.system.status import Parts
from synchromesh.system.watchdog import watch_loop
from synchromesh.system.wiring import CLIENT, CONTROL_HOST, System, all_of
from synchromesh.telemetry import SqliteRing

# Together with `service_child.STOP_WITHIN_S` and what external services may take to end, these stay
# below the 10 s of `System.stop`.
CLIENTS_WITHIN_S = 2.0
CONTROL_WITHIN_S = 0.5


class SplitSystem(System):
    """Runs each service of a folder as a process of its own; used as `System` is."""

    _watching: Supervisor
    _token: str
    _control: HttpServer

    def __init__(self, config: SystemConfig, folder: Path, runtime: Runtime) -> None:
        super().__init__(config, folder, runtime)
        self._processes: dict[str, ServiceChild] = {}

    def cut(self) -> None:
        """End all processes at once, as `System.cut` says."""
        super().cut()
        for child in self._processes.values():
            child.kill()

    async def _drain(self) -> None:
        # Or what is stopped would be started again.
        await self._watching.close()
        # Clients first, while all that they need still answers. Processes need each other, and the
        # registry, until they have ended.
        clients = [server for server in self._servers if server is not self._control]
        await all_of(server.drain(CLIENTS_WITHIN_S) for server in clients)
        await all_of(child.stop() for child in self._processes.values())
        await self._control.drain(CONTROL_WITHIN_S)

    async def _start(
        self, services: list[Service], opening: Callable[[Any], Awaitable[None]] | None
    ) -> None:
        rundir, runtime, enter = self._rundir, self._runtime, self._exit
        self._processes.clear()
        rundir.create()
        enter.callback(rundir.lock(runtime.disk).release)
        # One that a killed process left would lead callers astray.
        rundir.withdraw()
        enter.callback(log_to(rundir.telemetry / "log.jsonl"))
        enter.callback(watch_loop())
        key = signing_key(self._config.system.key, rundir, self._folder, os.environ)
        signer = Signer(key)

        def verify(token: str) -> Credential:
            return signer.verify(token, audience=REGISTRY, now_us=runtime.wall_us())

        self._registry = MemoryRegistry(verify=verify)
        background = Supervisor("system", escalate=self._fail)
        enter.push_async_callback(background.close)
        background.start(Child("registry", self._registry.run))
        self._watching = Supervisor("processes", escalate=self._fail)
        self._token = secrets.token_urlsafe(32)
        pool = HttpPool(network=runtime.network)
        enter.push_async_callback(pool.close)
        parts = self._parts_of_all(pool, signer, (background, self._watching))
        self._control = await self._start_split_control(parts, services, pool)
        externals: list[ExternalProcess] = []
        enter.push_async_callback(lambda: all_of(process.stop() for process in externals))
        enter.push_async_callback(
            lambda: all_of(child.stop() for child in self._processes.values())
        )
        enter.push_async_callback(self._watching.close)
        await self._start_externals(self._watching, externals)
        await self._start_processes(key)
        if opening is not None:
            await self._open(opening, parts.caller)
        if self._gateway is not None:
            await self._start_gateway(self._gateway, background)
        enter.callback(rundir.withdraw)
        self._publish()

    def _publish(self) -> None:
        self._info = RunInfo(
            pid=os.getpid(),
            system=self._config.system.name,
            control=self._control.url,
            token=self._token,
            services=dict(self._urls),
            gateway="" if self._gateway is None else self._gateway.url,
        )
        self._rundir.publish(self._info)

    def _parts_of_all(
        self, pool: HttpPool, signer: Signer, supervisors: tuple[Supervisor, ...]
    ) -> Parts:
        runtime = self._runtime
        services, externals = tuple(self._config.services), tuple(self._config.external)
        ring = SqliteRing(str(self._rundir.telemetry / "spans.db"), runtime)
        self._exit.push_async_callback(ring.close)
        faults = FaultTable()
        transports: dict[str, Transport] = {"http": HttpTransport(pool, runtime=runtime)}
        makes = Clients(
            resolver=self._registry,
            transports=transports,
            signer=signer,
            sink=ring,
            faults=faults,
            runtime=runtime,
            policies=self._policies,
        )
        caller, tracer = makes.make(CLIENT)
        clients = {CLIENT: caller, **self._gateway_client(makes)}
        return Parts(
            name=self._config.system.name,
            caller=caller,
            tracer=tracer,
            clients=clients,
            ring=ring,
            instances={},
            urls=self._urls,
            externals=externals,
            resolver=self._registry,
            supervisors=supervisors,
            faults=Faults(faults, callers=(*services, *clients), callees=(*services, *externals)),
            signer=signer,
            runtime=runtime,
        )

    async def _start_split_control(
        self, parts: Parts, services: list[Service], pool: HttpPool
    ) -> HttpServer:
        runtime, signer = self._runtime, parts.signer
        registry = RegistryServer(
            self._registry,
            verify=lambda t: signer.verify(t, audience=REGISTRY, now_us=runtime.wall_us()),
            started_us=runtime.wall_us(),
        )
        control = SplitControl(
            parts,
            token=self._token,
            authority=lambda: f"{server.host}:{server.port}",
            registry=registry,
            services={service.name: service for service in services},
            processes=self._processes,
            pool=pool,
        )
        server = HttpServer(control.handle, network=runtime.network)
        await server.start(CONTROL_HOST, self._config.system.control_port)
        self._exit.push_async_callback(server.close)
        self._servers.append(server)
        return server

    async def _start_processes(self, key: bytes) -> None:
        """Start all at once: none waits for another, and calls are held until all are there."""
        for name in self._config.services:
            self._processes[name] = self._process(name, base64.b64encode(key).decode())
        starting = [asyncio.ensure_future(child.start()) for child in self._processes.values()]
        try:
            await asyncio.gather(*starting)
        except BaseException:
            for start in starting:
                start.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            raise
        for name, child in self._processes.items():
            self._watching.start(Child(f"service/{name}", child.run))

    def _process(self, name: str, key: str) -> ServiceChild:
        def orders(port: int) -> Orders:
            return Orders(name, self._config, key, self._control.url, self._token, port)

        def gone(pid: int) -> None:
            # Its end was seen: it is not suspected to be dead, it is (R6).
            self._registry.bury(name, lambda endpoint: ("pid", str(pid)) in endpoint.metadata)

        def moved(port: int) -> None:
            self._urls[name] = f"http://{self._config.system.host}:{port}"
            if self._info is not None:
                self._publish()

        return ServiceChild(
            name,
            orders=orders,
            folder=self._folder,
            log=self._rundir.telemetry / f"{name}.log",
            gone=gone,
            moved=moved,
        )

    def __repr__(self) -> str:
        return f"<SplitSystem {self._config.system.name}: {', '.join(self._config.services)}>"
