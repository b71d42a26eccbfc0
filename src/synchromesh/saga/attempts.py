"""One attempt of a step or of an undo: the call or the unit of work, and what it came to."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from synchromesh.calls.contract import Operation
from synchromesh.clock import loop_now
from synchromesh.codec import NO_FIT, encode
from synchromesh.context import CallContext
from synchromesh.errors import (
    BadRequest,
    ConstraintFailed,
    ContractError,
    Fenced,
    ForeignAwait,
    SagaError,
    StatementFailed,
    SynchromeshError,
    TimedOut,
)
from synchromesh.priority import priority_of
from synchromesh.resilience import DeadlinePassed, deadline, is_being_cancelled, within
from synchromesh.resilience.deadlines import ambient
from synchromesh.saga import outcomes
from synchromesh.saga.deps import SagaDeps
from synchromesh.saga.journal import Journal
from synchromesh.saga.machine import SagaMachine
from synchromesh.saga.policy import SagaPolicy
from synchromesh.saga.records import (
    AttemptOutcome,
    AttemptResult,
    RecordKind,
    SagaRecord,
    UndoStep,
)
from synchromesh.saga.steps import CallStep, FunctionStep, SideStep, Step, Unknown, WriteStep
from synchromesh.saga.tables import SagaRow
from synchromesh.store import Unit
from synchromesh.telemetry import current_span, outcome_of
from synchromesh.telemetry.span import TEXT_CHARS_MAX
from synchromesh.wheel import Deadline

R = TypeVar("R")

_log = logging.getLogger("synchromesh.saga")

# Errors of ours that say that the code of a step is wrong: nobody else logs them.
_BUGS = (ConstraintFailed, ContractError, ForeignAwait, StatementFailed)


def log_again(id: str, begun: SagaRecord, outcome: AttemptOutcome) -> None:  # noqa: A002
    """Log that an attempt came to nothing, and why: the 1st, 2nd, 4th, and so on.

    `begun` is of the next one. What users raise is logged where it is caught. Once is no warning:
    a callee that is replaced cuts calls, and answers them when they are repeated.
    """
    failed = begun.attempt - 1
    if outcome.problem is not None and not failed & (failed - 1):
        what = "undo of " if begun.kind is RecordKind.UNDO_BEGUN else ""
        level = logging.INFO if failed == 1 else logging.WARNING
        _log.log(
            level, "saga %r: attempt %d of %s%s: %s; it is asked again",
            id, failed, what, begun.step, outcome.why,
        )  # fmt: skip


class Trace:
    """Records a span of a run when what it stands for ends; `with` gives it an error's status."""

    __slots__ = (
        "_began_s", "_clock", "_flags", "_parent_id", "_record", "_trace_id", "noted", "span_id",
        "status",
    )  # fmt: skip

    def __init__(self, deps: SagaDeps, kind: str, name: str, trace_id: str, parent_id: str) -> None:
        self._record = deps.recorders.get((kind, name)) or deps.recorder(kind, name)
        self._trace_id, self._parent_id = trace_id, parent_id
        self._flags = deps.tracer.propagation.kept(trace_id).flags
        self._clock = deps.clock.loop_s
        self._began_s = self._clock()
        self.span_id = deps.new_span_id()
        self.status = "ok"
        self.noted: dict[str, str] | None = None

    def note_wait(self, delay_s: float, why: str) -> None:
        """Note an attempt that failed, and the wait that follows it."""
        noted = self.noted or {}
        waited_ms = round(float(noted.get("backoff_ms", "0")) + delay_s * 1e3, 3)
        attempts = int(noted.get("attempts", "1")) + 1
        self.noted = {"attempts": str(attempts), "backoff_ms": str(waited_ms), "last": why}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            if isinstance(error, GeneratorExit):
                return  # a coroutine that is thrown away has no loop any more
            self.status, noted = outcome_of(error)
            self.noted = {**(self.noted or {}), **noted}
        self._record(
            self._trace_id,
            self.span_id,
            self._parent_id,
            self._began_s,
            self._clock(),
            self.status,
            self.noted,
            self._flags,
        )


class _TimeOut(Deadline):
    """Cancels the task that waits for an answer, and takes that back, as `asyncio.timeout` does."""

    __slots__ = ("_cancelling", "_task", "has_expired")

    def __init__(self, due_s: float, task: asyncio.Task[Any]) -> None:
        # As the base does, without its frame.
        self.due_s, self.slot = due_s, None
        self._task = task
        self._cancelling = task.cancelling()
        self.has_expired = False

    def expire(self) -> None:
        self.has_expired = True
        self._task.cancel()

    def takes_back(self) -> bool:
        """Say whether the task was cancelled by this alone; then it no longer is."""
        return self.has_expired and self._task.uncancel() <= self._cancelling


class StepAttempts:
    """Tries the steps and undos of one run."""

    __slots__ = (
        "_deps", "_journal", "_limit_s", "_machine", "_marks", "_policy", "_priority", "_raised",
        "_row",
    )  # fmt: skip

    def __init__(
        self,
        deps: SagaDeps,
        row: SagaRow,
        policy: SagaPolicy,
        machine: SagaMachine,
        journal: Journal,
    ) -> None:
        self._deps = deps
        self._row = row
        self._policy = policy
        self._machine = machine
        self._journal = journal
        self._priority = priority_of(policy.priority)
        self._marks = deps.tracer.propagation.kept(row.trace_id)
        self._limit_s: float | None = None  # the run's deadline, on the loop's clock
        self._raised: set[tuple[str, type]] = set()

    def of_step(
        self, key: str, step: Step[Any], span_id: str
    ) -> Coroutine[Any, Any, AttemptOutcome]:
        """Return what tries a step once; its begin is durable.

        Raises:
            Fenced: another engine has taken over.
        """
        # No frame of its own while the attempt waits.
        if isinstance(step, CallStep):
            return self._call(key, step, span_id)
        if isinstance(step, WriteStep):
            return self._write(key, step, span_id)
        if isinstance(step, SideStep):
            return self._side(key, step)
        if isinstance(step, FunctionStep):
            return self._function(key, step, span_id)
        raise SagaError(f"{step!r} is not a step of this engine")

    async def of_undo(self, undo: UndoStep, step: Step[Any], span_id: str) -> AttemptOutcome:
        """Try the undo of a step once; raises as `of_step` does."""
        if isinstance(step, WriteStep):
            return await self._undo_write(undo, step, span_id)
        if isinstance(step, FunctionStep):
            return await self._undo_function(undo, step, span_id)
        if not isinstance(step, CallStep) or step.undo is None:
            raise SagaError(f"{step!r} has no undo")
        await self._journal.flush()
        context = self._context(
            span_id,
            key=f"{self._row.id}/{self._machine.undo_key_of(undo.step)}",
            undoes=self._key(undo.step),
            deadline_s=loop_now() + self._policy.step_timeout_s,
        )
        return await self._send(step.undo, step.undo_arguments(undo.result), context)

    def _call(
        self, key: str, step: CallStep[Any], span_id: str
    ) -> Coroutine[Any, Any, AttemptOutcome]:
        operation, row, machine = step.call.operation, self._row, self._machine
        deadline_s = self._deps.clock.loop_s() + (step.timeout_s or self._policy.step_timeout_s)
        if not machine.has_no_way_back and deadline_s > (limit_s := self._until_s()):
            deadline_s = limit_s
        # As `_context` does, without its frame.
        context = CallContext(
            trace_id=row.trace_id,
            span_id=span_id,
            caller=row.caller,
            principal=row.principal,
            deadline_s=deadline_s,
            key="" if step.kind.is_query else f"{row.id}/{machine.key_of(key)}",
            priority=self._priority,
            marks=self._marks,
        )
        current_span.set(context)
        return self._send(operation, step.call.arguments, context, step)

    def _until_s(self) -> float:
        """Return the run's deadline, on the loop's clock."""
        limit_s = self._limit_s
        if limit_s is None:
            limit_s = self._limit_s = self._deps.clock.to_loop_s(self._row.deadline_us)
        return limit_s

    async def _send(
        self,
        operation: Operation[..., Any],
        arguments: bytes,
        context: CallContext,
        step: CallStep[Any] | None = None,
    ) -> AttemptOutcome:
        """Send a call, and read its answer where it is that of a step."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        assert context.deadline_s is not None
        time_out, timers = _TimeOut(context.deadline_s, task), self._deps.timers
        timers.add(time_out, loop)
        try:
            # In the time that the context says.
            answer = await self._deps.sender.send(operation, arguments, context=context)
        except asyncio.CancelledError:
            if not time_out.takes_back():
                raise
            whose = self._whose(context.deadline_s, None if step is None else step.timeout_s)
            return outcomes.of_call(
                TimedOut(f"{operation.full_name} did not answer within {whose}")
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the outcome is judged
            time_out.takes_back()  # what was sent may have turned it into an error of its own
            self._log_bug(operation.full_name, error)
            return outcomes.of_call(error)
        finally:
            timers.wheel.drop(time_out)
        if time_out.has_expired:
            time_out.takes_back()
        if step is None:
            return AttemptOutcome(AttemptResult.ANSWERED, answer)
        kind = step.kind
        try:
            # Recorded in our own form: what a replay reads is what the function was given.
            value = kind.read(answer)
            recorded = kind.write(value)
        except NO_FIT as error:
            why = f"its answer: the data does not fit: {error}"
            return AttemptOutcome(AttemptResult.UNKNOWN, why=why)
        if kind.keeps_form:
            step.known = recorded, value
        return AttemptOutcome(AttemptResult.ANSWERED, recorded)

    async def _side(self, key: str, step: SideStep[Any]) -> AttemptOutcome:
        try:
            answer = encode(step.fn())
            step.load(answer)
        except Exception as error:  # noqa: BLE001 - whatever users raise is judged by the machine
            self._log_bug(key, error)
            return outcomes.of_write(error)
        return AttemptOutcome(AttemptResult.ANSWERED, answer)

    async def _function(self, key: str, step: FunctionStep[Any], span_id: str) -> AttemptOutcome:
        out_key, for_s = self._key(key), step.timeout_s or self._policy.step_timeout_s
        if not self._machine.has_no_way_back:
            for_s = min(for_s, self._until_s() - self._deps.clock.loop_s())
        self._context(span_id, key=out_key)
        try:
            run = partial(step.fn, out_key, *step.args)
            result = await self._run(key, run, for_s, step.timeout_s)
        except Exception as error:  # noqa: BLE001 - whatever users raise is judged by the machine
            self._log_bug(key, error)
            return outcomes.of_function(error, is_pivot=step.ask.is_pivot)
        try:
            answer = encode(result)
            step.load(answer)
        except BadRequest as error:
            outcome = outcomes.of_result(step.ask.name, error)
            _log.error("step %s of saga %r is broken: %s", key, self._row.id, outcome.why)
            return outcome
        return AttemptOutcome(AttemptResult.ANSWERED, answer)

    async def _undo_function(
        self, undo: UndoStep, step: FunctionStep[Any], span_id: str
    ) -> AttemptOutcome:
        fn = step.undo
        if fn is None:
            raise SagaError(f"{step!r} has no undo")
        await self._journal.flush()
        key = f"{self._row.id}/{self._machine.undo_key_of(undo.step)}"
        self._context(span_id, key=key, undoes=self._key(undo.step))
        try:
            done = (
                Unknown(self._key(undo.step), step.args)
                if undo.result is None
                else step.load(undo.result)
            )
            for_s = step.timeout_s or self._policy.step_timeout_s
            what = f"the undo of {undo.step}"
            await self._run(what, partial(fn, key, done), for_s, step.timeout_s)
        except Exception as error:  # noqa: BLE001 - whatever users raise is judged by the machine
            self._log_bug(f"the undo of {undo.step}", error)
            return outcomes.of_function(error)
        return AttemptOutcome(AttemptResult.ANSWERED)

    async def _run(
        self,
        what: str,
        body: Callable[[], Awaitable[object]],
        for_s: float,
        timeout_s: float | None,
    ) -> object:
        """Await a function of the user for so long.

        Raises:
            TimedOut: it was cancelled, at its time or by itself.
            Exception: what it raises.
        """
        due_s = loop_now() + for_s
        ambient.set(None)  # the deadline of whoever started the run is none of the step's (D1)
        try:
            with deadline(for_s):
                return await within(body, due_s)
        except DeadlinePassed:
            why = f"{what} did not end within {self._whose(due_s, timeout_s)}"
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise  # the run is cancelled, or the engine closes
            why = f"{what} was cancelled by what it awaits"
        raise TimedOut(why)

    async def _write(self, key: str, step: WriteStep[Any], span_id: str) -> AttemptOutcome:
        context = self._context(span_id, key=self._key(key))

        async def body(unit: Unit) -> bytes:
            answer = encode(
                await self._deps.run_unit(unit, context, lambda tx: step.fn(tx, *step.args))
            )
            step.load(answer)
            return answer

        try:
            answer = await self._journal.write(body, lambda answer: self._machine.done(key, answer))
        except Fenced:
            raise
        except Exception as error:  # noqa: BLE001 - whatever users raise is judged by the machine
            self._log_bug(key, error)
            return outcomes.of_write(error)
        return AttemptOutcome(AttemptResult.ANSWERED, answer)

    async def _undo_write(
        self, undo: UndoStep, step: WriteStep[Any], span_id: str
    ) -> AttemptOutcome:
        key = f"{self._row.id}/{self._machine.undo_key_of(undo.step)}"
        context = self._context(span_id, key=key)

        async def body(unit: Unit) -> bytes:
            fn, result = step.undo, undo.result
            if fn is not None and result is not None:
                await self._deps.run_unit(unit, context, lambda tx: fn(tx, step.load(result)))
            return b""

        try:
            await self._journal.write(body, lambda _: self._machine.undone(undo.step))
        except Fenced:
            raise
        except Exception as error:  # noqa: BLE001 - whatever users raise is judged by the machine
            self._log_bug(undo.step, error)
            return outcomes.of_write_undo(error)
        return AttemptOutcome(AttemptResult.ANSWERED)

    def _context(
        self, span_id: str, *, key: str, undoes: str = "", deadline_s: float | None = None
    ) -> CallContext:
        row = self._row
        # No attempts are left to the layers below: each one of a step is a recorded one (S2).
        context = CallContext(
            trace_id=row.trace_id,
            span_id=span_id,
            caller=row.caller,
            principal=row.principal,
            deadline_s=deadline_s,
            key=key,
            undoes=undoes,
            priority=self._priority,
            marks=self._marks,
        )
        # The spans of what the attempt does, such as its unit, are below that of the step.
        current_span.set(context)
        return context

    def _key(self, step: str) -> str:
        return f"{self._row.id}/{self._machine.key_of(step)}"

    def _whose(self, due_s: float, timeout_s: float | None) -> str:
        """Say what an attempt was cut by at that moment, as it is written."""
        limit_s = math.inf if self._machine.has_no_way_back else self._until_s()
        if due_s >= limit_s - 1e-6:
            return "the saga's deadline"
        if timeout_s is not None:
            return f"{timeout_s:g} s, the timeout_s of the step"
        return f"{self._policy.step_timeout_s:g} s, the step_timeout_s of the saga's policy"

    def _log_bug(self, step: str, error: Exception) -> None:
        """Log what users raise: with its traceback once, and in a line where it comes again."""
        if isinstance(error, SynchromeshError) and not isinstance(error, _BUGS):
            return
        raised, id = (step, type(error)), self._row.id  # noqa: A001
        if raised in self._raised:
            said = f"{type(error).__name__}: {error}"
            _log.error("step %s of saga %r raised again: %s", step, id, said[:TEXT_CHARS_MAX])
        else:
            self._raised.add(raised)
            _log.error("step %s of saga %r raised", step, id, exc_info=error)
