"""A call on the fast way: its first attempt, where nothing stands in its way, in one frame.

    unit? → deadline → budget → limiter → breaker → pick → hop → send → decode

It does what `sending` does, without an object for the call, its attempt or its span, and without a
frame for each layer. Whatever is more than one attempt that goes straight through takes the slow
way: a fault in force, a query that may be hedged, a limiter without a free slot, an instance that
is not known at once (before anything was done), and every failure (as the first attempt of the slow
way). Each trick says what it saves; a frame costs about 0.1 us, and there were 235 of them in a
call.
"""

from __future__ import annotations

import math
from types import CoroutineType
from typing import Any

from synchromesh.calls.plan import CalledService, First, Plan
from synchromesh.calls.sending import Sending
from synchromesh.calls.tree import attempts_left, away, running
from synchromesh.calls.wire import Reply
from synchromesh.context import CallContext, check_key
from synchromesh.discovery import Endpoint, Resolved
from synchromesh.errors import BadRequest
from synchromesh.http import Limits
from synchromesh.priority import Priority
from synchromesh.store.guard import in_unit, refuse_in_unit

# What every transport carries: one that runs in this process must not carry more than the others.
REQUEST_BYTES_MAX = Limits().body_bytes_max
# The target shares the head of a request with what travels with every call.
TARGET_BYTES_MAX = Limits().head_bytes_max * 3 // 4
# A global is read faster than a member of a class.
INTERACTIVE = Priority.INTERACTIVE
NOBODY: tuple[Endpoint, ...] = ()
# What is shorter fits both, however it is written.
SURELY_FITS = TARGET_BYTES_MAX // 3


async def call(  # noqa: C901 - one frame for all layers is the point of it
    plan: Plan, arguments: bytes, context: CallContext, timeout_s: float | None, *, as_json: bool
) -> Any:
    """Make a call, in `timeout_s` at most; return its answer's value, or its JSON if `as_json`."""
    if in_unit.get() is not None:
        refuse_in_unit(f"the call {plan.name}")
    shared, service, breaker, limiter = plan.shared, plan.service, plan.breaker, plan.limiter
    now, root = plan.clock(), running.get()
    if root is not None and root.span_id != context.span_id:
        root = None  # this call begins a tree
    key = check_key(context.key) if plan.is_command else ""
    if len(arguments) > SURELY_FITS and not plan.is_external:
        _check_size(plan, arguments)
    deadline_s = context.deadline_s if timeout_s is None else _sooner(plan, context, now, timeout_s)
    span_id, listed = shared.new_span_id(), NOBODY
    is_late = deadline_s is not None and now >= deadline_s
    if not (is_late or plan.is_hedged or shared.is_slow or shared.faults.rules):
        sure = shared.lists.get(service.name)  # as `known_at_once`, without its frame
        listed = sure[0] if sure and now < sure[1] else known_at_once(service, now)
    if listed and limiter is not None:
        if limiter.in_flight < limiter.in_flight_max and context.priority is INTERACTIVE:
            limiter.in_flight += 1
        elif not limiter.take(context.priority):
            listed = ()
    if not listed:
        sending = Sending(plan, arguments, context, key=key, span_id=span_id, began_s=now)
        sent = away(root, sending.run(deadline_s, attempts_left(context)), plan.clock)
        return (await sent)[0 if as_json else 1]
    # At the root of a tree what counts the extra attempts is made only if they are needed.
    left, given = None, context.attempts_left // 2
    if root is not None:
        left = root.left or attempts_left(context)
        given = left.left // 2
        left.left -= given
    due_s = now + plan.timeout_s
    due_s = due_s if deadline_s is None or due_s < deadline_s else deadline_s
    permit, target, reply = 0, None, None
    try:
        if plan.budget is not None:
            plan.budget.calls += 1
        if breaker is not None:
            # While it is closed all calls share one permit, and a success is a number to count.
            permit = breaker.closed_permit or breaker.admit(now)
        is_sole = listed is service.sole_of and not shared.absences
        target = service.sole if is_sole else service.choose(listed, now)
        request = plan.request(arguments, context, key, span_id, given, due_s, now)
        answer = target.send(target.endpoint, request)
        # In one process it is the reply itself where the callee had not to wait.
        reply = answer if isinstance(answer, Reply) else await away(root, answer, plan.clock)
        if not 200 <= reply.status < 300:
            raise plan.error_of(reply)
        value = plan.decode(reply.body or b"null")
    except BaseException as error:  # noqa: BLE001 - it is raised, or another attempt is made
        first = First(due_s, given, permit, target, reply, error)
    else:
        plan.answered(context, span_id, permit, target, now, reply.away_s)
        if left is not None:
            # As `AttemptsLeft.settle`, without its frame.
            left.left += given
            if reply.attempts_used and not plan.is_external:
                left.spend(reply.attempts_used)
        return reply.body or b"null" if as_json else value
    finally:
        if limiter is not None:
            limiter.in_flight -= 1
            if limiter.waiting:
                limiter.hand_over()
    sending = Sending(plan, arguments, context, key=key, span_id=span_id, began_s=now)
    went = away(root, sending.go_on(first, deadline_s, left), plan.clock)
    return (await went)[0 if as_json else 1]


def known_at_once(service: CalledService, now: float) -> tuple[Endpoint, ...]:
    """Return what is listed without waiting; nothing where the registry has to be asked first.

    Waiting for it would have to be bounded, which the slow way does: it asks once more.
    """
    shared = service.shared
    sure = shared.lists.get(service.name)
    if sure is not None and now < sure[1]:
        return sure[0]
    step = shared.resolver.resolve(service.name)
    if isinstance(step, CoroutineType):
        try:
            step.send(None)
        except StopIteration as found:
            resolved: Resolved = found.value
            return resolved.endpoints
        except Exception:  # noqa: BLE001 - the slow way meets it again, and tells it
            return ()
        step.close()
    return ()


def _sooner(plan: Plan, context: CallContext, now: float, timeout_s: float) -> float:
    until_s, deadline_s = now + timeout_s, context.deadline_s
    if math.isnan(until_s):
        # It compares with nothing, and would put the timers of the loop out of order.
        raise BadRequest(f"{plan.name} was given the timeout {timeout_s} s")
    return until_s if deadline_s is None or until_s < deadline_s else deadline_s


def _check_size(plan: Plan, arguments: bytes) -> None:
    target, body = plan.operation.to_http(arguments)
    for part, limit in ((body, REQUEST_BYTES_MAX), (target, TARGET_BYTES_MAX)):
        if len(part) > limit:
            raise BadRequest(
                f"the arguments of {plan.name} have {len(part)} bytes as they are sent, "
                f"at most {limit} are carried there; send where they are to be found instead"
            )
