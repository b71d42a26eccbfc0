"""What a store is on every engine: units with their spans, what they need before, listeners."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

from synchromesh.clock import loop_clock
from synchromesh.context import new_span_id
from synchromesh.errors import StoreBroken, StoreFull
from synchromesh.store.guard import in_unit, refuse_in_unit
from synchromesh.store.owners import SOLE
from synchromesh.store.unit import Once, Owners, Recorded, Store, Unit, Unprepared
from synchromesh.telemetry import Histogram, Record, SpanContext, Tracer, current_span, outcome_of

T = TypeVar("T")

# Bounds by which the sizes of groups are counted, in units.
GROUP_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)

# Units have a few dozen names; whoever makes new ones up makes no leak.
_RECORDERS_MAX = 1024
# How often a unit may ask for work before it.
_PREPARED_MAX = 32

_log = logging.getLogger("synchromesh.store")


class PoolPlaces(NamedTuple):
    """A bounded number of connections: how many are at work, of how many, and who waits for one.

    `waiting` is 0 where that is counted elsewhere.
    """

    busy: int
    places: int
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class StoreLoad:
    """What a store has committed since it was opened, and how many units wait or run.

    Attributes:
        sizes: counts its commits by how many units of work each was of.
        places: its connections to a server, by what they are for; none where it has a file.
    """

    waiting: int
    sizes: Histogram
    places: Mapping[str, PoolPlaces] = field(default_factory=dict)

    @property
    def commits(self) -> int:
        """How many commits there were."""
        return sum(self.sizes.counts)


class UnitStore:
    """The part of a `Store` that is no engine's; `_submit` and `load` are the engine's.

    Args:
        place: where the database is.

    Attributes:
        place: where the database is.
        service: the service that owns the database.
        load: returns what was committed, and what waits for it.
        owners: which duties are this process's.
        full: when a unit was refused last for want of room, on the loop's clock, and why.
    """

    full: tuple[float, str] | None = None
    load: Callable[[], StoreLoad]
    owners: Owners = SOLE

    def __init__(self, place: str, service: str, tracer: Tracer | None) -> None:
        self.place = place
        self.service = service
        self._tracer = tracer
        self._recorders: dict[str, Record] = {}
        self._time = loop_clock(asyncio.get_running_loop())
        self._listeners: dict[str, list[Callable[[], None]]] = {}
        self._preparing = asyncio.Lock()
        self._submit: Callable[
            [Callable[[Unit], Awaitable[object]], Once | None, str], Awaitable[Any]
        ]

    async def write(self, body: Callable[[Unit], Awaitable[T]], *, name: str) -> T:
        """Run a unit of work and return its result once it is durable.

        Raises:
            ForeignAwait: the body awaited something else than the unit, or is in a unit itself.
            UnitTooLong: it outlived the limit.
            Shed: too many units wait; this one was not run.
            StoreError: the engine refused; nothing of the unit was written.
        """
        if in_unit.get() is not None:
            refuse_in_unit(f"the unit {name!r} within itself")
        around = current_span.get()
        for _ in range(_PREPARED_MAX):
            try:
                if self._tracer is None or around is None:
                    # Work that belongs to no trace, such as sweeping.
                    written: T = await self._submit(body, None, name)
                else:
                    written = await self._traced(self._tracer, around, body, None, name)
            except Unprepared as needs:
                await self._prepare(needs)
            except StoreFull as error:
                self.full = self._time(), error.message
                raise
            else:
                return written
        raise self._never_prepared(name)

    async def write_once(
        self, body: Callable[[Unit], Awaitable[bytes]], once: Once, *, name: str
    ) -> Recorded:
        """Run an idempotent unit: record its answer in its commit, or return the earlier record.

        Raises:
            KeyReused: the key is recorded with another digest.
            ForeignAwait, UnitTooLong, Shed, StoreError: as `write` does.
        """
        if in_unit.get() is not None:
            refuse_in_unit(f"the unit {name!r} within itself")
        around = current_span.get()
        for _ in range(_PREPARED_MAX):
            try:
                if self._tracer is None or around is None:
                    recorded: Recorded = await self._submit(body, once, name)
                else:
                    recorded = await self._traced(self._tracer, around, body, once, name)
            except Unprepared as needs:
                await self._prepare(needs)
            except StoreFull as error:
                self.full = self._time(), error.message
                raise
            else:
                return recorded
        raise self._never_prepared(name)

    def listen(self, topic: str, listener: Callable[[], None]) -> Callable[[], None]:
        """Subscribe to commits that notify a topic: `listener` runs on the loop; returns `stop`."""
        listeners = self._listeners.setdefault(topic, [])
        listeners.append(listener)

        def stop() -> None:
            if listener in listeners:
                listeners.remove(listener)

        return stop

    async def _traced(
        self,
        tracer: Tracer,
        around: SpanContext,
        body: Callable[[Unit], Awaitable[object]],
        once: Once | None,
        name: str,
    ) -> Any:
        """Run a unit and record its span, which is never the current one."""
        began_s = self._time()
        status, noted = "ok", None
        try:
            return await self._submit(body, once, name)
        except BaseException as error:
            status, noted = outcome_of(error)
            raise
        finally:
            record = self._recorders.get(name) or self._recorder(tracer, name)
            span_id = new_span_id(tracer.rng)
            ended_s, flags = self._time(), around.marks.flags
            record(around.trace_id, span_id, around.span_id, began_s, ended_s, status, noted, flags)

    async def _prepare(self, needs: Unprepared) -> None:
        """Do what a unit needs before it; one at a time, so that no two do the same."""
        async with self._preparing:
            await needs.prepare(cast("Store", self))

    def _never_prepared(self, name: str) -> StoreBroken:
        return StoreBroken(
            f"{self.place}: unit {name!r} asked {_PREPARED_MAX} times for work before it, and was "
            "not run; let it touch fewer long streams, or ask again"
        )

    def _recorder(self, tracer: Tracer, name: str) -> Record:
        if len(self._recorders) >= _RECORDERS_MAX:
            self._recorders.clear()
        made = self._recorders[name] = tracer.recorder("unit", name)
        return made

    def _notify(self, topic: str) -> None:
        for listener in tuple(self._listeners.get(topic, ())):
            try:
                listener()
            except Exception:  # noqa: BLE001 - a listener's fault is not the unit's
                _log.exception("a listener of %r raised; the others are still notified", topic)
