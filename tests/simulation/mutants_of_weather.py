"""Planted bugs that show only in universes where more happens than storms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simulation.mutant import Mutant
from synchromesh.errors import StoreFull
from synchromesh.events.removal import Reached
from synchromesh.messaging.message import Receipt
from synchromesh.saga.forgetting import ForgottenRuns

# -- disks that fail, or are full ----------------------------------------------------------------


def _refused_is_done(abandon: Any) -> Any:
    def mutated(self: Any, jobs: Any, error: Exception) -> Any:
        again = abandon(self, jobs, error)
        for job in jobs:
            job.error = None if isinstance(job.error, StoreFull) else job.error
        return again

    return mutated


def _full_is_poison(take_once: Any) -> Any:
    async def mutated(self: Any, source: str, message: Any, act: Any) -> Any:
        try:
            return await take_once(self, source, message, act)
        except StoreFull as error:
            raise RuntimeError("the handler failed") from error

    return mutated


def _doubt_is_done(_: Any) -> Any:
    def mutated(self: Any, jobs: Any, mark: int, error: Exception) -> bool:
        if self._connection.in_transaction:
            self._connection.execute("rollback")
        return True

    return mutated


def _held_in_doubt_is_done(release: Any) -> Any:
    def mutated(self: Any, mark: int) -> Any:
        doubtful = list(self._doubtful)
        held, missing = release(self, mark)
        return held, [job for job in missing if job not in doubtful]

    return mutated


# -- two releases --------------------------------------------------------------------------------


def _unknown_is_ignored(handle: Any) -> Any:
    async def mutated(self: Any, unit: Any, source: str, message: Any) -> Any:
        if message.name not in self._handlers:
            return Receipt("ignored")
        return await handle(self, unit, source, message)

    return mutated


def _newest_fits(_: Any) -> Any:
    def mutated(self: Any, name: str, version: int) -> Any:
        return [self[name]]

    return mutated


# -- events that are removed ---------------------------------------------------------------------


def _all_have_passed(_: Any) -> Any:
    async def mutated(unit: Any, *, is_public: bool) -> Reached:
        return Reached(2**62, "")

    return mutated


def _holes_are_not_recorded(_: Any) -> Any:
    async def mutated(unit: Any, first: int, last: int) -> None:
        return None

    return mutated


# -- runs that are forgotten ---------------------------------------------------------------------


def _records_stay(_: Any) -> Any:
    async def mutated(unit: Any, run_ids: Any, *, reached: Any, rows_max: int) -> ForgottenRuns:
        for run_id in run_ids:
            await unit.execute("delete from sm_saga where id = ?", run_id)
        return ForgottenRuns(len(run_ids), len(run_ids))

    return mutated


def _counted_for_ever(count_ended: Any) -> Any:
    async def mutated(unit: Any, by_status: Any) -> None:
        await count_ended(unit, {status: max(0, by) for status, by in by_status.items()})

    return mutated


def _a_jump_is_time(_: Any) -> Any:
    async def mutated(unit: Any, now_us: int, *, longest_us: int) -> int:
        return 0

    return mutated


# -- an owner that is away for long --------------------------------------------------------------


def _nothing_is_forgotten(_: Any) -> Any:
    def mutated(self: Any, key: str, step: Any, now_us: int) -> str:
        return ""

    return mutated


def _messages_are_forgotten_in_time(_: Any) -> Any:
    def mutated(self: Any, source: str, key: str, answer: bytes) -> bool:
        return False

    return mutated


# -- messages that are set aside -----------------------------------------------------------------


def _held_for_ever(_: Any) -> Any:
    async def mutated(self: Any) -> None:
        return None

    return mutated


def _freed_and_kept(_: Any) -> Any:
    async def mutated(unit: Any, letter: Any) -> bool:
        return True

    return mutated


def _nothing_is_in_the_way(_: Any) -> Any:
    async def mutated(unit: Any, lane: Any) -> bool:
        return False

    return mutated


def _refused_is_over(_: Any) -> Any:
    async def mutated(self: Any, message: Any, state: Any, cause: Any) -> bool:
        return True

    return mutated


MUTANTS_OF_WEATHER: Sequence[Mutant] = (
    Mutant(
        "a commit that a full disk refused is told done",
        "synchromesh.store.writer.Writer._abandon",
        _refused_is_done,
        weather="disks",
    ),
    Mutant(
        "a full disk is taken for a poison message",
        "synchromesh.messaging.consumer.Consumer._take_once",
        _full_is_poison,
        weather="disks",
    ),
    Mutant(
        "a commit that failed is told done",
        "synchromesh.store.writer.Writer._is_durable",
        _doubt_is_done,
        weather="disks",
    ),
    Mutant(
        "a commit in doubt is told done once the file is back",
        "synchromesh.store.jobs.HeldUnits.release",
        _held_in_doubt_is_done,
        weather="disks",
    ),
    Mutant(
        "the records of a run stay when it is forgotten",
        "synchromesh.saga.forgetting.forget_runs",
        _records_stay,
        weather="forgetting",
    ),
    Mutant(
        "runs that are forgotten are still counted",
        "synchromesh.saga.tables.count_ended",
        _counted_for_ever,
        weather="forgetting",
    ),
    Mutant(
        "a clock that jumps makes runs old",
        "synchromesh.service.forgetting.unwatched_us",
        _a_jump_is_time,
        weather="forgetting jumps",
    ),
    Mutant(
        "an event of a newer release is passed over",
        "synchromesh.messaging.consumer.Consumer._handle",
        _unknown_is_ignored,
        weather="releases",
    ),
    Mutant(
        "a run goes on with the newest code, whatever it began with",
        "synchromesh.saga.versions.SagaVersions.fitting",
        _newest_fits,
        weather="releases",
    ),
    Mutant(
        "events are removed that a relay has not passed",
        "synchromesh.service.forgetting.reached_by_all",
        _all_have_passed,
        weather="forgetting",
    ),
    Mutant(
        "a removal leaves a hole that is not recorded",
        "synchromesh.events.removal._record",
        _holes_are_not_recorded,
        weather="forgetting",
    ),
    Mutant(
        "a step is asked for under a key that is forgotten",
        "synchromesh.saga.machine.SagaMachine._forgotten",
        _nothing_is_forgotten,
        weather="absence",
    ),
    Mutant(
        "messages are forgotten while they may come again",
        "synchromesh.messaging.consumer.Consumer.is_needed",
        _messages_are_forgotten_in_time,
        weather="absence",
    ),
    Mutant(
        "what was held stays so under a release that could take it",
        "synchromesh.messaging.consumer.Consumer._free_held",
        _held_for_ever,
        weather="releases",
    ),
    Mutant(
        "what was held is handled and stays on the list",
        "synchromesh.messaging.dead_letters.remove",
        _freed_and_kept,
        weather="releases",
    ),
    Mutant(
        "later messages of a key overtake one that is held",
        "synchromesh.messaging.dead_letters.is_blocked",
        _nothing_is_in_the_way,
        test="tests/simulation/test_rolling_releases.py",
    ),
    Mutant(
        "a message that is refused is passed over",
        "synchromesh.messaging.relay.Relay._set_aside",
        _refused_is_over,
        test="tests/simulation/test_rolling_releases.py",
    ),
    Mutant(
        "later messages of a key overtake one that is refused",
        "synchromesh.messaging.dead_letters.has_letters",
        _nothing_is_in_the_way,
        test="tests/simulation/test_rolling_releases.py",
    ),
)
