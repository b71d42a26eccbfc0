"""The client of the registry: leases over HTTP, resolving from a cached list.

One long poll keeps the whole list; `resolve` asks nobody. While the registry does not answer, the
list of before is given on, marked stale (R4); one that has started anew and still learns who is
there takes nobody off it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import TypeVar
from urllib.parse import quote, urlsplit

from synchromesh.calls import Reply
from synchromesh.codec import decode, encode
from synchromesh.context import CREDENTIAL
from synchromesh.discovery import Endpoint, LeaseOptions, Registration, Resolved
from synchromesh.errors import (
    BadRequest,
    CallError,
    ConfigError,
    DiscoveryError,
    Unauthenticated,
    UnknownInstance,
)
from synchromesh.http import HttpPool
from synchromesh.runtime import Runtime
from synchromesh.system.config.schema import PolicySection
from synchromesh.system.leases_api.server import PATH, POLL_WAIT_S, Granted, Held, Listing

T = TypeVar("T")

ASK_WITHIN_S = 1.0
PAUSE_S = 0.1
PAUSE_MAX_S = 1.0


class RemoteRegistry:
    """A `Registry` behind the control socket; `run` keeps its list fresh.

    Args:
        locate: finds the URL of the control socket, which another start may have elsewhere; raises
            ConfigError where no system runs.
        pool: holds the connections; whoever made it closes it.
        credential: makes the credential of this service anew, for one lives shorter than a process;
            it signs every request, in place of the one that `register` is given.
        runtime: the source of jitter.
    """

    def __init__(
        self,
        locate: Callable[[], str],
        *,
        pool: HttpPool,
        credential: Callable[[], str],
        runtime: Runtime,
    ) -> None:
        self._locate = locate
        self._pool = pool
        self._credential = credential
        self._rng = runtime.rng
        self._ttl_s = LeaseOptions().ttl_s
        self._listing: Listing | None = None
        self._services: dict[str, Resolved] = {}
        self.lists: dict[str, tuple[tuple[Endpoint, ...], float]] = {}
        # Endpoints from before the registry started anew that it has not heard of yet, by service
        # and instance; it knows better about all others.
        self._missed: dict[tuple[str, str], Endpoint] = {}
        self._is_down = False
        # Of these it is not known whether a lease was granted: they have to register again.
        self._unsure: set[Endpoint] = set()
        self._changed = asyncio.Event()

    @property
    def ttl_s(self) -> float:
        """How long a lease runs without renewal."""
        return self._ttl_s

    @property
    def is_down(self) -> bool:
        """True while the registry does not answer."""
        return self._is_down

    async def register(self, endpoint: Endpoint, *, credential: str) -> Registration:
        """Grant the instance a lease, as `Registry.register` says."""
        del credential  # every request is signed anew
        return Registration(self, endpoint, incarnation=await self.grant(endpoint))

    async def resolve(self, service: str) -> Resolved:
        """Return the last known endpoints; stale while the registry is down.

        Raises:
            DiscoveryError: the registry has never answered.
        """
        if self._listing is None:
            raise DiscoveryError("the registry has never answered; is the system still running?")
        resolved = self._services.get(service, Resolved(()))
        return Resolved(resolved.endpoints, is_stale=True) if self._is_down else resolved

    async def changed(self, _: str, /) -> None:
        """Wait until the list of any service may have changed."""
        await self._changed.wait()

    async def watch(self, service: str) -> AsyncGenerator[Resolved, None]:
        """Yield the current list, then each new one, as `Registry.watch` says."""
        latest: Resolved | None = None
        while True:
            resolved = await self.resolve(service)
            if resolved == latest:
                await self.changed(service)
                continue
            latest = resolved
            yield resolved

    async def run(self) -> None:
        """Keep the list fresh. A supervised child.

        Raises:
            Unauthenticated: the credential is not the system's.
        """
        pause_s = PAUSE_S
        while True:
            try:
                await self.refresh()
            except DiscoveryError:
                await asyncio.sleep(pause_s * (0.5 + 0.5 * self._rng.random()))
                pause_s = min(PAUSE_MAX_S, 2 * pause_s)
            else:
                pause_s = PAUSE_S

    async def refresh(self) -> None:
        """Fetch the list: the first time at once, then by a long poll.

        Raises:
            DiscoveryError: the registry does not answer, or not as one does.
            Unauthenticated: the credential is not the system's.
        """
        known = self._listing
        # Where it is down, the answer must come at once for it to be up again.
        after = "" if known is None or self._is_down else known.revision
        target = f"{PATH}?after={quote(after)}"
        listing = await self._ask("GET", target, b"", Listing, POLL_WAIT_S + ASK_WITHIN_S)
        if listing == known:
            return
        if known is not None and _start_of(known) != _start_of(listing):
            self._missed = _by_instance(self._services)
        for key in _by_instance(listing.services) if listing.is_learning else list(self._missed):
            self._missed.pop(key, None)
        self._services = _together(listing.services, self._missed.values())
        self._listing = listing
        # The same dict for good: callers look into it. What is down is stale, and still called.
        self.lists.clear()
        for service, resolved in self._services.items():
            self.lists[service] = (resolved.endpoints, math.inf)
        self._note_change()

    async def policies(self) -> dict[str, PolicySection]:
        """Return what the system configures of the calls of who asks, by the callee.

        Raises:
            DiscoveryError: the registry does not answer.
        """
        return await self._ask(
            "GET", f"{PATH}/policies", b"", dict[str, PolicySection], ASK_WITHIN_S
        )

    async def grant(self, endpoint: Endpoint) -> int:
        """Start a lease and return its incarnation, as `LeaseBackend.grant` says."""
        self._unsure.add(endpoint)
        granted = await self._post("register", endpoint, Granted)
        self._unsure.discard(endpoint)
        self._ttl_s = granted.ttl_s
        return granted.incarnation

    async def renew(self, endpoint: Endpoint, incarnation: int) -> None:
        """Extend a lease. Raises UnknownInstance, StaleIncarnation."""
        await self._act("renew", endpoint, incarnation)

    async def drain(self, endpoint: Endpoint, incarnation: int) -> None:
        """List it no more. Raises UnknownInstance, StaleIncarnation."""
        await self._act("drain", endpoint, incarnation)

    async def end(self, endpoint: Endpoint, incarnation: int) -> None:
        """Remove it. Raises UnknownInstance, StaleIncarnation."""
        await self._act("end", endpoint, incarnation)

    def __repr__(self) -> str:
        state = "down" if self._is_down else "fresh" if self._listing else "never reached"
        return f"<RemoteRegistry {state}>"

    async def _act(self, act: str, endpoint: Endpoint, incarnation: int) -> None:
        if endpoint in self._unsure:
            # The answer to a grant was lost: what was held may be replaced, and by ourselves. The
            # next renewal registers again; before that nothing is known to be held.
            raise UnknownInstance(endpoint.instance)
        await self._post(act, Held(endpoint, incarnation), dict[str, str])

    async def _post(self, act: str, body: object, kind: type[T]) -> T:
        return await self._ask("POST", f"{PATH}/{act}", encode(body), kind, ASK_WITHIN_S)

    async def _ask(
        self, method: str, target: str, body: bytes, kind: type[T], within_s: float
    ) -> T:
        headers = {CREDENTIAL: self._credential()}
        if body:
            headers["content-type"] = "application/json"
        try:
            # A lease may be granted or renewed twice; the later answer counts.
            place = urlsplit(self._locate())
            response = await self._pool.request(
                place.hostname or "127.0.0.1", place.port or 80, method,
                target, headers.items(), body,
                timeout_s=within_s, is_idempotent=True,
            )  # fmt: skip
        except (CallError, ConfigError) as error:
            self._note_down(is_down=True)
            raise DiscoveryError(f"the registry does not answer: {error}") from error
        reply = Reply(response.status, response.body)
        if not reply.is_answer:
            failure = reply.to_error(())
            if isinstance(failure, DiscoveryError | Unauthenticated):
                raise failure
            raise DiscoveryError(f"the registry refused: {failure}") from failure
        try:
            answer = decode(response.body, kind)
        except BadRequest as error:
            self._note_down(is_down=True)
            raise DiscoveryError(
                f"{place.netloc} does not answer as a registry: {error}"
            ) from error
        self._note_down(is_down=False)
        return answer

    def _note_down(self, *, is_down: bool) -> None:
        if is_down != self._is_down:
            self._is_down = is_down
            self._note_change()

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _start_of(listing: Listing) -> str:
    """Return the number of the registry's start that a listing belongs to."""
    return listing.revision.partition(".")[0]


def _by_instance(services: dict[str, Resolved]) -> dict[tuple[str, str], Endpoint]:
    return {
        (service, endpoint.instance): endpoint
        for service, resolved in services.items()
        for endpoint in resolved.endpoints
    }


def _together(services: dict[str, Resolved], missed: Iterable[Endpoint]) -> dict[str, Resolved]:
    """Return the listed endpoints with the missing ones added; lists with additions are stale."""
    together = dict(services)
    for endpoint in missed:
        listed = together.get(endpoint.service, Resolved(())).endpoints
        ordered = sorted((*listed, endpoint), key=lambda each: each.instance)
        together[endpoint.service] = Resolved(tuple(ordered), is_stale=True)
    return together
