"""The interface of a registry, whatever its backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Protocol, runtime_checkable

from synchromesh.discovery.endpoint import Endpoint, Resolved
from synchromesh.errors import DiscoveryError, StaleIncarnation, UnknownInstance


class Resolver(Protocol):
    """Finds the endpoints of a service."""

    async def resolve(self, service: str) -> Resolved:
        """Return the listed endpoints of a service; none where nobody registered.

        Raises DiscoveryError, or OSError, where the registry cannot be asked.
        """
        ...


@runtime_checkable
class WatchableResolver(Protocol):
    """A resolver that reports changes, so that a call can wait for an instance."""

    async def changed(self, service: str, /) -> None:
        """Wait until the list of a service may have changed since this was called."""
        ...


class Registry(Resolver, Protocol):
    """Registers the instances of services, and reports which are alive."""

    async def register(self, endpoint: Endpoint, *, credential: str) -> Registration:
        """Grant the instance a lease, replacing any that runs under its name.

        The registration has to be kept alive: run `Registration.run` as a supervised child.

        Raises:
            Unauthenticated: the credential is not the system's (R3).
            DiscoveryError: the registry is full, or cannot be asked.
        """
        ...

    def watch(self, service: str) -> AsyncGenerator[Resolved, None]:
        """Yield the current list, then each new one; a slow watcher skips to the latest.

        Close it (`contextlib.aclosing`) when done.
        """
        ...


class LeaseBackend(Protocol):
    """What a `Registration` needs of its registry; for backends, not for users."""

    @property
    def ttl_s(self) -> float:
        """How long a lease runs without renewal."""
        ...

    async def grant(self, endpoint: Endpoint) -> int:
        """Start a lease and return its incarnation, for whoever has shown that it may register."""
        ...

    async def renew(self, endpoint: Endpoint, incarnation: int) -> None:
        """Extend a lease. Raises UnknownInstance, StaleIncarnation."""
        ...

    async def drain(self, endpoint: Endpoint, incarnation: int) -> None:
        """List it no more. Raises UnknownInstance, StaleIncarnation."""
        ...

    async def end(self, endpoint: Endpoint, incarnation: int) -> None:
        """Remove it. Raises UnknownInstance, StaleIncarnation."""
        ...


class Registration:
    """An instance's entry in a registry: renewed by `run`, left by `drain` and then `end`.

    An instance that drains, or is not ready, is so until `resume`: one whose lease was lost
    meanwhile registers as draining again.
    """

    def __init__(self, leasing: LeaseBackend, endpoint: Endpoint, *, incarnation: int) -> None:
        self._leasing = leasing
        self._endpoint = endpoint
        self._incarnation = incarnation
        self._is_draining = False
        self._has_ended = False
        self._last_error: Exception | None = None

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint that is registered."""
        return self._endpoint

    @property
    def incarnation(self) -> int:
        """The incarnation of the current lease."""
        return self._incarnation

    @property
    def is_draining(self) -> bool:
        """True once the instance is no longer listed."""
        return self._is_draining

    @property
    def last_error(self) -> Exception | None:
        """Why the last renewal in `run` failed; None since one succeeded."""
        return self._last_error

    async def renew(self) -> None:
        """Extend the lease; register again where it has expired.

        Raises:
            StaleIncarnation: a later process has registered under this name; stop.
            DiscoveryError: it has ended here, or the registry cannot be asked.
        """
        self._check_open()
        try:
            await self._leasing.renew(self._endpoint, self._incarnation)
        except UnknownInstance:
            self._incarnation = await self._leasing.grant(self._endpoint)
            if self._is_draining:
                await self._leasing.drain(self._endpoint, self._incarnation)

    async def drain(self) -> None:
        """Leave the list while calls under way finish; may be repeated.

        Raises what `renew` raises.
        """
        self._check_open()
        self._is_draining = True
        try:
            await self._leasing.drain(self._endpoint, self._incarnation)
        except UnknownInstance:
            # It is not listed, which is what was asked for; `renew` keeps it so.
            return

    async def resume(self) -> None:
        """Register again after `drain`, by a new lease: what was not ready is ready again.

        Raises:
            DiscoveryError: it has ended here, or the registry cannot be asked.
        """
        self._check_open()
        self._incarnation = await self._leasing.grant(self._endpoint)
        self._is_draining = False

    async def end(self) -> None:
        """Deregister; may be repeated, and an expired or replaced lease is no error.

        Raises DiscoveryError where the registry cannot be asked: the lease then expires.
        """
        if self._has_ended:
            return
        self._has_ended = True
        try:
            await self._leasing.end(self._endpoint, self._incarnation)
        except (UnknownInstance, StaleIncarnation):
            return

    async def run(self) -> None:
        """Renew three times a ttl until `end`. A supervised child.

        A registry that cannot be asked is asked again, and `last_error` says so meanwhile.

        Raises:
            StaleIncarnation: a later process has registered under this name; this one must stop.
        """
        while True:
            await asyncio.sleep(self._leasing.ttl_s / 3)
            if self._has_ended:
                return
            try:
                await self.renew()
            except StaleIncarnation:
                raise
            except (DiscoveryError, OSError) as error:
                self._last_error = error
            else:
                self._last_error = None

    def __repr__(self) -> str:
        state = "ended" if self._has_ended else "draining" if self._is_draining else "ready"
        return f"<Registration {self._endpoint.instance} #{self._incarnation} {state}>"

    def _check_open(self) -> None:
        if self._has_ended:
            raise DiscoveryError(
                f"the registration of instance {self._endpoint.instance!r} has ended; "
                "register it again"
            )
