"""What became of the requests of a gateway, counted by route and branch since it started.

A count is a number that is added to. They are read when somebody asks (`GatewayEngine.snapshot`,
`families`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from synchromesh.errors import RateLimited, Shed
from synchromesh.gateway.access_log import AccessLog
from synchromesh.gateway.composition import BranchOutcome, BranchStatus
from synchromesh.gateway.metrics import (
    BRANCH_TOOK,
    BRANCHES,
    OUTCOMES,
    REQUESTS,
)
from synchromesh.telemetry.metrics import OTHER, SHORT_S, Family, Histogram, Sample, merge

_METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}
)
_OK = BranchStatus.OK
_NOT_TIMED: Mapping[str, float] = {}
_OUTCOMES = ("degraded", "shed", "rate_limited", "cut", "left")
# Of one route: so many pairs of method and status are told apart.
_ANSWERS_MAX = 64


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
        answers: how long they took, by method and status; 0 where the client left before.
        took: of an aggregate, how long branches took, by name and outcome.

    Example:
        >>> traffic = RouteTraffic("GET /stock/{sku}", None)
        >>> traffic.answered(b"GET", 200, 0.002)
        >>> traffic.why(Shed("too many calls are under way"))
        >>> traffic.counts().answers, traffic.counts().shed
        ({'2xx': 1}, 1)
    """

    __slots__ = (
        "answers", "branches", "cut", "degraded", "left", "log", "name", "rate_limited", "shed",
        "took",
    )  # fmt: skip

    def __init__(self, name: str, log: AccessLog | None) -> None:
        self.name = name
        self.log = log
        self.answers: dict[tuple[str | bytes, int], Histogram] = {}
        self.degraded = self.shed = self.rate_limited = self.cut = self.left = 0
        self.branches: dict[str, dict[str, int]] = {}
        self.took: dict[tuple[str, BranchStatus], Histogram] = {}

    def answered(self, method: str | bytes, status: int, took_s: float) -> None:
        """Count a request whose answer has ended; `status` 0 where there was none."""
        took = self.answers.get((method, status)) or self.first(method, status)
        took.observe(took_s)

    def first(self, method: str | bytes, status: int) -> Histogram:
        """Return the histogram of a method, which the client may have made up, and a status."""
        word = method.decode("latin-1") if isinstance(method, bytes) else method
        if word not in _METHODS or len(self.answers) >= _ANSWERS_MAX:
            # The first digit is always told.
            method = OTHER
            status = status // 100 * 100 if len(self.answers) >= _ANSWERS_MAX else status
        return self.answers.setdefault((method, status), Histogram(SHORT_S))

    def why(self, error: BaseException) -> None:
        """Count why a request was refused, where that says something of the load."""
        if isinstance(error, Shed):
            self.shed += 1
        elif isinstance(error, RateLimited):
            self.rate_limited += 1

    def branched(
        self, outcomes: Mapping[str, BranchOutcome], took_s: Mapping[str, float] = _NOT_TIMED
    ) -> None:
        """Count the branches that are not as they could be, and how long those took that began."""
        for name, each_s in took_s.items():
            key = (name, outcomes[name].status)
            took = self.took.get(key)
            if took is None:
                took = self.took[key] = Histogram(SHORT_S)
            took.observe(each_s)
        for name, outcome in outcomes.items():
            if outcome.status is not _OK and outcome.is_partial:
                of = self.branches.setdefault(name, {})
                of[outcome.status.value] = of.get(outcome.status.value, 0) + 1

    def counts(self) -> RouteCounts:
        """Return the counts of now."""
        answers: dict[str, int] = {}
        for (_, status), took in sorted(self.answers.items(), key=lambda item: item[0][1]):
            if status:
                kind = f"{status // 100}xx"
                answers[kind] = answers.get(kind, 0) + sum(took.counts)
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
        return f"<RouteTraffic {self.name or 'without a route'}: {self.counts().requests} answers>"


def families(traffics: Iterable[RouteTraffic], *, scheme: str) -> list[Family]:
    """Return the metrics of routes that are asked by "http" or "https"."""
    answers: list[Sample] = []
    outcomes: list[Sample] = []
    branches: list[Sample] = []
    timed: list[Sample] = []
    for traffic in traffics:
        # "GET /stock/{sku}", or with a host before the path.
        route = traffic.name.partition(" ")[2]
        for (method, status), took in traffic.answers.items():
            word = method.decode("latin-1") if isinstance(method, bytes) else method
            failed = "cancelled" if not status else str(status) if status >= 500 else ""
            answers.append(took.sample(word, route, scheme, str(status or ""), failed))
        outcomes += [Sample((route, each), getattr(traffic, each)) for each in _OUTCOMES]
        for branch, of in traffic.branches.items():
            branches += [Sample((route, branch, each), count) for each, count in of.items()]
        for (branch, status_of), took in traffic.took.items():
            timed.append(took.sample(route, branch, status_of.value))
    # Routes of several methods have one path, and the two ways of the gateway name methods apart.
    found = [
        Family(REQUESTS, answers), Family(OUTCOMES, outcomes), Family(BRANCHES, branches),
        Family(BRANCH_TOOK, timed),
    ]  # fmt: skip
    return merge(family for family in found if family.samples)
