"""One run at work: the shell that drives a saga function, its steps and its undos."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from typing import Any

from synchromesh.codec import NO_FIT, encode
from synchromesh.errors import BadRequest, Fenced, PersonalUnreadable, Rejection, SagaError
from synchromesh.personal_types import PersonalFields
from synchromesh.saga import outcomes
from synchromesh.saga.attempts import StepAttempts, Trace, log_again
from synchromesh.saga.definition import SagaDefinition
from synchromesh.saga.deps import SagaDeps
from synchromesh.saga.function import ForeignAwaited, Function, FunctionRaised, FunctionReturned
from synchromesh.saga.handle import Conclusion, EndWaiter
from synchromesh.saga.journal import Journal
from synchromesh.saga.machine import SagaMachine
from synchromesh.saga.records import (
    Action,
    AttemptOutcome,
    AttemptResult,
    Begin,
    Halt,
    Nap,
    NextAction,
    SagaRecord,
    SagaStatus,
    UndoStep,
)
from synchromesh.saga.saga import Saga
from synchromesh.saga.seals import RunSeal, opened
from synchromesh.saga.side_by_side import side_by_side
from synchromesh.saga.state import named
from synchromesh.saga.steps import CallStep, FunctionStep, NapStep, Step, StepRequest
from synchromesh.saga.tables import SagaRow
from synchromesh.saga.timetable import next_signal
from synchromesh.telemetry.span import TEXT_CHARS_MAX

_log = logging.getLogger("synchromesh.saga")

# Steps with an effect elsewhere: that they began is durable before.
_SENT = (CallStep, FunctionStep)


class Execution:
    """Drives one run, from its first step or from its records, until it has ended.

    Attributes:
        misfit: in what this code first differs from that of the records; "" where it does not.
        asleep: for what it has left memory to sleep; None where it has not.
        task: drives it; None where none does.
        on_trouble: told each outcome of an attempt that was not answered; None tells nobody.

    Args:
        deps: what it works with.
        definition: its code.
        row: what is stored of it.
        records: its records so far, in order.

    Raises:
        SagaError: the records contradict each other.
        BadRequest: the stored input no longer fits the definition.
    """

    def __init__(
        self,
        deps: SagaDeps,
        definition: SagaDefinition[Any, Any],
        row: SagaRow,
        records: Sequence[SagaRecord] = (),
    ) -> None:
        self._deps = deps
        self._now_us = deps.clock.now_us
        self._shape = shape = definition.shape
        if records or shape.personal is not None:
            row, records = opened(row, records, deps.store.vault)
        self.row = row
        now = self._now_us() if records else 0
        self.machine = SagaMachine(
            definition.policy,
            deadline_us=row.deadline_us,
            recovered_us=now,
            keep_s=deps.keep_s,
        )
        for record in records:
            self.machine.apply(record)
        self.journal = Journal(deps, row, self.machine, seq=len(records))
        if shape.personal is not None or shape.personal_result is not None:
            self.journal.seal = RunSeal(shape.personal, shape.personal_result)
        self._attempts = StepAttempts(deps, row, definition.policy, self.machine, self.journal)
        saga = Saga(row.id, row.trace_id)
        try:
            given = shape.read_input(row.input)
        except NO_FIT as error:
            raise BadRequest(f"the data does not fit: {error}") from error
        self._function = Function(saga, lambda: definition.fn(saga, given))
        self.steps: dict[str, Step[Any]] = {}
        self._asked: list[str] = []
        self._begun: list[Begin] = []
        self._cap = 1
        self._results: tuple[object, ...] | None = None
        self._span_id = row.span_id
        self._cancelled_because: str | None = None
        self._cancelled_by = ""
        self._interruptible: asyncio.Task[Any] | None = None
        self._waiters: list[EndWaiter] = []
        self._has_ended = False
        self._has_turned = False  # or has left memory
        self._on_turn: asyncio.Event | None = None
        self.context = copy_context()  # that of the starter: its variables are kept
        self.durable = asyncio.Event()
        self.misfit = ""
        self.asleep: Nap | None = None
        self.task: asyncio.Task[None] | None = None
        self.on_trouble: Callable[[Execution, AttemptOutcome], None] | None = None
        self.conclusion: Conclusion | None = None

    # -- the function ----------------------------------------------------------------------------

    def advance(self) -> None:
        """Run the function as far as recorded results carry it, and record what it then begins."""
        while True:
            event = self._function.resume(self._results)
            if not isinstance(event, StepRequest):
                try:
                    self._conclude_function(event)
                finally:
                    # The frames of what the function raised lead back to this one.
                    del event
                return
            steps = event.steps
            asks = [steps[0].ask] if len(steps) == 1 else [step.ask for step in steps]
            keys = self.machine.register(asks)
            for key, step in zip(keys, steps, strict=True):
                self.steps[key] = step
                if step.personal is not None:
                    self._seal_step(key, step.personal)
            now_us = self._now_us()
            answer = self.machine.on_ask(keys, now_us=now_us)
            if isinstance(answer, Halt):
                self._function.close()
                return
            if isinstance(answer, NextAction):
                self._decide(answer)
                return
            self._asked, self._begun, self._cap = keys, [], event.cap
            for each in answer:
                if isinstance(each, Begin):
                    self._begun.append(each)
                    if each.records and len(self._begun) <= event.cap:
                        self.journal.add(*each.records, at_us=now_us)
            if self._begun or not self._take_results():
                return

    def _seal_step(self, key: str, personal: PersonalFields) -> None:
        if self.journal.seal is None:
            self.journal.seal = RunSeal(None, None)
        self.journal.seal.steps[key] = personal

    def _take_results(self) -> bool:
        asked = self._asked
        try:
            # In the usual case without the frame of a comprehension.
            self._results = (
                (self._result(asked[0]),) if len(asked) == 1 else tuple(map(self._result, asked))
            )
        except BadRequest as error:
            self._decide(
                self.machine.misfit(
                    f"a recorded result of {named(self._asked)} does not fit: {error.message}"
                )
            )
            return False
        return True

    def _result(self, key: str) -> object:
        step = self.steps[key]
        if step.ask.takes and (rejection := self.machine.rejection_of(key)):
            assert isinstance(step, CallStep), "no other takes a rejection"
            return step.load_rejection(rejection)
        return step.load(self.machine.result_of(key))

    def _conclude_function(self, event: FunctionReturned | FunctionRaised | ForeignAwaited) -> None:
        if self.machine.status is not SagaStatus.RUNNING:
            self._function.close()
            if unasked := self.machine.unasked():
                self.misfit = f"the code never asks for {unasked}, which has to be undone"
            return
        if isinstance(event, FunctionReturned):
            try:
                result = encode(event.value)
                # Its caller could not read it, now or ever.
                self._shape.read_result(result)
            except (BadRequest, *NO_FIT) as error:
                why = f"its result: {outcomes.unfit(error)}"
                _log.error("saga %s, run %r: %s", self.row.name, self.row.id, why)
                self._decide(self.machine.on_raise(why))
                return
            self._decide(self.machine.on_return(result))
        elif isinstance(event, FunctionRaised):
            self._decide(self._judge(event.error))
        else:
            self._decide(
                self.machine.on_raise(
                    f"the saga function awaited something else than its steps ({event.what}); it "
                    "is run again from its records, so time, network and chance belong into steps"
                )
            )

    def _judge(self, error: Exception) -> NextAction:
        if isinstance(error, Rejection):
            return self.machine.on_raise(outcomes.why(error), outcomes.problem_of(error))
        _log.error("the function of saga %r raised", self.row.id, exc_info=error)
        return self.machine.on_raise(f"the saga function raised: {outcomes.why(error)}")

    def _decide(self, decision: NextAction) -> None:
        self.journal.add(*decision.records)
        self.misfit = decision.why
        if decision.action is Action.TURN:
            self._deps.counts["turned"] += 1
        self._function.close()

    # -- driving ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Drive the run until it has ended or has left this process's memory."""
        # Nothing is awaited in a `finally`: a coroutine that is thrown away cannot wait.
        try:
            await self._drive()
        except asyncio.CancelledError:
            await self._leave()
            raise
        except Fenced as error:
            _log.warning("saga %r leaves memory: %s", self.row.id, error)
        except Exception:  # noqa: BLE001 - one broken run must not end the others
            _log.exception("saga %r leaves memory; it continues at the next start", self.row.id)
        await self._leave()

    async def _leave(self) -> None:
        self._function.close()
        self._note_turn()
        await self.journal.abandon()

    def _note_turn(self) -> None:
        """Tell those who wait for it that the run has turned, or leaves memory."""
        self._has_turned = True
        if self._on_turn is not None:
            self._on_turn.set()

    async def _drive(self) -> None:
        row, machine = self.row, self.machine
        with Trace(self._deps, "saga", row.name, row.trace_id, row.span_id) as trace:
            trace.noted = {"id": row.id}
            self._span_id = trace.span_id
            while machine.status is SagaStatus.RUNNING and not self.misfit:
                await self._forward()
                if self.asleep is not None:
                    self._function.close()
                    return
            if self.misfit:
                # In one life the code matches its own records, unless it asks for one and then for
                # the other: it is judged anew, from its records.
                raise SagaError(f"the code of saga {row.name!r} contradicts itself: {self.misfit}")
            if machine.status is SagaStatus.COMPENSATING:
                self._note_turn()
                await self._compensate()
            await self.journal.flush()
            if machine.status is not SagaStatus.COMPLETED:
                trace.status = machine.status.value
        self._deps.counts[machine.status.value] += 1
        self.conclusion = Conclusion(machine.status, machine.result, machine.cause)

    async def _forward(self) -> None:
        begun = self._begun
        if isinstance(self.steps[begun[0].step], NapStep):
            await self._nap(begun[0].step)
            return
        for each in begun[: self._cap]:
            if isinstance(self.steps[each.step], _SENT):
                await self.journal.flush()
                break  # of all of them
        decision = None
        if self._cancelled_because is None:
            # A single step, the usual case, is tried in this task: it needs none of its own.
            decision = await self._interrupted_by_cancel(
                self._perform(begun[0].step)
                if len(begun) == 1
                else side_by_side(self._perform, begun, self._cap, self.journal, self.row.id)
            )
        if self.journal.has_units:
            await self.journal.settle()
        because = self._cancelled_because
        has_ended = decision is not None and decision.action is not Action.RETURN
        if not has_ended and because is not None and not self.machine.has_no_way_back:
            self._decide(self.machine.turn(f"cancelled: {because}", who=self._cancelled_by))
        elif decision is not None and has_ended:
            self._decide(decision)
        elif self._take_results():
            self.advance()

    def nap(self) -> Nap | None:
        """Return what a run that was loaded sleeps for, where it is not due; None where it is."""
        if self.machine.status is not SagaStatus.RUNNING or not self._begun:
            return None
        key = self._begun[0].step
        if not isinstance(self.steps[key], NapStep):
            return None
        decision = self.machine.on_wake(key, now_us=self._now_us())
        return self.machine.nap_of(key) if decision.action is Action.SLEEP else None

    async def _nap(self, key: str) -> None:
        """Go on where the run is due; else let it leave memory, once that is durable."""
        awaits, told = self.machine.nap_of(key).awaits, None
        if awaits:
            # What was taken may not be gone yet: its record is not durable.
            after = self.machine.taken(awaits)
            try:
                signal = await next_signal(self._deps.store, self.row.id, awaits, after)
            except PersonalUnreadable as error:
                why = f"what it was told cannot be read: {error.message}"
                self._decide(self.machine.stick(why, key))
                return
            told = None if signal is None else (signal.seq, signal.body)
        decision = self.machine.on_wake(key, now_us=self._now_us(), told=told)
        if decision.action is Action.SLEEP:
            await self.journal.flush()
            if self._cancelled_because is None:
                self.asleep = self.machine.nap_of(key)
                return
            because = f"cancelled: {self._cancelled_because}"
            decision = self.machine.turn(because, who=self._cancelled_by)
        elif told is not None and (why := _misread(self.steps[key], decision.records[0].body)):
            decision = self.machine.stick(f"what it was told is no {awaits}: {why}", key)
        if decision.action is not Action.RETURN:
            self._decide(decision)
            return
        self.journal.add(*decision.records)
        if self._take_results():
            self.advance()

    async def _interrupted_by_cancel(self, work: Awaitable[NextAction]) -> NextAction | None:
        """Await work that `cancel` may cut short, and return None where it did in time."""
        self._interruptible = task = asyncio.current_task()
        assert task is not None
        before = task.cancelling()
        decision = None
        try:
            decision = await work
            if self._cancelled_because is not None and task.cancelling() > before:
                # `cancel` was called by what ran here without a wait, as a callee in this process
                # may: the cancellation has not struck yet, and would do so outside of the step.
                await asyncio.sleep(0)
                task.uncancel()
        except asyncio.CancelledError:
            if self._cancelled_because is None or task.uncancel() > before:
                raise  # the engine closes
        finally:
            self._interruptible = None
        return decision

    async def _perform(self, key: str) -> NextAction:
        step = self.steps[key]
        row = self.row
        with Trace(self._deps, "step", key, row.trace_id, self._span_id) as trace:
            while True:
                outcome = await self._attempts.of_step(key, step, trace.span_id)
                if outcome.result is not AttemptResult.ANSWERED:
                    self._count("step", outcome)
                now_us = self._now_us()
                decision = self.machine.on_outcome(
                    key, outcome, now_us=now_us, rng=self._deps.chance
                )
                if decision.action is Action.RETURN:
                    self.journal.add(*decision.records, at_us=now_us)
                    return decision
                if decision.action is not Action.RETRY:
                    trace.noted = {**(trace.noted or {}), "last": outcome.why[:TEXT_CHARS_MAX]}
                    trace.status = outcome.result.value
                    return decision
                await self._wait(decision, outcome, trace)

    async def _wait(self, decision: NextAction, outcome: AttemptOutcome, trace: Trace) -> None:
        """Wait for the next attempt of a step or undo; its span tells of the wait, and why."""
        trace.note_wait(decision.delay_s, outcome.why[:TEXT_CHARS_MAX])
        await asyncio.sleep(decision.delay_s)
        if decision.records:
            log_again(self.row.id, decision.records[0], outcome)
            self.journal.add(*decision.records)
            await self.journal.flush()

    async def _compensate(self) -> None:
        while self.machine.status is SagaStatus.COMPENSATING:
            undo = self.machine.next_undo(now_us=self._now_us())
            if undo is None:
                self.journal.add(self.machine.ended())
                return
            if isinstance(undo, NextAction):
                self._decide(undo)
                return
            if undo.result is None:
                self._deps.counts["undo of unknown"] += 1
            self.journal.add(*undo.records)
            await self._undo(undo)

    async def _undo(self, undo: UndoStep) -> None:
        step = self.steps[undo.step]
        row = self.row
        with Trace(self._deps, "undo", undo.step, row.trace_id, self._span_id) as trace:
            while True:
                outcome = await self._attempts.of_undo(undo, step, trace.span_id)
                if outcome.result is not AttemptResult.ANSWERED:
                    self._count("undo", outcome)
                decision = self.machine.on_undo_outcome(
                    undo.step, outcome, now_us=self._now_us(), rng=self._deps.chance
                )
                if decision.action is Action.UNDONE:
                    self.journal.add(*decision.records)
                    return
                if decision.action is Action.STUCK:
                    trace.noted = {**(trace.noted or {}), "last": outcome.why[:TEXT_CHARS_MAX]}
                    trace.status = outcome.result.value
                    self._decide(decision)
                    return
                await self._wait(decision, outcome, trace)

    def _count(self, what: str, outcome: AttemptOutcome) -> None:
        """Count an attempt that was not answered."""
        self._deps.counts[f"{what} {outcome.result.value}"] += 1
        if self.on_trouble is not None:
            self.on_trouble(self, outcome)

    # -- from outside ----------------------------------------------------------------------------

    async def wait(self, within_s: float) -> bool:
        """Return whether the run has ended, at the latest after `within_s`."""
        if self._has_ended:
            return True
        loop, timers = asyncio.get_running_loop(), self._deps.timers
        waiter = EndWaiter(self._deps.clock.loop_s() + within_s, loop)
        self._waiters.append(waiter)
        timers.add(waiter, loop)
        try:
            return await waiter.has_ended
        finally:
            timers.wheel.drop(waiter)
            if not self._has_ended:
                self._waiters.remove(waiter)

    async def cancel(self, reason: str, who: str = "") -> bool:
        """Turn the run; return, once that is durable, True. False where it left memory before.

        Raises:
            SagaError: there is no way back.
        """
        if self.machine.status is SagaStatus.RUNNING and not self.machine.has_no_way_back:
            if self._cancelled_because is None:
                self._cancelled_because, self._cancelled_by = reason, who
                if self._interruptible is not None:
                    self._interruptible.cancel()
            if not self._has_turned:
                self._on_turn = self._on_turn or asyncio.Event()
                await self._on_turn.wait()
            if self.machine.status is SagaStatus.RUNNING:
                return False
        if self.machine.status not in (SagaStatus.COMPENSATING, SagaStatus.UNDONE):
            state = self.machine.status.value
            is_running = self.machine.status is SagaStatus.RUNNING
            because = "its pivot was tried" if is_running else f"it is {state}"
            raise SagaError(f"saga {self.row.id!r} cannot be cancelled: {because}")
        await self.journal.flush()
        return True

    def end(self) -> None:
        """Tell those who wait that the run has ended, or has left memory."""
        self._has_ended = True
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.settle(has_ended=True)

    def drop(self) -> None:
        """Give up a run that was never driven."""
        self._function.close()
        self.durable.set()
        self._note_turn()
        self.end()


def _misread(step: Step[Any], result: bytes) -> str:
    """Return why a step cannot read its result; "" where it can."""
    try:
        step.load(result)
    except BadRequest as error:
        return error.message
    return ""
