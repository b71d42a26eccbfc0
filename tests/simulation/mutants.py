"""Planted bugs: each replaces one named function of the product.

Tests that find nothing prove something only if they find these. Each is hunted where it is found
soonest: in universes, seed by seed, or by a test that is about it. Run as a program it hunts those
that are named, or all, two at a time, and prints a line of JSON for each:

    python tests/simulation/mutants.py "no tombstone"
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import synchromesh

# This file is also a program, which has to find the modules of the example by itself.
sys.path.append(str(Path(synchromesh.__file__).parent / "examples/servo_works"))

# As whoever runs this file as a program has it on the path; pytest has, too.
sys.path.append(str(Path(__file__).parents[1]))

from universes.universe import opened_shop

from simulation.mutant import ROOT, Mutant, load_tests
from simulation.mutants_of_tests import MUTANTS_OF_TESTS
from simulation.mutants_of_weather import MUTANTS_OF_WEATHER
from synchromesh.events import Checkpoint, save_checkpoint
from synchromesh.saga.machine import SagaMachine
from synchromesh.saga.records import RecordKind as RecordKind
from synchromesh.saga.records import SagaRecord, StepState
from synchromesh.saga.writing import write_all
from synchromesh.store import InboxState, Once, Recorded, Unit

# -- the inbox -----------------------------------------------------------------------------------


def _recall_forgets_answers(recall: Any) -> Any:
    async def mutated(unit: Unit, once: Once) -> Recorded | None:
        known: Recorded | None = await recall(unit, once)
        return None if known is not None and known.kind is InboxState.ANSWER else known

    return mutated


def _write_tombstone_does_nothing(_: Any) -> Any:
    async def mutated(unit: Unit, caller: str, key: str, keep_s: float) -> None:
        return None

    return mutated


def _conclude_forgets_refusals(conclude: Any) -> Any:
    async def mutated(unit: Unit, once: Once, kind: InboxState, body: bytes) -> Recorded:
        if kind is InboxState.REJECTION:
            return Recorded(kind, once.digest, body)
        recorded: Recorded = await conclude(unit, once, kind, body)
        return recorded

    return mutated


# -- sagas ---------------------------------------------------------------------------------------


class _Rollback(Exception):
    """Ends a unit that was run only to learn its answer."""


def _write_records_first(write: Any) -> Any:
    async def mutated(self: Any, body: Any, kept: Any) -> bytes:
        answers: list[bytes] = []

        async def rehearsal(unit: Unit) -> None:
            answers.append(await body(unit))
            raise _Rollback

        async def nothing(_: Unit) -> bytes:
            return answers[-1]

        with contextlib.suppress(_Rollback):
            await self._deps.store.write(rehearsal, name="rehearsal")
        answer: bytes = await write(self, nothing, kept)
        await self._deps.store.write(body, name="effect")
        return answer

    return mutated


def _recovery_forgets_the_turn(init: Any) -> Any:
    backward = (
        RecordKind.REJECTED,
        RecordKind.TURNED,
        RecordKind.UNDO_BEGUN,
        RecordKind.UNDONE,
    )

    def mutated(
        self: Any, deps: Any, definition: Any, row: Any, records: Sequence[SagaRecord] = ()
    ) -> None:
        init(self, deps, definition, row, [r for r in records if r.kind not in backward])
        self.journal._seq = len(records)

    return mutated


def _next_undo_skips_unknown(next_undo: Any) -> Any:
    def mutated(self: SagaMachine, **more: Any) -> Any:
        steps = self._steps
        self._steps = {k: s for k, s in steps.items() if s.phase is not StepState.UNKNOWN}
        try:
            undo = next_undo(self, **more)
        finally:
            self._steps = steps
        return undo

    return mutated


def _next_undo_is_the_first(next_undo: Any) -> Any:
    def flip(self: SagaMachine) -> None:
        for step in self._steps.values():
            step.order = -step.order

    def mutated(self: SagaMachine, **more: Any) -> Any:
        flip(self)
        try:
            undo = next_undo(self, **more)
        finally:
            flip(self)
        return undo

    return mutated


def _flush_waits_for_a_better_moment(flush: Any) -> Any:
    by_the_way = (RecordKind.BEGUN, RecordKind.DONE, RecordKind.UNDO_BEGUN)

    async def mutated(self: Any) -> None:
        if any(record.kind not in by_the_way for record in self.pending()):
            await flush(self)

    return mutated


def _batch_is_told_before_it_is_written(write: Any) -> Any:
    async def mutated(self: Any, entries: Any) -> None:
        starts = [entry for entry in entries if entry.is_start]
        late = [entry for entry in entries if not entry.is_start]
        for entry in late:
            entry.finish(True)
        if starts:
            await write(self, starts)
        fence = self._shards.fence(entry.row.shard for entry in late)
        await self._store.write(lambda unit: write_all(unit, late, fence), name="too late")

    return mutated


def _nothing_is_lost(_: Any) -> Any:
    async def mutated(self: Any, unit: Unit) -> Any:
        return ()

    return mutated


# -- store, handlers, messages, projections ------------------------------------------------------


def _connect_does_not_sync(connect: Any) -> Any:
    def mutated(*args: Any, **options: Any) -> Any:
        connection = connect(*args, **options)
        connection.execute("pragma synchronous = off")
        return connection

    return mutated


def _nested_keys_are_new(_: Any) -> Any:
    def mutated(self: Any, name: str) -> str:
        return str(self._deps.runtime.new_id())

    return mutated


def _undo_answers_only(_: Any) -> Any:
    async def mutated(unit: Unit, place: tuple[str, str], keep_s: float) -> None:
        return None

    return mutated


def _take_without_inbox(_: Any) -> Any:
    async def mutated(self: Any, source: str, message: Any, act: Any) -> Any:
        return await self._store.write(act, name="take")

    return mutated


def _save_too_early(_: Any) -> Any:
    async def mutated(self: Any) -> None:
        if self._window.newest != self._saved:
            early = Checkpoint(self._store.log_id, self._window.newest)
            await self._store.write(
                lambda unit: save_checkpoint(unit, self.checkpoint_name, early), name="too early"
            )
            self._saved = early.position

    return mutated


def _apply_in_two_commits(_: Any) -> Any:
    async def mutated(self: Any, generation: Any, batch: Any) -> None:
        projection = self._versions[generation.version]

        async def effect(unit: Unit) -> None:
            for event in batch:
                await projection.apply(projection.tables.bind(unit, generation.number), event)

        await self._store.write(effect, name="effect")
        at = Checkpoint(generation.log_id, batch[-1].position)
        await self._store.write(
            lambda unit: save_checkpoint(unit, generation.checkpoint_name, at), name="checkpoint"
        )

    return mutated


_SAGA, _STORE = "synchromesh.saga", "synchromesh.store"
MUTANTS = {
    mutant.name: mutant
    for mutant in (
        Mutant(
            "a repeated request is applied again",
            f"{_STORE}.inbox.recall",
            _recall_forgets_answers,
        ),
        Mutant(
            "no tombstone",
            f"{_STORE}.inbox.write_tombstone",
            _write_tombstone_does_nothing,
            test="tests/contract/test_store_contract.py::test_an_undone_key_never_runs",
        ),
        Mutant(
            "a refusal is not recorded",
            f"{_STORE}.inbox.conclude",
            _conclude_forgets_refusals,
        ),
        Mutant(
            "a write is recorded before its effect",
            f"{_SAGA}.journal.Journal.write",
            _write_records_first,
        ),
        Mutant(
            "the turn of a saga is forgotten in a crash",
            f"{_SAGA}.execution.Execution.__init__",
            _recovery_forgets_the_turn,
            test="tests/contract/test_saga_recovery.py::"
            "test_a_run_that_was_being_undone_goes_on_undoing",
        ),
        Mutant(
            "a step whose outcome is unknown is not undone",
            f"{_SAGA}.machine.SagaMachine.next_undo",
            _next_undo_skips_unknown,
        ),
        Mutant(
            "steps are undone in their own order",
            f"{_SAGA}.machine.SagaMachine.next_undo",
            _next_undo_is_the_first,
        ),
        Mutant(
            "a step is begun before that is durable",
            f"{_SAGA}.journal.Journal.flush",
            _flush_waits_for_a_better_moment,
        ),
        Mutant(
            "records are told durable before their batch is",
            f"{_SAGA}.batches.BatchWriter._write",
            _batch_is_told_before_it_is_written,
            test="tests/contract/test_saga_batches.py::"
            "test_nothing_is_sent_before_what_it_builds_on_is_written",
        ),
        Mutant(
            "an owner that has lost its duties writes on",
            f"{_STORE}.owners._SharedFence.lost",
            _nothing_is_lost,
            test="tests/integration/test_postgres_replicas.py::"
            "test_one_that_stood_still_writes_nothing",
        ),
        Mutant(
            "commits are acknowledged before they are synced",
            f"{_STORE}.sqlite._connect",
            _connect_does_not_sync,
        ),
        Mutant(
            "a handler that is run again uses new keys",
            "synchromesh.service.context.Context._nested",
            _nested_keys_are_new,
        ),
        Mutant(
            "an undo is acknowledged and not done",
            "synchromesh.service.handlers._resolve",
            _undo_answers_only,
        ),
        Mutant(
            "messages are taken without the inbox",
            "synchromesh.messaging.consumer.Consumer._take_once",
            _take_without_inbox,
        ),
        Mutant(
            "the relay's checkpoint is saved before delivery",
            "synchromesh.messaging.relay.Relay._save",
            _save_too_early,
        ),
        Mutant(
            "a projection's checkpoint has a commit of its own",
            "synchromesh.events.projection.ProjectionRunner._apply",
            _apply_in_two_commits,
            test="tests/simulation/test_projection_crash.py",
        ),
        *MUTANTS_OF_WEATHER,
        *MUTANTS_OF_TESTS,
    )
}


def hunt(name: str) -> dict[str, str]:
    """Hunt one of them, and return what found it, or what is wrong with it."""
    try:
        return {"mutant": name, "found": MUTANTS[name].hunt(), "error": ""}
    except Exception as error:
        return {"mutant": name, "found": "", "error": f"{type(error).__name__}: {error}"}


def main() -> int:
    """Hunt mutants, and print what found each; 1 where one is not found."""
    parser = argparse.ArgumentParser(description="Hunts planted bugs.")
    parser.add_argument("names", nargs="*", help="which; all of them without")
    names = parser.parse_args().names or sorted(MUTANTS)
    os.chdir(ROOT)
    # In good order, before anything is planted; what each process would load is loaded once.
    opened_shop()
    load_tests([MUTANTS[name].test for name in names])
    gc.freeze()
    # Each in a process that begins as this one is, and that nothing is planted in before.
    fork = multiprocessing.get_context("fork")
    is_all_found = True
    with fork.Pool(2, maxtasksperchild=1) as pool:
        for told in pool.imap_unordered(hunt, names):
            sys.stdout.write(json.dumps(told) + "\n")
            sys.stdout.flush()
            is_all_found = is_all_found and bool(told["found"])
    return 0 if is_all_found else 1


if __name__ == "__main__":
    sys.exit(main())
