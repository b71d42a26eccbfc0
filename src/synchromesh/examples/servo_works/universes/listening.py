"""What is heard of a universe while it lasts: what is repeated, forgotten, or goes wrong."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from synchromesh.calls import Caller
from synchromesh.calls.sending import Sending
from synchromesh.errors import StoreBroken, StoreFull, StoreUnavailable
from synchromesh.events import removal
from synchromesh.events.removal import Reached
from synchromesh.http import HttpServer
from synchromesh.saga import forgetting as saga_forgetting
from synchromesh.saga.forgetting import ForgottenRuns
from synchromesh.service import forgetting
from synchromesh.store import InboxState, Once, Recorded, Unit, inbox
from synchromesh.telemetry import SqliteRing
from synchromesh.testing import World
from universes.invariants import Forgotten, ForgottenRecords
from universes.weather import NOTED_EVERY_S, SPANS_EVERY_S, UNWATCHED_S


@contextmanager
def counting_replays(count: Counter[str]) -> Iterator[None]:
    """Count how often an inbox answers what it has recorded, and that a key is undone."""
    recall = inbox.recall

    async def counted(unit: Unit, once: Once) -> Recorded | None:
        known = await recall(unit, once)
        if known is not None:
            count["inbox replay"] += 1
            count["tombstone hit"] += known.kind is InboxState.TOMBSTONE
        return known

    with mock.patch.object(inbox, "recall", counted):
        yield


@contextmanager
def noting_what_is_forgotten(
    forgotten: Forgotten, records: ForgottenRecords, too_early: Callable[[], None]
) -> Iterator[None]:
    """Note each event that a service removes from its log, and each record, for the audit.

    `too_early` is called before runs are forgotten, whatever their clocks say.
    """

    async def noted(unit: Unit, positions: Sequence[int]) -> int:
        events = forgotten.setdefault(unit.service, {})
        for at in positions:
            rows = await unit.execute("select id, name, body from sm_event where position = ?", at)
            for id_, name, body in rows:
                assert isinstance(body, bytes)
                events[str(id_)] = str(name), body
        return await removal.remove_each(unit, positions)

    async def noted_runs(
        unit: Unit, run_ids: list[str], *, reached: Reached, rows_max: int
    ) -> ForgottenRuns:
        if run_ids:
            too_early()
        for run_id in run_ids:
            sql = "select saga, seq, kind, step from sm_saga_record where saga = ?"
            for saga, seq, kind, step in await unit.execute(sql, run_id):
                records[str(saga), int(seq or 0)] = str(kind), str(step)
        return await saga_forgetting.forget_runs(unit, run_ids, reached=reached, rows_max=rows_max)

    with (
        mock.patch.object(forgetting, "remove_each", noted),
        mock.patch.object(forgetting, "forget_runs", noted_runs),
    ):
        yield


@contextmanager
def watching_often() -> Iterator[None]:
    """Have services note that they watch the time as often as they do in all, on another scale."""
    with (
        mock.patch.object(forgetting, "NOTED_EVERY_S", NOTED_EVERY_S),
        mock.patch.object(forgetting, "UNWATCHED_S", UNWATCHED_S),
    ):
        yield


@contextmanager
def keeping_spans_longer() -> Iterator[None]:
    """Have processes write their spans less often, which is a tenth of what a universe does."""
    defaults = SqliteRing.__init__.__kwdefaults__
    assert defaults is not None
    with mock.patch.dict(defaults, flush_s=SPANS_EVERY_S):
        yield


@contextmanager
def taking_the_slow_way(count: Counter[str]) -> Iterator[None]:
    """Have no call and no request take the fast way; count the calls."""
    make, run, defaults = Caller.__init__, Sending.run, HttpServer.__init__.__kwdefaults__
    assert defaults is not None

    def made(self: Caller, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        self.is_slow = True

    def counted(self: Sending, *args: Any) -> Any:
        count["call on the slow way"] += 1
        return run(self, *args)

    with (
        mock.patch.object(Caller, "__init__", made),
        mock.patch.object(Sending, "run", counted),
        mock.patch.dict(defaults, is_fast=False),
    ):
        yield


def told_of_disks(record: logging.LogRecord) -> bool:
    """Return whether it is what a service says, and has to, of a disk that fails or is full."""
    error = record.exc_info[1] if record.exc_info else None
    is_closed = record.name == "synchromesh.store" and record.levelno == logging.CRITICAL
    return is_closed or isinstance(error, StoreFull | StoreUnavailable | StoreBroken)


def told_of_releases(record: logging.LogRecord) -> bool:
    """Return whether a service says that a run waits for the code that it began with."""
    return record.getMessage().startswith("saga ") and " waits: " in record.getMessage()


TOLD = {"disks": told_of_disks, "releases": told_of_releases}


class _Ear(logging.Handler):
    def __init__(self, heard: list[str], world: World) -> None:
        super().__init__(logging.ERROR)
        self._heard, self._world = heard, world

    def emit(self, record: logging.LogRecord) -> None:
        if self._world.loop.is_closed():
            return  # the coroutines that are left are thrown away, and complain
        error = record.exc_info[1] if record.exc_info else None
        self._heard.append(f"logged: {record.getMessage()}" + (f": {error!r}" if error else ""))


@contextmanager
def collecting_errors(
    heard: list[str],
    world: World,
    known: Sequence[Callable[[logging.LogRecord], bool]] = (),
) -> Iterator[None]:
    """Collect what the services log as errors, which no universe may have but those known."""
    log, ear = logging.getLogger("synchromesh"), _Ear(heard, world)

    def is_unknown(record: logging.LogRecord) -> bool:
        told = [each.__name__ for each in known if each(record)]
        world.count.update(told)
        return not told

    ear.addFilter(is_unknown)
    level, was_propagating = log.level, log.propagate
    log.addHandler(ear)
    log.setLevel(logging.ERROR)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(ear)
        log.setLevel(level)
        log.propagate = was_propagating
