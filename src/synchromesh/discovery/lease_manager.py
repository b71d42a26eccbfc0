"""The shell around `LeaseTable`: runs it on the loop's clock and notifies its watchers."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Self

from synchromesh.clock import loop_now
from synchromesh.discovery.endpoint import Endpoint, Resolved
from synchromesh.discovery.leases import Change, LeaseOptions, LeaseTable
from synchromesh.errors import DiscoveryError, WatchLagged


class Watch:
    """Iterates over the changes of one service in revision order, from its creation on.

    An async iterator; `close` it, or use it as a context manager, when done. It never ends by
    itself.

    Raises from iteration:
        WatchLagged: it fell too far behind; resolve the service and watch anew.
    """

    def __init__(self, manager: LeaseManager, backlog_max: int) -> None:
        self._manager = manager
        self._backlog_max = backlog_max
        self._backlog: deque[Change] = deque()
        self._has_lagged = False
        self._arrived = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        while not self._backlog:
            if self._has_lagged:
                raise WatchLagged(self._backlog_max)
            self._arrived.clear()
            await self._arrived.wait()
        return self._backlog.popleft()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unsubscribe. May be repeated."""
        self._manager.unwatch(self)

    def push(self, change: Change) -> None:
        """Queue a change; one too many drops the backlog and ends the watch."""
        if len(self._backlog) >= self._backlog_max:
            self._backlog.clear()
            self._has_lagged = True
            self.close()
        else:
            self._backlog.append(change)
        self._arrived.set()


class LeaseManager:
    """Runs the lease table of one service on the loop's clock, real or simulated.

    Attributes:
        quiet_until_s: until when time alone changes nothing: only these methods change the list.

    Args:
        options: how long leases run, and when their expiry is doubted.
        backlog_max: how many changes a watcher may be behind.
        watchers_max: how many may watch at once.
        due_moved: set whenever `due_s` may have moved to an earlier moment.
        on_change: called after every change; must not raise.
    """

    def __init__(
        self,
        options: LeaseOptions,
        *,
        backlog_max: int = 1024,
        watchers_max: int = 1024,
        due_moved: asyncio.Event | None = None,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self._table = LeaseTable(options)
        self._backlog_max = backlog_max
        self._watchers_max = watchers_max
        # A dict keeps the order in which they came: a seed must give the same run twice.
        self._watchers: dict[Watch, None] = {}
        self._due_moved = due_moved if due_moved is not None else asyncio.Event()
        self._listed = Resolved(())
        self.quiet_until_s = -math.inf
        self._on_change = on_change

    def register(self, endpoint: Endpoint) -> int:
        """Grant a lease and return its incarnation, which every renewal has to carry."""
        change = self._table.grant(endpoint, now=_now())
        self._notify([change])
        assert change.lease is not None
        return change.lease.incarnation

    def renew(self, instance: str, incarnation: int) -> None:
        """Extend the lease; raises what `LeaseTable.renew` raises."""
        was_stale = self._table.is_stale
        change = self._table.renew(instance, incarnation, now=_now())
        if change is not None:
            self._notify([change])
        elif was_stale:
            self.quiet_until_s = -math.inf
            self._due_moved.set()

    def drain(self, instance: str, incarnation: int) -> None:
        """Stop listing an instance; raises what `LeaseTable.drain` raises."""
        change = self._table.drain(instance, incarnation)
        if change is not None:
            self._notify([change])

    def end(self, instance: str, incarnation: int) -> None:
        """End the lease of an instance; raises what `LeaseTable.end` raises."""
        self._notify([self._table.end(instance, incarnation)])

    def evict(self, is_dead: Callable[[Endpoint], bool]) -> int:
        """End the leases of instances known to be dead; return how many there were."""
        dead = [lease for lease in self._table.leases if is_dead(lease.endpoint)]
        for lease in dead:
            self.end(lease.endpoint.instance, lease.incarnation)
        return len(dead)

    def suspect(self, is_meant: Callable[[Endpoint], bool], *, is_suspect: bool) -> None:
        """Suspect instances of being hung, or clear them."""
        for lease in self._table.leases:
            if is_meant(lease.endpoint):
                change = self._table.suspect(
                    lease.endpoint.instance, lease.incarnation, is_suspect=is_suspect
                )
                self._notify([] if change is None else [change])

    def resolve(self) -> Resolved:
        """Return the listed endpoints as of now, without those whose lease has expired unswept."""
        now = loop_now()
        if now >= self.quiet_until_s:
            self._notify(self._table.sweep(now=now))
            # Until then time alone changes nothing; whatever else does ends it, in `_notify`.
            due_s = self._table.due_s()
            self.quiet_until_s = math.inf if due_s is None else due_s
            self._listed = self._table.listed()
        return self._listed

    def sweep(self) -> None:
        """Remove expired leases and notify the watchers."""
        self._notify(self._table.sweep(now=_now()))

    def due_s(self) -> float | None:
        """Return when to sweep next, on the loop's clock."""
        return self._table.due_s()

    def watch(self) -> Watch:
        """Subscribe to all changes from now on.

        Raises:
            DiscoveryError: there are `watchers_max` watchers already.
        """
        if len(self._watchers) >= self._watchers_max:
            raise DiscoveryError(
                f"{len(self._watchers)} watchers listen and no more may; close some, or raise "
                "watchers_max"
            )
        watch = Watch(self, self._backlog_max)
        self._watchers[watch] = None
        return watch

    def unwatch(self, watch: Watch) -> None:
        """Unsubscribe a watch."""
        self._watchers.pop(watch, None)

    async def run(self) -> None:
        """Sweep whenever something is due. A supervised child: only cancellation ends it."""
        await sweep_when_due(self._due_moved, self.due_s, self.sweep)

    def __repr__(self) -> str:
        return f"<LeaseManager {self._table!r}, {len(self._watchers)} watchers>"

    def _notify(self, changes: list[Change]) -> None:
        if changes:
            self.quiet_until_s = -math.inf
        for change in changes:
            for watch in list(self._watchers):
                watch.push(change)
        if changes:
            self._due_moved.set()
            if self._on_change is not None:
                self._on_change()


async def sweep_when_due(
    due_moved: asyncio.Event, due_s: Callable[[], float | None], sweep: Callable[[], None]
) -> None:
    """Call `sweep` at each moment that `due_s` names; only cancellation ends it."""
    while True:
        due_moved.clear()
        is_due = False
        try:
            async with asyncio.timeout_at(due_s()):
                await due_moved.wait()
        except TimeoutError:
            is_due = True
        if is_due:
            sweep()


def _now() -> float:
    return loop_now()
