"""The host: runs all parts of a system in this process, or one of them.

    log → spans → pool → registry → `Deps` → control API → external services → services → gateway

and back in the other order. What was started before something failed is stopped again.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from synchromesh.calls import FaultTable, HttpTransport, InProcessTransport, Transport
from synchromesh.calls.description import ContractsOfPart
from synchromesh.discovery import Endpoint, Registry
from synchromesh.http import Handler, HttpPool, HttpServer
from synchromesh.identity import Signer
from synchromesh.network import Network
from synchromesh.runtime import DiskRuntime
from synchromesh.service import KEEP_S, Child, Deps, Service, ServiceInstance, Supervisor
from synchromesh.store import StoreOptions
from synchromesh.store.archive import Archive
from synchromesh.system.config.databases import Databases, databases_by
from synchromesh.system.config.definitions import (
    places_of,
    retention_of,
    saga_places_of,
)
from synchromesh.system.config.edge_policies import policies_of
from synchromesh.system.config.parts import SystemPart, parts_of
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.schema import SystemConfig
from synchromesh.system.control.api import Control
from synchromesh.system.control.catalogue import LAG_S
from synchromesh.system.control.code_files import CodeFiles
from synchromesh.system.control.contract_book import ContractBook
from synchromesh.system.control.faults import faults_of
from synchromesh.system.control.local import LocalProcess
from synchromesh.system.control.remote import RemoteProcess
from synchromesh.system.host.admin import AdminListener
from synchromesh.system.host.exporting import TelemetryExport, open_ring
from synchromesh.system.host.logs import log_to
from synchromesh.system.host.messages import open_stream
from synchromesh.system.host.securing import open_https
from synchromesh.system.host.service_part import Along, Listening, ServicePart, Superseded
from synchromesh.system.host.shared_keys import book_of_clients
from synchromesh.system.host.subscribers import follow_subscribers
from synchromesh.system.host.waits import all_of, first_of
from synchromesh.system.host.watchdog import watch_loop
from synchromesh.system.supervise.stop_budget import StopBudget
from synchromesh.telemetry import Histogram

if TYPE_CHECKING:
    from synchromesh.gateway import Gateway
    from synchromesh.gateway.compiled import CompiledRoute
    from synchromesh.system.host.gateway_code import GatewayCode
    from synchromesh.system.host.gateway_part import GatewayPart
    from synchromesh.system.supervise.external import ExternalProcess
    from synchromesh.system.supervise.messages import Loaded, Migrates

G = TypeVar("G", bound=Registry)
Fits = Callable[[ContractsOfPart], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Succeeds:
    """What a process inherits from the one that it replaces.

    Attributes:
        say: told how far it is: that it migrates, and that it is loaded, so that only what the
            process before holds is still waited for.
        port: where its service listened.
        handle: the socket on which the gateway accepts; -1 where it opens one.
    """

    say: Callable[[Migrates | Loaded], None]
    port: int = 0
    handle: int = -1


@dataclass(frozen=True, slots=True)
class Definitions:
    """What the parts of a system are made from.

    Attributes:
        services: those of the whole system, whichever run here.
        gateway: None where there is none.
        entries: what `check_gateway` compiled of it.
        code: the files of the gateway as they were when it was loaded.
        left_out: the events that services take whose code could not be imported here, as they are
            known, by their names.
    """

    services: Sequence[Service]
    gateway: Gateway | None = None
    entries: Sequence[CompiledRoute] = ()
    code: GatewayCode | None = None
    left_out: Mapping[str, frozenset[str]] = field(default_factory=dict)


class Host:
    """Runs parts of a system in this process; `open`, `run`, then `drain`, then `close`.

    Args:
        name: the one part that it runs; "" where it runs the whole system.
        store: the bounds of every database; `pages_max` of a service's section goes first.
        succeeds: what only a process of one part is handed.

    Attributes:
        exit: closes what is entered here when the process ends.
        background: keeps the loops that belong to no service.
        urls: where the parts are reached that run here, by name.
        admin: tells whether the process takes requests; `lag` is that of its loop.
        code: which files each part runs; None in a process of one part.
        databases: where the services keep what they have.
        fits: raises where the contracts of a gateway that is reloaded do not fit; None where all
            parts have loaded the same.
        along: takes the file of its one service to the server first; None where there is none.
        operated_at: the URL by which operators reach the admin listener; "" where they ask a
            supervisor.
    """

    deps: Deps
    local: LocalProcess
    control: Control
    control_server: HttpServer
    admin: AdminListener
    pool: HttpPool
    background: Supervisor
    databases: Databases
    export: TelemetryExport
    _definitions: Definitions
    _fix: Callable[..., None]
    _registry: Registry
    _inside: Network

    def __init__(
        self,
        config: SystemConfig,
        folder: Path,
        runtime: DiskRuntime,
        *,
        name: str = "",
        store: StoreOptions | None = None,
        succeeds: Succeeds | None = None,
        budget: StopBudget | None = None,
    ) -> None:
        self.config, self.folder, self.runtime = config, folder, runtime
        self.name = name
        self.rundir = RunDir(folder)
        self.budget = budget or StopBudget()
        self.exit = AsyncExitStack()
        self.code: CodeFiles | None = None
        self.gateway: GatewayPart | None = None
        self.services: dict[str, ServicePart] = {}
        self.urls: dict[str, str] = {}
        self._externals: list[ExternalProcess] = []
        self._store = store
        self._succeeds = succeeds
        # Calls within a whole system need no network, unless it is shared with other hosts.
        self._inproc = None if name or config.engine.nats else InProcessTransport()
        self._failed = asyncio.Event()
        self._failure = ""
        self.fits: Fits | None = None
        self.along: Along | None = None
        self.operated_at = ""
        self.lag = Histogram(LAG_S)

    def begin_log(self, *, is_to_stdout: bool = False) -> None:
        """Start the log in the run directory or on stdout, and the watchdog of the event loop.

        Logs that nobody has written for long, such as those of parts that are no more, are removed.
        """
        logs_s = self.config.retention.compile().logs_s
        if not self.name and logs_s is not None:
            self.rundir.forget_logs(self.runtime.wall_us() - int(logs_s * 1e6))
        self.exit.callback(log_to(None if is_to_stdout else self._telemetry("log", "jsonl")))
        blocked = lambda by: self.rundir.note_blocked(self.name, by)  # noqa: E731
        # The admin listener comes with all else that is opened.
        is_up = lambda: hasattr(self, "admin") and self.admin.is_up  # noqa: E731
        self.exit.callback(watch_loop(blocked, self.lag.observe, is_up))

    async def open(
        self,
        definitions: Definitions,
        signer: Signer,
        registry: Callable[[HttpPool], G],
        *,
        fix: Callable[..., None] = lambda *_, **__: None,
    ) -> G:
        """Build the dependencies of all parts, and return the registry.

        `fix` is told the endpoints of an external service at each of its starts, and whenever
        others of its URLs are up.
        """
        self._definitions, self._fix, self._failure = definitions, fix, ""
        self._failed.clear()
        runtime, enter, config, section = self.runtime, self.exit, self.config, self.config.admin
        port = section.ports.get(self.name, 0) if self.name else section.port
        path, services = str(self._telemetry("spans", "db")), definitions.services
        ring, self.export = open_ring(
            path, config, self.folder, runtime, self.name, services, enter, self.budget
        )
        limits = config.gateway.clients.compile_pool()
        pool = self.pool = HttpPool(network=runtime.network, limits=limits)
        enter.push_async_callback(pool.close)
        enter.push_async_callback(lambda: all_of(each.stop() for each in self._externals))
        made = self._registry = registry(pool)
        # Closed before what it watches is stopped, or it would start that again.
        self.background = Supervisor(self.name or "system", rng=runtime.rng, gave_up=self.gave_up)
        enter.push_async_callback(self.background.close)
        self.export.start(self.background)
        tls, https = open_https(config, self.folder, runtime, limits, enter, self.background)
        self._inside = tls.inside
        self.admin = AdminListener(tls.watched, section.host, port, runtime.wall_us, section.scheme)
        inproc: dict[str, Transport] = {} if self._inproc is None else {"inproc": self._inproc}
        transports = {"http": HttpTransport(pool, runtime=runtime), **https, **inproc}
        table, of_clients = FaultTable(), (config, self.rundir, runtime, signer, enter)
        self.databases = databases_by(config, self.folder, runtime, signer, store=self._store)
        self.deps = Deps(
            runtime=runtime,
            services={each.name: each for each in definitions.services},
            signer=signer,
            sink=ring,
            stores=self.databases.stores,
            resolver=made,
            transports=transports,
            policies=lambda caller: policies_of(config, caller),
            places=lambda service: places_of(config, service),
            saga_places=lambda service: saga_places_of(config, service),
            gave_up=lambda service, child, error: self.gave_up(
                child if self.name else f"{service}/{child}", error
            ),
            faults=table,
            retention=retention_of(config, services, KEEP_S, definitions.left_out),
            archive=self._archive,
            propagation=config.telemetry.propagation(),
            stream=await open_stream(config, self.folder, signer, runtime, pool, enter),
        )
        signer.clients = await book_of_clients(*of_clients, self.background)
        for name, events in definitions.left_out.items():
            self.deps.declared.remember(name, events)
        self.local = LocalProcess(
            config.system.name, self.deps, ring, faults_of(config, table),
            externals=() if self.name else tuple(config.external),
            supervisors=[self.background], restart=self.restart, export=self.export.status,
            engines=config.engine.shown(self.folder, os.environ),
        )  # fmt: skip
        return made

    async def serve_control(
        self,
        token: str,
        remotes: Mapping[str, RemoteProcess],
        registry: tuple[str, Handler] | None = None,
        book: ContractBook | None = None,
    ) -> None:
        """Serve the control API on loopback, and the admin listener.

        Raises:
            ConfigError: one of them cannot listen.
        """
        await self._serve_admin()
        server = self.control_server = HttpServer(
            lambda request: self.control.handle(request),
            network=self.runtime.network,
            wall_us=self.runtime.wall_us,
        )
        self.control = Control(
            self.local, token=token, authority=lambda: f"{server.host}:{server.port}",
            remotes=remotes, registry=registry, book=book,
        )  # fmt: skip
        port = 0 if self.name else self.config.system.control_port
        await server.start("127.0.0.1", port, what="[system] control_port: ")
        self.exit.push_async_callback(server.close)

    async def _serve_admin(self) -> None:
        admin = self.admin
        self.exit.push_async_callback(admin.close)
        if self.name and self.config.admin.ports.get(self.name):
            # The process before may have it still; its supervisor has seen that nobody else has.
            self.background.start(Child(f"admin/{self.name}", admin.run))
        else:
            await admin.start()
        self.local.admin = admin.url

    async def run(self, *names: str) -> None:
        """Start external services, then services, as far as they are named.

        Services are registered once all of them are up. The gateway is started by `gateway_start`.

        Raises:
            ConfigError: a part cannot be started or listen.
            StoreError: a database cannot be used.
            ContractError: a service does not fit its contract.
            DiscoveryError: the registry refuses a service, or does not answer.
        """
        for name in names:
            if name in self.config.external:
                await self._run_external(name)
        found = [part for name in names for part in parts_of(self.config, name)]
        if any(self.deps.services[part.service].published() for part in found):
            services = [*self.deps.services, *self._definitions.left_out]
            declared = self.deps.declared
            await follow_subscribers(self._registry, services, declared, self.background)
        # All at once: a database that does not answer holds each of them up for a while.
        self.exit.push_async_callback(lambda: all_of(s.stop() for s in self.services.values()))
        parts = [self._service(part) for part in found]
        for part in parts:
            await part.start()
        for part in parts:
            await part.open()

    async def drain(self) -> None:
        """Drain the gateway, then the services: accept nothing new, and finish what was accepted.

        Connections of clients first, while all that they need still answers; then no instance is
        listed any more; and only then none takes calls, so that no caller is sent to one that
        drains. Where callers come over the network, an instance leaves the list first.
        """
        budget, services = self.budget, list(self.services.values())
        self.admin.is_draining = True
        if self.gateway is not None:
            within_s = budget.replaced_gateway_s if self.name else budget.gateway_s
            await all_of([self.gateway.drain(within_s)])
        if self.name:
            await all_of(part.leave(budget.heard_s) for part in services)
            await all_of(part.answer(budget.replaced_answer_s) for part in services)
        else:
            servers = [part.answer(budget.answer_s) for part in services]
            await all_of([*servers, self.control_server.drain(budget.answer_s)])
            await all_of(part.leave(0.0) for part in services)
        await all_of(part.instance.drain(budget.drain_s) for part in services)
        await self.export.end()

    async def close(self) -> None:
        """Stop everything that was started. May be repeated."""
        await self.exit.aclose()
        self.gateway = None
        for gone in (self.services, self.urls, self._externals):
            gone.clear()

    async def wait(self, stop: asyncio.Event) -> str:
        """Wait for `stop`, or for a failure that ends all; return its reason, "" for none."""
        await first_of(stop, self._failed)
        return self._failure

    def gave_up(self, child: str, error: BaseException) -> None:
        """Note that a part is given up; the others go on, or `wait` ends, as is configured.

        A process that another one has replaced ends in any case.
        """
        if self.config.system.on_failure == "stop" or (self.name and isinstance(error, Superseded)):
            if not self._failure:
                self._failure = f"{child} failed too often: {type(error).__name__}: {error}"
            self._failed.set()

    async def restart(self, name: str) -> bool:
        """Restart a part or a background child of this process; False where there is none of it.

        Calls of a service are held meanwhile. One that cannot be started is tried again by itself.

        Raises:
            SynchromeshError: it could not be started.
        """
        if name in self.services:
            await self.services[name].restart(self.budget)
            return True
        external = next((each for each in self._externals if each.name == name), None)
        if external is not None:
            await self.background.restart(f"external/{name}", external.restart)
            return True
        part, _, child = name.partition("/")
        if part in self.services and child in self.instances[part].health().children:
            await self.instances[part].restart_child(child)
            return True
        if name in self.background.states:
            await self.background.restart(name)
            return True
        return False

    @property
    def instances(self) -> dict[str, ServiceInstance]:
        """The instances in this process, by service, or by their own name where it has replicas."""
        return {name: part.instance for name, part in self.services.items()}

    def _telemetry(self, what: str, suffix: str) -> Path:
        return self.rundir.telemetry / f"{what}{'-' * bool(self.name)}{self.name}.{suffix}"

    async def _run_external(self, name: str) -> None:
        """Start an external service as a child process, or list its URLs."""
        section = self.config.external[name]
        if not section.command:
            from synchromesh.system.host.checks import list_external

            told = self.folder, self.local, self.background, self._fix
            self.urls.update(await list_external(name, section, *told))
            return

        from synchromesh.system.supervise.external import ExternalProcess

        def filled(text: str) -> str:
            return text.replace("{python}", sys.executable).replace("{data}", str(self.rundir.data))

        process = ExternalProcess(
            name,
            command=[filled(word) for word in section.command],
            env={key: filled(value) for key, value in section.env.items()},
            folder=self.folder,
            log=self.rundir.telemetry / f"{name}.log",
            moved=lambda url: self._external_moved(name, url),
            stop_within_s=self.budget.external_s,
        )
        self._externals.append(process)
        await process.start()
        self.background.start(Child(f"external/{name}", process.run))

    def _external_moved(self, name: str, url: str) -> None:
        self.urls[name] = url
        self._fix(Endpoint(name, name, url))

    def _service(self, part: SystemPart) -> ServicePart:
        config, own, succeeds = self.config, self.config.system, self._succeeds
        at = own.host, config.services[part.service].port, succeeds.port if succeeds else 0
        made = self.services[part.name] = ServicePart(
            part,
            self.deps,
            self._registry,
            listening=Listening(*at, own.advertise, self.operated_at, self._inside),
            inproc=self._inproc,
            background=self.background,
            up=lambda instance: self._note_up(part.name, instance),
            say=succeeds.say if succeeds else None,
        )
        made.along = self.along
        self.admin.parts[part.name] = made.why_not
        return made

    def _note_up(self, name: str, instance: ServiceInstance) -> None:
        self.local.instances[name] = instance
        self.urls[name] = self.services[name].url

    def _archive(self, service: str) -> Archive | None:
        if not self.config.retention.archive:
            return None
        return Archive(self.runtime, lambda what, at_us: self.rundir.archive(service, what, at_us))

    def __repr__(self) -> str:
        return f"<Host of {self.name or self.config.system.name}: {', '.join(self.services)}>"
