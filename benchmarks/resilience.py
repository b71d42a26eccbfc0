"""What a guard around an async function costs, against the libraries that do the same.

    python -m benchmarks.resilience

Every figure is what one call costs over a bare `await` of the same function, except for a call that
an open breaker rejects, which is told whole. It is CPU time of the one thread that all of it runs
in, so that what else the machine does is left out. Before anything is measured each guard has to
show that it guards: that its breaker opens, its timeout fires, its retry repeats and its bulkhead
is full when it is full.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from types import coroutine
from typing import Any

import circuitbreaker
import hyx.bulkhead
import hyx.circuitbreaker
import hyx.retry
import hyx.timeout
import pyresilience
import stamina

from benchmarks.harness import Goal, Report, Results, WrongAnswer, at_most, check, size
from synchromesh import Policy
from synchromesh.errors import ConnectFailed
from synchromesh.resilience import BreakerOptions, LimitOptions

Fn = Callable[[int], Awaitable[int]]
Guard = Callable[[Fn], Fn]
"""Puts a guard of its own around a function."""

AT_ONCE = 100
"""Places of each bulkhead."""
LONG_S = 3600.0
HYX_RETRIES = 2
"""hyx counts those beyond the first call."""

CIRCUITBREAKER = "circuitbreaker"
HYX = "hyx"
PYRESILIENCE = "pyresilience"
STAMINA = "stamina"
ASYNCIO = "asyncio.timeout"

# -- what is called ------------------------------------------------------------------------------


class Broken(ConnectFailed):
    """The failure of a function that is guarded, of a class that ours is sure to try again."""

    def __init__(self) -> None:
        super().__init__("nothing was sent")


async def answers(given: int) -> int:
    """Answer at once."""
    return given


@coroutine
def _a_turn() -> Any:
    yield


async def suspends(given: int) -> int:
    """Answer in the loop's next turn, as what waits for a socket does."""
    await _a_turn()
    return given


async def _fails(_: int) -> int:
    raise Broken


# -- the guards ----------------------------------------------------------------------------------

_RNG = random.Random(1)


def _ours(policy: Policy) -> Guard:
    return lambda fn: policy.wrap(fn, rng=_RNG, name="bench", is_idempotent=True)


def _circuitbreaker(failures: int = 5) -> Guard:
    # Its breakers are registered by name for good: a name of its own for each.
    return lambda fn: circuitbreaker.CircuitBreaker(
        failure_threshold=failures, recovery_timeout=LONG_S, name=f"bench {id(fn)} {time.time_ns()}"
    )(fn)


def _hyx_breaker(failures: int = 5) -> Guard:
    return lambda fn: hyx.circuitbreaker.consecutive_breaker(
        failure_threshold=failures, recovery_time_secs=LONG_S, recovery_threshold=1
    )(fn)


def _pyresilience(**layers: Any) -> Guard:
    return lambda fn: pyresilience.resilient(**layers)(fn)


def _pyresilience_breaker(failures: int = 5) -> Any:
    return pyresilience.CircuitBreakerConfig(failure_threshold=failures, recovery_timeout=LONG_S)


def _asyncio_timeout(within_s: float) -> Guard:
    def guard(fn: Fn) -> Fn:
        async def guarded(given: int) -> int:
            async with asyncio.timeout(within_s):
                return await fn(given)

        return guarded

    return guard


def breakers(failures: int = 5) -> dict[str, Guard]:
    """Return breakers that open after so many failures in a row, and stay open."""
    ours = BreakerOptions(minimum_calls=failures, open_for_s=LONG_S, open_for_max_s=LONG_S)
    return {
        "ours": _ours(Policy(timeout_s=None, retry=None, budget=None, breaker=ours)),
        CIRCUITBREAKER: _circuitbreaker(failures),
        HYX: _hyx_breaker(failures),
        PYRESILIENCE: _pyresilience(circuit_breaker=_pyresilience_breaker(failures)),
    }


def timeouts(within_s: float = 1.0) -> dict[str, Guard]:
    """Return timeouts."""
    return {
        "ours": _ours(Policy(timeout_s=within_s, retry=None, budget=None, breaker=None)),
        ASYNCIO: _asyncio_timeout(within_s),
        HYX: lambda fn: hyx.timeout.timeout(within_s)(fn),
        PYRESILIENCE: _pyresilience(timeout=pyresilience.TimeoutConfig(seconds=within_s)),
    }


def retries() -> dict[str, Guard]:
    """Return retries of up to 3 attempts; ours with its budget."""
    return {
        "ours": _ours(Policy(timeout_s=None, breaker=None)),
        STAMINA: lambda fn: stamina.retry(on=Broken, attempts=3, wait_initial=0.01)(fn),
        HYX: lambda fn: hyx.retry.retry(on=Broken, attempts=HYX_RETRIES, backoff=0.01)(fn),
        PYRESILIENCE: _pyresilience(retry=_pyresilience_retry()),
    }


def _pyresilience_retry() -> Any:
    return pyresilience.RetryConfig(max_attempts=3, delay=0.01)


def composed(within_s: float = 1.0) -> dict[str, Guard]:
    """Return retry, breaker, bulkhead and timeout in one; ours with its budget."""
    ours = Policy(timeout_s=within_s, limit=LimitOptions(in_flight_max=AT_ONCE))

    def with_hyx(fn: Fn) -> Fn:
        held = hyx.bulkhead.bulkhead(max_concurrency=AT_ONCE, max_capacity=AT_ONCE)(fn)
        timed = hyx.timeout.timeout(within_s)(held)
        broken = _hyx_breaker()(timed)
        guarded: Fn = hyx.retry.retry(on=Broken, attempts=HYX_RETRIES, backoff=0.01)(broken)
        return guarded

    return {
        "ours": _ours(ours),
        PYRESILIENCE: _pyresilience(
            retry=_pyresilience_retry(),
            circuit_breaker=_pyresilience_breaker(),
            timeout=pyresilience.TimeoutConfig(seconds=within_s),
            bulkhead=pyresilience.BulkheadConfig(max_concurrent=AT_ONCE),
        ),
        HYX: with_hyx,
    }


# -- that they guard -----------------------------------------------------------------------------


class Calls:
    """A function that counts how often it was entered, and fails the first few times or hangs."""

    def __init__(self, *, failures: int = 0, hangs: bool = False) -> None:
        self.entered = 0
        self._failures = failures
        self._hangs = hangs

    def fn(self) -> Fn:
        """Return the function."""

        async def counted(given: int) -> int:
            self.entered += 1
            if self._hangs:
                await asyncio.Event().wait()
            if self.entered <= self._failures:
                raise Broken
            return given

        return counted


async def _is_refused(call: Awaitable[int]) -> bool:
    try:
        await call
    except Exception:  # noqa: BLE001  each library has errors of its own
        return True
    return False


async def prove_breaker(guard: Guard, who: str, *, outcomes: int) -> None:
    """Check that it opens after so many failures, and that nothing is called then."""
    calls = Calls(failures=10**6)
    guarded = guard(calls.fn())
    for _ in range(outcomes + 20):
        check(await _is_refused(guarded(1)), True, f"the breaker of {who}")
    check(calls.entered, outcomes, f"the breaker of {who}, asked how often it let a call pass,")


async def prove_timeout(guard: Guard, who: str) -> None:
    """Check that what hangs is ended."""
    calls = Calls(hangs=True)
    guarded = guard(calls.fn())
    async with asyncio.timeout(10.0):
        check(await _is_refused(guarded(1)), True, f"the timeout of {who}")
    if calls.entered < 1:
        raise WrongAnswer(f"the timeout of {who} called nothing")


async def prove_retry(guard: Guard, who: str) -> None:
    """Check that what fails twice is called a third time, and no fourth one."""
    calls = Calls(failures=2)
    check(await guard(calls.fn())(7), 7, f"the retry of {who}")
    check(calls.entered, 3, f"the retry of {who}, asked how often it called,")
    calls = Calls(failures=10**6)
    # Refused, or None: hyx swallows the last failure.
    async with asyncio.timeout(10.0):
        await _is_refused(guard(calls.fn())(7))
    check(calls.entered, 3, f"the retry of {who}, asked when it gave up,")


async def prove_bulkhead(guard: Guard, who: str) -> None:
    """Check that one call more than there are places is refused and not made."""
    calls = Calls(hangs=True)
    guarded = guard(calls.fn())
    held = [asyncio.ensure_future(guarded(number)) for number in range(AT_ONCE)]
    for _ in range(10):
        await asyncio.sleep(0)
    check(calls.entered, AT_ONCE, f"the bulkhead of {who}, filled,")
    check(await _is_refused(guarded(1)), True, f"the bulkhead of {who}")
    check(calls.entered, AT_ONCE, f"the bulkhead of {who}, filled and asked for one more,")
    for each in held:
        each.cancel()
    await asyncio.gather(*held, return_exceptions=True)


async def prove_all() -> None:
    """Check every guard for every promise that is measured."""
    for who, guard in breakers().items():
        await prove_breaker(guard, who, outcomes=5)
    for who, guard in timeouts(0.05).items():
        await prove_timeout(guard, who)
    for who, guard in retries().items():
        await prove_retry(guard, who)
    for who, guard in composed(5.0).items():
        await prove_bulkhead(guard, who)
        await prove_retry(guard, who)
    for who, guard in composed(0.05).items():
        await prove_timeout(guard, who)


# -- what they cost ------------------------------------------------------------------------------

CHUNK = 250
"""Calls without a turn of the loop in between: cancelled timers must not pile up."""


async def _cost_ns(fn: Fn, calls: int) -> float:
    spent, clock = 0, time.thread_time_ns
    for _ in range(calls // CHUNK):
        gc.disable()
        began = clock()
        for _ in range(CHUNK):
            await fn(1)
        spent += clock() - began
        gc.enable()
        await asyncio.sleep(0)
    check(await fn(7), 7, "a guarded function")
    return spent / (calls // CHUNK * CHUNK)


async def _rejected_ns(fn: Fn, calls: int) -> float:
    refused, clock = 0, time.thread_time_ns
    gc.disable()
    began = clock()
    for _ in range(calls):
        try:
            await fn(1)
        except Broken:
            raise
        except Exception:  # noqa: BLE001  each library has an error of its own
            refused += 1
    spent = clock() - began
    gc.enable()
    check(refused, calls, "an open breaker, asked how often it rejected,")
    return spent / calls


async def added(guards: Mapping[str, Guard], leaf: Fn) -> Results:
    """Measure what each guard adds to a bare await, in turn."""
    guarded = {who: guard(leaf) for who, guard in guards.items()}
    results, calls = Results(), size(2_000, 500)
    for turn in range(-1, size(41, 3)):
        bare_ns = await _cost_ns(leaf, calls)
        for who, fn in guarded.items():
            cost_ns = await _cost_ns(fn, calls)
            if turn >= 0:
                results.add(who, {"ns": cost_ns - bare_ns})
    return results


async def rejected() -> Results:
    """Measure what a call costs that an open breaker rejects."""
    opened = {who: guard(_fails) for who, guard in breakers(1).items()}
    for fn in opened.values():
        try:
            await fn(1)
        except Broken:
            continue
        raise WrongAnswer("a guard swallowed the failure that was to open it")
    results, calls = Results(), size(2_000, 500)
    for turn in range(-1, size(41, 3)):
        for who, fn in opened.items():
            cost_ns = await _rejected_ns(fn, calls)
            if turn >= 0:
                results.add(who, {"ns": cost_ns})
    return results


SPACED_S = 0.0012
"""At this distance the limiter learns from each call, and nothing is in the processor's caches."""


async def _spaced_ns(fn: Fn, calls: int) -> float:
    spent, clock = 0, time.thread_time_ns
    for _ in range(calls):
        await asyncio.sleep(SPACED_S)
        began = clock()
        await fn(1)
        spent += clock() - began
    return spent / calls


async def of_adaptive_limit() -> Results:
    """Measure what the adaptive limit adds to all other layers: calls at once, and apart."""
    limited, unlimited = (_ours(policy)(answers) for policy in (Policy(), Policy(limit=None)))
    results = Results()
    for turn in range(-1, size(21, 3)):
        at_once = [await _cost_ns(fn, size(2_000, 500)) for fn in (unlimited, limited)]
        apart = [await _spaced_ns(fn, size(100, 50)) for fn in (unlimited, limited)]
        if turn >= 0:
            added_ns = {"at once": at_once[1] - at_once[0], "apart": apart[1] - apart[0]}
            results.add("ours", added_ns)
    return results


def tell(report: Report, figure: str, results: Results, goals: Mapping[str, Goal]) -> None:
    """Add a row for each peer."""
    for peer in results.contestants():
        if peer != "ours":
            report.against(figure, "ns", results, "ns", peer=peer, goal=goals.get(peer))


async def main() -> None:
    """Check the guards, run them in turn and report."""
    logging.getLogger(STAMINA).setLevel(logging.ERROR)
    await prove_all()
    report = Report("resilience", packages=[CIRCUITBREAKER, HYX, PYRESILIENCE, STAMINA])
    tell(report, "breaker", await added(breakers(), answers), {CIRCUITBREAKER: at_most(0.6)})
    refusals = await rejected()
    peers = [who for who in refusals.contestants() if who != "ours"]
    fastest = min(peers, key=lambda who: refusals.median(who, "ns"))
    tell(report, "breaker, rejected", refusals, {fastest: at_most(0.8)})
    tell(
        report,
        "retry, first attempt answers",
        await added(retries(), answers),
        {STAMINA: at_most(1 / 50)},
    )
    for leaf, how in ((answers, "callee answers at once"), (suspends, "callee suspends")):
        of_timeouts = await added(timeouts(), leaf)
        goals = {ASYNCIO: at_most(1 / 3)} if leaf is answers else {}
        tell(report, f"timeout, {how}", of_timeouts, goals)
    for leaf, how in ((answers, "callee answers at once"), (suspends, "callee suspends")):
        goals = dict.fromkeys((PYRESILIENCE, HYX), at_most(1 / 8)) if leaf is answers else {}
        tell(report, f"composed, {how}", await added(composed(), leaf), goals)
    limits = await of_adaptive_limit()
    report.alone("adaptive limit", "ns", limits.median("ours", "at once"), at_most(1_000))
    report.alone("adaptive limit, apart", "ns", limits.median("ours", "apart"))
    report.finish()
    print("where the time goes: python -m benchmarks.profiles breaker timeout composed")


if __name__ == "__main__":
    asyncio.run(main())
