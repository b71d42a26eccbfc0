"""The registry on NATS: leases that the server itself lets expire, and a watch that is never blind.

To renew a lease is to send its timer anew, which the server refuses where the entry is not of the
revision that the holder knows (R2): so a holder that was replaced is told, and no reader hears of a
renewal. What readers make of what they hear is `view`, and whose an entry is `entries`.

Source: guarantees R1 to R6.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import suppress

import msgspec

from synchromesh.clock import loop_now
from synchromesh.discovery.endpoint import Endpoint, Resolved
from synchromesh.discovery.entries import InstanceEntry, Kept, Standing, place_of, standing
from synchromesh.discovery.leases import LeaseOptions
from synchromesh.discovery.nats_bucket import NatsBucket, NatsWatch, WatchLost
from synchromesh.discovery.nats_requests import Conflict
from synchromesh.discovery.registry import Registration
from synchromesh.discovery.view import RegistryView
from synchromesh.errors import DiscoveryError, StaleIncarnation, Unauthenticated, UnknownInstance
from synchromesh.identity import REGISTRY, Signer
from synchromesh.runtime import Runtime

PAUSE_S = 0.05
PAUSE_MAX_S = 0.5
ATTEMPTS_MAX = 5
CLOCK_EVERY_S = 10.0
# Of all that is there a watch may take longer to tell than of a change.
FIRST_WITHIN_S = 10.0

_log = logging.getLogger("synchromesh.nats")


class NatsRegistry:
    """A `Registry` for the processes of one system on any number of hosts; `open`, then `run`.

    Args:
        url: of a NATS server, 2.12 or newer, with JetStream.
        system: the name of the system, whose registry it is.
        signer: signs what is registered, and verifies what is found (R3).
        runtime: the source of chance, ids and the wall clock.
        options: how long leases run, and how many expiries are believed at once.
        watchers_max: how many may watch at once.

    Attributes:
        lists: what `resolve` has found, as `MemoryRegistry.lists`.

    Example:
        >>> from synchromesh.runtime import RealRuntime
        >>> signer, runtime = Signer(b"0" * 32), RealRuntime()
        >>> NatsRegistry("nats://127.0.0.1:4222", system="shop", signer=signer, runtime=runtime)
        <NatsRegistry sm_registry_shop: <RegistryView 0 instances, blind>>
    """

    def __init__(
        self,
        url: str,
        *,
        system: str,
        signer: Signer,
        runtime: Runtime,
        options: LeaseOptions | None = None,
        watchers_max: int = 1024,
    ) -> None:
        self._options = options if options is not None else LeaseOptions()
        self._signer = signer
        self._runtime = runtime
        self._watchers_max = watchers_max
        self._watchers = 0
        self._holder = runtime.new_id()
        self._broken, self._changed = asyncio.Event(), asyncio.Event()
        self._bucket = NatsBucket(
            url, system=system, signer=signer, runtime=runtime, on_down=self._broken.set
        )
        self._view = RegistryView(self._options)
        self._mine: dict[tuple[str, str], Kept] = {}
        self._fixed: dict[str, Resolved] = {}
        self._announced: set[tuple[str, str]] = set()
        self._refixed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.lists: dict[str, tuple[tuple[Endpoint, ...], float]] = {}
        self._revision = 0

    @property
    def ttl_s(self) -> float:
        """How long a lease runs without renewal."""
        return self._options.ttl_s

    @property
    def revision(self) -> int:
        """Counts the changes of the list that were seen."""
        return self._revision

    @property
    def is_down(self) -> bool:
        """True while nobody tells what changes, and the last known list is given on."""
        return self._view.is_blind

    async def open(self) -> None:
        """Connect to the server.

        Raises:
            ConfigError: it cannot be used, or the registry there is another system's.
            MissingExtra: the extra `nats` is not installed.
        """
        await self._bucket.open()

    async def known(self) -> None:
        """Wait until a watch has told who is there; `run` has to run."""
        while not self._view.was_told:
            await self.changed()

    async def close(self) -> None:
        """Close the connection. May be repeated."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._bucket.close()

    # -- who resolves --------------------------------------------------------------------------

    async def resolve(self, service: str) -> Resolved:
        """Return the last known endpoints; stale while the watch is blind.

        Raises:
            DiscoveryError: the registry has never answered.
        """
        resolved = self._fixed.get(service)
        if resolved is None:
            if not self._view.was_told:
                raise DiscoveryError(f"{self._bucket.there} has never answered; is it running?")
            resolved = self._view.listed(service)
        if resolved.endpoints and not resolved.is_stale:
            self.lists[service] = (resolved.endpoints, math.inf)
        return resolved

    async def changed(self, _: str = "", /) -> None:
        """Wait until the list of any service may have changed."""
        await self._changed.wait()

    async def watch(self, service: str) -> AsyncGenerator[Resolved, None]:
        """Yield the current list, then each new one, as `Registry.watch` says.

        Raises:
            DiscoveryError: there are `watchers_max` watchers already, or it has never answered.
        """
        if self._watchers >= self._watchers_max:
            raise DiscoveryError(
                f"{self._watchers} watchers listen and no more may; close some, or raise "
                "watchers_max"
            )
        self._watchers += 1
        try:
            latest: Resolved | None = None
            while True:
                resolved = await self.resolve(service)
                if resolved == latest:
                    await self.changed()
                    continue
                latest = resolved
                yield resolved
        finally:
            self._watchers -= 1

    def listed(self) -> dict[str, Resolved]:
        """Return the listed endpoints by service; services without an instance are left out."""
        found = {name: self._view.listed(name) for name in self._view.services()}
        return {**{name: each for name, each in found.items() if each.endpoints}, **self._fixed}

    def entries(self) -> list[InstanceEntry]:
        """Return all that is registered, by service and instance, also what is not to be called."""
        view = self._view
        found = [kept.entry for name in view.services() for kept in view.of(name)]
        return sorted(found, key=lambda each: _key(each.endpoint))

    def instances(self) -> list[str]:
        """Return the names of all that are registered."""
        return [each.endpoint.instance for each in self.entries()]

    # -- who registers -------------------------------------------------------------------------

    async def register(self, endpoint: Endpoint, *, credential: str) -> Registration:
        """Grant the instance a lease, as `Registry.register` says."""
        self._check_credential(endpoint, credential)
        return Registration(self, endpoint, incarnation=await self.grant(endpoint))

    async def grant(self, endpoint: Endpoint) -> int:
        """Start a lease and return its incarnation, as `LeaseBackend.grant` says."""
        self._view.check_room(endpoint)
        key, place, bucket = _key(endpoint), place_of(endpoint), self._bucket
        self._mine.pop(key, None)
        await bucket.read_clock()
        for _ in range(ATTEMPTS_MAX):
            before, _kept = await bucket.find(place)
            # The timer comes first: the entry of one that dies now expires too, and one that
            # arrives after it was given up is refused, for the timer has emptied the place.
            await bucket.arm(place, self.ttl_s)
            with suppress(Conflict):
                mine = await bucket.write(InstanceEntry(endpoint, self._holder), expected=before)
                self._mine[key] = mine
                return mine.entry.incarnation
        raise DiscoveryError(f"instance {endpoint.instance!r} is registered by many; ask later")

    async def renew(self, endpoint: Endpoint, incarnation: int) -> None:
        """Extend a lease. Raises UnknownInstance, StaleIncarnation."""
        place = place_of(endpoint)
        await self._as_holder(
            endpoint,
            incarnation,
            lambda mine: self._bucket.arm(place, self.ttl_s, revision=mine.revision),
        )

    async def drain(self, endpoint: Endpoint, incarnation: int) -> None:
        """List it no more. Raises UnknownInstance, StaleIncarnation."""
        await self._as_holder(
            endpoint, incarnation, lambda mine: self._rewrite(mine, is_draining=True)
        )

    async def end(self, endpoint: Endpoint, incarnation: int) -> None:
        """Remove it. Raises UnknownInstance, StaleIncarnation."""
        await self._as_holder(endpoint, incarnation, self._bucket.empty)
        self._mine.pop(_key(endpoint), None)

    async def _as_holder(
        self, endpoint: Endpoint, incarnation: int, act: Callable[[Kept], Awaitable[None]]
    ) -> None:
        """Do what only the holder of an entry may, at the revision that it knows."""
        key, instance = _key(endpoint), endpoint.instance
        for _ in range(ATTEMPTS_MAX):
            mine = self._mine.get(key)
            if mine is None:
                raise UnknownInstance(instance)
            if mine.entry.incarnation != incarnation:
                current = mine.entry.incarnation
                raise StaleIncarnation(instance, held=incarnation, current=current)
            try:
                await act(mine)
                return
            except Conflict:
                _, found = await self._bucket.find(place_of(endpoint))
            judged = standing(mine.entry, found)
            if judged is Standing.OURS and found is not None:
                self._mine[key] = found
                continue
            self._mine.pop(key, None)
            if judged is Standing.REPLACED and found is not None:
                current = found.entry.incarnation
                raise StaleIncarnation(instance, held=incarnation, current=current)
            raise UnknownInstance(instance)
        raise DiscoveryError(f"the entry of {instance!r} changes all the time; ask later")

    async def _rewrite(self, kept: Kept, **changes: bool) -> None:
        """Change the state of an entry; its holder finds it under another revision."""
        entry = msgspec.structs.replace(kept.entry, **changes)
        rewritten = await self._bucket.write(entry, expected=kept.revision)
        if _key(entry.endpoint) in self._mine:
            self._mine[_key(entry.endpoint)] = rewritten

    def _check_credential(self, endpoint: Endpoint, credential: str) -> None:
        now_us = self._runtime.wall_us()
        shown = self._signer.verify(credential, audience=REGISTRY, now_us=now_us)
        if shown.service != endpoint.service:
            raise Unauthenticated(
                f"{shown.service!r} asks for a lease of {endpoint.service!r}; a service registers "
                "its own instances only"
            )

    # -- who supervises ------------------------------------------------------------------------

    def fix(self, *endpoints: Endpoint, is_stale: bool = False) -> None:
        """List endpoints of a service that nobody else registers, as of an external one.

        They are the only ones of their service until others are put in their place. `run` registers
        them for the other processes, for as long as it runs, unless another process has.
        """
        ordered = sorted(endpoints, key=lambda each: each.instance)
        self._fixed[endpoints[0].service] = Resolved(tuple(ordered), is_stale)
        self._refixed.set()
        self._note_change()

    def evict(self, service: str, is_dead: Callable[[Endpoint], bool]) -> int:
        """End the leases of instances known to be dead (R6); return how many there were."""
        dead = [kept for kept in self._view.of(service) if is_dead(kept.entry.endpoint)]
        for kept in dead:
            instance = kept.entry.endpoint.instance
            self._view.gone(service, instance, is_expired=False, now=_now())
            self._soon(self._bucket.empty(kept))
        if dead:
            self._note_change()
        return len(dead)

    def suspect(
        self, service: str, is_meant: Callable[[Endpoint], bool], *, is_suspect: bool
    ) -> None:
        """Suspect instances of being hung, or clear them (R6); may be repeated."""
        for kept in self._view.of(service):
            if is_meant(kept.entry.endpoint) and kept.entry.is_suspect is not is_suspect:
                self._soon(self._rewrite(kept, is_suspect=is_suspect))

    def _soon(self, change: Coroutine[None, None, None]) -> None:
        async def doing() -> None:
            # Where it has changed meanwhile, whoever did that knows better.
            with suppress(Conflict, DiscoveryError):
                await change

        task = asyncio.ensure_future(doing())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- the watch -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the list fresh, and what is fixed registered. A supervised child.

        Raises:
            ConfigError: the registry there is another system's by now.
        """
        try:
            async with asyncio.TaskGroup() as loops:
                loops.create_task(self._keep_watch())
                loops.create_task(self._keep_fixed())
        except ExceptionGroup as errors:
            # What ended a loop; the supervisor shows its code, not the group's.
            raise errors.exceptions[0] from None

    async def _keep_fixed(self) -> None:
        """Register what is fixed, and renew it."""
        while True:
            fixed = {_key(e): e for each in self._fixed.values() for e in each.endpoints}
            for key, endpoint in fixed.items():
                with suppress(DiscoveryError):
                    await self._keep(key, endpoint)
            for key in self._announced - fixed.keys():
                self._announced.discard(key)
                if (mine := self._mine.pop(key, None)) is not None:
                    with suppress(Conflict, DiscoveryError):
                        await self._bucket.empty(mine)
            with suppress(TimeoutError):
                async with asyncio.timeout(self.ttl_s / 3):
                    await self._refixed.wait()
            self._refixed.clear()

    async def _keep(self, key: tuple[str, str], endpoint: Endpoint) -> None:
        mine = self._mine.get(key)
        if mine is not None and mine.entry.endpoint == endpoint:
            with suppress(StaleIncarnation, UnknownInstance):
                await self.renew(endpoint, mine.entry.incarnation)
                return
        theirs = (kept.entry for kept in self._view.of(endpoint.service))
        if any(_key(e.endpoint) == key and e.holder != self._holder for e in theirs):
            return  # another process has registered it
        self._announced.add(key)
        await self.grant(endpoint)

    async def _keep_watch(self) -> None:
        pause_s = PAUSE_S
        while True:
            self._broken.clear()
            try:
                async with self._bucket.watch() as watch:
                    await self._until_broken(self._follow(watch))
                    pause_s = PAUSE_S
            except DiscoveryError as error:
                _log.debug("the registry is asked again: %s", error)
                pause_s = min(PAUSE_MAX_S, 2 * pause_s)
            finally:
                if not self._view.is_blind:
                    self._view.lost(now=_now())
                    self._note_change()
            await asyncio.sleep(pause_s * (0.5 + 0.5 * self._runtime.rng.random()))

    async def _until_broken(self, following: Coroutine[None, None, None]) -> None:
        """Follow a watch until it is lost, or the connection is."""
        tasks = [asyncio.ensure_future(each) for each in (following, _set(self._broken))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(outcomes[0], Exception) and not isinstance(
            outcomes[0], WatchLost | TimeoutError
        ):
            raise outcomes[0]

    async def _follow(self, watch: NatsWatch) -> None:
        """Take over all that is there, then each change, until nothing is heard for too long.

        Raises:
            WatchLost, TimeoutError: it has not told everything.
        """
        view, found = self._view, []
        while watch.pending:
            told = await watch.next(FIRST_WITHIN_S)
            if told is not None and told.kept is not None:
                found.append(told.kept)
        view.told(found, now=_now())
        self._note_change()
        clock_s = _now() + CLOCK_EVERY_S
        while True:
            due_s = view.due_s()
            assert due_s is not None, "it is not blind"
            try:
                told = await watch.next(due_s - _now())
            except TimeoutError:
                if view.sweep(now=_now()):
                    self._note_change()
                if view.is_silent(now=_now()):
                    raise
                continue
            if not view.heard(now=_now()):
                raise WatchLost
            if told is None:
                if _now() > clock_s:
                    clock_s = _now() + CLOCK_EVERY_S
                    self._soon(self._bucket.read_clock())
                continue
            if told.kept is not None:
                view.put(told.kept)
            else:
                view.gone(told.service, told.instance, is_expired=told.is_expired, now=_now())
            self._note_change()

    def _note_change(self) -> None:
        self._revision += 1
        self.lists.clear()
        self._changed.set()
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<NatsRegistry {self._bucket.name}: {self._view!r}>"


def _key(endpoint: Endpoint) -> tuple[str, str]:
    return endpoint.service, endpoint.instance


async def _set(event: asyncio.Event) -> None:
    await event.wait()


def _now() -> float:
    return loop_now()
