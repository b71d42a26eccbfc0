"""One run at work: the shell that drives a saga function, its steps and its undos."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from synchromesh.calls import Sender
from synchromesh.calls.contract import Operation
from synchromesh.codec import decode, encode
from synchromesh.context import CallContext
from synchromesh.errors import (
    BadRequest,
    Fenced,
    Rejection,
    SagaError,
    SynchromeshError,
    TimedOut,
    to_problem,
)
from synchromesh.saga import outcomes
from synchromesh.saga.definition import SagaDefinition
from synchromesh.saga.function import ForeignAwaited, Function, FunctionRaised, FunctionReturned
from synchromesh.saga.handle import Conclusion
from synchromesh.saga.journal import Desk, Journal
from synchromesh.saga.machine import SagaMachine
from synchromesh.saga.records import (
    Action,
    AttemptOutcome,
    AttemptResult,
    Begin,
    Halt,
    NextAction,
    SagaRecord,
    SagaStatus,
    UndoStep,
)
from synchromesh.saga.steps import CallStep, Saga, Step, StepRequest, WriteStep
from synchromesh.saga.tables import SagaRow
from synchromesh.store import Unit
from synchromesh.telemetry import Span, Tracer

R = TypeVar("R")

_log = logging.getLogger("synchromesh.saga")


class UnitRunner(Protocol):
    """Runs a user's function on what it sees of a unit, and writes what it left to be written."""

    def __call__(
        self, unit: Unit, context: CallContext, body: Callable[[Any], Awaitable[R]], /
    ) -> Awaitable[R]:
        """Return what the function returns; what it raises rolls the unit back."""
        ...


@dataclass(frozen=True, slots=True)
class Means:
    """What all runs of an engine work with."""

    desk: Desk
    sender: Sender
    tracer: Tracer
    run_unit: UnitRunner
    counts: Counter[str]


class Execution:
    """Drives one run, from its first step or from its records, until it has ended.

    Args:
        means: what it works with.
        definition: its code.
        row: what is stored of it.
        records: its records so far, in order.

    Raises:
        SagaError: the records contradict each other.
        BadRequest: the stored input no longer fits the definition.
    """

    def __init__(
        self,
        means: Means,
        definition: SagaDefinition[Any, Any],
        row: SagaRow,
        records: Sequence[SagaRecord] = (),
    ) -> None:
        self._means = means
        self._policy = definition.policy
        self.row = row
        now = means.desk.clock.now_us() if records else 0
        self.machine = SagaMachine(definition.policy, deadline_us=row.deadline_us, recovered_us=now)
        for record in records:
            self.machine.apply(record)
        self.journal = Journal(means.desk, row, self.machine, seq=len(records))
        saga = Saga(row.id, row.trace_id)
        given = decode(row.input, definition.shape.input)
        self._function = Function(saga, lambda: definition.fn(saga, given))
        self._steps: dict[str, Step[Any]] = {}
        self._asked: list[str] = []
        self._begun: list[str] = []
        self._results: tuple[object, ...] | None = None
        self._span_id = row.span_id
        self._wants_turn: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._ended = asyncio.Event()
        self._turned = asyncio.Event()
        self.durable = asyncio.Event()
        self.conclusion: Conclusion | None = None

    # -- the function ----------------------------------------------------------------------------

    def advance(self) -> None:
        """Run the function as far as recorded results carry it, and record what it then begins."""
        while True:
            event = self._function.resume(self._results)
            if not isinstance(event, StepRequest):
                self._conclude_function(event)
                return
            keys = self.machine.register([step.ask for step in event.steps])
            self._steps.update(zip(keys, event.steps, strict=True))
            answer = self.machine.on_ask(keys, now_us=self._now_us())
            if isinstance(answer, Halt):
                self._function.close()
                return
            if isinstance(answer, NextAction):
                self._decide(answer)
                return
            self._asked = keys
            self._begun = [each.step for each in answer if isinstance(each, Begin)]
            for each in answer:
                if isinstance(each, Begin):
                    self.journal.add(*each.records)
            if self._begun or not self._take_results():
                return

    def _take_results(self) -> bool:
        try:
            self._results = tuple(
                self._steps[key].load(self.machine.result_of(key)) for key in self._asked
            )
        except BadRequest as error:
            self._decide(self.machine.stick(f"a recorded result no longer fits: {error.message}"))
            return False
        return True

    def _conclude_function(self, event: FunctionReturned | FunctionRaised | ForeignAwaited) -> None:
        if self.machine.status is not SagaStatus.RUNNING:
            self._function.close()
            return
        if isinstance(event, FunctionReturned):
            try:
                result = encode(event.value)
            except BadRequest as error:
                self._decide(self.machine.on_raise(f"its result: {error.message}"))
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
            return self.machine.on_raise(outcomes.why(error), to_problem(error))
        _log.error("the function of saga %r raised", self.row.id, exc_info=error)
        return self.machine.on_raise(f"the saga function raised: {outcomes.why(error)}")

    def _decide(self, decision: NextAction) -> None:
        self.journal.add(*decision.records)
        if decision.action is Action.TURN:
            self._means.counts["turned"] += 1
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
        self._turned.set()
        await self.journal.abandon()

    async def _drive(self) -> None:
        row, machine = self.row, self.machine
        span = self._means.tracer.start(
            "saga", row.name, trace_id=row.trace_id, parent_id=row.span_id
        )
        with span:
            span.note("id", row.id)
            self._span_id = span.span_id
            while machine.status is SagaStatus.RUNNING:
                await self._forward()
            if machine.status is SagaStatus.COMPENSATING:
                self._turned.set()
                await self._compensate()
            await self.journal.flush()
            if machine.status is not SagaStatus.COMPLETED:
                span.status = machine.status.value
        self._means.counts[machine.status.value] += 1
        self.conclusion = Conclusion(machine.status, machine.result, machine.cause)

    async def _forward(self) -> None:
        if any(isinstance(self._steps[key], CallStep) for key in self._begun):
            await self.journal.flush()
        decision = await self._perform_all()
        await self.journal.settle()
        if decision is None and self._wants_turn.done() and not self.machine.has_no_way_back:
            decision = self.machine.turn(f"cancelled: {self._wants_turn.result()}")
        if decision is not None:
            self._decide(decision)
        elif self._take_results():
            self.advance()

    async def _perform_all(self) -> NextAction | None:
        """Do the steps that were begun; return the first decision that ends the way forward."""
        if self._wants_turn.done():
            return None
        loop = asyncio.get_running_loop()
        under_way = {
            loop.create_task(self._perform(key), name=f"saga {self.row.id} {key}")
            for key in self._begun
        }
        try:
            decision = await self._await_first_no(under_way)
        except (Exception, asyncio.CancelledError):
            await _stop(under_way)
            raise
        await _stop(under_way)
        return decision

    async def _await_first_no(self, under_way: set[asyncio.Task[NextAction]]) -> NextAction | None:
        while under_way and not self._wants_turn.done():
            waited: set[asyncio.Future[Any]] = {*under_way, self._wants_turn}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            ended = {task for task in under_way if task.done()}
            under_way -= ended
            decisions = [task.result() for task in ended]
            for decision in decisions:
                if decision.action is not Action.RETURN:
                    return decision
            if under_way:
                await self.journal.flush()
        return None

    async def _perform(self, key: str) -> NextAction:
        step = self._steps[key]
        with self._span("step", key) as span:
            while True:
                outcome = await self._attempt(key, step, span)
                self._count("step", outcome)
                decision = self.machine.on_outcome(
                    key, outcome, now_us=self._now_us(), rng=self._means.desk.runtime.rng
                )
                if decision.action is Action.RETURN:
                    self.journal.add(*decision.records)
                    return decision
                span.note("last", outcome.why)
                if decision.action is not Action.RETRY:
                    span.status = outcome.result.value
                    return decision
                await self._wait(decision)

    async def _wait(self, decision: NextAction) -> None:
        await asyncio.sleep(decision.delay_s)
        if decision.records:
            self.journal.add(*decision.records)
            await self.journal.flush()

    async def _compensate(self) -> None:
        unasked = self.machine.unasked()
        if unasked:
            self._decide(
                self.machine.stick(f"the code never asks for {unasked}, which has to be undone")
            )
        while self.machine.status is SagaStatus.COMPENSATING:
            undo = self.machine.next_undo()
            if undo is None:
                self.journal.add(self.machine.ended())
                return
            if undo.result is None:
                self._means.counts["undo of unknown"] += 1
            self.journal.add(*undo.records)
            await self._undo(undo)

    async def _undo(self, undo: UndoStep) -> None:
        with self._span("undo", undo.step) as span:
            while True:
                outcome = await self._attempt_undo(undo, span)
                self._count("undo", outcome)
                decision = self.machine.on_undo_outcome(
                    undo.step, outcome, now_us=self._now_us(), rng=self._means.desk.runtime.rng
                )
                if decision.action is Action.UNDONE:
                    self.journal.add(*decision.records)
                    return
                span.note("last", outcome.why)
                if decision.action is Action.STUCK:
                    span.status = outcome.result.value
                    self._decide(decision)
                    return
                await self._wait(decision)

    # -- effects ---------------------------------------------------------------------------------

    async def _attempt(self, key: str, step: Step[Any], span: Span) -> AttemptOutcome:
        if isinstance(step, WriteStep):
            return await self._write(key, step, span)
        if not isinstance(step, CallStep):
            raise SagaError(f"{step!r} is no step of this engine")
        operation, timeout_s = step.call.operation, step.timeout_s or self._policy.step_timeout_s
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        if not self.machine.has_no_way_back:
            limit_s = self._means.desk.clock.to_loop_s(self.row.deadline_us)
            deadline_s = min(deadline_s, limit_s)
        context = self._context(
            span,
            key=self._key(key) if operation.is_command else "",
            deadline_s=deadline_s,
        )
        outcome = await self._send(operation, step.call.arguments, context)
        if outcome.result is not AttemptResult.ANSWERED:
            return outcome
        try:
            # Recorded in our own form: what a replay reads is what the function was given.
            return AttemptOutcome(AttemptResult.ANSWERED, encode(step.load(outcome.body)))
        except BadRequest as error:
            return AttemptOutcome(AttemptResult.UNKNOWN, why=f"its answer: {error.message}")

    async def _write(self, key: str, step: WriteStep[Any], span: Span) -> AttemptOutcome:
        context = self._context(span, key=self._key(key))

        async def body(unit: Unit) -> bytes:
            answer = encode(
                await self._means.run_unit(unit, context, lambda tx: step.fn(tx, *step.args))
            )
            step.load(answer)
            return answer

        try:
            answer = await self.journal.write(body, lambda answer: self.machine.done(key, answer))
        except Fenced:
            raise
        except Exception as error:  # noqa: BLE001 - whatever users raise is judged by the machine
            self._log_bug(key, error)
            return outcomes.of_write(error)
        return AttemptOutcome(AttemptResult.ANSWERED, answer)

    async def _attempt_undo(self, undo: UndoStep, span: Span) -> AttemptOutcome:
        step, key = self._steps[undo.step], self._key(undo.step)
        if isinstance(step, WriteStep):
            return await self._undo_write(undo, step, span)
        if not isinstance(step, CallStep) or step.undo is None:
            raise SagaError(f"{step!r} has no undo")
        await self.journal.flush()
        context = self._context(
            span,
            key=f"{key}/undo",
            undoes=key,
            deadline_s=asyncio.get_running_loop().time() + self._policy.step_timeout_s,
        )
        return await self._send(step.undo, step.undo_arguments(undo.result), context)

    async def _undo_write(self, undo: UndoStep, step: WriteStep[Any], span: Span) -> AttemptOutcome:
        context = self._context(span, key=f"{self._key(undo.step)}/undo")

        async def body(unit: Unit) -> bytes:
            fn, result = step.undo, undo.result
            if fn is not None and result is not None:
                await self._means.run_unit(unit, context, lambda tx: fn(tx, step.load(result)))
            return b""

        try:
            await self.journal.write(body, lambda _: self.machine.undone(undo.step))
        except Fenced:
            raise
        except Exception as error:  # noqa: BLE001 - whatever users raise is judged by the machine
            self._log_bug(undo.step, error)
            return outcomes.of_write_undo(error)
        return AttemptOutcome(AttemptResult.ANSWERED)

    async def _send(
        self, operation: Operation[..., Any], arguments: bytes, context: CallContext
    ) -> AttemptOutcome:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(context.deadline_s):
                timeout_s = context.remaining_s(loop.time())
                answer = await self._means.sender.send(
                    operation, arguments, context=context, timeout_s=timeout_s
                )
        except TimeoutError:
            return outcomes.of_call(TimedOut(f"{operation.full_name} did not answer in time"))
        except Exception as error:  # noqa: BLE001 - whatever it is, the outcome is judged
            self._log_bug(operation.full_name, error)
            return outcomes.of_call(error)
        return AttemptOutcome(AttemptResult.ANSWERED, answer)

    def _context(
        self, span: Span, *, key: str, undoes: str = "", deadline_s: float | None = None
    ) -> CallContext:
        # No attempts are left to the layers below: each one of a step is a recorded one (S2).
        return CallContext(
            trace_id=self.row.trace_id,
            span_id=span.span_id,
            caller=self.row.caller,
            principal=self.row.principal,
            deadline_s=deadline_s,
            key=key,
            undoes=undoes,
        )

    def _key(self, step: str) -> str:
        return f"{self.row.id}/{step}"

    def _span(self, kind: str, step: str) -> Span:
        return self._means.tracer.start(
            kind, step, trace_id=self.row.trace_id, parent_id=self._span_id
        )

    def _now_us(self) -> int:
        return self._means.desk.clock.now_us()

    def _count(self, what: str, outcome: AttemptOutcome) -> None:
        if outcome.result is not AttemptResult.ANSWERED:
            self._means.counts[f"{what} {outcome.result.value}"] += 1

    def _log_bug(self, step: str, error: Exception) -> None:
        if not isinstance(error, SynchromeshError):
            _log.error("step %s of saga %r raised", step, self.row.id, exc_info=error)

    # -- from outside ----------------------------------------------------------------------------

    async def wait(self, within_s: float) -> bool:
        """Return whether the run has ended, at the latest after `within_s`."""
        try:
            async with asyncio.timeout(within_s):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True

    async def cancel(self, reason: str) -> bool:
        """Turn the run; return, once that is durable, True. False where it left memory before.

        Raises:
            SagaError: there is no way back.
        """
        if self.machine.status is SagaStatus.RUNNING and not self.machine.has_no_way_back:
            if not self._wants_turn.done():
                self._wants_turn.set_result(reason)
            await self._turned.wait()
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
        self._ended.set()

    def drop(self) -> None:
        """Give up a run that was never driven."""
        self._function.close()
        self.durable.set()
        self._turned.set()
        self._ended.set()


async def _stop(tasks: set[asyncio.Task[NextAction]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
