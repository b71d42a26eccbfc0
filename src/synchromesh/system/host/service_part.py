"""One service of a system as what a process is there for.

database → HTTP server → (the admin socket) → registered
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping

from synchromesh.calls import Caller, HttpEdge
from synchromesh.discovery import Endpoint, Registration
from synchromesh.errors import ConfigError, DiscoveryError, StaleIncarnation, StoreLocked
from synchromesh.http import HttpServer
from synchromesh.service import Child, Service, ServiceInstance, dry_run_migrations
from synchromesh.system.host.part import Ground

# What the one before may take to drain and let go of the database.
LOCKED_WITHIN_S = 15.0
LOCK_EVERY_S = 0.02
# How long callers may take to hear that this instance gets no more calls.
HEARD_WITHIN_S = 0.1
# Together below the 10 s of a stop.
ANSWER_WITHIN_S = 4.0
DRAIN_WITHIN_S = 1.5

_log = logging.getLogger("synchromesh.system")


class ServicePart:
    """Runs one service over HTTP, registered under a lease."""

    gateway = None
    caller: Caller
    _instance: ServiceInstance
    _server: HttpServer

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._name = ground.orders.name
        self._registration: Registration | None = None
        self.instances: Mapping[str, ServiceInstance] = {}
        self.tracer = ground.deps.tracer(self._name)

    async def start(self) -> None:
        """Start the instance, once the process before has let go of its database, and its server.

        Raises:
            ConfigError, StoreError, ContractError: as `System.start` does.
        """
        ground = self._ground
        service = ground.deps.services[self._name]
        # One whose migrations would fail must not take the place of the process before.
        dry_run_migrations(service, ground.deps.stores)
        ground.loaded()
        instance = await self._own(service)
        ground.exit.push_async_callback(instance.stop)
        self._instance, self.caller = instance, instance.caller
        self.instances = {self._name: instance}
        self._server = await self._serve(instance)

    async def open(self) -> str:
        """Register; from here on callers find it."""
        await self._register()
        return self._server.url

    async def drain(self) -> None:
        """Leave the list, and answer what was taken."""
        if self._registration is not None:
            await self._leave(self._registration)
            await self._server.drain(ANSWER_WITHIN_S)
            await self._instance.drain(DRAIN_WITHIN_S)

    async def _own(self, service: Service) -> ServiceInstance:
        until_s = asyncio.get_running_loop().time() + LOCKED_WITHIN_S
        while True:
            try:
                return await ServiceInstance.start(service, self._ground.deps)
            except StoreLocked:
                if asyncio.get_running_loop().time() >= until_s:
                    raise
            await asyncio.sleep(LOCK_EVERY_S)

    async def _serve(self, instance: ServiceInstance) -> HttpServer:
        ground, orders = self._ground, self._ground.orders
        edge = HttpEdge(runtime=ground.runtime)
        edge.mount(instance.dispatcher, instance.offered)
        server = HttpServer(edge, network=ground.runtime.network)
        host = orders.config.system.host
        fixed = orders.config.services[self._name].port
        try:
            await server.start(host, fixed or orders.port)
        except ConfigError:
            if fixed or not orders.port:
                raise
            # Somebody has taken the port that it had by chance.
            await server.start(host, 0)
        ground.exit.push_async_callback(server.close)
        return server

    async def _register(self) -> None:
        ground = self._ground
        # The number of the process tells the supervisor whose lease to end when it has ended.
        process = ("pid", str(os.getpid()))
        endpoint = Endpoint(f"{self._name}-1", self._name, self._server.url, (process,))
        registration = await ground.registry.register(endpoint, credential="")
        self._registration = registration
        ground.exit.push_async_callback(self._end, registration)

        async def renew() -> None:
            try:
                await registration.run()
            except StaleIncarnation as error:
                ground.fail("lease", error)
            await asyncio.Event().wait()

        ground.background.start(Child("lease", renew))

    async def _leave(self, registration: Registration) -> None:
        try:
            await registration.drain()
        except DiscoveryError as error:
            _log.warning("the registry was not told of the drain: %s", error)
        else:
            await asyncio.sleep(HEARD_WITHIN_S)

    async def _end(self, registration: Registration) -> None:
        try:
            await registration.end()
        except DiscoveryError as error:
            _log.warning("the lease was not ended and will expire: %s", error)

    def __repr__(self) -> str:
        return f"<ServicePart {self._name}>"
