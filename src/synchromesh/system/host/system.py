"""A whole system in a folder: all parts in this process, or a process for each.

    run directory → engines → registry → control API → external services → services → opening
    → gateway → run.json

and back in the other order. What was started before something failed is stopped again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from synchromesh.calls import Call, Caller
from synchromesh.discovery import MemoryRegistry
from synchromesh.errors import ConfigError
from synchromesh.identity import REGISTRY, Credential, Signer
from synchromesh.runtime import DiskRuntime
from synchromesh.service import KEEP_S, Child, ServiceInstance
from synchromesh.store import StoreOptions
from synchromesh.system.config.definitions import (
    check_keep,
    load_applications,
    load_gateway,
    load_opening,
    load_services,
    retention_of,
)
from synchromesh.system.config.edge_policies import sections_of
from synchromesh.system.config.parts import SystemPart, parts_of
from synchromesh.system.config.policy_check import check_policies
from synchromesh.system.config.rundir import RunInfo
from synchromesh.system.config.schema import CLIENT, GATEWAY, SystemConfig
from synchromesh.system.config.secrets import system_keys
from synchromesh.system.control.code_files import CodeFiles, how_to_take_up
from synchromesh.system.host.admin import refuse_taken
from synchromesh.system.host.console_part import serve_console
from synchromesh.system.host.extras import refuse_missing
from synchromesh.system.host.host import Definitions, Host
from synchromesh.system.host.metrics_page import serve_metrics
from synchromesh.system.host.registries import SupervisedRegistry, keep_registry, shared_registry
from synchromesh.system.host.waits import all_of
from synchromesh.system.leases_api.server import PATH, RegistryServer
from synchromesh.system.supervise.stop_budget import StopBudget, budget_beside

if TYPE_CHECKING:
    from synchromesh.system.host.engines import StartedEngine
    from synchromesh.system.host.processes import Processes
    from synchromesh.system.supervise.forks import ForkServer

# How often it is looked whether code has changed.
CODE_EVERY_S = 1.0

R = TypeVar("R")

Opening = Callable[[Any], Awaitable[None]]

_log = logging.getLogger("synchromesh.system")


class System:
    """Runs the system of a folder; `start`, then `wait`, then `stop`.

    A part that fails too often is given up for a while, and the others go on; with
    `on_failure = "stop"` it ends `wait` with its reason.

    Args:
        store: the bounds of every database; `pages_max` of a service's section goes first. Of
            services in this process only.
        is_split: whether each instance of a service, and the gateway, has a process of its own.
        forks: forks those processes; without it each is a new interpreter.
        budget: how long the stages of a stop may take.
        engines: servers that are started before all else, and stopped after it.

    Attributes:
        reread: reads the configuration as it is now: a gateway in a process of its own takes up its
            section, and its policies, when it is restarted. It is the one that was given, until
            this is set.
    """

    _registry: SupervisedRegistry

    def __init__(
        self,
        config: SystemConfig,
        folder: Path,
        runtime: DiskRuntime,
        *,
        store: StoreOptions | None = None,
        is_split: bool = False,
        forks: ForkServer | None = None,
        budget: StopBudget | None = None,
        engines: Sequence[StartedEngine] = (),
    ) -> None:
        self._engines = engines
        self._host = Host(config, folder.resolve(), runtime, store=store, budget=budget)
        self._budget = budget
        self._config = config
        self._is_split = is_split
        self._forks = forks
        self._stopping = asyncio.Lock()
        self.reread: Callable[[], SystemConfig] = lambda: config
        self._token = ""
        self._processes: Processes | None = None
        # The services that have processes of their own.
        self._apart: frozenset[str] = frozenset()
        apps = {name: [section.app] for name, section in config.services.items()}
        if config.gateway.app:
            apps[GATEWAY] = [config.gateway.app]
        self._code = self._host.code = CodeFiles(self._host.folder, apps)
        self._info: RunInfo | None = None

    @property
    def info(self) -> RunInfo:
        """The addresses of the running system.

        Raises:
            ConfigError: it does not run.
        """
        if self._info is None:
            raise ConfigError("the system does not run; start it first")
        return self._info

    @property
    def engines(self) -> dict[str, str]:
        """What databases and the registry are on, in words."""
        return self._host.local.engines

    def console_url(self) -> str:
        """Return a URL that lets one browser into the console, once.

        Raises:
            ConfigError: the system does not run.
        """
        console = self._host.control.console if self._info is not None else None
        if console is None:
            raise ConfigError("the system does not run; start it first")
        return console()

    @property
    def instances(self) -> dict[str, ServiceInstance]:
        """The service instances in this process, by service, or by name where it has replicas."""
        return self._host.instances

    async def start(self) -> None:
        """Start all parts; when this returns, every service is ready.

        Raises:
            ConfigError: the configuration, a definition or a port is wrong, or it runs already.
            StoreError: a database cannot be used.
            ContractError: a service does not fit its contract.

        What was started is stopped again.
        """
        if self._info is not None:
            raise ConfigError(f"{self!r} runs already; stop it first")
        host = self._host
        if not self._is_split:
            for name in (*self._config.services, GATEWAY):
                self._code.started(name)
        code = None
        if self._config.gateway.app and not self._is_split:
            from synchromesh.system.host.gateway_code import GatewayCode

            code = GatewayCode(self._config, host.folder)
        services = load_services(self._config, host.folder)
        applications = load_applications(self._config, host.folder)
        self._apart = frozenset(self._config.services if self._is_split else applications)
        if self._budget is None:
            host.budget = budget_beside(
                engines=bool(self._engines),
                applications=bool(applications) and not self._is_split,
            )
        opening = load_opening(self._config, host.folder)
        for service in services:
            service.check()
        check_keep(services, KEEP_S)
        retention_of(self._config, services, KEEP_S)
        gateway = load_gateway(self._config, host.folder)
        refuse_missing(self._config, applications, gateway)
        check_policies(self._config, services)
        definitions = Definitions(services, gateway)
        if gateway is not None:
            from synchromesh.system.config.gateway_check import check_gateway

            entries = await check_gateway(gateway, self._config, host.rundir, host.runtime)
            definitions = replace(definitions, entries=entries, code=code)
        if self._is_split:
            refuse_taken(self._config.admin)
        try:
            await self._start(definitions, opening)
        except BaseException:
            await host.close()
            raise

    async def wait(self, stop: asyncio.Event) -> str:
        """Wait for `stop`, or for a failure that ends all; return its reason, "" for none."""
        failure = await self._host.wait(stop)
        return f"{failure}; see {self._log_path}" if failure else ""

    @property
    def code_changed(self) -> dict[str, list[str]]:
        """The files that have changed since their part started, by service, or "gateway"."""
        return self._code.changed()

    async def replace(self, name: str, reason: str = "") -> list[str]:
        """Replace the processes of a service, or the gateway's; return why not, a line for each.

        Args:
            reason: why contracts may break for a moment; "" where they must not.

        Raises:
            BadRequest: the new one could not be started; the old one serves on.
        """
        return await self._host.control.replace(name, reason)

    async def _watch_code(self) -> None:
        """Say once of each change that what runs is not what is on disk; a supervised loop."""
        told: dict[str, list[str]] = {}
        while True:
            await asyncio.sleep(CODE_EVERY_S)
            changed = self._code.changed()
            if changed and changed != told:
                files = sorted({file for files in changed.values() for file in files})
                _log.warning(
                    "code has changed since it was started: %s; to take it up: %s",
                    ", ".join(files),
                    how_to_take_up(changed),
                )
            told = changed

    async def stop(self) -> None:
        """Drain and stop everything, within 10 seconds. May be repeated."""
        async with self._stopping:
            if self._info is not None:
                self._info = None
                self._host.admin.is_draining = True
                self._host.rundir.withdraw()
                await self._drain()
            await self._host.close()

    async def _drain(self) -> None:
        host, processes = self._host, self._processes
        if processes is not None and self._is_split:
            await processes.stop()
            await host.control_server.drain(host.budget.control_s)
            await host.export.end()
            return
        if processes is not None:
            # Requests of the gateway need applications, and those need services.
            if host.gateway is not None:
                await all_of([host.gateway.drain(host.budget.gateway_s)])
            await all_of([processes.stop()])
        await host.drain()

    async def _stop_engines(self) -> None:
        await all_of(engine.stop(self._host.budget) for engine in self._engines)

    def cut(self) -> None:
        """Kill all child processes, before this process exits.

        It is as after a power cut: what was not finished continues at the next start.
        """
        self._host.rundir.withdraw()
        if self._processes is not None:
            self._processes.cut()

    async def _start(self, definitions: Definitions, opening: Opening | None) -> None:
        host, enter, config = self._host, self._host.exit, self._config
        keys = self._take_folder()
        signer, self._token = Signer(*keys), secrets.token_urlsafe(32)

        def admit(token: str, audience: str) -> Credential:
            return signer.admit(token, audience=audience, now_us=host.runtime.wall_us())

        memory = MemoryRegistry(verify=lambda token: admit(token, REGISTRY))
        shared = shared_registry(config, host.folder, signer, host.runtime)
        registry = self._registry = shared or memory
        host.rundir.note_engines([engine.name for engine in self._engines])
        enter.push_async_callback(self._stop_engines)
        for engine in self._engines:
            await engine.start()
        await host.open(definitions, signer, lambda _: registry, fix=registry.fix)
        for engine in self._engines:
            host.background.start(Child(f"engine/{engine.name}", engine.run))
        server = host.databases.server
        if server is not None and server.databases.has_user:
            names = [
                each.name for each in definitions.services if each.state and server.has(each.name)
            ]
            await server.databases.create(names)
        if shared is None:
            host.background.start(Child("registry", memory.run))
        else:
            enter.push_async_callback(shared.close)
            await keep_registry(shared, "registry", host.background)
        host.background.start(Child("code", self._watch_code))
        # Processes of its own, and applications that join, register there.
        leases = RegistryServer(
            registry,
            admit=admit,
            wall_us=host.runtime.wall_us,
            policies=lambda caller: sections_of(config, caller),
        )
        if self._apart:
            from synchromesh.system.host.processes import Processes

            self._processes = Processes(
                host,
                registry,
                keys=keys,
                token=self._token,
                on_moved=lambda _, __: self._publish(),
                forks=self._forks,
                reread=lambda: self.reread(),
            )
            remotes = self._processes.remotes
            book = self._processes.book
            await host.serve_control(self._token, remotes, (PATH, leases.handle), book)
            enter.push_async_callback(self._processes.stop)
            if self._is_split:
                host.control.moving = self._processes.moves.copy
        else:
            await host.serve_control(self._token, {}, (PATH, leases.handle))
        serve_metrics(host)
        host.local.joined = config.system.joined
        host.local.asgi = [each for each in config.services if each not in host.deps.services]
        host.local.clients[CLIENT] = host.control.caller
        host.local.reread, host.local.taken_up = lambda: self.reread(), self._code.started
        host.local.code_changed = lambda: self._code.last
        await self._run_parts(definitions, opening)
        enter.callback(host.rundir.withdraw)
        host.admin.is_up = True
        await serve_console(host, keys[0], definitions.gateway)
        self._info = self._run_info()
        self._publish()

    async def _run_parts(self, definitions: Definitions, opening: Opening | None) -> None:
        """Run external services, then services, the opening, and the gateway."""
        host, config = self._host, self._config
        await host.run(*config.external)
        await host.run(*(name for name in config.services if name not in self._apart))
        if self._processes is not None:
            await self._processes.run(*(name for name in config.services if name in self._apart))
        if opening is not None:
            await self._open(opening, host.control.caller)
        if definitions.gateway is None:
            return
        if self._processes is not None and self._is_split:
            await self._processes.run(GATEWAY)
            return
        from synchromesh.system.host.gateway_start import start_gateway

        own = SystemPart(GATEWAY, GATEWAY, GATEWAY)
        await start_gateway(host, own, definitions, self._registry, None)

    def _take_folder(self) -> tuple[bytes, ...]:
        """Lock the run directory, and return the system's keys."""
        host = self._host
        host.rundir.create()
        host.exit.callback(host.rundir.lock(host.runtime.disk).release)
        # One that a killed process left would lead callers astray.
        host.rundir.withdraw()
        host.begin_log()
        return system_keys(self._config.system, host.rundir, host.folder, os.environ)

    async def _open(self, opening: Opening, caller: Caller) -> None:
        try:
            await opening(OpeningClient(caller))
        except Exception as error:
            _log.exception("the opening failed")
            raise ConfigError(
                f"the opening of the system, {self._config.dev.opening!r}, failed: "
                f"{type(error).__name__}: {error}; see {self._log_path}"
            ) from error

    def _run_info(self) -> RunInfo:
        host, config = self._host, self._config
        urls = host.urls if self._processes is None else {**self._processes.urls(), **host.urls}
        parts = [part.name for name in config.services for part in parts_of(config, name)]
        gates = [part.name for part in parts_of(config, GATEWAY)] if self._is_split else [GATEWAY]
        gateways = {name: urls[name] for name in gates if name in urls}
        theirs = [each for name, own in config.external.items() for each in own.instances(name)]
        return RunInfo(
            pid=os.getpid(),
            system=config.system.name,
            control=host.control_server.url,
            token=self._token,
            services={n: urls[n] for n in (*parts, *theirs) if n in urls},
            gateway=next(iter(gateways.values()), ""),
            gateways=gateways if len(gateways) > 1 else {},
            admin=host.admin.url,
            admin_of={} if self._processes is None else self._processes.admin_urls(),
        )

    def _publish(self) -> None:
        """Write `run.json` once everything runs."""
        if self._info is not None:
            self._info = self._run_info()
            self._host.rundir.publish(self._info)

    @property
    def _log_path(self) -> Path:
        return self._host.rundir.telemetry / "log.jsonl"

    def __repr__(self) -> str:
        parts = [*self._host.services, *(self._processes.remotes if self._processes else ())]
        return f"<System {self._config.system.name}: {', '.join(parts) or 'not started'}>"


class OpeningClient:
    """The client that a system's opening function calls services with; it has no outer deadline."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def call(self, call: Call[R], *, key: str) -> R:
        """Send a command under an idempotency key and return its answer."""
        return await self._caller.call(call, context=self._caller.root(key=key), timeout_s=10.0)
