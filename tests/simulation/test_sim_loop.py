"""The simulated loop: virtual time, seeded order, and every way it complains."""

import asyncio
import contextlib
import gc
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from synchromesh.runtime import Runtime
from synchromesh.testing import (
    Deadlock,
    Escape,
    Leaked,
    Livelock,
    Overdue,
    SimLoop,
    SimRuntime,
    SimulationError,
    Unhandled,
    World,
    run,
)


async def three_tasks(order: list[str]) -> None:
    async def note(name: str) -> None:
        for _ in range(5):
            order.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(note("a"), note("b"), note("c"))


def trace_of(seed: int) -> tuple[str, list[str]]:
    order: list[str] = []
    world = World(seed)
    world.run(three_tasks(order))
    return world.loop.trace, order


def test_one_seed_is_one_order() -> None:
    """Two runs of a seed take the same steps, and seeds differ in their order of tasks."""
    assert trace_of(3) == trace_of(3)
    assert len({tuple(trace_of(seed)[1]) for seed in range(20)}) > 10


def test_sets_of_tasks_have_one_order() -> None:
    """A group that fails cancels its tasks in the same order in every run of a seed."""

    async def main(_: SimRuntime) -> list[int]:
        cancelled: list[int] = []
        clutter.append(bytearray(len(clutter) * 1000))

        async def wait(number: int) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(number)

        async def fail() -> None:
            await asyncio.sleep(1.0)
            raise LookupError

        try:
            async with asyncio.TaskGroup() as group:
                for number in range(20):
                    group.create_task(wait(number))
                group.create_task(fail())
        except* LookupError:
            pass
        return cancelled

    clutter: list[object] = []
    assert len({tuple(run(main, seed=4)) for _ in range(20)}) == 1


def test_trace_tells_runs_apart() -> None:
    """The trace covers time: the same steps at another time are another trace."""

    def traced(delay_s: float) -> str:
        world = World(0)
        world.run(asyncio.sleep(delay_s))
        return world.loop.trace

    assert traced(1.0) == traced(1.0)
    assert traced(1.0) != traced(2.0)


def test_plain_callbacks_stay_in_order() -> None:
    """Callbacks given to call_soon run first in, first out, under every seed."""

    async def main(_: SimRuntime) -> list[int]:
        seen: list[int] = []
        loop = asyncio.get_running_loop()
        for number in range(10):
            loop.call_soon(seen.append, number)
        await asyncio.sleep(1.0)
        return seen

    assert all(run(main, seed=seed) == list(range(10)) for seed in range(10))


def test_timers_of_one_instant_run_in_order_given() -> None:
    """Timers due at the same time run in the order in which they were set; cancelled ones not."""

    async def main(_: SimRuntime) -> list[int]:
        seen: list[int] = []
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(1.0, seen.append, number) for number in range(6)]
        timers[2].cancel()
        assert timers[2].cancelled()
        await asyncio.sleep(2.0)
        return seen

    assert run(main) == [0, 1, 3, 4, 5]


def test_many_cancelled_timers_are_forgotten() -> None:
    """Deadlines that were cancelled do not pile up until they would have been due."""
    loop = SimLoop()
    for _ in range(100_000):
        loop.call_later(3000.0, print).cancel()
    assert len(loop._timers) <= 2048
    loop.close()


async def use_timeout() -> object:
    try:
        async with asyncio.timeout(5.0):
            await asyncio.sleep(50.0)
    except TimeoutError:
        return asyncio.get_running_loop().time()
    return None


async def use_event_and_queue() -> object:
    queue: asyncio.Queue[int] = asyncio.Queue(maxsize=1)
    event = asyncio.Event()

    async def produce() -> None:
        for number in range(4):
            await queue.put(number)
        event.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(produce())
        got = [await queue.get() for _ in range(4)]
        await event.wait()
    return got


async def use_wait_for_and_lock() -> object:
    lock, held = asyncio.Lock(), 0

    async def hold() -> int:
        nonlocal held
        async with lock:
            held += 1
            assert held == 1
            await asyncio.sleep(1.0)
            held -= 1
        return 1

    return await asyncio.wait_for(asyncio.gather(hold(), hold(), hold()), timeout=10.0)


async def use_condition_and_cancel() -> object:
    async def forever() -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(forever())
    await asyncio.sleep(1.0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return task.cancelled()


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (use_timeout, 5.0),
        (use_event_and_queue, [0, 1, 2, 3]),
        (use_wait_for_and_lock, [1, 1, 1]),
        (use_condition_and_cancel, True),
    ],
)
def test_asyncio_works_as_ever(use: Callable[[], Awaitable[object]], expected: object) -> None:
    """Timeouts, events, queues, groups, locks and cancellation mean what they mean elsewhere."""

    async def main(_: SimRuntime) -> object:
        return await use()

    assert [run(main, seed=seed) for seed in range(10)] == [expected] * 10


def test_abandoned_async_generator_is_closed() -> None:
    """A generator that is left in the middle runs its finally block, in virtual time."""
    closed: list[float] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(1.0)
            closed.append(asyncio.get_running_loop().time())

    async def main(_: SimRuntime) -> None:
        async for _number in numbers():
            break
        await asyncio.sleep(5.0)

    run(main)
    assert closed == [1.0]


def test_deadlock_names_who_waits() -> None:
    """Where nothing will ever happen again the run ends at once, naming task and line."""

    async def waits_for_nobody(_: SimRuntime) -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match=r"waits_for_nobody at test_sim_loop\.py"):
        run(waits_for_nobody)


def test_endless_waiting_is_overdue() -> None:
    """A run that goes on past its virtual time ends with an error."""

    async def main(_: SimRuntime) -> None:
        while True:
            await asyncio.sleep(1.0)

    with pytest.raises(Overdue, match="100 s of virtual time"):
        run(main, until_s=100.0)


def test_spinning_is_a_livelock() -> None:
    """A run that spins without waiting ends at its bound of steps."""

    async def main(_: SimRuntime) -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Livelock, match="500 steps"):
        run(main, steps_max=500)


def test_leaked_task_is_named() -> None:
    """A task that nobody awaited or cancelled fails the run by its name."""

    async def forgotten() -> None:
        await asyncio.sleep(100.0)

    async def main(_: SimRuntime) -> None:
        main.task = asyncio.create_task(forgotten())  # type: ignore[attr-defined]
        await asyncio.sleep(1.0)

    with pytest.raises(Leaked, match="forgotten"):
        run(main)


def test_a_failure_that_is_read_a_step_later_is_none() -> None:
    """A failed task whose waiter has not run yet is no silent failure, however many tasks start."""

    async def main(_: SimRuntime) -> None:
        async def fail() -> None:
            await asyncio.sleep(0.01)
            raise ValueError("read by who waits")

        async def start_many() -> None:
            await asyncio.sleep(0.01)
            await asyncio.gather(*(asyncio.sleep(0) for _ in range(1000)))

        failing = [asyncio.gather(fail(), fail()) for _ in range(10)]
        await start_many()
        for each in failing:
            with pytest.raises(ValueError, match="read by who waits"):
                await each

    for seed in range(5):
        run(main, seed=seed)


def test_silent_failures_are_raised() -> None:
    """A failure of a callback, or of a task nobody awaits, fails the run."""

    async def in_callback(_: SimRuntime) -> None:
        asyncio.get_running_loop().call_soon(int, "x")
        await asyncio.sleep(1.0)

    async def in_task(_: SimRuntime) -> None:
        async def fail() -> None:
            raise ValueError("nobody hears me")

        in_task.task = asyncio.create_task(fail())  # type: ignore[attr-defined]
        await asyncio.sleep(1.0)

    for main in (in_callback, in_task):
        with pytest.raises(Unhandled) as caught:
            run(main)
        assert isinstance(caught.value.__cause__, ValueError)


def test_error_of_main_is_raised_as_it_is() -> None:
    """What the main coroutine raises reaches the caller unchanged."""

    async def main(_: SimRuntime) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        run(main)


@pytest.mark.parametrize(
    "way_out",
    [
        lambda loop: loop.run_in_executor(None, print),
        lambda loop: loop.getaddrinfo("localhost", 80),
        lambda loop: loop.create_connection(asyncio.Protocol, "localhost", 80),
        lambda loop: loop.create_server(asyncio.Protocol, "localhost", 0),
        lambda loop: loop.call_soon_threadsafe(print),
        lambda loop: loop.subprocess_exec(asyncio.SubprocessProtocol, "true"),
        lambda loop: loop.add_reader(0, print),
    ],
)
def test_every_way_out_is_refused(way_out: Callable[[asyncio.AbstractEventLoop], object]) -> None:
    """Threads, sockets and child processes are refused, even where the refusal is swallowed."""

    async def main(_: SimRuntime) -> None:
        with contextlib.suppress(Exception):
            way_out(asyncio.get_running_loop())

    with pytest.raises(Escape, match=r"\(\) leads out of the simulation"):
        run(main)


def test_other_threads_are_refused() -> None:
    """A thread that wants to reach the loop is refused, and the run fails."""

    async def main(_: SimRuntime) -> None:
        loop = asyncio.get_running_loop()

        def reach() -> None:
            with contextlib.suppress(Escape):
                loop.call_soon_threadsafe(print)

        thread = threading.Thread(target=reach)
        thread.start()
        thread.join()

    with pytest.raises(Escape, match="call_soon_threadsafe"):
        run(main)


def test_ids_ascend_and_clock_is_virtual() -> None:
    """Ids ascend within one instant, and the wall clock moves with virtual time."""

    async def main(runtime: SimRuntime) -> tuple[list[str], int]:
        before = runtime.wall_us()
        ids = [runtime.new_id() for _ in range(100)]
        await asyncio.sleep(2.5)
        return ids, runtime.wall_us() - before

    ids, passed_us = run(main)
    assert ids == sorted(set(ids))
    assert passed_us == 2_500_000
    assert run(main) == (ids, passed_us)
    assert run(main, seed=1)[0] != ids


# -- nodes ---------------------------------------------------------------------------------------


def test_power_cut_runs_no_finally() -> None:
    """A crashed node's tasks stop where they are: neither except nor finally blocks run."""
    story: list[str] = []

    async def main(runtime: SimRuntime) -> None:
        try:
            story.append(f"life {runtime.epoch}")
            await asyncio.sleep(10.0)
        finally:
            story.append("cleaned up")

    async def nemesis() -> list[str]:
        await asyncio.sleep(1.0)
        node.crash(restart_after_s=1.0)
        assert not node.is_up
        await asyncio.sleep(2.0)
        return list(story)

    world = World(0)
    node = world.node("a", main)
    node.start()
    assert world.run(nemesis()) == ["life 1", "life 2"]
    assert world.count["crash"] == 1


def test_a_power_cut_within_a_context_manager_is_no_warning() -> None:
    """What an abandoned coroutine raises in the end, further in than its task, is nobody's."""
    told: list[object] = []

    async def start() -> None:
        try:
            await asyncio.sleep(60.0)
        finally:
            async with asyncio.timeout(1.0):  # refused where no task runs
                await asyncio.sleep(0.0)

    @contextlib.asynccontextmanager
    async def serving() -> AsyncIterator[None]:
        await start()
        yield

    async def main(_: SimRuntime) -> None:
        async with serving():
            raise AssertionError("the power was cut before")

    hook, sys.unraisablehook = sys.unraisablehook, told.append
    try:
        world = World(seed=1)
        node = world.node("n", main)
        node.start()
        world.later(1.0, node.crash)
        world.run(asyncio.sleep(5.0))
        del world, node
        gc.collect()
    finally:
        sys.unraisablehook = hook
    assert told == []


def test_what_a_power_cut_left_is_closed_to_its_innermost_await() -> None:
    """None of it is left to the collector, which would close it in the middle of anything else.

    In the middle of a parse that made pytest end with an internal error, in place of a report.
    """
    told: list[object] = []

    async def leaf() -> None:
        try:
            await asyncio.sleep(100.0)
        finally:
            try:
                await asyncio.sleep(1.0)
            finally:
                await asyncio.sleep(1.0)

    async def main(runtime: SimRuntime) -> None:
        # Only the collector would find it, once its task is closed.
        cycle: list[object] = [waited := leaf()]
        cycle.append(cycle)
        await waited

    hook, sys.unraisablehook = sys.unraisablehook, told.append
    try:
        world = World(seed=1)
        node = world.node("n", main)
        node.start()
        world.later(1.0, node.crash, 1.0)
        world.run(asyncio.sleep(5.0))
        gc.collect()
        del world, node
        gc.collect()
    finally:
        sys.unraisablehook = hook
    assert told == []


def test_finally_after_the_end_reaches_nothing() -> None:
    """Cleaning up when the world is over can neither write nor schedule, and warns of nothing."""

    async def main(runtime: SimRuntime) -> None:
        connection = runtime.disk.connect("/a.db")
        connection.execute("CREATE TABLE t (x)")
        try:
            await asyncio.Event().wait()
        finally:
            with contextlib.suppress(ValueError):
                connection.execute("INSERT INTO t VALUES (1)")
            await asyncio.create_task(asyncio.sleep(1.0))

    world = World(0)
    world.node("a", main).start()
    world.run(asyncio.sleep(1.0))
    assert world.disk.rows("/a.db", "SELECT count(*) FROM t") == [(0,)]


def test_node_that_crashes_itself_ends_its_step() -> None:
    """A crash from inside takes effect at the end of the step that now runs."""
    story: list[str] = []

    async def main(runtime: SimRuntime) -> None:
        node.crash()
        story.append("same step")
        await asyncio.sleep(0)
        story.append("next step")

    world = World(0)
    node = world.node("a", main)
    node.start()
    world.run(asyncio.sleep(1.0))
    assert story == ["same step"]


def test_crash_before_every_step() -> None:
    """A sweep can kill a node exactly before its n-th step, at every await there is."""

    def last_reached(kill_at: int) -> int:
        reached = 0

        async def main(runtime: SimRuntime) -> None:
            nonlocal reached
            for number in range(1, 6):
                reached = number
                await asyncio.sleep(0)

        def kill(node: object) -> None:
            if counted.steps == kill_at:
                counted.crash()

        world = World(0)
        counted = world.node("a", main)
        counted.start()
        world.on_step = kill
        world.run(asyncio.sleep(1.0))
        return reached

    assert [last_reached(kill_at) for kill_at in range(1, 7)] == [0, 1, 2, 3, 4, 5]


def test_paused_node_goes_on_where_it_was() -> None:
    """A pause holds a node's steps back; others go on, and nothing of it is lost."""
    beats: list[float] = []

    async def main(runtime: SimRuntime) -> None:
        for _ in range(4):
            await asyncio.sleep(1.0)
            beats.append(asyncio.get_running_loop().time())

    world = World(0)
    node = world.node("a", main)
    node.start()
    world.later(1.5, node.pause, 5.0)
    world.run(asyncio.sleep(20.0))
    assert beats == [1.0, 6.5, 7.5, 8.5]


def test_failure_in_a_node_fails_the_world() -> None:
    """An exception that ends a node's main is not lost, even if the node crashes later."""

    async def main(runtime: SimRuntime) -> None:
        raise ValueError("broken service")

    world = World(0)
    node = world.node("orders", main)
    node.start()
    world.later(1.0, node.crash)
    with pytest.raises(Unhandled, match=r"'orders' failed.*broken service"):
        world.run(asyncio.sleep(5.0))


def test_failure_of_main_tells_what_failed_before_it() -> None:
    """An error of the test itself carries a note of failures that went unnoticed."""

    async def broken(runtime: SimRuntime) -> None:
        raise ValueError("broken service")

    async def main() -> None:
        await asyncio.sleep(1.0)
        raise AssertionError("no order was shipped")

    world = World(0)
    world.node("orders", broken).start()
    with pytest.raises(AssertionError, match="no order") as caught:
        world.run(main())
    assert "broken service" in caught.value.__notes__[0]


def test_deadlock_tells_what_failed_before_it() -> None:
    """Where everything stands still because of an unnoticed failure, that failure is raised."""

    async def main(_: SimRuntime) -> None:
        asyncio.get_running_loop().call_soon(int, "x")
        await asyncio.Event().wait()

    with pytest.raises(Unhandled, match="invalid literal") as caught:
        run(main)
    assert "nothing will ever happen" in caught.value.__notes__[0]


def test_world_runs_once() -> None:
    """A universe that is over cannot be run again, nor its nodes started."""
    world = World(0)
    node = world.node("a", lambda runtime: asyncio.sleep(1.0))
    world.run(asyncio.sleep(1.0))
    node.start()
    assert not node.is_up
    with pytest.raises(SimulationError, match="runs once"):
        world.run(asyncio.sleep(1.0))


def test_simulation_inside_a_loop_is_refused() -> None:
    """A simulation cannot be started from a coroutine."""

    async def main(_: SimRuntime) -> None:
        World(1)

    with pytest.raises(RuntimeError, match="inside a running event loop"):
        run(main)


def test_sim_runtime_is_a_runtime() -> None:
    """The simulated runtime satisfies the protocol that the whole product is built on."""

    async def main(runtime: SimRuntime) -> str:
        real: Runtime = runtime
        return real.new_id()

    assert run(main)[14] == "7"


def test_wall_clocks_jump_together_and_the_loop_does_not() -> None:
    """Of all nodes, those that start later too; ids ascend all the same, and it is counted."""
    world = World(0)
    told: dict[str, int] = {}
    ids: dict[str, list[str]] = {"early": [], "late": []}

    async def look(runtime: SimRuntime) -> None:
        told[runtime.name] = runtime.wall_us() - int(asyncio.get_running_loop().time() * 1e6)
        for _ in range(3):
            ids[runtime.name].append(runtime.new_id())
            await asyncio.sleep(1.0)

    async def main() -> None:
        world.nodes["early"].start()
        await asyncio.sleep(1.5)
        world.jump_clocks(-3600.0)
        world.nodes["late"].start()
        await asyncio.sleep(5.0)
        assert asyncio.get_running_loop().time() == 6.5

    for name in ("early", "late"):
        world.node(name, look)
    world.run(main())
    assert told["late"] - told["early"] == -3_600_000_000
    assert [len(each) for each in ids.values()] == [3, 3]
    assert all(each == sorted(each) for each in ids.values())
    assert world.count["clock jump"] == 1
