"""The timer wheel: which deadlines come, when, in which order, and what a dropped one costs."""

from __future__ import annotations

import asyncio
import random

from hypothesis import given
from hypothesis import strategies as st

from synchromesh.testing import SimRuntime, run
from synchromesh.timers import Timers
from synchromesh.wheel import TICK_S, Deadline, Wheel


def popped(wheel: Wheel, now: float) -> list[Deadline]:
    found = []
    while (deadline := wheel.pop(now)) is not None:
        found.append(deadline)
    return found


class Bell(Deadline):
    def __init__(self, due_s: float, rung: list[tuple[float, float]]) -> None:
        super().__init__(due_s)
        self._rung = rung

    def expire(self) -> None:
        self._rung.append((asyncio.get_running_loop().time(), self.due_s))


@given(st.lists(st.tuples(st.sampled_from("advd"), st.floats(0.0, 1.0)), max_size=60))
def test_deadlines_come_when_due_in_order_and_never_after_they_were_dropped(
    steps: list[tuple[str, float]],
) -> None:
    """A wheel gives back just what a sorted list would, whatever is added, dropped and asked."""
    wheel, held, now, made = Wheel(), dict[int, Deadline](), 0.0, 0
    for step, number in steps:
        if step == "a":
            made += 1
            held[made] = Deadline(now + number)
            wheel.add(held[made])
        elif step == "v":
            now += number / 4
            due = [n for n in held if held[n].due_s <= now]
            due.sort(key=lambda n: held[n].due_s)
            came = popped(wheel, now)
            assert [each.due_s for each in came] == [held[n].due_s for n in due]
            assert {id(each) for each in came} == {id(held.pop(n)) for n in due}
        elif held:
            wheel.drop(held.pop(sorted(held)[int(number * (len(held) - 1))]))
        wake_s = wheel.wake_s()
        if held:
            assert wake_s is not None
            assert wake_s <= min(each.due_s for each in held.values()) + 1e-9
    for each in held.values():
        wheel.drop(each)
    assert popped(wheel, now + 9.0) == []
    assert wheel.wake_s() is None


def test_those_of_one_moment_come_in_the_order_of_adding() -> None:
    """Deadlines that are equal expire first come, first served."""
    wheel, deadlines = Wheel(), [Deadline(1.02) for _ in range(20)]
    for deadline in deadlines:
        wheel.add(deadline)
    assert popped(wheel, 1.02) == deadlines


def test_a_tick_wakes_once_for_all_its_deadlines() -> None:
    """Only the first deadline of a tick asks for a timer: the others share it."""
    wheel = Wheel()
    assert [wheel.add(Deadline(1.0 + TICK_S * n / 10)) for n in range(10)] == [True] + [False] * 9


def test_a_deadline_that_was_dropped_leaves_nothing() -> None:
    """However many calls end in time, the wheel does not grow until their deadlines have passed."""
    wheel = Wheel()
    for _ in range(1000):
        deadline = Deadline(2.0)
        wheel.add(deadline)
        wheel.drop(deadline)
        wheel.drop(deadline)
    assert repr(wheel) == "<Wheel 0 deadlines>"


def test_a_deadline_of_never_is_not_held() -> None:
    """Infinity, and what is beyond any life, ask for no timer."""
    wheel = Wheel()
    assert not wheel.add(Deadline(float("inf")))
    assert not wheel.add(Deadline(1e300))
    assert wheel.wake_s() is None


def test_one_that_expires_may_drop_another_of_the_same_moment() -> None:
    """A deadline that another one's expiry has dropped does not come."""

    class Dropping(Deadline):
        def expire(self) -> None:
            timers.drop(other)

    rung: list[tuple[float, float]] = []

    async def main(_: SimRuntime) -> None:
        loop = asyncio.get_running_loop()
        timers.add(Dropping(0.01), loop)
        timers.add(other, loop)
        await asyncio.sleep(1.0)

    timers, other = Timers(), Bell(0.01, rung)
    run(main)
    assert rung == []


def test_timers_are_exact_whatever_the_order_of_adding() -> None:
    """Each deadline expires at its own moment, not at that of its tick."""
    dues = [round(0.0137 * n, 6) for n in range(1, 60)] + [0.05, 0.1, 0.05]
    random.Random(3).shuffle(dues)
    rung: list[tuple[float, float]] = []

    async def main(_: SimRuntime) -> None:
        timers, loop = Timers(), asyncio.get_running_loop()
        for due_s in dues:
            timers.add(Bell(due_s, rung), loop)
        await asyncio.sleep(0.3)
        for due_s in (0.301, 0.7, 0.311):  # into a tick that has begun, and beyond
            timers.add(Bell(due_s, rung), loop)
            dues.append(due_s)
        await asyncio.sleep(2.0)

    run(main)
    assert [at for at, _ in rung] == [due for _, due in rung] == sorted(dues)


def test_an_expiry_that_fails_does_not_stop_the_others() -> None:
    """What one deadline raises reaches the loop, and the next ones still come."""

    class Failing(Deadline):
        def expire(self) -> None:
            raise ValueError("a bug")

    rung: list[tuple[float, float]] = []

    async def main(_: SimRuntime) -> list[str]:
        told: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(str(context["exception"])))
        timers = Timers()
        timers.add(Failing(0.01), loop)
        timers.add(Bell(0.01, rung), loop)
        timers.add(Bell(0.02, rung), loop)
        await asyncio.sleep(1.0)
        return told

    assert run(main) == ["a bug"]
    assert [due for _, due in rung] == [0.01, 0.02]


def test_timers_outlive_their_loop() -> None:
    """An owner that is used on a second loop has its deadlines there."""
    rung: list[tuple[float, float]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        timers.add(Bell(loop.time() + 9.0, rung), loop)
        timers.add(Bell(loop.time() + 0.001, rung), loop)
        await asyncio.sleep(0.02)

    timers = Timers()
    asyncio.run(main())
    asyncio.run(main())
    assert len(rung) == 2
