"""A call on the fast way: its first attempt, where nothing stands in its way, in one frame.

    unit? → deadline → budget → limiter → breaker → pick → hop → send → decode

It does what `sending` does, without an object for the call, its attempt or its span, and without a
frame for each layer. Whatever is more than one attempt that goes straight through takes the slow
way: a fault in force, a limiter without a free slot, an instance that is not known at once (before
anything was done), and every failure (as the first attempt of the slow way). Each trick says what
it saves; a frame costs about 0.1 us, and there were 235 of them in a call.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from functools import partial
from types import CoroutineType
from typing import Any

from synchromesh.calls.plan import Plan
from synchromesh.calls.sending import Sending
from synchromesh.calls.tree import attempts_left, running
from synchromesh.calls.wire import Request
from synchromesh.codec import NO_FIT
from synchromesh.context import ATTEMPTS_LEFT_MAX, CallContext, check_key
from synchromesh.discovery import Endpoint, Resolved
from synchromesh.errors import BadRequest
from synchromesh.http import Limits
from synchromesh.resilience import Attempt, AttemptsLeft, within
from synchromesh.store.guard import in_unit, refuse_in_unit

# What every transport carries: one that runs in this process must not carry more than the others.
REQUEST_BYTES_MAX = Limits().body_bytes_max
# The target shares the head of a request with what travels with every call.
TARGET_BYTES_MAX = Limits().head_bytes_max * 3 // 4
# What is shorter fits both, however it is written.
_SURELY_FITS = TARGET_BYTES_MAX // 3


async def call(  # noqa: C901 - one frame for all layers is the point of it
    plan: Plan,
    arguments: bytes,
    context: CallContext,
    timeout_s: float | None,
    *,
    as_json: bool = False,
) -> Any:
    """Make a call and return its answer.

    Args:
        plan: of the operation.
        arguments: in canonical form.
        context: of whoever makes the call.
        timeout_s: bounds the whole call; the deadline of the context does anyway.
        as_json: whether the answer is wanted as it was sent, and not its value.
    """
    if in_unit.get() is not None:
        refuse_in_unit(f"the call {plan.name}")
    shared, service = plan.shared, plan.service
    now = asyncio.get_running_loop().time()
    key = check_key(context.key) if plan.is_command else ""
    if len(arguments) > _SURELY_FITS and not plan.is_external:
        _check_size(plan, arguments)
    deadline_s = context.deadline_s
    if timeout_s is not None:
        deadline_s = _sooner(plan, deadline_s, now, timeout_s)
    # As `new_span_id` makes it, at half the price.
    span_id = (shared.draw(64) or 1).to_bytes(8).hex()

    listed: tuple[Endpoint, ...] = ()
    limiter, breaker = plan.limiter, plan.breaker
    # One look for each thing that may be in force. What holds calls and what strikes them are
    # dicts that are empty while nothing is.
    if not (shared.rules or shared.is_slow or (deadline_s is not None and now >= deadline_s)):
        sure = shared.lists.get(service.name)
        if sure is not None and now < sure[1]:
            listed = sure[0]
        else:
            listed = _known_at_once(shared.resolver.resolve(service.name))
    if not listed or (limiter is not None and not limiter.take()):
        sending = Sending(plan, arguments, context, key=key, span_id=span_id, began_s=now)
        answer = await sending.run(deadline_s, attempts_left(context))
        return answer[0] if as_json else answer[1]

    # What Attempt, Attempts and the layers of Edge do for a first attempt, without their frames.
    # A call at the root of its tree shares its extra attempts with nobody: what counts them is made
    # only if they are needed.
    left, root = None, running.get()
    given = context.attempts_left // 2
    if root is not None and root.span_id == context.span_id:
        left = root.left or attempts_left(context)
        given = left.left // 2
        left.left -= given
    due_s = now + plan.timeout_s
    if deadline_s is not None and deadline_s < due_s:
        due_s = deadline_s
    permit: int | None = None
    used: int | None = None
    endpoint: Endpoint | None = None
    failed: BaseException | None = None
    try:
        if plan.budget is not None:
            plan.budget.calls += 1
        if breaker is not None:
            # While it is closed all calls share one permit, and a success is a number to count.
            permit = breaker.closed_permit or breaker.admit(now)
        if shared.absences:
            shared.finder.note_found(service.name)
        endpoint = service.balancer.pick(listed)
        target = service.targets.get(endpoint.instance)
        if target is None or target.endpoint is not endpoint:
            target = service.target(endpoint)
        hop = service.hops.get(context.principal)
        if hop is None or now >= hop.fresh_until_s:
            hop = service.hop(context.principal, now)
        if plan.is_external:
            used = 0
            sent = CallContext(trace_id=context.trace_id, span_id=span_id, key=key)
        else:
            sent = CallContext(
                trace_id=context.trace_id,
                span_id=span_id,
                principal=context.principal,
                deadline_s=due_s if due_s != math.inf else None,
                key=key,
                attempts_left=min(ATTEMPTS_LEFT_MAX, given),
                undoes=context.undoes,
            )
        request = Request(plan.operation, arguments, sent, hop.credential, hop, due_s)
        if target.keeps_time:
            # No timer: in one process most callees have answered before one could be armed.
            reply = await target.send(endpoint, request)
        else:
            until_s = due_s if due_s != math.inf else None
            reply = await within(partial(target.send, endpoint, request), until_s)
        if not plan.is_external:
            used = reply.attempts_used
        if not 200 <= reply.status < 300:
            raise reply.to_error(plan.operation.raises, is_external=plan.is_external)
        body = reply.body or b"null"
        try:
            value = plan.decode(body)
        except NO_FIT as error:
            raise plan.misfit(error) from error
    except BaseException as error:  # noqa: BLE001 - it is raised, or another attempt is made
        failed = error
    else:
        if limiter is not None:
            limiter.release()
        ended_s = asyncio.get_running_loop().time()
        if breaker is not None and permit is not None:
            if permit == breaker.closed_permit and ended_s < breaker.slice_ends_s:
                breaker.successes += 1
            else:
                breaker.success(permit, ended_s, ended_s - now)
        if left is not None and given:
            if used == 0:
                left.left += given
            else:
                left.settle(given, used)
        plan.record(context.trace_id, span_id, context.span_id, now, ended_s, "ok", target.noted)
        return body if as_json else value
    if limiter is not None:
        limiter.release()
    try:
        sending = Sending(plan, arguments, context, key=key, span_id=span_id, began_s=now)
        first = Attempt(1, due_s, given, used=used, began_s=now)
        if left is None:
            left = AttemptsLeft(context.attempts_left)
            left.give()
        answer = await sending.go_on(first, failed, permit, endpoint, deadline_s, left)
        return answer[0] if as_json else answer[1]
    finally:
        failed = None  # this frame is in its traceback: kept, it would be a cycle


def _known_at_once(step: Awaitable[Resolved]) -> tuple[Endpoint, ...]:
    """Return what a resolver lists without waiting; nothing where it has to ask, or cannot say.

    Waiting for it would have to be bounded, which the slow way does: it asks once more.
    """
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


def _sooner(plan: Plan, deadline_s: float | None, now: float, timeout_s: float) -> float:
    until_s = now + timeout_s
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
