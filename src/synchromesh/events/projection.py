"""Projections: tables made from events, each batch in one commit with its checkpoint (E5)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from synchromesh.events.log import (
    TOPIC,
    Checkpoint,
    StoredEvent,
    head,
    load_checkpoint,
    read,
    save_checkpoint,
    saved_checkpoint,
)
from synchromesh.events.subscription import Wakeup
from synchromesh.store import Store, Unit

_log = logging.getLogger("synchromesh.events")


@dataclass(frozen=True, slots=True)
class Projection:
    """A read model made from events; `apply` writes through the unit, and may be re-run."""

    name: str
    apply: Callable[[Unit, StoredEvent], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ProjectionOptions:
    """Settings of a projection: batch size, polling, retries of a failing event.

    Between attempts it waits `backoff_s`, doubled each time up to `backoff_max_s`.

    Example:
        >>> ProjectionOptions(batch_max=64).attempts_max
        5
    """

    batch_max: int = 256
    poll_s: float = 1.0
    attempts_max: int = 5
    backoff_s: float = 0.1
    backoff_max_s: float = 5.0


class ProjectionRunner:
    """Run one projection over a service's log; each event takes effect once.

    Example:
        >>> async def count(unit: Unit, event: StoredEvent) -> None:
        ...     await unit.execute("update total set n = n + 1")
        >>> totals = Projection("totals", count)
    """

    def __init__(
        self,
        store: Store,
        projection: Projection,
        options: ProjectionOptions = ProjectionOptions(),
    ) -> None:
        self._store = store
        self._projection = projection
        self._options = options
        self._lag = 0
        self._failures = 0
        self._careful = 0

    @property
    def lag(self) -> int:
        """The number of positions that the projection was behind the log when it last read."""
        return self._lag

    @property
    def checkpoint_name(self) -> str:
        """The name under which its checkpoint is saved."""
        return f"projection/{self._projection.name}"

    async def run(self) -> None:
        """Apply events until cancelled or until one fails for good. A supervised child.

        Raises:
            LogReplaced: the log was replaced: `rebuild` it.
            LogGap: the log has holes.
            Exception: `apply` failed on an event `attempts_max` times; a note names the event.
                Nothing is skipped: the next start tries it again.
        """
        self._failures = self._careful = 0
        wakeup = Wakeup(self._store, poll_s=self._options.poll_s)
        try:
            while True:
                wakeup.clear()
                if not await self._turn():
                    await wakeup.wait()
        finally:
            wakeup.close()

    async def rebuild(self, reset: Callable[[Unit], Awaitable[None]]) -> None:
        """Rebuild the projection: empty its tables by `reset`, replay the log from its beginning.

        Both are one commit. A runner that runs meanwhile goes on from there; `lag` tells how far it
        has come.
        """

        async def body(unit: Unit) -> None:
            await reset(unit)
            await save_checkpoint(unit, self.checkpoint_name, Checkpoint(self._store.log_id))
            unit.notify(TOPIC)

        await self._store.write(body, name=f"rebuild of projection {self._projection.name}")

    def __repr__(self) -> str:
        return f"<ProjectionRunner {self._projection.name} lag {self._lag}>"

    async def _turn(self) -> bool:
        """Apply the next batch; False where there is none."""
        # After a failure one at a time, so that the events before the failing one are done.
        limit = 1 if self._careful else self._options.batch_max
        # Read anew each time: a rebuild may have moved it.
        after = await load_checkpoint(self._store, self.checkpoint_name)
        batch = await read(self._store, after=after, limit=limit)
        self._lag = (await head(self._store)).position - after.position
        if not batch:
            return False
        try:
            await self._apply(after, batch)
        except Exception as error:  # noqa: BLE001 - whatever a user's function raises
            if len(batch) > 1:
                self._careful = len(batch)
            else:
                await self._failed(batch[0], error)
            return True
        self._failures = 0
        self._careful = max(0, self._careful - 1)
        self._lag -= batch[-1].position - after.position
        return True

    async def _apply(self, after: Checkpoint, batch: Sequence[StoredEvent]) -> None:
        beginning = Checkpoint(self._store.log_id)

        async def body(unit: Unit) -> None:
            saved = await saved_checkpoint(unit, self.checkpoint_name) or beginning
            if saved != after:
                return  # a rebuild, or another runner, has moved it meanwhile
            for event in batch:
                await self._projection.apply(unit, event)
            await save_checkpoint(unit, self.checkpoint_name, after.past(batch[-1]))

        await self._store.write(body, name=f"projection {self._projection.name}")

    async def _failed(self, event: StoredEvent, error: Exception) -> None:
        self._failures += 1
        where = (
            f"projection {self._projection.name!r} failed {self._failures} times at position "
            f"{event.position} ({event.name} of {event.stream!r}, version {event.version})"
        )
        if self._failures >= self._options.attempts_max:
            error.add_note(f"{where}; it stands still there: mend `apply`, then start it again")
            raise error
        _log.warning("%s: %s; it is tried again", where, type(error).__name__)
        doubled_s = self._options.backoff_s * 2.0 ** (self._failures - 1)
        await asyncio.sleep(min(doubled_s, self._options.backoff_max_s))
