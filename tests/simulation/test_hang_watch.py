"""A supervisor that asks its processes for signs of life, in virtual time: loaded, or stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from synchromesh.system.supervise.hang_watch import HangWatch
from synchromesh.testing import SimLoop

HANG_S = 30.0


class Part:
    """A part whose process answers after a while, or hangs; a replaced one is another process."""

    title = "service 'notes'"

    def __init__(self, answers_after_s: float = 0.01) -> None:
        self.answers_after_s = answers_after_s
        self.pid = 1
        self.is_hung = False
        self.has_answered = False
        self.asked = 0
        self.replaced_s: list[float] = []

    @property
    def answering(self) -> Part:
        return self

    def ask(self) -> None:
        self.asked += 1
        self.has_answered = False
        asyncio.get_running_loop().call_later(self.answers_after_s, self._answer)

    def _answer(self) -> None:
        self.has_answered = not self.is_hung

    def go_on(self) -> None:
        """Hang no longer, and answer what was asked meanwhile."""
        self.is_hung = False
        self._answer()

    def replace_hung(self) -> None:
        self.replaced_s.append(asyncio.get_running_loop().time())


class Watching:
    """A watch over two parts, and what it said of them."""

    def __init__(self, hang_s: float = HANG_S) -> None:
        self.loop = SimLoop()
        self.well, self.ill = Part(), Part()
        self.ill.pid = 2
        self.traced: set[int] = set()
        self.stopped: set[int] = set()
        self.suspected: dict[str, list[tuple[float, bool]]] = {"well": [], "ill": []}
        self.slept_s = 0.0
        self.watch = HangWatch(
            lambda: {"well": self.well, "ill": self.ill},
            hang_s=hang_s,
            wall_us=lambda: int((self.loop.time() + self.slept_s) * 1e6),
            on_suspect=self._on_suspect,
            is_traced=lambda pid: pid in self.traced,
            is_stopped=lambda pid: pid in self.stopped,
        )

    def _on_suspect(self, name: str, _: int, is_suspect: bool) -> None:
        said = self.suspected[name]
        if not said or said[-1][1] != is_suspect:
            said.append((self.loop.time(), is_suspect))

    def block(self, for_s: float) -> None:
        """Keep the supervisor's own loop from running, or stop the supervisor."""
        self.loop._now += for_s

    def run(self, course: Coroutine[Any, Any, None]) -> None:
        async def main() -> None:
            watching = asyncio.ensure_future(self.watch.run())
            await course
            watching.cancel()

        self.loop.run_until_complete(main())
        self.loop.close()


def test_who_hangs_is_suspected_within_two_seconds_and_replaced_after_hang_s() -> None:
    """R6: and nobody else is."""
    world = Watching()

    async def course() -> None:
        await asyncio.sleep(10.1)
        world.ill.is_hung = True
        await asyncio.sleep(HANG_S + 2.0)
        assert "has answered nothing for" in world.watch.silence(world.ill)
        assert "kill -CONT" not in world.watch.silence(world.ill)
        world.stopped.add(world.ill.pid)
        assert "kill -CONT 2 lets it go on" in world.watch.silence(world.ill)
        assert world.watch.silence(world.well) == ""

    world.run(course())
    ((suspected_s, is_suspect),) = world.suspected["ill"]
    assert is_suspect
    assert suspected_s <= 10.1 + 2.0
    (replaced_s,) = world.ill.replaced_s
    assert 10.1 + HANG_S <= replaced_s <= 10.1 + HANG_S + 1.0
    assert (world.suspected["well"], world.well.replaced_s) == ([], [])


def test_who_answers_again_is_cleared_and_not_replaced() -> None:
    """It was asked once meanwhile, however long that was."""
    world = Watching()

    async def course() -> None:
        world.ill.is_hung = True
        await asyncio.sleep(HANG_S - 1.0)
        assert world.ill.asked == 1
        world.ill.go_on()
        await asyncio.sleep(HANG_S)

    world.run(course())
    assert [is_suspect for _, is_suspect in world.suspected["ill"]] == [True, False]
    assert world.ill.replaced_s == []


def test_a_loaded_supervisor_suspects_nobody_who_answers() -> None:
    """Its loop is blocked again and again, and processes are slow: 0.9 s for an answer."""
    world = Watching()
    world.well.answers_after_s = world.ill.answers_after_s = 0.9

    async def course() -> None:
        for turn in range(400):
            await asyncio.sleep(0.13 * (turn % 7))
            world.block(0.41 * (turn % 11))

    world.run(course())
    assert world.suspected == {"well": [], "ill": []}
    assert world.well.asked > 50


def test_a_supervisor_that_was_stopped_gives_a_fresh_grace() -> None:
    """SIGSTOP, or a starved machine: what it missed counts against nobody."""
    world = Watching()

    async def course() -> None:
        world.ill.is_hung = True
        await asyncio.sleep(HANG_S - 1.0)
        world.block(3600.0 / 2)
        await asyncio.sleep(HANG_S - 1.0)
        assert world.ill.replaced_s == []
        world.ill.go_on()
        await asyncio.sleep(1.0)

    world.run(course())
    assert [is_suspect for _, is_suspect in world.suspected["ill"]] == [True, False]
    assert world.suspected["well"] == []


def test_a_machine_that_slept_gives_a_fresh_grace() -> None:
    """The loop's clock stood still meanwhile."""
    world = Watching()

    async def course() -> None:
        world.ill.is_hung = True
        await asyncio.sleep(HANG_S - 1.0)
        world.slept_s = 3600.0
        await asyncio.sleep(HANG_S - 1.0)
        assert world.ill.replaced_s == []
        await asyncio.sleep(3.0)

    world.run(course())
    assert len(world.ill.replaced_s) == 1


def test_what_a_debugger_traces_is_never_replaced() -> None:
    """It is suspected, for nobody answers there; once it is let go, it has all its time anew."""
    world = Watching()

    async def course() -> None:
        world.ill.is_hung = True
        world.traced.add(2)
        await asyncio.sleep(10 * HANG_S)
        assert world.ill.replaced_s == []
        assert "not replaced while a debugger traces it" in world.watch.silence(world.ill)
        world.traced.clear()
        await asyncio.sleep(HANG_S - 1.0)
        assert world.ill.replaced_s == []
        await asyncio.sleep(2.0)

    world.run(course())
    assert len(world.ill.replaced_s) == 1


def test_a_debugger_is_seen_before_the_shortest_bound_is_over() -> None:
    """With the least `hang`, what becomes a suspect would be replaced at the same round."""
    world = Watching(hang_s=1.0)

    async def course() -> None:
        world.ill.is_hung = True
        world.traced.add(2)
        await asyncio.sleep(10.0)

    world.run(course())
    assert [is_suspect for _, is_suspect in world.suspected["ill"]] == [True]
    assert world.ill.replaced_s == []
