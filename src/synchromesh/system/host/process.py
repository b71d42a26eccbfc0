"""One part of a system, a service or its gateway, as a process of its own; `main` runs in it.

It is started by the supervisor (`processes`), or by its fork server. Its standard input is a link
to the supervisor, over which it gets its `ProcessSpec` as one line, and which stays open: where it
closes, the supervisor is gone, and the process ends too. It says `Loaded` where it has to wait for
the process before, and once it answers `Ready`, each as one line; or why not, `StartFailed`. From
then on its event loop answers an empty line with an empty line (`hang_watch`).

    spec → log, spans → registry → control API → contracts fit → the part → it is known → ready
"""

from __future__ import annotations

import asyncio
import base64
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from socket import MSG_DONTWAIT, socket
from typing import TYPE_CHECKING

import msgspec

from synchromesh.errors import ConfigError, ContractError, SynchromeshError
from synchromesh.http import HttpPool
from synchromesh.identity import REGISTRY, Signer
from synchromesh.runtime import DiskRuntime, RealRuntime
from synchromesh.service import Child
from synchromesh.system.config.definitions import (
    load_application,
    load_gateway,
    load_part,
)
from synchromesh.system.config.expectations import contracts_of_gateway, contracts_of_service
from synchromesh.system.config.parts import SystemPart, parts_of
from synchromesh.system.config.schema import SystemConfig
from synchromesh.system.host.application_part import ApplicationPart
from synchromesh.system.host.contracts_report import report_contracts
from synchromesh.system.host.host import Definitions, Host, Succeeds
from synchromesh.system.host.loops import loop_factory
from synchromesh.system.host.metrics_page import serve_metrics
from synchromesh.system.host.operated import serve_operators
from synchromesh.system.host.registries import SharedRegistry, keep_registry, shared_registry
from synchromesh.system.leases_api.client import RemoteRegistry
from synchromesh.system.supervise.messages import (
    FAILED,
    FAILED_SAYS,
    Loaded,
    Migrates,
    ProcessSpec,
    Ready,
    StartFailed,
)

if TYPE_CHECKING:
    from synchromesh.gateway import Gateway

REGISTRY_WITHIN_S = 5.0

MISTAKE = 2
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Objects that have come and stayed, before the collector looks at them; CPython's own is 700.
COLLECT_EVERY = 10_000

_log = logging.getLogger("synchromesh.system")


class Process:
    """Runs one part of a system in this process; `start`, then `wait`, then `stop`.

    Args:
        say: told how far the start is, as `Succeeds` says.
        gateway: loads the definition of the gateway; a simulation opens it to those it plays.

    Attributes:
        host: runs the part.
        drain: has the process drain and end, for an operator; None where a supervisor does that.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        folder: Path,
        runtime: DiskRuntime,
        *,
        say: Callable[[Migrates | Loaded], None],
        gateway: Callable[[SystemConfig, Path], Gateway | None] = load_gateway,
    ) -> None:
        self._spec = spec
        self._load_gateway = gateway
        succeeds = self._succeeds = Succeeds(say, spec.port, spec.handle)
        self.host = Host(spec.config, folder, runtime, name=spec.name, succeeds=succeeds)
        self.drain: Callable[[], None] | None = None
        self._application: ApplicationPart | None = None

    async def start(self) -> Ready:
        """Start the part; when this returns, it is registered and serves.

        Raises:
            ConfigError, StoreError, ContractError, DiscoveryError: as `System.start` does.
        """
        try:
            return await self._start()
        except BaseException:
            await self.host.close()
            raise

    async def wait(self, stop: asyncio.Event) -> str:
        """Wait for `stop`, or for a failure that ends it; return its reason, "" for none."""
        return await self.host.wait(stop)

    async def stop(self, hurry: asyncio.Event) -> None:
        """Drain until `hurry`, and stop."""
        draining = asyncio.ensure_future(self._drain())
        draining.add_done_callback(lambda _: hurry.set())
        try:
            await hurry.wait()
            draining.cancel()
            (outcome,) = await asyncio.gather(draining, return_exceptions=True)
            if isinstance(outcome, Exception):
                _log.error("the drain failed", exc_info=outcome)
        finally:
            await self.host.close()

    async def _drain(self) -> None:
        if self._application is not None:
            self.host.admin.is_draining = True
            await self._application.drain()
        await self.host.drain()

    async def _start(self) -> Ready:
        spec, host, runtime = self._spec, self.host, self.host.runtime
        name, config = spec.name, spec.config
        (part,) = parts_of(config, name)
        signer = Signer(*map(base64.b64decode, spec.key.split(",")))
        code = None
        if part.is_gateway:
            from synchromesh.system.config.gateway_check import check_gateway
            from synchromesh.system.host.gateway_code import GatewayCode

            code = GatewayCode(config, host.folder)
        services, unknown = load_part(part.service, config, host.folder)
        for each, why in unknown.items():
            _log.warning("it starts without the code of service %r: %s", each, why.message)
        left_out = {each: spec.takes.get(each, frozenset()) for each in unknown}
        definitions = Definitions(services, left_out=left_out)
        gateway = self._load_gateway(config, host.folder) if part.is_gateway else None
        if gateway is not None:
            # It may be another one than that of the process before.
            entries = await check_gateway(
                gateway, config, host.rundir, runtime, spec.later, services
            )
            definitions = replace(definitions, gateway=gateway, entries=entries, code=code)

        shared = shared_registry(config, host.folder, signer, runtime)

        def registry_at(pool: HttpPool) -> SharedRegistry | RemoteRegistry:
            return shared or RemoteRegistry(
                lambda: spec.control,
                pool=pool,
                credential=lambda: signer.token(
                    part.service, audience=REGISTRY, now_us=runtime.wall_us()
                ),
                runtime=runtime,
            )

        fix = shared.fix if shared is not None else lambda *_, **__: None
        registry = await host.open(definitions, signer, registry_at, fix=fix)
        if isinstance(registry, RemoteRegistry):
            async with asyncio.timeout(REGISTRY_WITHIN_S):
                await registry.refresh()
            host.background.start(Child(f"registry/{name}", registry.run))
        else:
            host.exit.push_async_callback(registry.close)
            await keep_registry(registry, f"registry/{name}", host.background)
        host.local.faults.resume(spec.faults, wall_us=runtime.wall_us())
        host.deps.isolations.resume(spec.isolations)
        await host.serve_control(spec.token, {})
        serve_metrics(host)
        if self.drain is not None:
            serve_operators(host, signer, part.instance, drain=self.drain)
            if shared is not None:
                host.local.faults.elsewhere = shared.instances
        if not part.is_gateway and part.service not in host.deps.services:
            await self._run_application(part, registry)
            return self._ready()
        await self._run_part(part, definitions, registry)
        return self._ready()

    async def _run_part(
        self, part: SystemPart, definitions: Definitions, registry: SharedRegistry | RemoteRegistry
    ) -> None:
        """Run a service or the gateway, whose contracts have to fit those of the others."""
        spec, host = self._spec, self.host
        name, config = spec.name, spec.config
        contracts = (
            contracts_of_gateway(definitions.entries)
            if part.is_gateway
            else contracts_of_service(
                host.deps.services[part.service], config.services[part.service].app
            )
        )
        await report_contracts(contracts, spec, host.pool)
        if spec.copies is not None:
            from synchromesh.system.host.takes_along import takes_along

            host.along = takes_along(spec.copies, host, host.deps.services[part.service])
        host.fits = lambda contracts: report_contracts(contracts, spec, host.pool)
        # What others run is said by the supervisor, where there is one.
        others = () if spec.control else tuple(config.external)
        if part.is_gateway:
            from synchromesh.system.host.gateway_start import start_gateway

            await host.run(*others)
            await start_gateway(host, part, definitions, registry, self._succeeds)
        else:
            await host.run(*others, name)

    async def _run_application(
        self, part: SystemPart, registry: SharedRegistry | RemoteRegistry
    ) -> None:
        """Run an ASGI application; what it offers, only itself knows."""
        host, before = self.host, self._succeeds
        app = load_application(part.service, host.config, host.folder)
        self._application = ApplicationPart(
            part, app, host, registry, before=before.port, say=before.say
        )
        await self._application.start()

    def _ready(self) -> Ready:
        host = self.host
        host.admin.is_up = True
        copied = None if host.along is None else msgspec.to_builtins(host.along.copied)
        url = host.urls[self._spec.name]
        return Ready(host.control_server.port, url, host.admin.url, copied)

    def __repr__(self) -> str:
        return f"<Process {self._spec.name}>"


def spare_collector() -> None:
    """Have the cyclic collector look at nothing that was made for the start, and less often.

    What has been imported and built by now stays until the end, and was looked through again and
    again: some 1.5 µs a request. Requests leave no cycles: their objects go as they end, and what
    only the collector can free are the few cycles of connections and of users' code.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY)


def main() -> int:
    """Run one part until SIGTERM or the supervisor's end, and return the exit code.

    A second SIGTERM cuts the drain short.
    """
    link = socket(fileno=os.dup(sys.stdin.fileno()))
    # Neither what users import nor what they start reads from the link, or keeps it open.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)
    with link.makefile("rb") as lines:
        line = lines.readline()
    if not line:
        return MISTAKE  # it is not wanted any more
    spec = msgspec.json.decode(line, type=ProcessSpec)
    with asyncio.Runner(loop_factory=loop_factory(spec.config.system.loop)) as runner:
        return runner.run(_run(spec, link))


async def _started(process: Process) -> Ready | StartFailed:
    try:
        process.host.begin_log()
        return await process.start()
    except (ConfigError, ContractError) as error:
        # A mistake of the user's, which the supervisor tells: where it was raised says nothing.
        return StartFailed(error.message)
    except (SynchromeshError, TimeoutError) as error:
        _log.exception("it could not be started")
        return StartFailed(str(error) or "the registry did not answer in time")


@contextmanager
def stopping() -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Take the signals that stop a process: the first sets the one event, the next the other."""
    stop, hurry, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        yield stop, hurry
    finally:
        # It ends anyway. A loop that closes has no one left to tell of a signal, and one that
        # comes then would be complained of.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


async def _run(spec: ProcessSpec, link: socket) -> int:
    loop = asyncio.get_running_loop()

    def on_link() -> None:
        try:
            asked = link.recv(4096, MSG_DONTWAIT)
            if asked:
                # That it comes from the loop is the whole answer: one that is blocked is silent.
                link.send(b"\n", MSG_DONTWAIT)
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        # The supervisor is gone.
        loop.remove_reader(link)
        stop.set()

    def say(what: Migrates | Loaded | Ready | StartFailed) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # seen by `on_link`
            link.sendall(msgspec.json.encode(what) + b"\n")

    process = Process(spec, Path.cwd(), RealRuntime(), say=say)
    with stopping() as (stop, hurry):
        loop.add_reader(link, on_link)
        ready = await _started(process)
        say(ready)
        if isinstance(ready, StartFailed):
            return MISTAKE
        spare_collector()
        try:
            failure = await process.wait(stop)
        finally:
            await process.stop(hurry)
    if failure:
        sys.stderr.write(f"{FAILED_SAYS}{spec.name}: {failure}\n")
        return FAILED
    return 0
