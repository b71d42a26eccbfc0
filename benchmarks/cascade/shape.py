"""What a system looks like: its services, who calls whom, and how much of the traffic needs which.

Of the requests that reach a service, `LOCAL` are answered there; the others go on to one of the
services it calls, or to all of them at once. What a request will need is drawn before it is sent,
as a *plan*: a number that names the service and the plans of the calls that it makes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

LOCAL = 1 / 3


@dataclass(frozen=True, slots=True)
class Part:
    """One service.

    Attributes:
        calls: the services that it calls; `calls_all`: all of them for one request, or one.
        places: how many requests its own resource works on at once, in each instance.
        mean_s, sigma: the log-normal time that the resource takes for a request.
        timeout_s: of an attempt of its calls; None leaves it at the default.
        is_shared: requests share the places, and become slower together; or wait for one.
    """

    name: str
    calls: tuple[str, ...] = ()
    calls_all: bool = False
    places: int = 4
    mean_s: float = 0.01
    sigma: float = 0.5
    instances: int = 1
    timeout_s: float | None = None
    is_shared: bool = False

    @property
    def capacity_per_s(self) -> float:
        """How many requests a second its resource does in all instances."""
        return self.places * self.instances / self.mean_s


@dataclass(frozen=True, slots=True)
class Shape:
    """A system: its services, the first of which is called from outside; calls go forward only."""

    name: str
    parts: tuple[Part, ...]

    def part(self, name: str) -> Part:
        """Return a service by its name."""
        return next(part for part in self.parts if part.name == name)

    def shares(self) -> dict[str, float]:
        """Return how many requests reach each service for one from outside, on average."""
        shares = dict.fromkeys((part.name for part in self.parts), 0.0)
        shares[self.parts[0].name] = 1.0
        for part in self.parts:
            onward = shares[part.name] * (1 - LOCAL)
            for name in part.calls:
                shares[name] += onward if part.calls_all else onward / len(part.calls)
        return shares

    def before_s(self, name: str) -> float:
        """Return the mean time that the longest way to a service takes, its own not counted."""
        reached = {self.parts[0].name: 0.0}
        for part in self.parts:
            for callee in part.calls:
                at_s = reached[part.name] + part.mean_s
                reached[callee] = max(at_s, reached.get(callee, 0.0))
        return reached[name]

    @property
    def longest_s(self) -> float:
        """The mean time of the longest way through the system."""
        return max(self.before_s(part.name) + part.mean_s for part in self.parts)


class Plans:
    """Draws what requests need, and gives each kind of need a number."""

    def __init__(self, shape: Shape, rng: random.Random) -> None:
        self._parts = {part.name: part for part in shape.parts}
        self._entry = shape.parts[0].name
        self._rng = rng
        self._numbers: dict[tuple[str, tuple[int, ...]], int] = {}
        self.steps: list[tuple[str, tuple[int, ...]]] = []
        self.needs: list[frozenset[str]] = []

    def draw(self) -> int:
        """Return the plan of a new request."""
        return self._drawn(self._entry)

    def drawn_with(self, name: str) -> int:
        """Return the plan of a new request that needs a service."""
        while True:
            plan = self.draw()
            if name in self.needs[plan]:
                return plan

    def visits(self, plan: int, name: str) -> int:
        """Return how often a request with a plan comes to a service."""
        if name not in self.needs[plan]:
            return 0
        own, onward = self.steps[plan]
        return (own == name) + sum(self.visits(each, name) for each in onward)

    def _drawn(self, name: str) -> int:
        part, rng = self._parts[name], self._rng
        onward: tuple[int, ...] = ()
        if part.calls and rng.random() >= LOCAL:
            callees = part.calls if part.calls_all else (rng.choice(part.calls),)
            onward = tuple(self._drawn(callee) for callee in callees)
        number = self._numbers.setdefault((name, onward), len(self.steps))
        if number == len(self.steps):
            self.steps.append((name, onward))
            self.needs.append(frozenset({name}).union(*(self.needs[plan] for plan in onward)))
        return number
