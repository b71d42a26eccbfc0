"""Forgets what a service has kept long enough: ended sagas, and public events that nobody needs.

A round goes through it in small units, with pauses, so that other writers never wait long. Where
there is an archive, what goes is on its disk first. Time that nobody watched does not count: a wall
clock that jumps, by days after a flat battery, forgets nothing that is not old.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from synchromesh.errors import Shed, StoreError
from synchromesh.events.removal import old_public, reached_by_all, remove_each
from synchromesh.saga.deps import Clock
from synchromesh.saga.forgetting import ForgottenRuns, archive_lines, ended_runs, forget_runs
from synchromesh.store import Store, Unit
from synchromesh.store.archive import Archive
from synchromesh.store.health import (
    note_retention,
    note_size,
    retained,
    unwatched_us,
)

DAY_S = 86_400.0
SAGAS = "sagas"
EVENTS = "events/"
# Longer than this without a size noted, and nobody has watched the time.
UNWATCHED_S = 2 * DAY_S
RUNS_A_UNIT = 50
# A commit is a flush of the disk: what is no news is noted this often.
NOTED_EVERY_S = 6 * 3600.0

_log = logging.getLogger("synchromesh.service")


@dataclass(frozen=True, slots=True)
class Retention:
    """After which time a service forgets what it keeps.

    Attributes:
        sagas_s: runs that ended, with their records and milestones; None keeps them for ever.
        events_s: public events, by stored name, once all relays and projections have passed them;
            those that are not named are kept for ever.
        every_s: how often a round is made.
        rows_max: rows that one unit deletes, or looks at.
        pause_s: how long other writers have between two units.

    Example:
        >>> Retention(events_s={"orders.order_placed": 90 * DAY_S}).sagas_s
        2592000.0
    """

    sagas_s: float | None = 30 * DAY_S
    events_s: Mapping[str, float] = field(default_factory=dict)
    every_s: float = 60.0
    rows_max: int = 500
    pause_s: float = 0.05

    def of(self, published: Collection[str]) -> Retention:
        """Return what of it is a service's that publishes these events."""
        return replace(
            self, events_s={n: each for n, each in self.events_s.items() if n in published}
        )


class Forgetting:
    """Makes the rounds of one service; `run` is a supervised child.

    Args:
        archive: gets what is deleted, before it is; None where nobody wants it.
    """

    def __init__(
        self, store: Store, retention: Retention, clock: Clock, archive: Archive | None = None
    ) -> None:
        self._store = store
        self._retention = retention
        self._clock = clock
        self._archive = archive
        self._unwatched_us: int | None = None
        self._noted_us: dict[str, int] = {}

    async def run(self) -> None:
        """Make a round now and then until cancelled; what the database or disk refuses waits."""
        while True:
            await asyncio.sleep(self._retention.every_s)
            try:
                await self.sweep()
            except (StoreError, Shed, OSError) as error:
                _log.warning("%s forgets nothing for now: %s", self._store.service, error)

    async def sweep(self) -> None:
        """Make one round: forget all that is due.

        Raises:
            StoreError, Shed: the database refused.
            OSError: the archive cannot be written; what was to go there is not deleted.
        """
        now_us = await self._watched_us()
        if self._retention.sagas_s is not None:
            await self._forget_sagas(now_us, self._retention.sagas_s)
        for name in self._retention.events_s:
            await self._forget_events(now_us, name)

    async def _watched_us(self) -> int:
        """Return the time by which ages are told: the wall clock's without what nobody watched."""
        now_us = self._clock.now_us()
        if self._unwatched_us is None:
            self._unwatched_us = await self._store.write(
                lambda unit: unwatched_us(unit, now_us, longest_us=int(UNWATCHED_S * 1e6)),
                name="look at the clock",
            )
        if self._is_due("", now_us):
            await note_size(self._store, now_us)
        return now_us - self._unwatched_us

    async def _forget_sagas(self, now_us: int, keep_s: float) -> None:
        limit, archived = self._retention.rows_max, set[str]()
        while True:
            run_ids = await ended_runs(
                self._store, before_us=now_us - int(keep_s * 1e6), limit=RUNS_A_UNIT
            )
            if not run_ids and not self._is_due(SAGAS, now_us):
                return
            if self._archive is not None and run_ids:
                fresh = [each for each in run_ids if each not in archived]
                lines = [line for each in fresh for line in await archive_lines(self._store, each)]
                await self._archive.write(SAGAS, now_us, lines)
                archived.update(fresh)

            async def body(unit: Unit, ids: list[str] = run_ids) -> ForgottenRuns:
                reached = await reached_by_all(unit, is_public=False)
                done = await forget_runs(unit, ids, reached=reached, rows_max=limit)
                await note_retention(
                    unit, SAGAS, keep_s=keep_s, cursor=0, removed=done.runs, held_by=done.held_by,
                    now_us=now_us,
                )  # fmt: skip
                return done

            done = await self._store.write(body, name="forget sagas")
            if not done.rows or (len(run_ids) < RUNS_A_UNIT and done.runs == len(run_ids)):
                return
            await asyncio.sleep(self._retention.pause_s)

    async def _forget_events(self, now_us: int, name: str) -> None:
        what, keep_s = f"{EVENTS}{name}", self._retention.events_s[name]
        before = await retained(self._store, what)
        cursor = before.cursor if before is not None else 0
        while True:
            window = await old_public(
                self._store, name, after=cursor, before_us=now_us - int(keep_s * 1e6),
                limit=self._retention.rows_max,
            )  # fmt: skip
            if window.cursor == cursor and not self._is_due(what, now_us):
                return
            if self._archive is not None and window.lines:
                await self._archive.write(what.replace("/", "-"), now_us, window.lines)

            async def body(unit: Unit) -> tuple[int, bool]:
                reached = await reached_by_all(unit, is_public=True)
                is_held = reached.position < window.cursor  # noqa: B023
                upto = min(reached.position, window.cursor)  # noqa: B023
                gone = [at for at in window.positions if at <= upto]  # noqa: B023
                removed = await remove_each(unit, gone)
                await note_retention(
                    unit, what, keep_s=keep_s, cursor=max(upto, cursor), removed=removed,  # noqa: B023
                    held_by=reached.by if is_held else "", now_us=now_us,
                )  # fmt: skip
                return max(upto, cursor), is_held  # noqa: B023

            cursor, is_held = await self._store.write(body, name=f"forget {name}")
            if window.is_last or is_held:
                return
            await asyncio.sleep(self._retention.pause_s)

    def _is_due(self, what: str, now_us: int) -> bool:
        """Return whether it is time to note something again although it is no news."""
        if now_us < self._noted_us.get(what, 0) + int(NOTED_EVERY_S * 1e6):
            return False
        self._noted_us[what] = now_us
        return True

    def __repr__(self) -> str:
        return f"<Forgetting of {self._store.service}>"
