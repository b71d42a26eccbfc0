"""A call on the slow way: every layer by itself, each attempt at an instance of its own choice.

    trace → deadline → retry + budget → limiter → hedge → breaker (per edge) → balancer → transport

The layers from deadline to breaker are `resilience.Edge`. Faults on purpose, holding a call while
there is no instance, and any attempt but the first are here alone; see `fast` for the other way.
"""

from __future__ import annotations

import asyncio
from typing import Any

from synchromesh.calls.choice import Choice
from synchromesh.calls.faults import Strike
from synchromesh.calls.plan import CalledService, First, Plan, Shared
from synchromesh.calls.wire import Hop, Request
from synchromesh.clock import loop_now
from synchromesh.codec import NO_FIT
from synchromesh.context import ATTEMPTS_LEFT_MAX, CallContext
from synchromesh.discovery import Endpoint
from synchromesh.errors import (
    ConnectFailed,
    ConnectionLost,
    RemoteFailed,
    SynchromeshError,
    TimedOut,
)
from synchromesh.priority import Priority
from synchromesh.resilience import Attempt, AttemptsLeft, DeadlinePassed
from synchromesh.telemetry import outcome_of
from synchromesh.telemetry.span import TEXT_CHARS_MAX, Record

# Callers have timeouts; one that has none must not hang for ever either.
STALL_MAX_S = 300.0


class Way:
    """What a call and a request that is passed on have in common: instances, hops and a span.

    Attributes:
        number: of the attempt that was made last.
        noted: what the span will say.
    """

    def __init__(
        self,
        service: CalledService,
        context: CallContext,
        record: Record,
        span_id: str,
        began_s: float,
    ) -> None:
        self.service = service
        self.shared: Shared = service.shared
        self.context = context
        self.span_id = span_id
        self.number = 0
        self.noted: dict[str, str] = {}
        self.choice = Choice(self.shared.finder, service.name, service.balancer, self.noted)
        self._record = record
        self.began_s = began_s

    def note(self, name: str, value: object) -> None:
        """Add a short attribute to the span."""
        self.noted[name] = str(value)[:TEXT_CHARS_MAX]

    def end(self, error: BaseException | None) -> None:
        """Record the span."""
        status, attributes = ("ok", {}) if error is None else outcome_of(error)
        self.note("attempts", self.number)
        if isinstance(error, TimedOut) and error.limit:
            self.note("limit", error.limit)
        self._record(
            self.context.trace_id,
            self.span_id,
            self.context.span_id,
            self.began_s,
            loop_now(),
            status,
            {**self.noted, **attributes},
            self.context.marks.flags,
        )

    async def next(self, attempt: Attempt, until_s: float | None) -> Endpoint:
        """Choose the instance of an attempt. Raises NoInstance."""
        if attempt.place_s:
            self.note("place_ms", round(attempt.place_s * 1e3, 3))
        if attempt.failed:
            self.note("backoff_ms", round(attempt.backoff_s * 1e3, 3))
            self.note("failed", ", ".join(attempt.failed))
        endpoint = await self.choice.next(until_s)
        attempt.judge = self.service.judge(self.choice.member)
        return endpoint

    def give_up(self, endpoint: Endpoint) -> None:
        """Note a refused connection; holding does not apply to external services."""
        if not self.service.is_external:
            self.choice.give_up(endpoint)

    def priority(self, number: int) -> Priority:
        """Return the priority of an attempt: one after the first is shed sooner."""
        priority = self.context.priority
        return priority if number < 2 else min(priority, Priority.RETRY)

    def hop(self, attempt: Attempt) -> Hop:
        """Return the hop for whom an attempt is made."""
        now = loop_now()
        return self.service.hop(self.context.principal, self.priority(attempt.number), now)

    def travelling(self, key: str, deadline_s: float | None, attempt: Attempt) -> CallContext:
        """Return what travels with an attempt."""
        context = self.context
        if self.service.is_external:
            # It is not told who we are, and it can spend none of our attempts.
            marks = context.marks.outside()
            return CallContext(
                trace_id=context.trace_id, span_id=self.span_id, key=key, marks=marks
            )
        return CallContext(
            trace_id=context.trace_id,
            span_id=self.span_id,
            principal=context.principal,
            deadline_s=deadline_s,
            key=key,
            attempts_left=min(attempt.attempts_left, ATTEMPTS_LEFT_MAX),
            undoes=context.undoes,
            priority=self.priority(attempt.number),
            marks=context.marks,
        )

    async def suffer(self, endpoint: Endpoint) -> None:
        """Suffer what the faults in force have for this attempt.

        A struck attempt fails as one of a broken service does: with `RemoteFailed`, which breakers
        count, or by hanging until its caller's timeout.
        """
        shared = self.shared
        if shared.faults.is_empty:
            return
        now = loop_now()
        strike = shared.faults.strike(
            shared.service,
            self.service.name,
            now=now,
            rng=shared.runtime.rng,
            instance=endpoint.instance,
        )
        if strike is not None:
            await self._suffer(strike)

    async def _suffer(self, strike: Strike) -> None:
        self.note("fault", strike.why)
        if strike.latency_s:
            await asyncio.sleep(strike.latency_s)
        message = f"a fault that was put in force on purpose: {strike.why}; heal it to go on"
        if strike.is_error:
            raise RemoteFailed(message)
        if strike.is_stall:
            await asyncio.sleep(STALL_MAX_S)
            raise ConnectionLost(message)


class Sending(Way):
    """One call of an operation under way.

    Args:
        plan: of the operation.
        arguments: in canonical form.
        context: of whoever makes the call.
        key: the idempotency key, "" for none.
        span_id: of the span that this call will be.
        began_s: when it began.
    """

    def __init__(
        self,
        plan: Plan,
        arguments: bytes,
        context: CallContext,
        *,
        key: str,
        span_id: str,
        began_s: float,
    ) -> None:
        super().__init__(plan.service, context, plan.record, span_id, began_s)
        self._plan = plan
        self._arguments = arguments
        self._key = key

    async def run(
        self,
        deadline_s: float | None,
        left: AttemptsLeft,
        failed: tuple[Attempt, Exception] | None = None,
    ) -> tuple[bytes, Any]:
        """Make the call; return the answer's JSON and value.

        Args:
            deadline_s: the call's deadline on the loop's clock.
            left: the extra attempts of the call tree.
            failed: a first attempt that was made on the fast way, and what it raised.
        """
        plan, outcome = self._plan, None
        try:
            return await plan.edge.run(
                self.attempt,
                deadline_s=deadline_s,
                attempts_left=left,
                is_retryable_unknown=bool(self._key) or not plan.is_command,
                rng=self.shared.runtime.rng,
                failed=failed,
                priority=self.context.priority,
            )
        except BaseException as error:
            outcome = error
            if isinstance(error, SynchromeshError):
                error.via = plan.name
            raise
        finally:
            if not isinstance(outcome, GeneratorExit):
                self.end(outcome)
            outcome = failed = None  # this frame is in their tracebacks: kept, they are cycles

    async def go_on(
        self, first: First, deadline_s: float | None, left: AttemptsLeft | None
    ) -> tuple[bytes, Any]:
        """Go on after the fast way's attempt, which has failed: tell the breaker, and try again.

        Args:
            first: the attempt, and what it came to.
            deadline_s: the call's deadline on the loop's clock.
            left: the extra attempts of the call tree; None where this call is its root.
        """
        failed, first.failed = first.failed, None
        plan, edge, target, reply = self._plan, self._plan.edge, first.target, first.reply
        try:
            assert failed is not None, "who goes on has failed before"
            self.number = 1
            if target is not None:
                self.choice.note_tried(target.endpoint)
                if isinstance(failed, ConnectFailed):
                    self.give_up(target.endpoint)
            attempt = edge.first_attempt(first.due_s, first.given, self.began_s)
            if plan.is_external:
                attempt.used = 0
            elif reply is not None:
                attempt.used, attempt.away_s = reply.attempts_used, reply.away_s
            if isinstance(failed, DeadlinePassed) and failed.deadline_s == first.due_s:
                failed = edge.late(attempt)
            elif reply is not None and isinstance(failed, NO_FIT):
                failed = plan.misfit(failed)
            if target is not None:
                attempt.judge = self.service.judge(target.member)
            if first.permit or target is not None:
                edge.report(failed, attempt, first.permit)
            if not isinstance(failed, Exception):
                if not isinstance(failed, GeneratorExit):
                    self.end(failed)  # who is thrown away may have no loop any more, and no time
                raise failed
            if left is None:
                left = AttemptsLeft(self.context.attempts_left)
                left.give()
            return await self.run(deadline_s, left, (attempt, failed))
        finally:
            del failed  # this frame is in its traceback: kept, it would be a cycle

    async def attempt(self, attempt: Attempt) -> tuple[bytes, Any]:
        """Send once; return the answer's JSON and value."""
        self.number = max(self.number, attempt.number)
        plan = self._plan
        endpoint = await self.next(attempt, attempt.deadline_s)
        if attempt.is_hedge:
            self.note("hedge", endpoint.instance)
        transport = self.shared.transport(endpoint)
        hop = self.hop(attempt)
        context = self.travelling(self._key, attempt.deadline_s, attempt)
        if plan.is_external:
            attempt.used = 0
        await self.suffer(endpoint)
        try:
            reply = await transport.send(
                endpoint, Request(plan.operation, self._arguments, context, hop.credential, hop)
            )
        except ConnectFailed:
            self.give_up(endpoint)
            raise
        if not plan.is_external:
            attempt.used, attempt.away_s = reply.attempts_used, reply.away_s
        if not reply.is_answer:
            raise plan.error_of(reply)
        if self.number > attempt.number:
            self.note("instance", endpoint.instance)  # whose answer it is, not who was asked last
        body = reply.body or b"null"
        try:
            return body, plan.decode(body)
        except NO_FIT as error:
            raise plan.misfit(error) from error
