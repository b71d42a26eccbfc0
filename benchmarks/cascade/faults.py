"""What goes wrong with one service, and how much of its work it can still do meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.cascade.shape import Part
from benchmarks.cascade.system import Resource, mu_of

SLOW_S = 5.0
FLAPS_EVERY_S = 2.0
USUAL_S, FLAPPING_S, LONG_S = 6.0, 10.0, 20.0
SAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of a resource.

    Attributes:
        strike: puts it in force.
        places, factor: what it leaves of the places, and how much longer the work takes.
        fixed_s: how long the work takes whatever it is; None where the work decides.
        is_dead: nothing is answered.
        is_refusing: its instance refuses connections.
        flaps_every_s: it comes and goes in turns of so many seconds.
        lasts_s: from the first strike to the last healing.
    """

    name: str
    strike: Callable[[Resource], None]
    places: float = 1.0
    factor: float = 1.0
    fixed_s: float | None = None
    is_dead: bool = False
    is_refusing: bool = False
    flaps_every_s: float | None = None
    lasts_s: float = USUAL_S

    def possible_per_s(self, part: Part, left_s: float) -> float:
        """Return how many answers a second its resource can give in time while this is in force.

        A request has `left_s` when it comes; one that takes longer gives its place back then.
        """
        if self.is_dead:
            return 0.0
        rng, mu = random.Random(part.name), mu_of(part)
        took = [
            rng.lognormvariate(mu, part.sigma) * self.factor
            if self.fixed_s is None
            else self.fixed_s
            for _ in range(SAMPLES)
        ]
        places = max(1, int(part.places * self.places)) * part.instances
        in_time = sum(each <= left_s for each in took) / SAMPLES
        return places * in_time / (sum(min(each, left_s) for each in took) / SAMPLES)


def _nothing(_: Resource) -> None:
    pass


def _stall(resource: Resource) -> None:
    resource.is_stalled = True


def _slow(resource: Resource) -> None:
    resource.fixed_s = SLOW_S


def _fail(resource: Resource) -> None:
    resource.is_failing = True


def _shrink(resource: Resource) -> None:
    resource.places = max(1, resource.places // 4)


def _slow_by(factor: float) -> Callable[[Resource], None]:
    def strike(resource: Resource) -> None:
        resource.factor = factor

    return strike


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("none", _nothing),
        Fault("stall", _stall, is_dead=True),
        # Longer than breakers look back: what was answered before it is forgotten.
        Fault("long stall", _stall, is_dead=True, lasts_s=LONG_S),
        Fault("slow 5 s", _slow, fixed_s=SLOW_S),
        Fault("errors", _fail, is_dead=True),
        Fault("25 % capacity", _shrink, places=0.25),
        Fault("flapping", _stall, is_dead=True, flaps_every_s=FLAPS_EVERY_S, lasts_s=FLAPPING_S),
        Fault("slow database", _slow_by(4.0), factor=4.0),
        # Of one instance of several:
        Fault("dead", _nothing, is_dead=True, is_refusing=True),
        Fault("hung", _stall, is_dead=True),
        Fault("failing", _fail, is_dead=True),
        Fault("3 x slower", _slow_by(3.0), factor=3.0),
    )
}


async def inflict(fault: Fault, strike: Callable[[], None], heal: Callable[[], None]) -> None:
    """Put a fault in force for as long as it lasts."""
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + fault.lasts_s
    turn_s = fault.flaps_every_s or fault.lasts_s
    while loop.time() < ends_s - turn_s / 2:
        strike()
        await asyncio.sleep(turn_s)
        heal()
        if fault.flaps_every_s is not None:
            await asyncio.sleep(min(turn_s, max(0.0, ends_s - loop.time())))
