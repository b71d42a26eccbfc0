"""Which registry a process asks: in NATS KV where `[engine] nats` names a server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from synchromesh.discovery import Endpoint, Registry, Resolved, WatchableResolver
from synchromesh.discovery.registry import LeaseBackend
from synchromesh.errors import ConfigError, DiscoveryError
from synchromesh.identity import Signer
from synchromesh.runtime import Runtime
from synchromesh.service import Child, Supervisor
from synchromesh.system.config.schema import SystemConfig

KNOWN_WITHIN_S = 10.0


class SupervisedRegistry(Registry, WatchableResolver, LeaseBackend, Protocol):
    """A registry as who starts and watches processes needs it."""

    def fix(self, *endpoints: Endpoint, is_stale: bool = False) -> None:
        """List endpoints of a service that nobody else registers."""
        ...

    def evict(self, service: str, is_dead: Callable[[Endpoint], bool]) -> int:
        """End the leases of instances known to be dead."""
        ...

    def suspect(
        self, service: str, is_meant: Callable[[Endpoint], bool], *, is_suspect: bool
    ) -> None:
        """Suspect instances of being hung, or clear them."""
        ...

    @property
    def revision(self) -> int:
        """Another one after each change of the list."""
        ...

    def listed(self) -> dict[str, Resolved]:
        """Return the listed endpoints by service."""
        ...

    async def run(self) -> None:
        """Keep it; a supervised loop."""
        ...


class SharedRegistry(SupervisedRegistry, Protocol):
    """A registry outside of the system's own processes."""

    async def open(self) -> None:
        """Connect. Raises ConfigError, MissingExtra."""
        ...

    def instances(self) -> list[str]:
        """Return the names of all instances that are registered."""
        ...

    async def known(self) -> None:
        """Wait until it was asked who is there."""
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...


def shared_registry(
    config: SystemConfig, folder: Path, signer: Signer, runtime: Runtime
) -> SharedRegistry | None:
    """Return the registry that a system shares with processes elsewhere; None where it has none.

    Raises:
        ConfigError: the URL is missing or none, or an instance could not be reached from elsewhere.
    """
    url = config.engine.url("nats", folder, os.environ)
    if not url:
        return None
    if config.system.host in ("0.0.0.0", "::") and not config.system.advertise:  # noqa: S104
        raise ConfigError(
            f"[system] host = {config.system.host!r} is no address that others could call; say "
            'which is, such as [system] advertise = "10.0.0.5"'
        )
    from synchromesh.discovery.nats_kv import NatsRegistry

    return NatsRegistry(url, system=config.system.name, signer=signer, runtime=runtime)


async def keep_registry(registry: SharedRegistry, name: str, background: Supervisor) -> None:
    """Connect to a shared registry and follow it, until who is there is known.

    Raises:
        ConfigError: the server cannot be used.
        DiscoveryError: it does not say who is there.
    """
    await registry.open()
    background.start(Child(name, registry.run))
    try:
        async with asyncio.timeout(KNOWN_WITHIN_S):
            await registry.known()
    except TimeoutError as error:
        raise DiscoveryError(f"{registry!r} has not said who is there in time") from error
