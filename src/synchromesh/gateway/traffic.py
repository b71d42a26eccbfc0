"""What became of the requests of a gateway, counted by route and branch since it started.

A count is a number in a list, which the fast way adds to without a call. They are read when
somebody asks (`GatewayEngine.snapshot`).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from synchromesh.errors import RateLimited, Shed
from synchromesh.gateway.access_log import AccessLog
from synchromesh.gateway.composition import BranchOutcome


class RouteCounts(msgspec.Struct, frozen=True):
    """What became of the requests of one route.

    Attributes:
        answers: how many there were, by the class of their status: "2xx" to "5xx".
        degraded: those with a fallback, or with a branch left out.
        shed: those refused because too much was under way, here or at a service.
        rate_limited: those that came too soon.
        cut: answers that broke off.
        left: clients that left before their answer had ended.
        branches: of an aggregate, what came of branches instead of an answer, by branch and
            outcome: "stale", "static", "rejected", "failed" or "skipped". Of a route with a
            fallback, the same under "".
    """

    answers: dict[str, int]
    degraded: int = 0
    shed: int = 0
    rate_limited: int = 0
    cut: int = 0
    left: int = 0
    branches: dict[str, dict[str, int]] = {}

    @property
    def requests(self) -> int:
        """How many were answered."""
        return sum(self.answers.values())


class GatewayCounts(msgspec.Struct, frozen=True):
    """What became of the requests of a gateway.

    Attributes:
        routes: by route, as it is written.
        others: requests that no route has, and what browsers ask before they send.
        log_dropped: lines of the access log that were not kept.
    """

    routes: dict[str, RouteCounts]
    others: RouteCounts
    log_dropped: int = 0


class RouteTraffic:
    """Counts what becomes of the requests of one route.

    Args:
        name: of the route; "" for requests without one.
        log: is told of each of them; None where there is no access log.

    Attributes:
        answers: how many, by the first digit of their status.

    Example:
        >>> traffic = RouteTraffic("GET /stock/{sku}", None)
        >>> traffic.answers[200 // 100] += 1
        >>> traffic.why(Shed("too many calls are under way"))
        >>> traffic.counts().answers, traffic.counts().shed
        ({'2xx': 1}, 1)
    """

    __slots__ = (
        "answers", "branches", "cut", "degraded", "left", "log", "name", "rate_limited", "shed",
    )  # fmt: skip

    def __init__(self, name: str, log: AccessLog | None) -> None:
        self.name = name
        self.log = log
        self.answers = [0] * 6
        self.degraded = self.shed = self.rate_limited = self.cut = self.left = 0
        self.branches: dict[str, dict[str, int]] = {}

    def why(self, error: BaseException) -> None:
        """Count why a request was refused, where that says something of the load."""
        if isinstance(error, Shed):
            self.shed += 1
        elif isinstance(error, RateLimited):
            self.rate_limited += 1

    def branched(self, outcomes: Mapping[str, BranchOutcome]) -> None:
        """Count the branches that are not as they could be."""
        for name, outcome in outcomes.items():
            if outcome.is_partial:
                of = self.branches.setdefault(name, {})
                of[outcome.status.value] = of.get(outcome.status.value, 0) + 1

    def counts(self) -> RouteCounts:
        """Return the counts of now."""
        answers = {f"{digit}xx": count for digit, count in enumerate(self.answers) if count}
        return RouteCounts(
            answers=answers,
            degraded=self.degraded,
            shed=self.shed,
            rate_limited=self.rate_limited,
            cut=self.cut,
            left=self.left,
            branches={name: dict(of) for name, of in self.branches.items()},
        )

    def __repr__(self) -> str:
        return f"<RouteTraffic {self.name or 'without a route'}: {sum(self.answers)} answers>"
