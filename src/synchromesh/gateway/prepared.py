"""An operation as the gateway calls it: what is the same for each call is put together once.

A call is its first attempt over HTTP, told by a callback: no task, no future, and of the request
only what differs from call to call. What does not go straight through is declined before anything
was done, for a task to make; an attempt that failed goes on by the slow way (`StartedCall`).
"""

from __future__ import annotations

from typing import Any, Final

from synchromesh.calls import Caller, HttpTransport, Operation
from synchromesh.calls.fast import SURELY_FITS, known_at_once
from synchromesh.calls.http_client import Place, keep_line
from synchromesh.calls.plan import Target
from synchromesh.calls.started import Done, StartedCall
from synchromesh.context import ATTEMPTS_LEFT_MAX, CallContext, header_lines, lines_outside
from synchromesh.discovery import Endpoint
from synchromesh.errors import CircuitOpen, ConfigError
from synchromesh.http import HttpPool
from synchromesh.http.together import TurnWrites
from synchromesh.resilience import AttemptsLeft

_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_NO_ARGUMENTS: Final = b"{}"


class PreparedCall:
    """Starts the calls of one operation.

    Args:
        caller: sends them.
        operation: a command is called under the key of its context.
    """

    __slots__ = (
        "_bare", "_operation", "_place", "_plan", "_pool", "_service", "_shared",
        "_states_length", "_strange", "_target",
    )  # fmt: skip

    _place: Place
    _pool: HttpPool

    def __init__(self, caller: Caller, operation: Operation[..., Any]) -> None:
        self._plan = caller.plan(operation)
        self._operation = operation
        self._shared, self._service = self._plan.shared, self._plan.service
        self._states_length = operation.method in _WITH_BODY
        # The latest instance that was called; most services have few, and many have one.
        self._target: Target | None = None
        # Instances of which one was not reached by HTTP: in one process all are.
        self._strange: tuple[Endpoint, ...] = ()
        # Target and body of a call without arguments, once there was one.
        self._bare: tuple[str, bytes] | None = None

    def start(
        self,
        arguments: bytes,
        done: Done,
        *,
        context: CallContext,
        left: AttemptsLeft,
        timeout_s: float | None = None,
        together: TurnWrites | None = None,
    ) -> StartedCall | None:
        """Start a call and return it; None where it does not go straight through.

        Args:
            arguments: in canonical form, and short.
            done: told of the outcome, once, later; not where the call is cancelled.
            context: of whoever makes the call.
            left: the extra attempts of its call tree.
            timeout_s: bounds the whole call; the deadline of the context does anyway.
            together: gathers the writes of a turn of the loop.
        """
        plan, shared, service = self._plan, self._shared, self._service
        is_slow = shared.faults.rules or shared.is_slow or plan.is_hedged
        if is_slow or len(arguments) > SURELY_FITS:
            return None
        now, deadline_s = plan.clock(), context.deadline_s
        if timeout_s is not None and (deadline_s is None or now + timeout_s < deadline_s):
            deadline_s = now + timeout_s
        due_s = now + plan.timeout_s
        if deadline_s is not None and deadline_s < due_s:
            due_s = deadline_s
        sure = shared.lists.get(service.name)
        listed = sure[0] if sure and now < sure[1] else known_at_once(service, now)
        if not listed or listed is self._strange or now >= due_s:
            return None
        limiter, breaker = plan.limiter, plan.breaker
        if limiter is not None and not limiter.take(context.priority):
            return None
        target, permit = service.choose(listed, now), 0
        if target is not self._target and not self._aim(target):
            self._strange = listed
            return self._decline(target)
        if breaker is not None:
            try:
                # While it is closed all calls share one permit, and a success is a number to count.
                permit = breaker.closed_permit or breaker.admit(now)
            except CircuitOpen:
                return self._decline(target)
        if plan.budget is not None:
            plan.budget.calls += 1
        # As `AttemptsLeft.give` and `settle`, without their frames.
        given = left.left // 2
        left.left -= given
        call = StartedCall(plan, arguments, context, left, done, target)
        call.given, call.permit = given, permit
        call.began_s, call.due_s, call.deadline_s = now, due_s, deadline_s
        call.together = together
        call.span_id = shared.new_span_id()
        call.is_idempotent = bool(call.key) or not plan.is_command
        try:
            call.wire = self._wire(arguments, call, context, now)
            self._pool.send(self._place.host, self._place.port, call)
        except Exception as error:  # noqa: BLE001 - an attempt that failed, as any other
            call.go_on(error)
        return call

    def __repr__(self) -> str:
        return f"<PreparedCall {self._plan.name}>"

    def _decline(self, target: Target) -> StartedCall | None:
        """Leave a call to the slow way, as if nothing had been done."""
        if self._plan.limiter is not None:
            self._plan.limiter.release()
        self._service.unsent(target.member)
        return None

    def _aim(self, target: Target) -> bool:
        """Look up how an instance is reached; False where that is not by HTTP."""
        transport = target.transport
        if not isinstance(transport, HttpTransport):
            return False
        try:
            self._place, self._pool = transport.place(target.endpoint), transport.pool
        except ConfigError:
            return False  # the slow way meets it again, and tells it
        self._target = target
        return True

    def _wire(self, arguments: bytes, call: StartedCall, context: CallContext, now: float) -> bytes:
        """Return the whole request, as `HttpTransport` and `Plan.request` make it."""
        place, operation = self._place, self._operation
        if arguments != _NO_ARGUMENTS:
            target, body = operation.to_http(arguments)
        elif self._bare is not None:
            target, body = self._bare
        else:
            target, body = self._bare = operation.to_http(arguments)
        line = place.lines.get((operation, target)) or place.line(operation, target)
        signed, travelling = self._travelling(call, context, now)
        return b"".join((
            line,
            signed,
            b"content-type: application/json\r\n" if body else b"",
            travelling,
            b"content-length: %d\r\n\r\n" % len(body) if body or self._states_length else b"\r\n",
            body,
        ))  # fmt: skip

    def _travelling(
        self, call: StartedCall, context: CallContext, now: float
    ) -> tuple[bytes, bytes]:
        """Return the lines that sign a hop, and those of what travels with it."""
        service = self._service
        if self._plan.is_external:
            # A stranger is not told who we are.
            return b"", lines_outside(context.trace_id, call.span_id, context.marks, call.key)
        hop = service.hops[context.priority].get(context.principal)
        if hop is None or now >= hop.fresh_until_s:
            hop = service.hop(context.principal, context.priority, now)
        sent = CallContext(
            trace_id=context.trace_id,
            span_id=call.span_id,
            principal=context.principal,
            deadline_s=call.due_s,
            key=call.key,
            attempts_left=min(ATTEMPTS_LEFT_MAX, call.given),
            priority=context.priority,
            marks=context.marks,
        )
        lines = header_lines(sent, now=now, wall_us=self._shared.runtime.wall_us())
        return hop.kept.get("http") or keep_line(hop), lines
