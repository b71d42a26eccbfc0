"""A registry in memory: for one process, and behind the control socket for one machine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable

from synchromesh.discovery.endpoint import Endpoint, Resolved
from synchromesh.discovery.lease_manager import LeaseManager, sweep_when_due
from synchromesh.discovery.leases import LeaseOptions
from synchromesh.discovery.registry import Registration
from synchromesh.errors import DiscoveryError, UnknownInstance, WatchLagged


class MemoryRegistry:
    """A `Registry` in memory, with one lease table a service; lost with its process.

    Nothing expires behind the back of `resolve`; watchers hear of expiry while `run` runs.

    Args:
        verify: raises `Unauthenticated` unless the credential is the system's (R3).
        options: how long leases run, and when their expiry is doubted.
        services_max: how many services may be registered or watched.

    Attributes:
        lists: what `resolve` has found, and until when on the loop's clock that is sure, by
            service: for callers that look before they ask. Any change empties it.

    Example:
        >>> async def main() -> Resolved:
        ...     registry = MemoryRegistry(verify=lambda credential: None)
        ...     endpoint = Endpoint("billing-1", "billing", "inproc://billing-1")
        ...     registration = await registry.register(endpoint, credential="")
        ...     await registration.drain()
        ...     return await registry.resolve("billing")
        >>> asyncio.run(main())
        Resolved(endpoints=(), is_stale=False)
    """

    def __init__(
        self,
        *,
        verify: Callable[[str], object],
        options: LeaseOptions | None = None,
        services_max: int = 1024,
    ) -> None:
        self._verify = verify
        self._options = options if options is not None else LeaseOptions()
        self._services_max = services_max
        self._managers: dict[str, LeaseManager] = {}
        self._fixed: dict[str, Resolved] = {}
        self._due_moved = asyncio.Event()
        self._revision = 0
        self.lists: dict[str, tuple[tuple[Endpoint, ...], float]] = {}
        # Replaced at each change, so that whoever waits hears of every one.
        self._changed = asyncio.Event()

    @property
    def ttl_s(self) -> float:
        """How long a lease runs without renewal."""
        return self._options.ttl_s

    @property
    def revision(self) -> int:
        """The number of changes so far, of all services together."""
        return self._revision

    async def register(self, endpoint: Endpoint, *, credential: str) -> Registration:
        """Grant the instance a lease, replacing any that runs under its name.

        Raises:
            Unauthenticated: the credential is not the system's.
            DiscoveryError: there are as many services, or instances of this one, as there may be.
        """
        self._verify(credential)
        return Registration(self, endpoint, incarnation=await self.grant(endpoint))

    async def resolve(self, service: str) -> Resolved:
        """Return the listed endpoints of a service; none where nobody registered."""
        resolved, sure_until_s = self._fixed.get(service), math.inf
        if resolved is None:
            manager = self._managers.get(service)
            if manager is None:
                return Resolved(())
            resolved, sure_until_s = manager.resolve(), manager.quiet_until_s
        if not resolved.is_stale:
            self.lists[service] = (resolved.endpoints, sure_until_s)
        return resolved

    async def watch(self, service: str) -> AsyncGenerator[Resolved, None]:
        """Yield the current list, then each new one, as `Registry.watch` says.

        Raises:
            DiscoveryError: there are as many services, or watchers of this one, as there may be.
        """
        manager = self._manager(service)
        while True:
            with manager.watch() as watch:
                latest = manager.resolve()
                yield latest
                try:
                    async for _ in watch:
                        # Changes that came meanwhile are in the list already.
                        resolved = manager.resolve()
                        if resolved != latest:
                            latest = resolved
                            yield latest
                except WatchLagged:
                    continue

    async def changed(self, _: str = "", /) -> None:
        """Wait for the next change of any service."""
        await self._changed.wait()

    def listed(self) -> dict[str, Resolved]:
        """Return the listed endpoints by service; services without an instance are left out."""
        found = {name: manager.resolve() for name, manager in sorted(self._managers.items())}
        listed = {name: resolved for name, resolved in found.items() if resolved.endpoints}
        return {**listed, **self._fixed}

    def fix(self, *endpoints: Endpoint, is_stale: bool = False) -> None:
        """List endpoints of a service without leases, as of an external one that cannot renew any.

        They are the only ones of their service until others are put in their place.
        """
        ordered = sorted(endpoints, key=lambda each: each.instance)
        self._fixed[endpoints[0].service] = Resolved(tuple(ordered), is_stale)
        self._note_change()

    def evict(self, service: str, is_dead: Callable[[Endpoint], bool]) -> int:
        """End the leases of instances known to be dead (R6).

        Returns how many there were. What is only suspected is for `suspect`: an ended lease is not
        resolved even where no other instance is ready.
        """
        manager = self._managers.get(service)
        return 0 if manager is None else manager.evict(is_dead)

    def suspect(
        self, service: str, is_meant: Callable[[Endpoint], bool], *, is_suspect: bool
    ) -> None:
        """Suspect instances of being hung, or clear them (R6); may be repeated.

        A suspect is resolved only where no other instance is ready, and its lease runs on.
        """
        manager = self._managers.get(service)
        if manager is not None:
            manager.suspect(is_meant, is_suspect=is_suspect)

    async def run(self) -> None:
        """Sweep whenever something is due. A supervised child: only cancellation ends it."""
        await sweep_when_due(self._due_moved, self._due_s, self._sweep)

    async def grant(self, endpoint: Endpoint) -> int:
        """Start a lease and return its incarnation, as `LeaseBackend.grant` says."""
        return self._manager(endpoint.service).register(endpoint)

    async def renew(self, endpoint: Endpoint, incarnation: int) -> None:
        """Extend a lease. Raises UnknownInstance, StaleIncarnation."""
        self._known(endpoint).renew(endpoint.instance, incarnation)

    async def drain(self, endpoint: Endpoint, incarnation: int) -> None:
        """List it no more. Raises UnknownInstance, StaleIncarnation."""
        self._known(endpoint).drain(endpoint.instance, incarnation)

    async def end(self, endpoint: Endpoint, incarnation: int) -> None:
        """Remove it. Raises UnknownInstance, StaleIncarnation."""
        self._known(endpoint).end(endpoint.instance, incarnation)

    def __repr__(self) -> str:
        return f"<MemoryRegistry {len(self._managers)} services>"

    def _manager(self, service: str) -> LeaseManager:
        manager = self._managers.get(service)
        if manager is None:
            if len(self._managers) >= self._services_max:
                raise DiscoveryError(
                    f"the registry knows {len(self._managers)} services and may know no more, so "
                    f"{service!r} was refused; raise services_max"
                )
            manager = self._managers[service] = LeaseManager(
                self._options, due_moved=self._due_moved, on_change=self._note_change
            )
        return manager

    def _note_change(self) -> None:
        self._revision += 1
        self.lists.clear()
        self._changed.set()
        self._changed = asyncio.Event()

    def _known(self, endpoint: Endpoint) -> LeaseManager:
        manager = self._managers.get(endpoint.service)
        if manager is None:
            raise UnknownInstance(endpoint.instance)
        return manager

    def _due_s(self) -> float | None:
        dues = (manager.due_s() for manager in self._managers.values())
        return min((due_s for due_s in dues if due_s is not None), default=None)

    def _sweep(self) -> None:
        for manager in self._managers.values():
            manager.sweep()
