"""Projections: tables made from events, each batch in one commit with its checkpoint (E5)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from synchromesh.clock import loop_clock, loop_now
from synchromesh.errors import (
    BadRequest,
    ContractError,
    EventTooNew,
    Fenced,
    LogGap,
    LogReplaced,
    ProjectionBehind,
    Shed,
    StoreBroken,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
    StoreUnavailable,
)
from synchromesh.events import generations
from synchromesh.events.appending import TOPIC
from synchromesh.events.generation_tables import GenerationTables
from synchromesh.events.generations import Generation, Parked
from synchromesh.events.log import (
    Checkpoint,
    StoredEvent,
    following,
    head,
    read,
    save_checkpoint,
)
from synchromesh.events.poison import EventAttempts, ProjectionOptions
from synchromesh.events.subscription import Wakeup
from synchromesh.store import NO_FENCE, Fence, Store, Unit

# Faults of the file: no event is the reason, and they may pass.
_THE_FILES = (StoreFull, StoreLocked, StoreReadOnly, StoreBroken, Shed)
_ERROR_CHARS_MAX = 500
_RETRY_WITHIN_S = 5.0
# How often it is looked how far another process has come.
_LOOK_EVERY_S = 0.05

_log = logging.getLogger("synchromesh.events")


@dataclass(frozen=True, slots=True)
class Projection:
    """A read model made from events; `apply` writes through the unit, and may be re-run.

    Attributes:
        version: raised with its tables; versions of one name are built side by side.
        tables: its own, by which it can be rebuilt; `apply` names them as they are declared.

    Example:
        >>> async def count(unit: Unit, event: StoredEvent) -> None:
        ...     await unit.execute("update total set n = n + 1")
        >>> totals = Projection("totals", count)
    """

    name: str
    apply: Callable[[Unit, StoredEvent], Awaitable[None]]
    version: int = 1
    tables: GenerationTables = field(default_factory=lambda: GenerationTables("", ()))


class ProjectionRunner:
    """Run the generations of one projection over a service's log; each event takes effect once.

    Args:
        versions: the definitions of the projection, of which the newest makes new generations.

    Example:
        >>> async def count(unit: Unit, event: StoredEvent) -> None:
        ...     await unit.execute("update total set n = n + 1")
        >>> def runner(store: Store) -> ProjectionRunner:
        ...     return ProjectionRunner(store, [Projection("totals", count)])
    """

    def __init__(
        self,
        store: Store,
        versions: Sequence[Projection],
        options: ProjectionOptions | None = None,
    ) -> None:
        self._store = store
        self.name = versions[0].name
        self._versions: Mapping[int, Projection] = {each.version: each for each in versions}
        self._tables = {each.version: each.tables for each in versions}
        self._options = options or ProjectionOptions()
        self._attempts: dict[tuple[int, int], EventAttempts] = {}
        # By generation, how often a person had asked for another try when the last one was made.
        self._tried: dict[tuple[int, int], int] = {}
        self._fence: Fence | None = None
        self._live: Generation | None = None
        self._moved = asyncio.Event()
        self._lag = 0

    @property
    def lag(self) -> int:
        """The number of positions that the live one was behind the log when it last read."""
        return self._lag

    @property
    def checkpoint_name(self) -> str:
        """The name under which the checkpoint of its first generation is saved."""
        return generations.checkpoint_of(self.name)

    async def prepare(self) -> None:
        """Make the tables of what is new in this release. Idempotent.

        Raises:
            ContractError: its tables have changed, and its version has not.
        """
        await self._store.write(
            lambda unit: generations.prepare(unit, self.name, self._tables),
            name=f"prepare projection {self.name}",
        )

    async def run(self) -> None:
        """Apply events until cancelled. A supervised child.

        An event that fails `attempts_max` times parks its generation alone, which is tried again
        when this is run again, and when a person asks for it.

        Raises:
            StoreError: the database cannot be used.
            Fenced: another process keeps the projection up to date now.
        """
        await self.prepare()
        self._fence = self._store.owners.fence((self.checkpoint_name,))
        self._attempts.clear()
        self._tried.clear()
        topics = (TOPIC, generations.TOPIC)
        wakeup = Wakeup(self._store, poll_s=self._options.poll_s, topics=topics)
        try:
            while True:
                wakeup.clear()
                if not await self._turn():
                    await wakeup.wait(until_s=self._due_s())
        finally:
            wakeup.close()
            self._fence = None
            self._moved.set()

    async def wait_for(self, position: int) -> None:
        """Return once the live generation has passed a position.

        Raises:
            ProjectionBehind: it is parked before it.
        """
        while self._live is None or self._live.position < position:
            if self._fence is None:
                # Another process runs it.
                found = await generations.list_generations(self._store, self.name)
                self._see(found[0], await head(self._store))
            live, moved = self._live, self._moved
            if live is not None and live.parked is not None:
                raise ProjectionBehind(
                    f"projection {self.name!r} is parked at {live.parked.where} and has not come "
                    f"to position {position}: {live.parked.error}"
                )
            if self._fence is not None:
                await moved.wait()
            elif live is None or live.position < position:
                await asyncio.sleep(_LOOK_EVERY_S)

    async def rebuild(
        self, *, by: Mapping[str, str], takes_skipped: bool = False, is_lossy: bool = False
    ) -> Generation:
        """Make a new standby, which is built beside the live one, as `generations.rebuild` says."""
        return await self._store.write(
            lambda unit: generations.rebuild(
                unit, self.name, self._tables, by=by, takes_skipped=takes_skipped, is_lossy=is_lossy
            ),
            name=f"rebuild projection {self.name}",
        )

    async def retry(self, *, by: Mapping[str, str], number: int = 0) -> Parked | None:
        """Have a parked event tried once more; return what it is parked at then, None for nothing.

        Raises:
            BadRequest: no generation is parked.
        """
        await self._store.write(
            lambda unit: generations.retry(unit, self.name, number=number, by=by),
            name=f"retry projection {self.name}",
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RETRY_WITHIN_S):
                while await self._is_to_try():
                    await self._moved.wait()
        found = await generations.list_generations(self._store, self.name)
        return next((each.parked for each in found if each.parked is not None), None)

    async def _is_to_try(self) -> bool:
        found = await generations.list_generations(self._store, self.name)
        return any(
            each.parked is not None and self._tried.get(each.key) != each.retries for each in found
        )

    async def skip(self, *, by: Mapping[str, str], number: int = 0, at: int = 0) -> Parked:
        """Leave out the event that a generation is parked at, as `generations.skip` says."""
        return await self._store.write(
            lambda unit: generations.skip(unit, self.name, number=number, at=at, by=by),
            name=f"skip in projection {self.name}",
        )

    async def drop(self, *, by: Mapping[str, str]) -> Generation:
        """Drop the standby, as `generations.drop` says."""
        return await self._store.write(
            lambda unit: generations.drop(unit, self.name, by=by),
            name=f"drop a standby of projection {self.name}",
        )

    async def switch(self, *, by: Mapping[str, str]) -> Generation:
        """Make the standby live, in one commit with the last events that it had not taken yet.

        Raises:
            BadRequest: there is no standby, it is parked, or more than a batch behind.
        """

        async def body(unit: Unit) -> Generation:
            found = await generations.list_generations(unit, self.name)
            for each in found[1:]:
                await self._catch_up(unit, each)
            return await generations.switch(unit, self.name, by=by)

        return await self._store.write(body, name=f"switch projection {self.name}")

    async def _catch_up(self, unit: Unit, standby: Generation) -> None:
        limit = self._options.batch_max
        batch = await following(unit, standby.position, limit + 1)
        if not batch or standby.parked is not None:
            return
        if standby.version not in self._versions:
            raise BadRequest(
                f"generation {standby.number} of projection {self.name!r} waits for code of "
                f"version {standby.version}, and is behind; it is not made live as it is"
            )
        if len(batch) > limit:
            raise BadRequest(
                f"generation {standby.number} of projection {self.name!r} is at position "
                f"{standby.position}, more than {limit} events behind; wait until it has caught up"
            )
        try:
            await self._apply_in(unit, standby, batch)
        except (StoreUnavailable, *_THE_FILES):
            raise
        except Exception as error:
            raise BadRequest(
                f"generation {standby.number} of projection {self.name!r} cannot take the events "
                f"that it lacks, from position {standby.position + 1} on: {_told(error)}"
            ) from error

    def __repr__(self) -> str:
        return f"<ProjectionRunner {self.name} lag {self._lag}>"

    async def _turn(self) -> bool:
        """Let each generation take a batch; False where none had one."""
        # Read anew each time: a person may have made another one.
        found = await generations.list_generations(self._store, self.name)
        keys = {each.key for each in found}
        self._attempts = {key: each for key, each in self._attempts.items() if key in keys}
        end = await head(self._store)
        self._see(found[0], end)
        is_busy = False
        now = loop_now()
        for each in found:
            if each.is_waiting or now < self._attempts_of(each).due_s:
                continue
            if each.parked is not None and self._tried.get(each.key) == each.retries:
                continue
            is_busy = await self._advance(each) or is_busy
        if not is_busy and found[0].is_waiting:
            await self._replace(found, end)
        return is_busy

    def _see(self, live: Generation, end: Checkpoint) -> None:
        self._live = live
        self._lag = max(0, end.position - live.position)
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def _replace(self, found: list[Generation], end: Checkpoint) -> None:
        """Make a standby live that has caught up, where nothing keeps the live one up to date."""
        for each in found[1:]:
            if each.position == end.position and each.parked is None and not each.is_waiting:
                why = f"no code of version {found[0].version} is here, and this one has caught up"
                try:
                    await self.switch(by={"who": "synchromesh", "why": why})
                except BadRequest:
                    return  # events have come meanwhile, or one that it cannot take: its own turn
                except ContractError as error:
                    await self._park(each, None, error)

    async def _advance(self, generation: Generation) -> bool:
        """Apply the next batch of a generation; False where there is none."""
        attempts = self._attempts_of(generation)
        limit = 1 if generation.parked is not None else attempts.limit
        after = Checkpoint(generation.log_id, generation.position)
        try:
            batch = await read(self._store, after=after, limit=limit)
        except (LogGap, LogReplaced) as error:
            await self._park(generation, None, error)
            return False
        if not batch:
            attempts.succeeded()
            return False
        now = loop_clock(asyncio.get_running_loop())
        try:
            await self._apply(generation, batch)
        except (StoreUnavailable, Fenced):
            raise  # no event is the reason, and it is run again once the file is open
        except _THE_FILES as error:
            attempts.faulted(now=now())
            _log.warning("projection %r waits for its database: %s", self.name, error.message)
        except Exception as error:  # noqa: BLE001 - whatever a user's function raises
            # One that is parked is tried once; a newer release's event needs no second try at all.
            is_known = generation.parked is not None or isinstance(error, EventTooNew)
            is_poison = attempts.failed(len(batch), now=now()) or (is_known and len(batch) == 1)
            if is_poison:
                await self._park(generation, batch[0], error)
            elif len(batch) == 1:
                self._tell(generation, batch[0], error)
        else:
            attempts.succeeded()
        return True

    async def _apply(self, generation: Generation, batch: Sequence[StoredEvent]) -> None:
        fence = self._fence or NO_FENCE

        async def body(unit: Unit) -> None:
            await fence.check(unit)
            found = await generations.list_generations(unit, self.name)
            now = next((each for each in found if each.key == generation.key), None)
            if now is None or now.position != generation.position:
                return  # it was dropped, or another runner has moved it meanwhile
            await self._apply_in(unit, now, batch)

        await self._store.write(body, name=f"projection {self.name}")

    async def _apply_in(
        self, unit: Unit, generation: Generation, batch: Sequence[StoredEvent]
    ) -> None:
        projection = self._versions[generation.version]
        last = batch[-1]
        skipped = await generations.skipped_of(unit, generation, batch[0].position, last.position)
        bound = projection.tables.bind(unit, generation.number)
        for event in batch:
            if event.position not in skipped:
                await projection.apply(bound, event)
        checkpoint = Checkpoint(generation.log_id, last.position)
        await save_checkpoint(unit, generation.checkpoint_name, checkpoint)
        if generation.parked is not None:
            await generations.free(unit, generation)

    async def _park(
        self, generation: Generation, event: StoredEvent | None, error: Exception
    ) -> None:
        """Let a generation stand still, with its reason, until something changes."""
        said = _told(error)

        def parked(unit: Unit) -> Parked:
            if event is None:
                return Parked(0, "", "", said, unit.now_us, is_poison=False)
            is_poison = not isinstance(error, EventTooNew)
            return Parked(event.position, event.id, event.name, said, unit.now_us, is_poison)

        await self._store.write(
            lambda unit: generations.park(unit, generation, parked(unit)),
            name=f"park projection {self.name}",
        )
        self._attempts.pop(generation.key, None)
        self._tried[generation.key] = generation.retries
        _log.error(
            "%s is parked: %s; the other projections go on",
            self._where(generation, event),
            said,
            exc_info=error,
        )

    def _tell(self, generation: Generation, event: StoredEvent, error: Exception) -> None:
        failures = self._attempts_of(generation).failures
        where = self._where(generation, event)
        _log.warning(
            "%s failed %d times: %s; it is tried again", where, failures, type(error).__name__
        )

    def _where(self, generation: Generation, event: StoredEvent | None) -> str:
        of = f"projection {self.name!r} (generation {generation.number})"
        if event is None:
            return of
        return (
            f"{of} at position {event.position} ({event.name} of {event.stream!r}, version "
            f"{event.version})"
        )

    def _attempts_of(self, generation: Generation) -> EventAttempts:
        found = self._attempts.get(generation.key)
        if found is None:
            found = self._attempts[generation.key] = EventAttempts(self._options)
        return found

    def _due_s(self) -> float | None:
        """When the next attempt is due, in the loop's time; None where none is waited for."""
        return min((each.due_s for each in self._attempts.values() if each.due_s), default=None)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_ERROR_CHARS_MAX]
