"""A member of a running system in a process that the system did not start: its lease, its calls.

All that it has to know is in the folder of the system: the policies of its calls in
`synchromesh.toml`, where the registry is in `run.json`, and the key that signs every hop where
`[system] key` refers to, else in the run directory, which only the user may read whom the system
runs as. The control socket is on loopback, so that it runs on the system's machine; where the
registry is in NATS and the key is given by reference, it needs the configuration alone.

    configuration → run.json → key → registry → its own address accepts → lease → renewed

None of it has to be there when the member starts: what is lacking is looked for again, with a
growing pause. A system that starts anew has the lease asked for again, wherever its registry is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from synchromesh.calls import Caller
from synchromesh.discovery import Endpoint, Registration
from synchromesh.errors import ConfigError, DiscoveryError, SynchromeshError
from synchromesh.http import HttpPool
from synchromesh.identity import REGISTRY, Signer
from synchromesh.runtime import DiskRuntime
from synchromesh.service import Deps
from synchromesh.system.config.reading import load_config
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.secrets import system_keys
from synchromesh.system.control.metrics import Collector
from synchromesh.system.host.host import Definitions, Host
from synchromesh.system.host.registries import SharedRegistry, keep_registry, shared_registry
from synchromesh.system.leases_api.client import RemoteRegistry

# So long the start of an application may wait for a registry elsewhere.
START_WITHIN_S = 1.0
PAUSE_S = 0.05
PAUSE_MAX_S = 1.0
_PORTS = {"http": 80, "https": 443}

_log = logging.getLogger("synchromesh.asgi")


class Membership:
    """Takes part in a system as one instance of a service; `start`, then `drain`, then `stop`.

    Args:
        service: a name that `[system] joined` has.
        url: where other processes reach this one.
        folder: that of the system.

    Attributes:
        runtime: that of this process.
        deps: what it has of the system; None until the system has been found once.
        caller: makes its calls; None until then too.
    """

    def __init__(self, service: str, url: str, folder: Path, runtime: DiskRuntime) -> None:
        place = urlsplit(url)
        if place.scheme not in _PORTS or not place.hostname:
            raise ConfigError(f"{service!r} joins by the url {url!r}; make it http://host:port")
        self.deps: Deps | None = None
        self.caller: Caller | None = None
        self._address = (place.hostname, place.port or _PORTS[place.scheme])
        # Of several processes behind one address each is an instance of its own.
        where = re.sub(r"\W+", "-", f"{place.hostname}-{self._address[1]}")
        instance = f"{service}-{where}-{os.getpid()}"
        self._endpoint = Endpoint(instance, service, url)
        self._folder = folder
        self.runtime = runtime
        self._host: Host | None = None
        self._keys: tuple[bytes, ...] = ()
        self._signer: Signer | None = None
        self._registry: SharedRegistry | RemoteRegistry | None = None
        self._registration: Registration | None = None
        self._failures = 0
        self._told = ""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to take part; what is lacking of the system does not keep this one from serving."""
        try:
            async with asyncio.timeout(START_WITHIN_S):
                await self._open()
        except (SynchromeshError, OSError) as error:
            self._tell(error)
        self._task = asyncio.create_task(self._run(), name=f"join/{self._endpoint.service}")

    async def drain(self) -> None:
        """Leave the list, where there is a registry to tell; may be repeated."""
        if self._registration is not None:
            with suppress(SynchromeshError):  # the lease runs out
                await self._registration.drain()

    async def stop(self) -> None:
        """End the lease, and close all that was opened."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._registration is not None:
            with suppress(SynchromeshError):
                await self._registration.end()
        if self._host is not None:
            await self._host.export.end()
            await self._host.close()

    def __repr__(self) -> str:
        state = "looks for its system" if self._registration is None else repr(self._registration)
        return f"<Membership {self._endpoint.instance}: {state}>"

    async def _run(self) -> None:
        while True:
            try:
                await self._take_part()
            except* (SynchromeshError, OSError) as failed:
                self._tell(failed.exceptions[0])
            except* Exception:  # noqa: BLE001  no loop ends unseen
                _log.exception("%s has not joined, and tries again", self._endpoint.instance)
            pause_s = min(PAUSE_MAX_S, PAUSE_S * 2 ** min(self._failures, 10))
            self._failures += 1
            await asyncio.sleep(pause_s * (0.5 + 0.5 * self.runtime.rng.random()))

    async def _take_part(self) -> None:
        """Register and renew the lease until something other is wrong than a registry that is away.

        Raises:
            ConfigError: no system runs there, or this one is not to join it.
            DiscoveryError: its registry does not answer, or refuses.
            Unauthenticated: the system has another key by now.
            StaleIncarnation: a later process is registered under this name.
            OSError: nothing accepts at its own address.
        """
        registry = await self._open()
        if isinstance(registry, RemoteRegistry):
            await registry.refresh()
        # A server may accept only after the lifespan has begun; nobody is to be sent there before.
        await self.runtime.network.connect(_Knock, *self._address)
        registration = await registry.register(self._endpoint, credential=self._credential())
        self._registration, self._failures, self._told = registration, 0, ""
        _log.info("%s has joined, at %s", self._endpoint.instance, self._endpoint.url)
        async with asyncio.TaskGroup() as loops:
            if isinstance(registry, RemoteRegistry):
                loops.create_task(registry.run())
            loops.create_task(registration.run())

    async def _open(self) -> SharedRegistry | RemoteRegistry:
        """Return the registry, as long as the key is the same; raises as `_take_part` does."""
        service, runtime, rundir = self._endpoint.service, self.runtime, RunDir(self._folder)
        config = load_config(self._folder, environment=os.environ)
        if service not in config.system.joined:
            raise ConfigError(
                f"{service!r} does not belong to {config.system.name!r}; let {self._folder}/"
                f'synchromesh.toml say so: [system] joined = ["{service}"]'
            )
        if config.engine.nats and config.system.key:
            rundir.create()  # the system may run elsewhere
        else:
            rundir.read()  # the system makes a key before it says that it runs
        keys = system_keys(config.system, rundir, self._folder, os.environ)
        if self._registry is not None and keys == self._keys:
            return self._registry
        if self._host is not None:
            await self._host.close()
        signer = Signer(*keys)
        host = self._host = Host(config, self._folder, runtime, name=self._endpoint.instance)
        shared = shared_registry(config, self._folder, signer, runtime)

        def registry_at(pool: HttpPool) -> SharedRegistry | RemoteRegistry:
            return shared or RemoteRegistry(
                lambda: rundir.read().control,
                pool=pool,
                credential=self._credential,
                runtime=runtime,
            )

        self._keys, self._signer, self._registry = keys, signer, None
        registry = await host.open(Definitions(()), signer, registry_at)
        if not isinstance(registry, RemoteRegistry):
            host.exit.push_async_callback(registry.close)
            await keep_registry(registry, "registry", host.background)
        self._registry = registry
        self.deps, self.caller = host.deps, host.deps.caller(service)
        host.local.clients[service] = self.caller
        host.export.read = Collector(host.local, host.name, remotes={}, lag=host.lag).own
        return registry

    def _credential(self) -> str:
        assert self._signer is not None
        now_us = self.runtime.wall_us()
        return self._signer.token(self._endpoint.service, audience=REGISTRY, now_us=now_us)

    def _tell(self, error: Exception) -> None:
        """Log what keeps it from taking part, once for each reason."""
        said = (
            error.message
            if isinstance(error, SynchromeshError)
            else str(error) or "no answer in time"
        )
        # How often and how long a registry did not answer is not another reason.
        reason = "registry" if isinstance(error, DiscoveryError) else said
        if reason != self._told:
            self._told = reason
            _log.warning(
                "%s has not joined, serves all the same and tries again: %s",
                self._endpoint.instance,
                said,
            )


class _Knock(asyncio.Protocol):
    """Connects, and leaves at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close the connection."""
        transport.close()
