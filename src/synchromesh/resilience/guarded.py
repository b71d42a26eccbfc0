"""An async function behind a policy: the first attempt of a call in one frame.

    retry's budget → breaker → limiter → the function with its timeout

Nearly every call is an attempt that succeeds, so that is what is written out here, once with a
timeout and once without. Whatever else there is takes the slow way, `Edge.run`: a second attempt,
a wait for the limiter. A frame costs about 0.1 us and a system call as much; each trick below says
which of them it saves.

The limiter learns from some of the calls. Where nothing else wants to know when a call began, one
that ends decides that the next one that begins is such a call (`OnLoop.is_due`), and all others are
spared a look at the clock. Were it decided by a call's own end, quick ones would be chosen more.
"""

from __future__ import annotations

import math
from asyncio import current_task
from collections.abc import Awaitable, Callable
from functools import partial
from threading import get_ident  # noqa: TID251 - no thread is made, only told from another
from typing import ParamSpec, TypeVar

from synchromesh.chance import Chance
from synchromesh.resilience import deadlines
from synchromesh.resilience.attempts import UNTIMED, Attempt, MayRepeat
from synchromesh.resilience.deadlines import ambient, call_due_s
from synchromesh.resilience.on_loop import Cut, OnLoop, OnLoops, no_task
from synchromesh.resilience.policy_layers import PolicyLayers

T = TypeVar("T")
P = ParamSpec("P")
Fn = Callable[P, Awaitable[T]]


class _SlowWay:
    """All of a call but a first attempt that succeeds.

    Attributes:
        loops: the edge of each loop.
        timeout_s: of an attempt; infinity for none.
        is_timing: whether each call is timed.
    """

    def __init__(
        self, policy: PolicyLayers, loops: OnLoops, rng: Chance, may_repeat: MayRepeat
    ) -> None:
        self.loops = loops
        self.timeout_s = policy.timeout_s or math.inf
        breaker = policy.breaker
        self.is_timing = breaker is not None and breaker.slow_after_s is not None
        self._has_retry = policy.retry is not None
        self._rng = rng
        self._may_repeat = may_repeat

    async def run(
        self,
        here: OnLoop,
        again: Callable[[Attempt], Awaitable[T]],
        due_s: float | None,
        failed: tuple[Attempt, Exception] | None = None,
    ) -> T:
        """Make a call that ends by `due_s`, or go on with it after its first attempt."""
        try:
            return await here.edge.run(
                again,
                deadline_s=due_s,
                attempts_left=None,
                is_retryable_unknown=self._may_repeat,
                rng=self._rng,
                failed=failed,
            )
        finally:
            failed = None  # this frame is in its traceback: kept, it would be a cycle

    async def go_on(
        self,
        here: OnLoop,
        again: Callable[[Attempt], Awaitable[T]],
        first: Attempt,
        permit: int,
        failed: BaseException | None,
        cut: Cut | None = None,
        due_s: float | None = None,
    ) -> T:
        """Go on after an attempt that has failed: tell the breaker, and retry or raise."""
        try:
            if cut is not None:
                here.timers.drop(cut)
            failed = here.ended(failed, first, cut)
            assert failed is not None, "who goes on has failed before"
            try:
                here.edge.report(failed, first, permit)
            finally:
                if here.limiter is not None:
                    here.limiter.release()
            if not (self._has_retry and isinstance(failed, Exception)):
                raise failed
            return await self.run(here, again, due_s, (first, failed))
        finally:
            del failed, cut  # as in `run`; and a cut keeps the task, which keeps the error

    async def queue(
        self,
        here: OnLoop,
        again: Callable[[Attempt], Awaitable[T]],
        permit: int,
        began_s: float,
        due_s: float | None = None,
    ) -> T:
        """Make a call that found no slot free; it asks the breaker again when it has one."""
        if here.breaker is not None:
            here.breaker.neutral(permit, began_s)
        return await self.run(here, again, due_s)


def guard(
    policy: PolicyLayers,
    fn: Fn[P, T],
    *,
    name: str,
    rng: Chance,
    may_repeat: MayRepeat,
    deadline_s: float | None,
) -> Fn[P, T]:
    """Return an async function that calls `fn` through the layers of a policy.

    Args:
        policy: the layers; those that are off are not there.
        fn: an async function; its own errors are raised as they are.
        name: of the edge, for messages.
        rng: the source of jitter.
        may_repeat: whether it may be run again when the outcome of a run is unknown.
        deadline_s: how long a call may take with all its attempts; None for as long as it wants.
    """
    way = _SlowWay(policy, OnLoops(policy, name=name, rng=rng), rng, may_repeat)
    guarded = _timed(fn, way, deadline_s)
    if policy.timeout_s is None and deadline_s is None:
        return _untimed(fn, way, guarded)
    return guarded


def _untimed(fn: Fn[P, T], way: _SlowWay, timed: Fn[P, T]) -> Fn[P, T]:  # noqa: C901 - `guarded`
    """Return the function that cuts nothing; within a deadline it is `timed`."""
    loops, is_timing = way.loops, way.is_timing
    current = OnLoop.nowhere()

    async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:  # noqa: C901 - one frame for all
        nonlocal current
        if deadlines.are_used and ambient.get() is not None:
            return await timed(*args, **kwargs)
        here = current
        if here.owner._thread_id != get_ident():
            here = current = loops.here()
        clock = here.clock  # to call a slot as if it were a method takes longer
        began_s, permit = UNTIMED, 0
        if here.is_due:
            began_s, here.is_due = clock(), is_timing
        breaker = here.breaker
        if breaker is not None:
            permit = breaker.closed_permit
            if not permit:
                began_s = clock()
                if began_s < breaker.refuses_until_s:
                    raise breaker.refusal(began_s)
                permit = breaker.admit(began_s)
        limiter = here.limiter
        if limiter is not None:
            if limiter.in_flight >= limiter.in_flight_max:
                again = partial(_call, fn, args, kwargs)
                return await way.queue(here, again, permit, began_s)
            limiter.in_flight += 1
        budget = here.budget
        if budget is not None:
            budget.calls += 1
        try:
            # To hand on an empty dict costs more than to ask whether it is.
            answer = await (fn(*args, **kwargs) if kwargs else fn(*args))  # type: ignore[call-arg]
        except BaseException as error:  # noqa: BLE001 - it is raised, or another attempt is made
            failed = error
        else:
            if breaker is not None:
                ended_s = clock()
                # The same object nearly always; if not, the method compares.
                if permit is breaker.closed_permit and ended_s < breaker.slice_ends_s:
                    breaker.successes += 1
                else:
                    breaker.success(permit, ended_s, ended_s - began_s)
                if limiter is None:
                    return answer
            elif limiter is None:
                return answer
            else:
                ended_s = clock()
            if ended_s >= here.tracker.next_sample_s:
                if began_s == UNTIMED:
                    here.is_due = True
                else:
                    limiter.sample(here.tracker, ended_s, ended_s - began_s)
            if limiter.waiting:
                limiter.release()
            else:
                limiter.in_flight -= 1
            return answer
        try:
            again, first = partial(_call, fn, args, kwargs), Attempt(1, began_s=began_s)
            return await way.go_on(here, again, first, permit, failed)
        finally:
            del failed  # this frame is in its traceback: kept, it would be a cycle

    return guarded


def _timed(fn: Fn[P, T], way: _SlowWay, within_s: float | None) -> Fn[P, T]:  # noqa: C901
    """Return the function that cuts what is late: what `_untimed` does, and a timer."""
    loops, timeout_s = way.loops, way.timeout_s
    current = OnLoop.nowhere()

    async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:  # noqa: C901 - one frame for all
        nonlocal current
        here = current
        if here.owner._thread_id != get_ident():
            here = current = loops.here()
        clock = here.clock
        began_s = clock()
        cut_s, due_s = began_s + timeout_s, None
        if within_s is not None or (deadlines.are_used and ambient.get() is not None):
            due_s = call_due_s(clock, began_s, within_s)
            if due_s is not None and due_s < cut_s:
                cut_s = due_s
        breaker, permit = here.breaker, 0
        if breaker is not None:
            permit = breaker.closed_permit
            if not permit and began_s < breaker.refuses_until_s:
                raise breaker.refusal(began_s)
        task = current_task(here.loop)  # told the loop, it need not ask for it
        if task is None:
            raise no_task()
        if breaker is not None and not permit:
            permit = breaker.admit(began_s)
        limiter, budget = here.limiter, here.budget
        if limiter is not None:
            if limiter.in_flight >= limiter.in_flight_max:
                again = partial(_call, fn, args, kwargs)
                return await way.queue(here, again, permit, began_s, due_s)
            limiter.in_flight += 1
        if budget is not None:
            budget.calls += 1
        cut, timers = Cut(cut_s, task), here.timers
        try:
            timers.add(cut, here.loop)  # in here: whatever raises gives the slot and permit back
            answer = await (fn(*args, **kwargs) if kwargs else fn(*args))  # type: ignore[call-arg]
        except BaseException as error:  # noqa: BLE001 - it is raised, or another attempt is made
            failed = error
        else:
            slot = cut.slot  # what `drop` does, without its frame
            if slot is not None:
                cut.slot = None
                del slot[cut]
            if cut.is_late:
                cut.is_alone()  # it has taken no notice, and has answered
            ended_s = clock()
            if limiter is not None:
                if ended_s >= here.tracker.next_sample_s:
                    limiter.sample(here.tracker, ended_s, ended_s - began_s)
                if limiter.waiting:
                    limiter.release()
                else:
                    limiter.in_flight -= 1
            if breaker is not None:
                if permit is breaker.closed_permit and ended_s < breaker.slice_ends_s:
                    breaker.successes += 1
                else:
                    breaker.success(permit, ended_s, ended_s - began_s)
            return answer
        try:
            again = partial(_call, fn, args, kwargs)
            first = here.edge.first_attempt(cut.due_s, 0, began_s)
            return await way.go_on(here, again, first, permit, failed, cut, due_s)
        finally:
            del failed, task, cut  # the error has this frame, and the task the error: cycles

    return guarded


def _call(
    fn: Callable[P, Awaitable[T]], args: tuple[object, ...], kwargs: dict[str, object], _: Attempt
) -> Awaitable[T]:
    """Call a function again, for `Edge.run`.

    No closure over the arguments: they would be cells, made with each call.
    """
    return fn(*args, **kwargs)  # type: ignore[arg-type]
