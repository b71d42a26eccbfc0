"""`Policy.guard`: blocks of code behind a breaker, a limiter and a timeout, in virtual time."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any

import pytest

from synchromesh import Policy
from synchromesh.errors import CircuitOpen, ConfigError, Shed, TimedOut
from synchromesh.resilience import BreakerOptions, LimitOptions, RetryOptions
from synchromesh.resilience.guarded_block import Guard
from synchromesh.testing import run

OPENS = BreakerOptions(minimum_calls=2, open_for_s=0.5, open_for_max_s=0.5, probes_max=1)
POLICY = Policy(timeout_s=0.3, retry=None, breaker=OPENS)


class Fixed:
    def random(self) -> float:
        return 0.5


def guard(policy: Policy = POLICY) -> Guard:
    return policy.guard("orders -> billing", rng=Fixed())


def now() -> float:
    return asyncio.get_running_loop().time()


async def block(of: Guard, what: object) -> object:
    async with of():
        if isinstance(what, float):
            await asyncio.sleep(what)
        elif isinstance(what, BaseException):
            raise what
        return what


async def error_of(call: Coroutine[Any, Any, object]) -> BaseException:
    try:
        await call
    except BaseException as error:
        return error
    raise AssertionError("the block was expected to fail")


def test_a_block_runs_and_its_error_is_its_own() -> None:
    """What it raises is raised as the same object, a TimeoutError too."""
    own = TimeoutError("of the driver")

    async def main() -> tuple[object, BaseException]:
        billing = guard()
        return await block(billing, "done"), await error_of(block(billing, own))

    done, error = run(lambda _: main())
    assert done == "done"
    assert error is own


def test_failures_open_it_and_a_probe_closes_it() -> None:
    """B1, B2, B3: an open one rejects at once, and then lets one block in."""

    async def main() -> None:
        billing = guard()
        for _ in range(2):
            assert isinstance(await error_of(block(billing, OSError())), OSError)
        began_s = now()
        for _ in range(5):
            refused = await error_of(block(billing, "done"))
            assert isinstance(refused, CircuitOpen)
            assert refused.retry_after_s is not None
        assert now() == began_s
        assert repr(billing) == "<Guard orders -> billing open>"
        await asyncio.sleep(0.5)
        seen = await asyncio.gather(
            *(block(billing, 0.1) for _ in range(9)), return_exceptions=True
        )
        assert [each for each in seen if not isinstance(each, CircuitOpen)] == [0.1]
        assert repr(billing) == "<Guard orders -> billing closed>"

    run(lambda _: main())


def test_a_block_is_cut_at_its_timeout() -> None:
    """Its task is released in time, the callee is blamed, and the task is not left cancelled."""

    async def main() -> tuple[list[BaseException], float, int]:
        billing = guard()
        errors = [await error_of(block(billing, 60.0)) for _ in range(3)]
        task = asyncio.current_task()
        assert task is not None
        return errors, now(), task.cancelling()

    errors, at_s, cancelling = run(lambda _: main())
    assert [type(error) for error in errors] == [TimedOut, TimedOut, CircuitOpen]
    assert at_s == pytest.approx(0.6)
    assert cancelling == 0


def test_a_cancelled_block_is_neutral_and_frees_its_place() -> None:
    """B4: also where the cancellation comes together with the timeout, which it wins over."""
    policy = Policy(timeout_s=0.3, retry=None, breaker=OPENS, limit=LimitOptions(in_flight_max=1))

    async def main() -> list[bool]:
        billing, ends = guard(policy), []
        for after_s in (0.1, 0.3, 0.3):
            task = asyncio.ensure_future(block(billing, 60.0))
            await asyncio.sleep(0)
            loop = asyncio.get_running_loop()
            loop.call_at(loop.time() + after_s, task.cancel)
            await asyncio.wait([task])
            ends.append(task.cancelled())
        assert await block(billing, "done") == "done"
        return ends

    assert run(lambda _: main()) == [True] * 3


def test_no_more_blocks_run_than_the_limit_says() -> None:
    """One waits and has its whole timeout all the same; the one that is too many is shed."""
    limit = LimitOptions(in_flight_max=1, queue_max=1)
    policy = Policy(timeout_s=0.3, retry=None, breaker=OPENS, limit=limit)

    async def main() -> list[object]:
        billing = guard(policy)
        seen = await asyncio.gather(
            *(block(billing, 0.2) for _ in range(3)), return_exceptions=True
        )
        assert await block(billing, "done") == "done"
        return list(seen)

    seen = run(lambda _: main())
    assert sorted(type(each).__name__ for each in seen) == ["Shed", "float", "float"]
    assert any(isinstance(each, Shed) for each in seen)


def test_a_block_that_finds_no_place_is_no_probe() -> None:
    """B3: while every place is taken nobody who was shed holds the breaker half-open."""
    options = BreakerOptions(minimum_calls=2, open_for_s=0.5, probes_max=2)
    limit = LimitOptions(in_flight_max=1)
    policy = Policy(timeout_s=None, retry=None, breaker=options, limit=limit)

    async def main() -> list[BaseException]:
        billing = guard(policy)
        for _ in range(2):
            await error_of(block(billing, OSError()))
        await asyncio.sleep(0.5)
        assert await block(billing, "fine") == "fine"
        probe = asyncio.ensure_future(block(billing, 1.0))
        await asyncio.sleep(0.1)
        errors = [await error_of(block(billing, "done")) for _ in range(3)]
        await probe
        return errors

    assert [type(error) for error in run(lambda _: main())] == [Shed] * 3


def test_a_cancelled_probe_is_replaced_at_once() -> None:
    """B3, B4: it says nothing, and its slot is free."""

    async def main() -> object:
        billing = guard()
        for _ in range(2):
            await error_of(block(billing, OSError()))
        await asyncio.sleep(0.5)
        probe = asyncio.ensure_future(block(billing, 0.2))
        await asyncio.sleep(0.1)
        probe.cancel()
        await asyncio.wait([probe])
        return await block(billing, "done")

    assert run(lambda _: main()) == "done"


def test_who_waited_for_a_place_and_is_rejected_gives_it_back() -> None:
    """The breaker opened meanwhile: the place is the next one's."""
    options = BreakerOptions(minimum_calls=1, open_for_s=0.5, open_for_max_s=0.5)
    limit = LimitOptions(in_flight_max=1, queue_max=1)
    policy = Policy(timeout_s=None, retry=None, breaker=options, limit=limit)

    async def main() -> tuple[BaseException, object]:
        billing = guard(policy)

        async def failing() -> None:
            async with billing():
                await asyncio.sleep(0.1)
                raise OSError

        first = asyncio.ensure_future(error_of(failing()))
        await asyncio.sleep(0.05)
        refused = await error_of(block(billing, "done"))
        await first
        await asyncio.sleep(0.5)
        return refused, await block(billing, "done")

    refused, answer = run(lambda _: main())
    assert isinstance(refused, CircuitOpen)
    assert answer == "done"


def test_blocks_may_be_nested_and_entered_by_many_tasks() -> None:
    """Each entry is by itself: the inner one's end is not the outer one's."""
    policy = Policy(timeout_s=0.5, retry=None, breaker=None)

    async def main() -> float:
        billing = guard(policy)

        async def nested() -> None:
            async with billing():
                await asyncio.sleep(0.4)
                async with billing():
                    await asyncio.sleep(60.0)

        errors = await asyncio.gather(*(error_of(nested()) for _ in range(5)))
        assert {type(error) for error in errors} == {TimedOut}
        return now()

    assert run(lambda _: main()) == pytest.approx(0.5)


def test_a_block_that_is_thrown_away_gives_its_place_back() -> None:
    """A coroutine that is closed when its loop has gone can ask no loop for the time."""
    policy = Policy(timeout_s=9.0, retry=None, breaker=OPENS, limit=LimitOptions(in_flight_max=1))
    billing = guard(policy)
    loop = asyncio.new_event_loop()
    call = block(billing, 1.0)

    async def first_step() -> None:
        call.send(None)

    try:
        loop.run_until_complete(first_step())
        call.close()
        assert loop.run_until_complete(block(billing, "done")) == "done"
    finally:
        loop.close()


def test_a_policy_with_retry_is_refused() -> None:
    """A block cannot be run again: said when it is made, with what to do."""
    with pytest.raises(ConfigError, match="retry=None"):
        Policy().guard("billing")
    Policy(retry=RetryOptions(attempts_max=1)).guard("billing")


def test_a_block_is_entered_once() -> None:
    """Its state is that of one run: a second one needs a block of its own."""

    async def main() -> None:
        once = guard()()
        async with once:
            pass
        with pytest.raises(RuntimeError, match="call the guard for each"):
            await once.__aenter__()

    run(lambda _: main())


@pytest.mark.parametrize("what", [OSError("down"), 60.0], ids=["failed", "cut"])
def test_a_failed_block_leaves_no_reference_cycle(what: object) -> None:
    """Under failures memory is freed at once, and no collector has to run."""
    billing = guard(Policy(timeout_s=0.001, retry=None, breaker=None))

    async def fail(times: int) -> None:
        for _ in range(times):
            try:
                if isinstance(what, float):
                    await block(billing, what)
                else:
                    async with billing():
                        raise OSError("down")
            except Exception:
                continue

    async def main() -> int:
        await fail(3)
        gc.collect()
        gc.disable()
        try:
            await fail(9)
            return gc.collect()
        finally:
            gc.enable()

    assert run(lambda _: main()) == 0
