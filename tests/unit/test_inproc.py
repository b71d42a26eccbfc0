"""Calls within one process: a callee whose first step runs inside the call is a task of its own."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import pytest

from calls_fakes import ONCE, Always, Leaf, Shop, System, parsed, play, raising
from synchromesh.calls import (
    Caller,
    Dispatcher,
    Incoming,
    InProcessTransport,
    Policies,
    Reply,
    Request,
)
from synchromesh.calls.inproc import DEPTH_MAX, FAIR_S, _Waiting
from synchromesh.codec import encode
from synchromesh.discovery import Endpoint
from synchromesh.errors import CallError, ConnectionLost, RemoteFailed, Shed, TimedOut
from synchromesh.resilience import AdaptiveLimitOptions, Policy, RetryOptions
from synchromesh.runtime import RealRuntime
from synchromesh.system import loop_factory
from synchromesh.telemetry import MemoryRing, Tracer

Main = Callable[[System], Coroutine[Any, Any, None]]
Handle = Callable[[Incoming], Awaitable[bytes]]

COLOUR: ContextVar[str] = ContextVar("colour", default="none")
LOOPS = ["simulated", "asyncio", "debug", "uvloop"]


def on(kind: str, main: Main, way: str = "inproc") -> None:
    """Run a test on a loop of a kind; what it leaves behind fails it."""
    if kind == "simulated":
        play(way, main)
        return

    async def real() -> None:
        system = System(way, RealRuntime())
        await asyncio.wait_for(main(system), 30.0)
        await system.close()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    factory = loop_factory("uvloop" if kind == "uvloop" else "asyncio")
    with asyncio.Runner(loop_factory=factory, debug=kind == "debug") as runner:
        runner.run(real())


@pytest.fixture(params=LOOPS)
def loop_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def leaf(system: System, handle: Handle, policies: Policies = ONCE) -> Caller:
    """Serve a leaf, and return who calls it."""
    await system.serve(Leaf, {"ask": handle})
    return system.caller(policies=policies)


async def ask(caller: Caller, timeout_s: float | None = None, n: int = 1) -> int:
    """Call the leaf."""
    return await caller.call(Leaf.ask(n), context=caller.root(), timeout_s=timeout_s)


def now() -> float:
    return asyncio.get_running_loop().time()


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


class Stubborn:
    """A handler that goes on until it is freed, whatever cancels it."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.cancelled = 0
        self.has_ended = False

    async def __call__(self, _: Incoming) -> bytes:
        while not self.free.is_set():
            try:
                await self.free.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
        self.has_ended = True
        return b"1"


async def stall(_: Incoming) -> bytes:
    """Never answer."""
    await asyncio.sleep(60.0)
    return b"1"


async def settle() -> None:
    """Let what is ready run."""
    for _ in range(20):
        await asyncio.sleep(0)


# -- deadlines and cancellation ------------------------------------------------------------------


def test_a_caller_is_released_in_time_whatever_the_callee_does(loop_kind: str) -> None:
    """A callee that swallows its cancellation goes on alone, and is not lost meanwhile (D1, D4)."""

    async def main(system: System) -> None:
        handler = Stubborn()
        caller = await leaf(system, handler)
        with pytest.raises(TimedOut, match="did not answer within"):
            await ask(caller, 0.2)
        assert (handler.has_ended, cancelling()) == (False, 0)
        gc.collect()
        handler.free.set()
        await settle()
        assert (handler.has_ended, handler.cancelled) == (True, 1)
        assert system.dispatchers[0].in_flight == 0
        assert not system.inproc._left_behind

    on(loop_kind, main)


def test_a_callee_is_cancelled_once_at_the_deadline(loop_kind: str) -> None:
    """It sees one cancellation, its caller none, and its span says that its time was over."""
    seen: list[int] = []

    async def handle(_: Incoming) -> bytes:
        try:
            await asyncio.sleep(9.0)
        except asyncio.CancelledError:
            seen.append(cancelling())
            raise
        return b"1"

    async def main(system: System) -> None:
        caller = await leaf(system, handle)
        with pytest.raises(TimedOut):
            await ask(caller, 0.2)
        await settle()
        assert (seen, cancelling()) == ([1], 0)
        assert system.span("handle", "leaf").status == "timed_out"

    on(loop_kind, main)


def test_a_callee_that_has_ended_in_the_turn_of_its_deadline_is_in_time() -> None:
    """What has been answered is not thrown away because the timer fired in the same moment."""

    async def answer() -> Reply:
        return Reply(200, b"7")

    async def main(system: System) -> None:
        task = asyncio.ensure_future(answer())
        endpoint = Endpoint("leaf-1", "leaf", "inproc://leaf-1")
        waiting = _Waiting(system.inproc, endpoint, 0.0, task, None)
        await task
        waiting.expire()
        assert (waiting.done(), task.cancelled()) == (False, False)

    play("inproc", main)


def test_deadlines_are_kept_to_the_moment() -> None:
    """However many calls share a tick of the wheel, each is released at its own deadline."""

    async def handle(_: Incoming) -> bytes:
        await asyncio.sleep(9.0)
        return b"1"

    async def main(system: System) -> None:
        caller = await leaf(system, handle)

        async def one(timeout_s: float) -> None:
            began_s = now()
            with pytest.raises(TimedOut):
                await ask(caller, timeout_s)
            assert now() - began_s == pytest.approx(timeout_s)

        await asyncio.gather(*map(one, (0.005, 0.03, 0.031, 0.05, 0.07, 0.11, 0.163)))

    play("inproc", main)


def test_a_callee_is_cancelled_with_its_caller(loop_kind: str) -> None:
    """Nothing of the call is left: not the handler, not its place, no count at the breaker (B4)."""
    ended: list[str] = []

    async def handle(_: Incoming) -> bytes:
        try:
            await asyncio.sleep(9.0)
        finally:
            ended.append("callee")
        return b"1"

    async def main(system: System) -> None:
        caller = await leaf(system, handle)
        task = asyncio.ensure_future(ask(caller))
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await settle()
        assert ended == ["callee"]
        assert system.dispatchers[0].in_flight == 0
        assert (caller.edges["leaf"].calls, system.span("call", "client").status) == (
            0, "cancelled",
        )  # fmt: skip

    on(loop_kind, main)


def test_a_cancelled_caller_does_not_wait_for_a_stubborn_callee(loop_kind: str) -> None:
    """It is released at once, and the callee goes on alone."""

    async def main(system: System) -> None:
        handler = Stubborn()
        caller = await leaf(system, handler)
        task = asyncio.ensure_future(ask(caller))
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not handler.has_ended
        handler.free.set()
        await settle()
        assert handler.has_ended

    on(loop_kind, main)


def test_a_timeout_around_a_call_is_the_callers_own(loop_kind: str) -> None:
    """It raises TimeoutError itself, and leaves no cancellation behind."""

    async def main(system: System) -> None:
        caller = await leaf(system, stall)
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.2):
                await ask(caller)
        assert (type(caught.value), cancelling()) == (TimeoutError, 0)

    on(loop_kind, main)


def test_a_callee_left_behind_keeps_its_own_timeouts(loop_kind: str) -> None:
    """A timeout that it entered before its caller left still hits the callee, and nobody else."""
    seen: list[str] = []

    async def handle(_: Incoming) -> bytes:
        try:
            async with asyncio.timeout(0.8):
                try:
                    await asyncio.sleep(9.0)
                except asyncio.CancelledError:
                    asyncio.current_task().uncancel()  # type: ignore[union-attr]
                await asyncio.sleep(9.0)
        except TimeoutError:
            seen.append("its own")
        return b"1"

    async def main(system: System) -> None:
        caller = await leaf(system, handle)
        with pytest.raises(TimedOut):
            await ask(caller, 0.2)
        while not seen:
            await asyncio.sleep(0.05)
        assert (seen, cancelling()) == (["its own"], 0)

    on(loop_kind, main)


@pytest.mark.parametrize("waits", [False, True])
def test_a_callee_that_cancels_itself_does_not_cancel_its_caller(
    loop_kind: str, waits: bool
) -> None:
    """Its caller hears that the connection was lost: what it did is unknown."""

    async def handle(_: Incoming) -> bytes:
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        if waits:
            await asyncio.sleep(0)
        return b"1"

    async def main(system: System) -> None:
        caller = await leaf(system, handle)
        with pytest.raises(ConnectionLost, match="stopped before it answered"):
            await ask(caller)
        await asyncio.sleep(0)
        assert cancelling() == 0

    on(loop_kind, main)


def test_a_callee_may_cancel_its_caller_in_its_first_step(loop_kind: str) -> None:
    """The caller's cancellation comes back to the callee, and both end."""
    ended: list[str] = []

    async def main(system: System) -> None:
        async def handle(_: Incoming) -> bytes:
            task.cancel()
            try:
                await asyncio.sleep(9.0)
            finally:
                ended.append("callee")
            return b"1"

        caller = await leaf(system, handle)
        task = asyncio.ensure_future(ask(caller))
        with pytest.raises(asyncio.CancelledError):
            await task
        await settle()
        assert ended == ["callee"]

    on(loop_kind, main)


def test_awaiting_what_somebody_else_cancelled_is_a_failure(loop_kind: str) -> None:
    """Nobody cancelled the call: it has failed, and may be made again."""

    async def handle(_: Incoming) -> bytes:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future
        return b"1"

    async def main(system: System) -> None:
        caller = await leaf(system, handle)
        with pytest.raises(RemoteFailed) as caught:
            await ask(caller)
        assert not caught.value.is_final

    on(loop_kind, main)


def test_an_interrupt_in_the_first_step_leaves_the_loop_in_order(loop_kind: str) -> None:
    """The caller's task is the current one again, and no place is lost."""

    class Interrupt(BaseException):
        pass

    async def main(system: System) -> None:
        caller = await leaf(system, raising(Interrupt()))
        mine = asyncio.current_task()
        with pytest.raises(Interrupt):
            await ask(caller)
        assert asyncio.current_task() is mine
        assert (system.dispatchers[0].in_flight, system.inproc._depth) == (0, 0)

    on(loop_kind, main)


# -- a task and a context of its own -------------------------------------------------------------


@pytest.mark.parametrize("waits", [False, True])
def test_a_callee_is_one_task_from_first_to_last(loop_kind: str, waits: bool) -> None:
    """It is the same task before and after a wait, never the caller's, nor that of another call."""
    seen: list[object] = []

    async def handle(_: Incoming) -> bytes:
        seen.append(asyncio.current_task())
        if waits:
            await asyncio.sleep(0.001)
        seen.append(asyncio.current_task())
        return b"1"

    async def main(system: System) -> None:
        caller, mine = await leaf(system, handle), asyncio.current_task()
        await ask(caller)
        await asyncio.gather(ask(caller), ask(caller))
        assert asyncio.current_task() is mine
        assert len(seen) == 6
        assert mine not in seen
        assert len(set(map(id, seen))) == 3

    on(loop_kind, main)


def test_what_is_kept_by_task_is_not_shared_between_calls(loop_kind: str) -> None:
    """As libraries keep sessions: each call begins without what another one has left."""
    kept: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
    seen: list[str | None] = []

    async def handle(_: Incoming) -> bytes:
        task = asyncio.current_task()
        seen.append(kept.get(task))
        kept[task] = "of one call"
        return b"1"

    async def main(system: System) -> None:
        caller = await leaf(system, handle)
        for _ in range(3):
            await ask(caller)
            await asyncio.sleep(0)
        assert seen == [None] * 3
        assert asyncio.current_task() not in kept

    on(loop_kind, main)


@pytest.mark.parametrize("waits", [False, True])
def test_a_callee_has_the_context_in_which_its_instance_was_added(
    loop_kind: str, waits: bool
) -> None:
    """Not its caller's; what it sets lasts over its waits and ends with the call."""
    seen: list[str] = []

    async def handle(_: Incoming) -> bytes:
        seen.append(COLOUR.get())
        COLOUR.set("the callee's")
        if waits:
            await asyncio.sleep(0.001)
        seen.append(COLOUR.get())
        return b"1"

    async def main(system: System) -> None:
        COLOUR.set("of home")
        caller = await leaf(system, handle)
        COLOUR.set("the caller's")
        await ask(caller)
        await ask(caller)
        assert seen == ["of home", "the callee's"] * 2
        assert COLOUR.get() == "the caller's"

    on(loop_kind, main)


@pytest.mark.parametrize("timeout_s", [0.0, 0.2])
def test_a_timeout_of_the_callee_holds_from_its_first_step(
    loop_kind: str, timeout_s: float
) -> None:
    """Whatever asks for its task before the first wait cancels the right one after it."""

    async def handle(_: Incoming) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.sleep(9.0)
        except TimeoutError:
            pass
        await asyncio.sleep(0.001)
        return encode(cancelling())

    async def main(system: System) -> None:
        caller = await leaf(system, handle)
        assert await ask(caller) == 0
        assert cancelling() == 0

    on(loop_kind, main)


def test_a_task_group_of_the_callee_ends_with_it(loop_kind: str) -> None:
    """Its children end when one of them fails, and when the callee is cancelled."""
    ended: list[bool] = []

    async def child(fails: bool) -> None:
        try:
            await asyncio.sleep(0.001 if fails else 9.0)
            raise ValueError("secret")
        finally:
            ended.append(fails)

    async def handle(n: int) -> int:
        async with asyncio.TaskGroup() as group:
            group.create_task(child(n == 1))
            group.create_task(child(False))
        return 1

    async def main(system: System) -> None:
        caller = await leaf(system, parsed(handle))
        with pytest.raises(RemoteFailed) as caught:
            await ask(caller, n=1)
        assert "secret" not in str(caught.value)
        assert sorted(ended) == [False, True]
        with pytest.raises(TimedOut):
            await ask(caller, 0.2, n=2)
        await settle()
        assert len(ended) == 4

    on(loop_kind, main)


# -- the loop's turns and the stack --------------------------------------------------------------


@pytest.mark.parametrize("error", [None, Shed])
def test_calls_that_never_wait_let_the_loop_have_its_turns(error: type[Shed] | None) -> None:
    """After a millisecond of inline ends the others run, and the deadline of a long task fires."""
    took_s, turns = FAIR_S / 4, 0

    async def handle(_: Incoming) -> bytes:
        # Work of the callee: time passes, and no other step is taken meanwhile.
        asyncio.get_running_loop()._now += took_s  # type: ignore[attr-defined]
        if error is not None:
            raise error("full")
        return b"1"

    async def ask_often(caller: Caller) -> None:
        for _ in range(8000):
            with suppress(CallError):
                await ask(caller)

    async def beat() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main(system: System) -> None:
        policy = Policy(retry=None, timeout_s=None, breaker=None)
        caller = await leaf(system, handle, Policies(policy))
        beating = asyncio.ensure_future(beat())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask_often(caller), 1.0)
        beating.cancel()
        assert turns > 100

    play("inproc", main)


def test_what_is_refused_before_it_runs_counts_as_well() -> None:
    """A receiver that raises, or is itself cancelled, takes the loop's time as one that answers."""

    class Refusing(Always):
        async def dispatch(self, request: Request) -> Reply:
            asyncio.get_running_loop()._now += FAIR_S  # type: ignore[attr-defined]
            raise self.error

        error: BaseException

    async def main(system: System) -> None:
        caller = system.caller(policies=ONCE)
        refusing = Refusing()
        await system.mount("leaf", refusing, [Leaf.ask])
        for error in (Shed("full"), asyncio.CancelledError()):
            refusing.error = error
            before_s = system.inproc._inline_s
            with pytest.raises((Shed, ConnectionLost)):
                await ask(caller)
            assert system.inproc._inline_s == pytest.approx(before_s + FAIR_S)

    play("inproc", main)


def test_a_call_that_waits_counts_as_a_turn() -> None:
    """Waiting calls are not slowed down by turns that nobody needs."""

    async def handle(_: Incoming) -> bytes:
        await asyncio.sleep(0.01)
        return b"1"

    async def main(system: System) -> None:
        caller = await leaf(system, handle)
        for _ in range(5):
            await ask(caller)
        assert system.inproc._inline_s == 0.0

    play("inproc", main)


def test_an_answer_resumes_its_caller_in_the_step_that_makes_it(loop_kind: str) -> None:
    """No turn of the loop lies between the callee's last step and its caller's next."""

    async def main(system: System) -> None:
        answered: list[int] = []
        turn = 0

        async def handle(_: Incoming) -> bytes:
            await asyncio.sleep(0)
            answered.append(turn)
            return b"1"

        async def count() -> None:
            nonlocal turn
            while True:
                turn += 1
                await asyncio.sleep(0)

        caller = await leaf(system, handle)
        counting = asyncio.ensure_future(count())
        await asyncio.sleep(0)
        await ask(caller)
        assert turn == answered[0]
        counting.cancel()

    on(loop_kind, main)


def test_only_the_end_of_its_own_callee_releases_a_caller(loop_kind: str) -> None:
    """Not an answer that a dispatcher gives in a copy of the callee's context meanwhile."""

    async def other(_: Incoming) -> bytes:
        return b"2"

    class Slower(Always):
        """Has work left when the dispatcher has answered."""

        inner: Dispatcher

        async def dispatch(self, request: Request) -> Reply:
            await asyncio.sleep(0)
            reply = await asyncio.create_task(self.inner.dispatch(request, now))
            await asyncio.sleep(0)
            return reply

    async def main(system: System) -> None:
        caller = system.caller(policies=ONCE)
        slower = Slower()
        slower.inner = Dispatcher(
            "leaf",
            {"ask": other},
            signer=system.signer,
            tracer=Tracer("leaf", system.runtime, MemoryRing()),
            runtime=system.runtime,
            is_external=True,
        )
        await system.mount("leaf", slower, [Leaf.ask])
        assert await ask(caller) == 2

    on(loop_kind, main)


def test_a_chain_of_calls_may_be_deeper_than_the_stack(loop_kind: str) -> None:
    """Hundreds of calls may be nested: beyond a bound each gets a stack of its own."""

    async def main(system: System) -> None:
        deepest = 0

        async def handle(incoming: Incoming) -> bytes:
            nonlocal deepest
            deepest = max(deepest, system.inproc._depth)
            n = incoming.operation.parse(incoming.arguments)["n"]
            if n == 0:
                return b"0"
            return encode(1 + await caller.call(Leaf.ask(n - 1), context=incoming.context))

        dispatcher = await system.serve(Leaf, {"ask": handle}, in_flight_max=999)
        dispatcher._limits = AdaptiveLimitOptions(initial=999)
        caller = system.caller(policies=Policies(Policy(retry=None, timeout_s=None, limit=None)))
        assert await ask(caller, n=300) == 300
        assert deepest == DEPTH_MAX

    on(loop_kind, main)


def test_many_calls_at_once_leave_nothing_behind(loop_kind: str) -> None:
    """No task, no deadline, no place."""

    async def handle(n: int) -> int:
        await asyncio.sleep(0.001 * (n % 5))
        return n

    async def main(system: System) -> None:
        caller = await leaf(system, parsed(handle))
        if loop_kind != "simulated":
            # What waits for longer than a burst lasts is shed, which a slow machine's calls do.
            system.dispatchers[0]._limits = AdaptiveLimitOptions(initial=999)
        numbers = list(range(200))
        assert await asyncio.gather(*(ask(caller, n=n) for n in numbers)) == numbers
        assert repr(system.inproc._timers) == "<Timers of <Wheel 0 deadlines>>"
        assert system.dispatchers[0].in_flight == 0

    on(loop_kind, main)


def test_a_loop_in_each_of_several_threads(loop_kind: str) -> None:
    """Eager steps of one thread do not see those of another."""

    async def main(system: System) -> None:
        async def handle(_: Incoming) -> bytes:
            await asyncio.sleep(0)
            return b"1"

        caller = await leaf(system, handle)
        for _ in range(50):
            assert await ask(caller) == 1

    wrong: list[BaseException] = []

    def one() -> None:
        try:
            on(loop_kind, main)
        except BaseException as error:
            wrong.append(error)

    # The simulated loop owns the collector of the process while it runs: one at a time.
    threads = [threading.Thread(target=one) for _ in range(1 if loop_kind == "simulated" else 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- what a failure leaves -----------------------------------------------------------------------


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("kind", ["rejected", "failed", "retried", "late", "cancelled"])
@pytest.mark.parametrize("way", ["inproc", "inproc slow"])
def test_a_failed_call_leaves_no_cycle(way: str, kind: str, waits: bool) -> None:
    """What a handler held is freed with the call, without the garbage collector."""

    class Held:
        pass

    alive: list[weakref.ref[Any]] = []

    def hold() -> Held:
        held = Held()
        alive.append(weakref.ref(held))
        return held

    async def handle(_: Incoming) -> bytes:
        held = hold()
        if kind in ("late", "cancelled"):
            await asyncio.sleep(9.0)
        if waits:
            await asyncio.sleep(0)
        del held
        raise _error(kind)

    async def one(caller: Caller) -> None:
        held = hold()
        try:
            async with asyncio.timeout(0.01 if kind == "cancelled" else None):
                timeout_s = 0.02 if kind == "late" else 1.0
                await caller.call(Leaf.ask(1), context=caller.root(), timeout_s=timeout_s)
        except CallError as error:
            alive.append(weakref.ref(error))
        except TimeoutError:
            pass
        del held

    async def main(system: System) -> None:
        retry = RetryOptions(attempts_max=3, base_s=0.001) if kind == "retried" else None
        caller = await leaf(system, handle, Policies(Policy(retry=retry)))
        await one(caller)
        alive.clear()
        gc.collect()
        gc.disable()
        try:
            await one(caller)
            await asyncio.sleep(0.02)
            # What is left here only a collector would free.
            assert [ref() for ref in alive if ref() is not None] == []
        finally:
            gc.enable()

    # Not the simulated loop, which keeps the tasks that have ended for a while.
    on("asyncio", main, way)


def _error(kind: str) -> Exception:
    return ValueError("undeclared") if kind == "rejected" else OSError("gone")


# -- instances -----------------------------------------------------------------------------------


def test_a_receiver_that_is_no_dispatcher_is_run_alike() -> None:
    """Whatever has `dispatch` answers; it is cancelled at the deadline too."""

    async def main(system: System) -> None:
        await system.mount("shop", Always(Reply(200, b"3")), [Shop.stock])
        caller = system.caller()
        assert await caller.call(Shop.stock("a"), context=caller.root()) == 3

    play("inproc", main)


def test_a_transport_may_outlive_its_loop() -> None:
    """It serves the next loop of its process, with the deadlines of that one."""

    async def handle(n: int) -> int:
        await asyncio.sleep(60.0 if n == 2 else 0.001)
        return n

    inproc = InProcessTransport()

    async def main(system: System) -> None:
        system.inproc = system.transports["inproc"] = inproc
        caller = await leaf(system, parsed(handle))
        assert await ask(caller) == 1
        with pytest.raises(TimedOut):
            await ask(caller, 0.2, n=2)
        await settle()

    for kind in ("asyncio", "simulated", "asyncio"):
        contextvars.Context().run(on, kind, main)
