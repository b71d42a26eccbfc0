"""Which scenarios there are: the fixed shapes under every fault, and systems drawn from a seed."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

from benchmarks.cascade.experiment import Scenario
from benchmarks.cascade.faults import FAULTS, LONG_S
from benchmarks.cascade.shape import LOCAL, Part, Shape


def _culprit(name: str, *calls: str, instances: int = 1) -> Part:
    """Return the tightest service of all: it alone drowns where clients ask for twice too much."""
    return Part(name, calls, places=8, mean_s=0.05, instances=instances)


def _other(name: str, *calls: str, calls_all: bool = False) -> Part:
    """Return a service that can do whatever comes to it."""
    return Part(name, calls, calls_all=calls_all, places=24, mean_s=0.01)


CHAIN3 = Shape("chain of 3", (_other("a", "b"), _other("b", "c"), _culprit("c")))
CHAIN3_MIDDLE = Shape("chain of 3, b", (_other("a", "b"), _culprit("b", "c"), _other("c")))
CHAIN3_SHARED = Shape(
    "chain of 3, shared",
    (_other("a", "b"), _other("b", "c"), replace(_culprit("c"), is_shared=True)),
)
CHAIN5 = Shape(
    "chain of 5",
    (_other("a", "b"), _other("b", "c"), _culprit("c", "d"), _other("d", "e"), _other("e")),
)
DIAMOND = Shape(
    "diamond", (_other("a", "b", "c"), _other("b", "d"), _other("c", "d"), _culprit("d"))
)
FAN_OUT = Shape(
    "fan-out",
    (_other("a", "b", "c", "d", calls_all=True), _other("b"), _other("c"), _culprit("d")),
)
REPLICAS = Shape("replicas", (_other("a", "r"), _culprit("r", instances=3)))
ALONE = Shape("one service", (_culprit("a"),))

CULPRITS = {
    ALONE.name: "a",
    CHAIN3.name: "c",
    CHAIN3_MIDDLE.name: "b",
    CHAIN3_SHARED.name: "c",
    CHAIN5.name: "c",
    DIAMOND.name: "d",
    FAN_OUT.name: "d",
}
SHAPES = (CHAIN3, CHAIN3_MIDDLE, CHAIN5, DIAMOND, FAN_OUT)
WHOLE = ("stall", "long stall", "slow 5 s", "errors", "25 % capacity", "flapping")
ONE_OF_THREE = ("dead", "hung", "failing", "3 x slower")
LOADS = (0.5, 1.0, 2.0)
# How long they wait, and whether they ask again.
CLIENTS = ((0.3, False), (1.0, True), (5.0, False), (None, False))
# Each deadline the other way round, too; at the least load, which takes the least time to run.
OTHER_CLIENTS = ((0.3, True), (1.0, False), (5.0, True), (None, True))
SLOWEST_S, AMPLE = 0.05, 5.0
PICTURED = ("nothing", "time-outs", "retries", "breaker", "all")


def scenario(
    shape: Shape, fault: str, load: float, deadline_s: float | None, *, is_retrying: bool = False
) -> Scenario:
    """Return a scenario of a fixed shape, named by all that it is made of."""
    within = "no deadline" if deadline_s is None else f"{deadline_s:g} s"
    again = ", clients retry" if is_retrying else ""
    name = f"{shape.name} / {fault} / {load:.0%} / {within}{again}"
    culprit = CULPRITS.get(shape.name, "r")
    is_replica = fault in ONE_OF_THREE
    return Scenario(name, shape, culprit, fault, load, deadline_s, is_retrying, is_replica)


def everything() -> list[Scenario]:
    """Return every shape under every fault, at every load, with clients of four kinds.

    And with those of all eight, every deadline with and without retries, at the least load.
    """
    faults = [
        (shape, fault, load)
        for shape, fault, load in itertools.product(SHAPES, WHOLE, LOADS)
        # What lasts long shows at half the load too, and takes four times as long to run at twice.
        if load == LOADS[0] or FAULTS[fault].lasts_s < LONG_S
    ]
    faults += [(CHAIN3_MIDDLE, "slow database", load) for load in LOADS]
    faults += [
        (CHAIN3_SHARED, fault, load)
        for fault, load in itertools.product(("stall", "25 % capacity", "slow database"), LOADS)
    ]
    faults += [(ALONE, "none", load) for load in LOADS]
    faults += [(REPLICAS, fault, LOADS[0]) for fault in ONE_OF_THREE]
    return [
        scenario(*fault, deadline_s, is_retrying=is_retrying)
        for fault in faults
        for deadline_s, is_retrying in (
            (*CLIENTS, *OTHER_CLIENTS) if fault[2] == LOADS[0] else CLIENTS
        )
    ]


def few() -> list[Scenario]:
    """Return the scenarios of the test suite: each shape, fault, load and client some time."""
    return [
        scenario(CHAIN3, "stall", 1.0, 0.3),
        scenario(CHAIN3, "stall", 1.0, None),
        scenario(CHAIN3, "slow 5 s", 1.0, 1.0, is_retrying=True),
        scenario(CHAIN3_SHARED, "25 % capacity", 1.0, 1.0),
        scenario(CHAIN3, "25 % capacity", 2.0, 0.3, is_retrying=True),
        scenario(CHAIN3, "flapping", 0.5, 1.0),
        scenario(CHAIN3_MIDDLE, "slow database", 1.0, 5.0),
        scenario(CHAIN3_MIDDLE, "long stall", 0.5, 1.0),
        scenario(FAN_OUT, "long stall", 0.5, 5.0),
        scenario(CHAIN5, "stall", 0.5, 5.0, is_retrying=True),
        scenario(CHAIN5, "25 % capacity", 1.0, 5.0),
        scenario(DIAMOND, "stall", 0.5, 1.0, is_retrying=True),
        scenario(DIAMOND, "errors", 1.0, 5.0),
        scenario(FAN_OUT, "slow 5 s", 0.5, None, is_retrying=True),
        scenario(ALONE, "none", 2.0, 0.3),
        *(scenario(REPLICAS, fault, 0.5, 1.0) for fault in ONE_OF_THREE),
    ]


def pictured() -> list[Scenario]:
    """Return what the picture shows: two faults, under each way of guarding."""
    return [
        replace(scenario(CHAIN3, fault, 1.0, 1.0), layers=layers, name=f"{fault} with {layers}")
        for fault in ("stall", "25 % capacity")
        for layers in PICTURED
    ]


def drawn(seed: int) -> Scenario:
    """Return a system that a seed decides: what calls what, capacities, times, and a culprit."""
    rng = random.Random(f"system {seed}")
    names = [f"s{number}" for number in range(1, rng.randint(3, 9) + 1)]
    callers = {name: {rng.choice(names[:at])} for at, name in enumerate(names) if at}
    for at, name in enumerate(names[2:], 2):
        if rng.random() < 0.3:
            callers[name].add(rng.choice(names[:at]))
    parts = tuple(
        Part(
            name,
            tuple(other for other in names if name in callers.get(other, ())),
            calls_all=rng.random() < 0.4,
            timeout_s=round(rng.uniform(0.5, 4.0), 2) if rng.random() < 0.5 else None,
        )
        for name in names
    )
    shares = Shape("", parts).shares()
    # Of those that enough comes to, for a rate to be one.
    least = min((1 - LOCAL) / 4, max(shares[name] for name in names[1:]))
    culprit = rng.choice([name for name in names[1:] if shares[name] >= least])
    fault = rng.choice(WHOLE)
    load = rng.uniform(0.3, 2.0)
    rate_per_s = rng.uniform(100, 220)

    def fitted(part: Part) -> Part:
        comes_per_s = rate_per_s * shares[part.name]
        capacity_per_s = comes_per_s * rng.uniform(2, 4)
        # No slower than 50 ms, with as many places as that takes.
        mean_s = min(rng.randint(4, 24) / capacity_per_s, SLOWEST_S)
        places = max(4, round(capacity_per_s * mean_s))
        if part.name == culprit:
            capacity_per_s = comes_per_s / load
            places = max(4, round(capacity_per_s * SLOWEST_S))
            mean_s = places / capacity_per_s
        return replace(part, places=places, mean_s=mean_s, sigma=rng.uniform(0.3, 0.7))

    shape = Shape(f"system {seed}", tuple(map(fitted, parts)))
    # Who gives less than the work takes has a mistake of its own.
    enough_s = AMPLE * shape.longest_s
    shape = replace(
        shape,
        parts=tuple(
            replace(part, timeout_s=part.timeout_s and round(max(part.timeout_s, enough_s), 2))
            for part in shape.parts
        ),
    )
    deadline_s = rng.choice((None, rng.uniform(0.3, 1.0), rng.uniform(1.0, 5.0)))
    if deadline_s is not None:
        deadline_s = round(max(deadline_s, enough_s), 2)
    return Scenario(
        shape.name, shape, culprit, fault, load, deadline_s, is_retrying=rng.random() < 0.5
    )


def by_name(name: str) -> Scenario:
    """Return the scenario of a name. Raises KeyError where there is none."""
    kind, _, number = name.partition(" ")
    if kind == "system" and number.isdecimal():
        return drawn(int(number))
    return {each.name: each for each in (*everything(), *few(), *pictured())}[name]


assert {*WHOLE, *ONE_OF_THREE} <= set(FAULTS)
