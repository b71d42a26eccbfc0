"""The two ways of a call: what takes the fast one, what takes the slow one, and what each costs."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from unittest.mock import patch

import pytest

from calls_fakes import ONCE, Always, Known, Leaf, System, answering, play
from synchromesh.calls import Caller, Fault, Policies, Reply
from synchromesh.calls.sending import Sending
from synchromesh.discovery import Endpoint, MemoryRegistry, Resolved
from synchromesh.errors import CallError, RemoteFailed
from synchromesh.resilience import LimitOptions, Policy, RetryOptions
from synchromesh.runtime import RealRuntime


@contextmanager
def slow_calls() -> Iterator[list[str]]:
    """Note each call that takes the slow way."""
    seen: list[str] = []
    run = Sending.run

    async def noted(self: Sending, *args: object) -> object:
        seen.append("slow" if len(args) == 2 else "goes on")
        return await run(self, *args)  # type: ignore[arg-type]

    with patch.object(Sending, "run", noted):
        yield seen


async def ask(caller: Caller) -> int:
    return await caller.call(Leaf.ask(1), context=caller.root(timeout_s=5.0))


class Asking(Known):
    """A resolver that has to ask somebody first."""

    async def resolve(self, service: str) -> Resolved:
        await asyncio.sleep(0.01)
        return await super().resolve(service)


def test_a_call_with_nothing_in_its_way_takes_the_fast_way() -> None:
    """The first call already, and whatever the transport is."""

    async def main(system: System) -> None:
        await system.serve(Leaf, {"ask": answering(7)})
        caller = system.caller()
        with slow_calls() as seen:
            for _ in range(3):
                assert await ask(caller) == 7
        assert seen == []

    for kind in ("inproc", "http"):
        play(kind, main)


def _in_force(system: System) -> Caller:
    caller = system.caller()
    caller.faults.put("another", Fault(errors=1.0), now=0.0)
    return caller


def _asking(system: System) -> Caller:
    asking = Asking(system.known.endpoints)
    system.known = asking
    return system.caller()


def _forced(system: System) -> Caller:
    caller = system.caller()
    caller.is_slow = True
    return caller


@pytest.mark.parametrize("hindered", [_in_force, _asking, _forced])
def test_a_call_with_something_in_its_way_takes_the_slow_way(
    hindered: Callable[[System], Caller],
) -> None:
    """A fault in force somewhere, a registry that has to be asked, and tests that want it."""

    async def main(system: System) -> None:
        await system.serve(Leaf, {"ask": answering(7)})
        caller = hindered(system)
        with slow_calls() as seen:
            assert await ask(caller) == 7
        assert seen == ["slow"]
        assert system.span("call", "client").attributes == {"instance": "leaf-1", "attempts": "1"}

    play("inproc", main)


def test_a_call_that_finds_the_limiter_full_waits_on_the_slow_way() -> None:
    """It waits in the queue, within its time, and then goes."""

    async def slow(_: object) -> bytes:
        await asyncio.sleep(0.1)
        return b"7"

    async def main(system: System) -> None:
        await system.serve(Leaf, {"ask": slow})
        policy = Policy(retry=None, limit=LimitOptions(in_flight_max=1, queue_max=1))
        caller = system.caller(policies=Policies(policy))
        with slow_calls() as seen:
            assert list(await asyncio.gather(ask(caller), ask(caller))) == [7, 7]
        assert seen == ["slow"]

    play("inproc", main)


def test_a_failed_first_attempt_is_the_first_of_the_slow_way() -> None:
    """The breaker hears of it once, the next attempt is the second, and one span tells of both."""

    async def main(system: System) -> None:
        receiver = Always(Reply.of_error(RemoteFailed("down")), Reply(200, b"7"))
        await system.mount("leaf", receiver, [Leaf.ask])
        caller = system.caller(policies=Policies(Policy(retry=RetryOptions(base_s=0.0, cap_s=0.0))))
        with slow_calls() as seen:
            assert await ask(caller) == 7
        assert seen == ["goes on"]
        span, edge = system.span("call", "client"), caller.edges["leaf"]
        assert (span.status, span.attributes["attempts"]) == ("ok", "2")
        assert (edge.calls, edge.failures, len(receiver.requests)) == (2, 1, 2)
        first, second = (request.context for request in receiver.requests)
        assert first.span_id == second.span_id == span.span_id
        # Four extra attempts: two went along and came back, one was the retry, half the rest goes.
        assert (first.attempts_left, second.attempts_left) == (2, 1)

    play("inproc", main)


def test_both_ways_tell_a_failure_alike() -> None:
    """Class, words, what was spent, and what the span says."""
    told: list[object] = []

    async def main(system: System) -> None:
        await system.mount("leaf", Always(Reply.of_error(RemoteFailed("down"))), [Leaf.ask])
        with pytest.raises(CallError) as caught:
            await ask(system.caller())
        span = system.span("call", "client")
        error = caught.value
        told.append((type(error), error.message, error.via, error.attempts_used, span.status))
        told.append(span.attributes)

    for kind in ("inproc", "inproc slow"):
        play(kind, main)
    assert told[:2] == told[2:]


def test_what_a_registry_is_sure_of_ends_with_a_change_and_with_time() -> None:
    """A list that may have changed is asked for again: no call goes to who has left or expired."""

    async def main(system: System) -> None:
        registry = MemoryRegistry(verify=lambda _: None)
        endpoint = Endpoint("leaf-1", "leaf", "inproc://leaf-1")
        registration = await registry.register(endpoint, credential="")
        assert registry.lists == {}
        await registry.resolve("leaf")
        endpoints, sure_until_s = registry.lists["leaf"]
        assert (endpoints, sure_until_s) == ((endpoint,), registry.ttl_s)
        await asyncio.sleep(1.0)
        await registration.renew()
        await registration.drain()
        assert registry.lists == {}
        assert (await registry.resolve("leaf")).endpoints == ()

    play("inproc", main)


def test_a_warm_call_passes_few_frames_and_files() -> None:
    """Caller and callee together: at most 40 Python calls, through at most 12 of our files.

    Once a millisecond a call is sampled, too: that is not one of them.
    """
    entered: list[str] = []

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            entered.append(frame.f_code.co_filename)

    async def main() -> None:
        system = System("inproc", RealRuntime())
        await system.serve(Leaf, {"ask": answering(7)})
        caller = system.caller(policies=ONCE)
        for _ in range(20):
            await ask(caller)
        trackers = [plan.tracker for plan in caller._plans.values()]
        trackers += [each.tracker for each in system.dispatchers[0]._answering.values()]
        for tracker in trackers:
            tracker.next_sample_s = math.inf
        await asyncio.sleep(0)  # the next call is the first of its turn
        sys.setprofile(watch)
        try:
            await ask(caller)
        finally:
            sys.setprofile(None)
        await system.close()

    asyncio.run(main())
    assert len(entered) <= 40
    assert len({name for name in entered if "/synchromesh/" in name}) <= 12
