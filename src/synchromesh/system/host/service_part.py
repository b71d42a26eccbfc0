"""The service part of a process: its instance, its HTTP server, and its registration.

It is listed while it is ready: not before it serves, and not while its database fails.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from synchromesh.calls import HttpEdge, InProcessTransport
from synchromesh.calls.forwarding import HTTP
from synchromesh.clock import loop_clock
from synchromesh.discovery import Endpoint, Registration, Registry
from synchromesh.errors import ConfigError, DiscoveryError, StaleIncarnation, StoreLocked
from synchromesh.http import HttpServer
from synchromesh.identity import REGISTRY
from synchromesh.messaging import declaration_of
from synchromesh.network import Network
from synchromesh.service import (
    Child,
    Deps,
    RestartsExhausted,
    ServiceInstance,
    Supervisor,
    dry_run_migrations,
)
from synchromesh.system.config.parts import SystemPart
from synchromesh.system.control.replicas import ADMIN, PID
from synchromesh.system.supervise.messages import Loaded, Migrates
from synchromesh.system.supervise.stop_budget import StopBudget

if TYPE_CHECKING:
    from synchromesh.store.taken_along import CopiedService

# What the one before may take to drain and let go of the database.
LOCKED_WITHIN_S = 15.0
LOCK_EVERY_S = 0.02
REGISTRY_EVERY_S = 0.5

_log = logging.getLogger("synchromesh.system")


def pid_at_host(pid: int) -> str:
    """Return the number of a process of this host, which is another one's on another host."""
    return f"{pid}@{os.uname().nodename}"


class Superseded(RestartsExhausted):
    """Raised where a later process has taken the place of this one."""


class Along(Protocol):
    """Takes the file of a service to where its database is from now on."""

    @property
    def copied(self) -> CopiedService | None:
        """What became of it; None until `take` has returned."""
        ...

    async def rehearse(self) -> None:
        """Try it while the process before serves. Raises what `take` would."""
        ...

    async def take(self) -> None:
        """Do it once; may be repeated. Raises StoreLocked while the process before has the file."""
        ...


@dataclass(frozen=True, slots=True)
class Listening:
    """The address a service listens on.

    Attributes:
        port: the configured one; 0 takes any that is free.
        before: the port that it had by chance, taken again where it is free.
        advertise: the host by which others reach it; "" for the one it listens on.
        operated_at: where operators find the admin listener of the process; "" where they ask its
            supervisor.
        network: where it listens; None for that of the runtime.
    """

    host: str = "127.0.0.1"
    port: int = 0
    before: int = 0
    advertise: str = ""
    operated_at: str = ""
    network: Network | None = None

    def url_of(self, url: str) -> str:
        """Return the URL by which callers reach a server that listens at one."""
        if not self.advertise:
            return url
        host = f"[{self.advertise}]" if ":" in self.advertise else self.advertise
        return f"{url.partition('://')[0]}://{host}:{url.rpartition(':')[2]}"

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """What the registry is told of the process: by its number a supervisor ends its lease."""
        pid = (PID, pid_at_host(os.getpid()))
        return (pid, (ADMIN, self.operated_at)) if self.operated_at else (pid,)


class ServicePart:
    """Runs one instance of a service; `start`, then `open`, then `leave`, `answer` and `stop`.

    After `stop` it may be started again.

    Args:
        part: which instance it is.
        registry: where it is registered under a lease.
        inproc: carries the calls of callers in this process; None where they all use HTTP.
        background: keeps its lease, and its readiness.
        up: told each time another instance has been started.
        say: told that it migrates, and when only the database of the process before is still
            waited for; None where there is none before.

    Attributes:
        along: takes the file of the process before to the server, if that is where it starts.
    """

    instance: ServiceInstance
    _server: HttpServer

    def __init__(
        self,
        part: SystemPart,
        deps: Deps,
        registry: Registry,
        *,
        listening: Listening,
        inproc: InProcessTransport | None,
        background: Supervisor,
        up: Callable[[ServiceInstance], None],
        say: Callable[[Migrates | Loaded], None] | None = None,
    ) -> None:
        self.name = part.name
        self._part = part
        self._deps = deps
        self._registry = registry
        self._listening = listening
        self._inproc = inproc
        self._background = background
        self._up = up
        self._say = say
        self.along: Along | None = None
        self._registration: Registration | None = None
        self._is_leaving = False
        self._exit = AsyncExitStack()

    @property
    def url(self) -> str:
        """The service's URL."""
        return self._server.url

    def why_not(self) -> str:
        """Return why it takes no calls; "" where it takes them."""
        if self._is_leaving:
            return "it drains"
        if self._registration is None:
            return "it does not run"
        return self.instance.readiness.why_not

    async def start(self) -> None:
        """Start an instance and listen, without registering it.

        Raises:
            ConfigError: it cannot listen there.
            StoreError: its database cannot be used.
            ContractError: the service does not fit its contract.
        """
        if (say := self._say) is not None:
            # One whose migrations would fail must not take the place of the process before.
            service, stores = self._deps.services[self._part.service], self._deps.stores
            if self.along is None:
                await dry_run_migrations(service, stores, lacks=lambda: say(Migrates()))
            else:
                say(Migrates())  # it may take as long
                await self.along.rehearse()
            say(Loaded())
        self._is_leaving = False
        instance = self.instance = await self._own()
        self._exit.push_async_callback(instance.stop)
        if self._inproc is not None:
            self._inproc.add(self._part.instance, instance.dispatcher)
        edge = HttpEdge(runtime=self._deps.runtime, propagation=self._deps.propagation)
        edge.mount(instance.dispatcher, instance.offered)
        runtime = self._deps.runtime
        network = self._listening.network or runtime.network
        self._server = HttpServer(edge, network=network, wall_us=runtime.wall_us)
        await self._listen(self._server)
        self._exit.push_async_callback(self._server.close)
        # Whoever uses its address is not to be told another one.
        self._listening = replace(self._listening, before=self._server.port)
        self._up(instance)

    async def open(self) -> None:
        """Register the service and start serving."""
        deps, url = self._deps, self._listening.url_of(self._server.url)
        takes = declaration_of(deps.services[self._part.service].subscriptions)
        instance, service = self._part.instance, self._part.service
        if self._inproc is not None:
            endpoint = Endpoint(instance, service, f"inproc://{instance}", ((HTTP, url), takes))
        else:
            endpoint = Endpoint(instance, service, url, (*self._listening.facts, takes))
        token = deps.signer.token(service, audience=REGISTRY, now_us=deps.runtime.wall_us())
        registration = await self._registry.register(endpoint, credential=token)
        self._registration = registration
        self._exit.push_async_callback(end_lease, registration)
        loops = [Child(f"lease/{self.name}", lambda: self._renew(registration))]
        if self.instance.has_database:
            loops.append(Child(f"readiness/{self.name}", lambda: self._follow(registration)))
        for loop in loops:
            self._background.start(loop)
            self._exit.push_async_callback(self._background.stop, loop.name)

    async def leave(self, heard_s: float) -> None:
        """Deregister, and wait until callers have seen it."""
        self._is_leaving = True
        if self._registration is None:
            return
        try:
            await self._registration.drain()
        except DiscoveryError as error:
            # So it is whenever the whole system ends; at any other time the lease runs out.
            _log.info("the registry was not notified of the drain: %s", error)
        else:
            await asyncio.sleep(heard_s)

    async def answer(self, within_s: float) -> None:
        """Drain the HTTP server."""
        await self._server.drain(within_s)

    async def stop(self) -> None:
        """End the lease and stop the server and the instance, as far as they were started."""
        await self._exit.aclose()
        self._registration = None

    async def restart(self, budget: StopBudget) -> None:
        """Drain it, and start it anew; one that cannot be started is tried again by itself."""
        kept = f"service/{self.name}"
        await self._background.stop(kept)
        try:
            await self.leave(0.0)
            await self.answer(budget.answer_s)
            await self.instance.drain(budget.drain_s)
            await self.stop()
            await self.start()
            await self.open()
        except BaseException:
            await self.stop()
            raise
        finally:
            self._background.start(Child(kept, self.run))

    async def run(self) -> None:
        """Start it again where it does not run; a supervised loop."""
        if self._registration is None:
            try:
                await self.start()
                await self.open()
            except BaseException:
                await self.stop()
                raise
        await asyncio.Event().wait()

    async def _own(self) -> ServiceInstance:
        """Start the instance once the previous process has released its database."""
        service = self._deps.services[self._part.service]
        now = loop_clock(asyncio.get_running_loop())
        until_s = now() + (0.0 if self._say is None else LOCKED_WITHIN_S)
        while True:
            try:
                if self.along is not None:
                    await self.along.take()
                return await ServiceInstance.start(service, self._deps, name=self.name)
            except StoreLocked:
                if now() >= until_s:
                    raise
            await asyncio.sleep(LOCK_EVERY_S)

    async def _listen(self, server: HttpServer) -> None:
        host, port, before = self._listening.host, self._listening.port, self._listening.before
        try:
            await server.start(host, port or before, what=f"service {self._part.service!r} ")
        except ConfigError:
            if port or not before:
                raise
            # Somebody has taken the port that it had by chance.
            await server.start(host, 0)

    async def _renew(self, registration: Registration) -> None:
        try:
            await registration.run()
        except StaleIncarnation as error:
            if not self._is_leaving:  # else its successor is listed, as it has to be
                raise Superseded(str(error)) from error
        await asyncio.Event().wait()

    async def _follow(self, registration: Registration) -> None:
        """List the instance while its database can be used; a supervised loop."""
        readiness = self.instance.readiness
        while not self._is_leaving:
            if readiness.is_ready is not registration.is_draining:
                await readiness.changed()
                continue
            try:
                await (registration.resume() if readiness.is_ready else registration.drain())
            except DiscoveryError as error:
                _log.warning("the registry was not told of %s: %s", self.name, error)
                await asyncio.sleep(REGISTRY_EVERY_S)
        await asyncio.Event().wait()

    def __repr__(self) -> str:
        return f"<ServicePart {self.name}>"


async def end_lease(registration: Registration) -> None:
    """Take an instance off the list; where the registry does not answer, its lease expires."""
    try:
        await registration.end()
    except DiscoveryError as error:
        _log.warning("the lease was not ended and will expire: %s", error)
