"""Planted bugs that a test about their room finds sooner than any universe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from msgspec import structs

from simulation.mutant import Mutant
from synchromesh.discovery.leases import Lease
from synchromesh.saga.machine import SagaMachine
from synchromesh.saga.records import AttemptOutcome, AttemptResult, Begin, StepState
from synchromesh.store import Once, Recorded, Unit

# -- store ---------------------------------------------------------------------------------------


def _undo_leaves_what_is_shared(undo: Any) -> Any:
    def mutated(self: Any, unit: Any) -> None:
        if not self.is_shared:
            undo(self, unit)

    return mutated


def _digest_is_not_compared(_: Any) -> Any:
    def mutated(known: Recorded, key: str, digest: str) -> None:
        return None

    return mutated


def _tombstone_replaces(_: Any) -> Any:
    async def mutated(unit: Unit, caller: str, key: str, keep_s: float) -> None:
        await unit.execute(
            "insert or replace into sm_inbox(caller, key, kind, digest, body, expires_us) "
            "values (?, ?, 'tombstone', '', x'', ?)",
            caller,
            key,
            unit.now_us + int(keep_s * 1e6),
        )

    return mutated


def _conclude_keeps_for_half_the_time(conclude: Any) -> Any:
    async def mutated(unit: Unit, once: Once, kind: Any, body: bytes) -> Any:
        half = structs.replace(once, keep_s=once.keep_s / 2)
        return await conclude(unit, half, kind, body)

    return mutated


def _horizon_is_the_wall_clock(_: Any) -> Any:
    def mutated(
        horizon_us: int | None, *, ran_us: int, now_us: int, oldest_us: int | None, kept_us: int
    ) -> int:
        return now_us

    return mutated


# -- events --------------------------------------------------------------------------------------


def _remove_shrinks_from_one(remove: Any) -> Any:
    async def mutated(unit: Unit, first: int, last: int) -> int:
        gone: int = await remove(unit, first, last)
        if first == 1:
            await unit.execute("update sm_removal set last = ? where first = 1", last)
        return gone

    return mutated


def _apply_what_was_read_before(_: Any) -> Any:
    async def mutated(self: Any, generation: Any, batch: Any) -> None:
        await self._store.write(
            lambda unit: self._apply_in(unit, generation, batch), name="whatever is there now"
        )

    return mutated


# -- messaging -----------------------------------------------------------------------------------


def _prefix_closes_over_gaps(_: Any) -> Any:
    def mutated(self: Any) -> None:
        while self._order and len(self._done) and min(self._done) <= self._order[0] + 1:
            self.checkpoint = self._order.popleft()
            self._done.discard(self.checkpoint)

    return mutated


# -- sagas ---------------------------------------------------------------------------------------


def _unknown_is_certain(fail: Any) -> Any:
    def mutated(self: SagaMachine, key: str, step: Any, zone: Any, rule: Any, outcome: Any) -> Any:
        if outcome.result is AttemptResult.UNKNOWN and step.attempts <= 1:
            outcome = structs.replace(outcome, result=AttemptResult.NOT_RUN)
        return fail(self, key, step, zone, rule, outcome)

    return mutated


def _unknown_functions_are_not_undone(undo: Any) -> Any:
    async def mutated(self: Any, undone: Any, step: Any, span_id: str) -> Any:
        if undone.result is None:
            return AttemptOutcome(AttemptResult.ANSWERED)
        return await undo(self, undone, step, span_id)

    return mutated


def _functions_have_new_keys(function: Any) -> Any:
    async def mutated(self: Any, key: str, step: Any, span_id: str) -> Any:
        original, attempt = step.fn, self._machine._steps[key].attempts
        mark = f"/{attempt}" if attempt > 1 else ""
        step.fn = lambda key, *args: original(key + mark, *args)
        try:
            return await function(self, key, step, span_id)
        finally:
            step.fn = original

    return mutated


def _lists_begin_unrecorded(side_by_side: Any) -> Any:
    async def mutated(
        perform: Any, begun: Sequence[Begin], cap: int, journal: Any, run_id: str
    ) -> Any:
        late = [structs.replace(each, records=()) for each in begun]
        return await side_by_side(perform, late, cap, journal, run_id)

    return mutated


def _crashes_are_no_attempts(begun: Any) -> Any:
    def mutated(self: SagaMachine, key: str, step: Any, after: str = "") -> Any:
        record = begun(self, key, step, after)
        return structs.replace(record, attempt=step.tries + 1)

    return mutated


def _nothing_is_lost(_: Any) -> Any:
    async def mutated(self: Any, unit: Unit) -> tuple[int, ...]:
        return ()

    return mutated


def _unasked_is_nothing(_: Any) -> Any:
    def mutated(self: SagaMachine) -> str:
        return ""

    return mutated


def _way_back_is_open_again(_: Any) -> Any:
    def mutated(self: SagaMachine) -> bool:
        return bool(self._pivot) and self._steps[self._pivot].phase is StepState.DONE

    return property(mutated)


# -- who is there, who may call, how often -------------------------------------------------------


def _renewal_keeps_its_place(_: Any) -> Any:
    def mutated(self: Any, instance: str, incarnation: int, *, now: float) -> Any:
        lease: Lease = self._held(instance, incarnation)
        self._leases[instance] = replace(lease, expires_s=now + self._options.ttl_s)
        self._shorten_guard(now)
        return self._trust() if self.is_stale and not self._has_expired(now) else None

    return mutated


def _verified_is_for_ever(verify: Any) -> Any:
    def mutated(self: Any, token: str, *, audience: str, now_us: int) -> Any:
        known = self._verified.get(token)
        if known is not None and known.audience == audience:
            return known
        return verify(self, token, audience=audience, now_us=now_us)

    return mutated


def _budget_is_paid_twice(take: Any) -> Any:
    def mutated(self: Any, *, now: float) -> bool:
        calls = self.calls
        is_taken: bool = take(self, now=now)
        self.calls = calls
        return is_taken

    return mutated


def _settled_twice(settle: Any) -> Any:
    def mutated(self: Any, given: int, used: int | None) -> None:
        settle(self, given, 0 if used is None else used)

    return mutated


def _probes_of_old_epochs_count(counts: Any) -> Any:
    def mutated(self: Any, permit: int) -> bool:
        return bool(counts(self, permit)) or self.state.value == "closed"

    return mutated


_SAGA, _STORE = "synchromesh.saga", "synchromesh.store"
MUTANTS_OF_TESTS: Sequence[Mutant] = (
    Mutant(
        "a unit that fails in a group leaves its rows",
        f"{_STORE}.group.Group.undo",
        _undo_leaves_what_is_shared,
        test="tests/property/test_store_groups.py",
    ),
    Mutant(
        "a key with another input gets the old answer",
        f"{_STORE}.inbox._check_digest",
        _digest_is_not_compared,
        test="tests/contract/test_store_contract.py::test_a_key_with_another_input_is_refused",
    ),
    Mutant(
        "a tombstone replaces an answer",
        f"{_STORE}.inbox.write_tombstone",
        _tombstone_replaces,
        test="tests/contract/test_store_contract.py::test_a_tombstone_replaces_no_record",
    ),
    Mutant(
        "a clock that jumps makes inboxes forget",
        f"{_STORE}.inbox.advance_horizon",
        _horizon_is_the_wall_clock,
        test="tests/contract/test_store_contract.py::"
        "test_the_inbox_forgets_in_bounded_batches_when_time_is_over",
    ),
    Mutant(
        "an answer is kept for half its time",
        f"{_STORE}.inbox.conclude",
        _conclude_keeps_for_half_the_time,
        test="tests/contract/test_store_contract.py::"
        "test_a_record_is_kept_for_its_time_and_a_tenth_more",
    ),
    Mutant(
        "a repeated removal from position 1 shrinks its range",
        "synchromesh.events.remove",
        _remove_shrinks_from_one,
        test="tests/contract/test_events_contract.py::"
        "test_a_removal_that_is_repeated_never_shrinks",
    ),
    Mutant(
        "a projection applies what another runner has applied",
        "synchromesh.events.projection.ProjectionRunner._apply",
        _apply_what_was_read_before,
        test="tests/unit/test_projection.py::test_two_runners_of_one_projection_do_not_apply_twice",
    ),
    Mutant(
        "the relay's checkpoint passes one that is not acknowledged",
        "synchromesh.messaging.window.Window._close_prefix",
        _prefix_closes_over_gaps,
        test="tests/property/test_relay_window.py",
    ),
    Mutant(
        "an unknown pivot is taken as certain past its deadline",
        f"{_SAGA}.machine.SagaMachine._fail",
        _unknown_is_certain,
        test="tests/unit/test_saga_machine.py::"
        "test_a_pivot_unknown_at_once_and_past_the_deadline_is_stuck",
    ),
    Mutant(
        "an engine that was taken over goes on writing",
        f"{_SAGA}.shards.SoleShards.lost",
        _nothing_is_lost,
        test="tests/contract/test_saga_recovery.py::"
        "test_after_a_takeover_no_record_of_the_old_engine_is_accepted",
    ),
    Mutant(
        "a replica that wakes writes under an epoch that is over",
        f"{_STORE}.owners._SharedFence.lost",
        _nothing_is_lost,
        test="tests/simulation/test_replicas.py",
    ),
    Mutant(
        "code that leaves recorded steps out is taken for the same",
        f"{_SAGA}.machine.SagaMachine.unasked",
        _unasked_is_nothing,
        test="tests/unit/test_saga_machine.py",
    ),
    Mutant(
        "a pivot under way may be undone",
        f"{_SAGA}.machine.SagaMachine.has_no_way_back",
        _way_back_is_open_again,
        test="tests/unit/test_saga_machine.py",
    ),
    Mutant(
        "a function whose outcome is unknown is not undone",
        f"{_SAGA}.attempts.StepAttempts._undo_function",
        _unknown_functions_are_not_undone,
        test="tests/simulation/test_survival_of_steps.py",
    ),
    Mutant(
        "each attempt of a function has a key of its own",
        f"{_SAGA}.attempts.StepAttempts._function",
        _functions_have_new_keys,
        test="tests/contract/test_saga_functions.py",
    ),
    Mutant(
        "a step of a list is begun before that is recorded",
        f"{_SAGA}.execution.side_by_side",
        _lists_begin_unrecorded,
        test="tests/contract/test_saga_each.py::test_a_power_cut_at_any_step_leaves_all_or_nothing",
    ),
    Mutant(
        "a crash in the middle of a step is no attempt",
        f"{_SAGA}.machine.SagaMachine._begun",
        _crashes_are_no_attempts,
        test="tests/contract/test_saga_patience.py",
    ),
    Mutant(
        "a renewed lease keeps its place in the order of expiry",
        "synchromesh.discovery.leases.LeaseTable.renew",
        _renewal_keeps_its_place,
        test="tests/unit/test_leases.py",
    ),
    Mutant(
        "a credential that was verified once never expires",
        "synchromesh.identity.Signer.verify",
        _verified_is_for_ever,
        test="tests/unit/test_identity.py",
    ),
    Mutant(
        "calls pay into the retry budget at each retry",
        "synchromesh.resilience.retry.RetryBudget.take",
        _budget_is_paid_twice,
        test="tests/unit/test_retry.py",
    ),
    Mutant(
        "attempts of a callee that says nothing are given again",
        "synchromesh.resilience.retry.AttemptsLeft.settle",
        _settled_twice,
        test="tests/unit/test_retry.py",
    ),
    Mutant(
        "a call of before the trip counts after the recovery",
        "synchromesh.resilience.breaker.Breaker._counts",
        _probes_of_old_epochs_count,
        test="tests/unit/test_breaker.py",
    ),
)
