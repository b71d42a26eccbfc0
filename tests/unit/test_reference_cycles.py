"""What ends in an error leaves nothing to the garbage collector: no frame is kept by its error.

On a real loop: the simulated one keeps tasks that have ended for a while.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import pytest

from calls_fakes import (
    Leaf,
    NeverHeardOf,
    OutOfStock,
    Shop,
    System,
    answering,
)
from gateway_fakes import GATEWAY, Machine, Plant, UnknownMachine
from service_world import Bank, Declined, Stock, Surprise, Town
from store_fakes import open_store
from synchromesh import Policy
from synchromesh.calls import Call, Handler, Policies
from synchromesh.errors import Shed
from synchromesh.resilience import (
    HedgeOptions,
    Limiter,
    LimitOptions,
    RetryOptions,
    within,
)
from synchromesh.runtime import RealRuntime
from synchromesh.service import Child, Supervisor
from synchromesh.store import Unit

T = TypeVar("T")
Work = Callable[[], Awaitable[object]]

TIMES = 5
AT_ONCE = RetryOptions(attempts_max=3, base_s=0.001, cap_s=0.001)


async def garbage_of(work: Work) -> Counter[str]:
    """Return what the collector finds after a few runs of some work, however each ends."""
    await _ended(work)  # what is made once, for good
    await asyncio.sleep(0.01)
    was_enabled = gc.isenabled()
    gc.disable()
    logging.disable()  # what is captured keeps the errors that are logged
    gc.freeze()  # what was there before is not looked at
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(TIMES):
            await _ended(work)
        await asyncio.sleep(0.01)  # what was cancelled ends
        gc.collect()
        return Counter(map(_name_of, gc.garbage))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.unfreeze()
        logging.disable(logging.NOTSET)
        if was_enabled:
            gc.enable()


def play(kind: str, main: Callable[[System], Awaitable[T]]) -> T:
    """Run a test of calls."""

    async def real() -> T:
        system = System(kind, RealRuntime())
        try:
            return await main(system)
        finally:
            await system.close()

    return asyncio.run(real())


async def cancelled(work: Work) -> None:
    """Begin some work and cancel it."""
    task = asyncio.ensure_future(work())
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])


async def _ended(work: Work) -> None:
    with suppress(Exception, asyncio.CancelledError):
        await work()


def _name_of(found: object) -> str:
    if isinstance(found, FrameType):
        return f"frame of {found.f_code.co_name}"
    return type(found).__name__


async def hang(_: object = None) -> bytes:
    await asyncio.sleep(60.0)
    return b"1"


async def out_of_time(_: object = None) -> bytes:
    await within(hang, asyncio.get_running_loop().time() + 0.001)
    return b"1"


async def was_cancelled(_: object = None) -> bytes:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future
    return b"1"


def failing(error: Callable[[str], Exception]) -> Callable[..., Awaitable[Any]]:
    """Return what raises an error of its own each time."""

    async def fail(_: object = None) -> Any:
        raise error("no")

    return fail


def test_cycles_are_found() -> None:
    """A frame that keeps its own error is named."""

    async def keeps() -> None:
        try:
            raise ValueError("kept")
        except ValueError as error:
            kept = error
        raise kept

    async def main() -> Counter[str]:
        return await garbage_of(keeps)

    assert asyncio.run(main())["frame of keeps"] == TIMES


@pytest.mark.parametrize("kind", ["inproc", "http"])
@pytest.mark.parametrize(
    "handler",
    [
        answering(1),
        failing(ValueError),
        failing(Shed),
        failing(OutOfStock),
        failing(NeverHeardOf),
        failing(ConnectionError),
        was_cancelled,
        out_of_time,
    ],
    ids=["answer", "bug", "refusal", "rejection", "undeclared", "down", "cancelled", "late"],
)
def test_a_call_leaves_none(kind: str, handler: Handler) -> None:
    """However its handler ends, and with what is tried again, on both sides."""

    async def main(system: System) -> Counter[str]:
        await system.serve(Shop, {"stock": handler})
        caller = system.caller(policies=Policies(default=Policy(retry=AT_ONCE, breaker=None)))
        return await garbage_of(lambda: caller.call(Shop.stock("SX90"), context=caller.root()))

    assert play(kind, main) == {}


def test_a_call_that_is_given_up_leaves_none() -> None:
    """Cancelled, or at its deadline, while its handler runs."""

    async def main(system: System) -> list[Counter[str]]:
        await system.serve(Leaf, {"ask": hang})
        caller = system.caller()

        def call() -> Awaitable[int]:
            return caller.call(Leaf.ask(1), context=caller.root(), timeout_s=0.05)

        return [await garbage_of(lambda: cancelled(call)), await garbage_of(call)]

    assert play("inproc", main) == [{}, {}]


@pytest.mark.parametrize("handler", [answering(1), failing(ValueError), failing(OutOfStock), hang])
def test_a_hedged_call_leaves_none(handler: Handler) -> None:
    """However its attempts end, and where it is given up while both run."""

    async def main(system: System) -> list[Counter[str]]:
        for name in ("leaf-1", "leaf-2"):
            await system.serve(Leaf, {"ask": handler}, instance=name)
        hedge = HedgeOptions(after=0.001, ratio=1.0)
        policy = Policy(timeout_s=0.02, retry=None, breaker=None, hedge=hedge)
        caller = system.caller(policies=Policies(policy))

        def call() -> Awaitable[int]:
            return caller.call(Leaf.ask(1), context=caller.root())

        return [await garbage_of(call), await garbage_of(lambda: cancelled(call))]

    assert play("inproc", main) == [{}, {}]


def test_a_guarded_function_leaves_none() -> None:
    """Whichever layer of its policy refuses it or gives it up."""
    policies = (
        Policy(timeout_s=0.001, retry=None, breaker=None),
        Policy(timeout_s=0.001, retry=AT_ONCE, breaker=None),
        Policy(timeout_s=0.001, retry=None),
        Policy(timeout_s=0.001, retry=None, breaker=None, limit=LimitOptions(1, 1)),
    )

    async def main() -> list[Counter[str]]:
        found = []
        for policy in policies:
            for function in (failing(ConnectionError), hang, out_of_time):
                guarded = policy.wrap(function, rng=random.Random(7), is_idempotent=True)
                found.append(await garbage_of(guarded))
                found.append(await garbage_of(partial(cancelled, guarded)))
        return found

    assert asyncio.run(main()) == [{}] * 24


def test_a_wait_for_a_place_leaves_none() -> None:
    """Cancelled, or in vain."""

    async def main() -> list[Counter[str]]:
        limiter = Limiter(LimitOptions(1, 9), name="billing")
        await limiter.acquire()
        now = asyncio.get_running_loop().time
        return [
            await garbage_of(lambda: cancelled(limiter.acquire)),
            await garbage_of(lambda: limiter.acquire(now() + 0.01)),
        ]

    assert asyncio.run(main()) == [{}, {}]


def test_a_unit_of_work_leaves_none(tmp_path: Path) -> None:
    """However its body ends, in a store whose errors pass from one thread to another."""

    async def wrong_sql(unit: Unit) -> None:
        await unit.execute("select nothing")

    async def main() -> list[Counter[str]]:
        store = await open_store(tmp_path, RealRuntime())
        bodies = (failing(ValueError), failing(OutOfStock), wrong_sql, hang)
        found = [await garbage_of(lambda: store.read("select nothing"))]
        for body in bodies:
            found.append(await garbage_of(partial(store.write, body, name="unit")))
            found.append(await garbage_of(partial(cancelled, partial(store.write, body, name="u"))))
        await store.close()
        return found

    assert asyncio.run(main()) == [{}] * 9


def test_a_command_of_a_service_leaves_none(tmp_path: Path) -> None:
    """However it ends: in its unit, in a unit of several, between them, or in a call of its own."""

    errors = (ValueError, Declined, Surprise)
    charge, build = Bank.charge("o-1", 1), Stock.build("o-1", "bolt", 1)
    cases: list[tuple[Call[Any], str, type[Exception]]] = [
        *((charge, "charge", error) for error in errors),
        *((build, "build begins", error) for error in errors),
        *((build, "charge", error) for error in errors),
        (charge, "nowhere", ValueError),
        (build, "nowhere", ValueError),
        (Stock.build("o-1", "none of these", 1), "nowhere", ValueError),
    ]

    async def main() -> list[Counter[str]]:
        world = Town(RealRuntime(), folder=str(tmp_path))
        for name in ("bank", "stock"):
            await world.start(name)
        found = []
        for call, point, error in cases:
            world.hooks.at = {point: failing(error)}
            found.append(await garbage_of(partial(world.ask, call)))
        for name in ("stock", "bank"):
            await world.stop(name)
        return found

    assert asyncio.run(main()) == [{}] * len(cases)


def test_a_request_at_the_gateway_leaves_none() -> None:
    """By a route and by an aggregate, whatever their services answer."""
    targets = ("GET /fleet/M-1", "GET /machines/M-1", "GET /orders/M-1", "GET /none")

    async def main(system: System) -> list[Counter[str]]:
        plant = Plant(system, GATEWAY, Policies(default=Policy(retry=None, breaker=None)))
        await plant.start()
        found = []
        machine = Machine("M-1", "A-1", 7)
        for does in (machine, failing(ValueError), failing(OutOfStock), failing(UnknownMachine)):
            plant.fleet.answers["machine"] = does
            found += [await garbage_of(partial(plant.ask, target)) for target in targets]
        return found

    assert play("inproc", main) == [{}] * 16


def test_a_child_that_is_restarted_leaves_none() -> None:
    """What ended it is not kept while it waits for its next run."""

    async def main() -> Counter[str]:
        async def loop() -> None:
            raise ConnectionError("down")

        async def once() -> None:
            supervisor = Supervisor("loops", rng=random.Random(1), gave_up=lambda name, error: None)
            supervisor.start(Child("loop", loop))
            await asyncio.sleep(0.01)
            assert supervisor.states["loop"].state == "restarting"
            await supervisor.close()

        return await garbage_of(once)

    assert asyncio.run(main()) == {}
