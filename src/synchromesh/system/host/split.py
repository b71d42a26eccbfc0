"""A whole system of processes: the supervisor, the registry, one control socket.

    run directory → key, telemetry → registry on the control socket → external services
    → a process for each service → opening → a process for the gateway → run.json

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
from socket import socket
from typing import Any

from synchromesh.calls import FaultTable, HttpTransport, Transport
from synchromesh.discovery import MemoryRegistry
from synchromesh.http import HttpPool, HttpServer
from synchromesh.identity import Signer
from synchromesh.runtime import DiskRuntime
from synchromesh.service import Child, Deps, Service, Supervisor
from synchromesh.store import SqliteStores
from synchromesh.system.config.rundir import RunInfo
from synchromesh.system.config.schema import CLIENT, GATEWAY, SystemConfig
from synchromesh.system.control.faults import FaultInjector, faults_of
from synchromesh.system.control.split import SplitControl
from synchromesh.system.control.status import Overview
from synchromesh.system.host.gateway import open_socket
from synchromesh.system.host.waits import all_of
from synchromesh.system.host.wiring import CONTROL_HOST, System
from synchromesh.system.leases_api.server import RegistryServer
from synchromesh.system.supervise.child_process import ChildProcess
from synchromesh.system.supervise.external import ExternalProcess
from synchromesh.system.supervise.orders import ProcessOrders
from synchromesh.telemetry import SqliteRing

# Together with what a process that starts and external services may take to end, these stay below
# the 10 s of `System.stop`.
GATEWAY_WITHIN_S = 2.25
SERVICES_WITHIN_S = 4.5
CONTROL_WITHIN_S = 0.5


class SplitSystem(System):
    """Runs each service and the gateway as a process of its own; used as `System` is."""

    _watching: Supervisor
    _token: str
    _control: HttpServer
    _socket: socket
    _faults: FaultInjector

    def __init__(self, config: SystemConfig, folder: Path, runtime: DiskRuntime) -> None:
        super().__init__(config, folder, runtime)
        # By service; the gateway's by its own name, once it is started.
        self._processes: dict[str, ChildProcess] = {}

    def cut(self) -> None:
        """End all processes at once, as `System.cut` says."""
        super().cut()
        for child in self._processes.values():
            child.kill()

    async def _drain(self) -> None:
        # Or what is stopped would be started again.
        await self._watching.close()
        if GATEWAY in self._processes:
            # What it has taken needs all the others. A client that comes from here on is refused:
            # it would wait for nobody.
            self._socket.close()
            await all_of([self._processes[GATEWAY].stop()])
        # Processes need each other, and the registry, until they have ended.
        await all_of(child.stop() for child in self._processes.values())
        await self._control.drain(CONTROL_WITHIN_S)

    async def _start(
        self, services: list[Service], opening: Callable[[Any], Awaitable[None]] | None
    ) -> None:
        rundir, runtime, enter = self._rundir, self._runtime, self._exit
        self._processes.clear()
        key = self._take_folder()
        signer = Signer(key)
        self._registry = MemoryRegistry(verify=self._verifier(signer))
        background = Supervisor("system", escalate=self._fail)
        enter.push_async_callback(background.close)
        background.start(Child("registry", self._registry.run))
        self._watching = Supervisor("processes", escalate=self._fail)
        self._token = secrets.token_urlsafe(32)
        pool = HttpPool(network=runtime.network)
        enter.push_async_callback(pool.close)
        overview = self._overview_of_all(pool, signer, (background, self._watching))
        self._control = await self._start_split_control(overview, services, pool)
        externals: list[ExternalProcess] = []
        enter.push_async_callback(lambda: all_of(process.stop() for process in externals))
        enter.push_async_callback(
            lambda: all_of(child.stop() for child in self._processes.values())
        )
        enter.push_async_callback(self._watching.close)
        await self._start_externals(self._watching, externals)
        await self._start_processes(key)
        if opening is not None:
            await self._open(opening, overview.caller)
        if self._definition is not None:
            await self._start_gateway_process(key)
        enter.callback(rundir.withdraw)
        self._publish()

    def _publish(self) -> None:
        self._info = RunInfo(
            pid=os.getpid(),
            system=self._config.system.name,
            control=self._control.url,
            token=self._token,
            services=self._urls_in_order(),
            gateway=self._processes[GATEWAY].url if GATEWAY in self._processes else "",
        )
        self._rundir.publish(self._info)

    def _overview_of_all(
        self, pool: HttpPool, signer: Signer, supervisors: tuple[Supervisor, ...]
    ) -> Overview:
        runtime = self._runtime
        ring = SqliteRing(str(self._rundir.telemetry / "spans.db"), runtime)
        self._exit.push_async_callback(ring.close)
        table = FaultTable()
        faults = self._faults = faults_of(self._config, table)
        transports: dict[str, Transport] = {"http": HttpTransport(pool, runtime=runtime)}
        deps = Deps(
            runtime=runtime,
            services={},
            signer=signer,
            sink=ring,
            stores=SqliteStores(runtime, self._rundir.database),
            resolver=self._registry,
            transports=transports,
            policies=self._policies,
            escalate=lambda service, child, error: self._fail(f"{service}/{child}", error),
            faults=table,
        )
        tracer = deps.tracer(CLIENT)
        caller = deps.caller(CLIENT, tracer)
        return Overview(
            name=self._config.system.name,
            caller=caller,
            tracer=tracer,
            clients={CLIENT: caller},
            ring=ring,
            instances={},
            gateway=None,
            urls=self._urls,
            externals=tuple(self._config.external),
            resolver=self._registry,
            supervisors=supervisors,
            faults=faults,
            signer=signer,
            runtime=runtime,
        )

    async def _start_split_control(
        self, overview: Overview, services: list[Service], pool: HttpPool
    ) -> HttpServer:
        runtime = self._runtime
        registry = RegistryServer(
            self._registry,
            verify=self._verifier(overview.signer),
            started_us=runtime.wall_us(),
        )
        control = SplitControl(
            overview,
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
            self._processes[name] = self._service_process(name, key)
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

    async def _start_gateway_process(self, key: bytes) -> None:
        self._socket = open_socket(self._config.system.host, self._config.gateway.port)
        self._exit.callback(self._socket.close)

        def moved(_: str) -> None:
            """Its socket stays where it is."""

        child = ChildProcess(
            "the gateway",
            orders=lambda _: self._orders(GATEWAY, key, handle=self._socket.fileno()),
            folder=self._folder,
            log=self._rundir.telemetry / f"{GATEWAY}.log",
            gone=lambda _: None,
            moved=moved,
            stop_within_s=GATEWAY_WITHIN_S,
        )
        self._processes[GATEWAY] = child
        await child.start()
        self._watching.start(Child(GATEWAY, child.run))

    def _orders(self, name: str, key: bytes, *, port: int = 0, handle: int = -1) -> ProcessOrders:
        return ProcessOrders(
            name=name,
            config=self._config,
            key=base64.b64encode(key).decode(),
            control=self._control.url,
            token=self._token,
            port=port,
            handle=handle,
            faults=self._faults.standing(wall_us=self._runtime.wall_us()),
        )

    def _service_process(self, name: str, key: bytes) -> ChildProcess:
        def gone(pid: int) -> None:
            # Its end was seen: it is not suspected to be dead, it is (R6).
            self._registry.bury(name, lambda endpoint: ("pid", str(pid)) in endpoint.metadata)

        def moved(url: str) -> None:
            self._urls[name] = url
            if self._info is not None:
                self._publish()

        return ChildProcess(
            f"service {name!r}",
            orders=lambda port: self._orders(name, key, port=port),
            folder=self._folder,
            log=self._rundir.telemetry / f"{name}.log",
            gone=gone,
            moved=moved,
            stop_within_s=SERVICES_WITHIN_S,
        )

    def __repr__(self) -> str:
        return f"<SplitSystem {self._config.system.name}: {', '.join(self._config.services)}>"
