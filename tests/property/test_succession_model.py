"""The processes of a part against a reference: every course of events to a depth, none left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from synchromesh.system.supervise.succession import Event, IllegalEvent, Succession

DEPTH = 10
Step = Event | int


@dataclass(frozen=True)
class World:
    """What there is: processes by number, in the order they were made.

    `ready` have said so; `going` were asked to go; one that is `made` next has number `count`.
    """

    count: int = 0
    is_making: bool = False
    alive: tuple[int, ...] = ()
    ready: frozenset[int] = frozenset()
    going: frozenset[int] = frozenset()

    def steps(self) -> Iterator[Step]:
        """Yield what can happen: an event, or the number of a process that ends."""
        yield from self.alive
        if self.is_making:
            yield from (Event.MADE, Event.NOT_MADE)
        elif not self.alive or (len(self.alive) == 1 and self.answering == self.alive):
            yield Event.ASKED
        if self.alive and not self.going and self.alive[-1] not in self.ready:
            yield from (Event.LOADED, Event.READY)

    def after(self, step: Step) -> World:
        """Return the world after a step; the elder goes as soon as the younger is loaded."""
        if isinstance(step, int):
            alive = tuple(each for each in self.alive if each != step)
            return replace(self, alive=alive, going=self.going & frozenset(alive))
        if step in (Event.ASKED, Event.NOT_MADE):
            return replace(self, is_making=step is Event.ASKED)
        if step is Event.MADE:
            alive = (*self.alive, self.count)
            return replace(self, count=self.count + 1, is_making=False, alive=alive)
        ready = self.ready | {self.alive[-1]} if step is Event.READY else self.ready
        return replace(self, ready=ready, going=frozenset(self.alive[:-1]))

    @property
    def answering(self) -> tuple[int, ...]:
        """Those that are ready and were not asked to go; a younger one answers alone."""
        return tuple(each for each in self.alive if each in self.ready - self.going)


def take(part: Succession[int], step: Step, count: int) -> None:
    if isinstance(step, int):
        part.exited(step)
    elif step is Event.MADE:
        part.started(count)
    else:
        part.apply(step)


def replayed(steps: tuple[Step, ...]) -> tuple[Succession[int], World]:
    part, world = Succession[int](), World()
    for step in steps:
        take(part, step, world.count)
        world = world.after(step)
    return part, world


def courses() -> Iterator[tuple[Step, ...]]:
    """Yield every course of events that can happen."""
    open_ends: list[tuple[tuple[Step, ...], World]] = [((), World())]
    while open_ends:
        steps, world = open_ends.pop()
        yield steps
        if len(steps) < DEPTH:
            open_ends.extend(((*steps, step), world.after(step)) for step in world.steps())


def test_no_course_of_events_makes_two_current_or_forgets_one() -> None:
    """At most one answers, all that live are known, and only what can happen is taken in."""
    for steps in courses():
        part, world = replayed(steps)
        assert part.running == world.alive
        assert {part.answering} - {None} == {*world.answering}
        assert len(world.answering) <= 1
        assert {part.leaving} - {None} == world.going
        assert part.current in part.running or world.going >= {*world.alive}
        can = {*world.steps()}
        for event in {*Event} - {Event.ENDED, Event.BEFORE_ENDED} - can:
            with pytest.raises(IllegalEvent):
                take(part, event, world.count)
        assert part.running == world.alive


def test_a_stop_after_any_course_of_events_ends_all() -> None:
    """Whoever ends all that runs, and what is still made, is left with none."""
    for steps in courses():
        part, world = replayed(steps)
        part.is_stopping = True
        alive = {*part.running}
        for process in part.running:
            part.exited(process)
        if world.is_making:
            part.started(world.count)
            alive |= {*part.running}
            part.exited(world.count)
        assert alive == {*world.alive} | ({world.count} if world.is_making else set())
        assert part.running == ()
        with pytest.raises(IllegalEvent, match="stopping"):
            part.apply(Event.ASKED)
