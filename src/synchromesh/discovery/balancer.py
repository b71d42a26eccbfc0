"""Balancers: which of the listed instances the next call goes to.

By default the better of two that chance draws, by the latency that their answers had (peak-EWMA)
times their calls under way; the instances that `Outliers` has ejected are left out. Where they have
weights, chance draws one by these: whoever gives weights says himself who gets how much.

Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001; Finagle's
`PeakEwma`. Finagle has its failures elsewhere: that one which fails quickly is not quick, and that
failures weigh as the repetitions which they cost, is added here.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Generic, Literal, Protocol, TypeVar

from synchromesh.chance import Chance
from synchromesh.discovery.endpoint import Endpoint
from synchromesh.discovery.member import CallEnd, Member
from synchromesh.discovery.outliers import UNANSWERED_MIN, Ejection, OutlierOptions, Outliers
from synchromesh.durations import ABOVE_0, FROM_0, FROM_1, refuse_misfit, refuse_wrong_numbers
from synchromesh.errors import NoInstance

# An instance that has never answered, and the first one at all, cost this much.
_LEAST_S = 1e-6
_NEVER = -math.inf
# One long answer among short ones must not send all calls to the others, however many these have.
_PEAK_TIMES = 10.0
# The least share that an instance which warms up has of its calls.
_WARM_LEAST = 0.1
# Nor may failures: an instance that fails all calls costs so many times as much.
_FAILED_TIMES = 10.0
_USUAL_FOR_S = 0.1
# So many instances that fail, one after the other, stand for all.
_ASKED_MAX = 5
_sent_s = attrgetter("sent_s")


class Named(Protocol):
    """What has turns: an endpoint or a member."""

    @property
    def instance(self) -> str:
        """The name of the instance."""
        ...


T = TypeVar("T", bound=Named)


@dataclass(frozen=True, slots=True)
class BalancerOptions:
    """Configures how the instance of a call is chosen.

    Attributes:
        by: "peak_ewma" gives a call to the better of two that chance draws; "round_robin" to each
            in turn. Instances that have weights are drawn by these, whatever it says.
        decay_s: how long a peak of latency lasts: it falls to a third of its height above the usual
            in this time.
        warm_up_s: how long it takes a new instance to have its whole share, by "peak_ewma".
        warm_up_answers: or how many answers, where these come sooner.
        outliers: what an outlier is; None ejects nobody.

    Raises:
        ConfigError: a value is outside its range.

    Example:
        >>> BalancerOptions(by="round_robin").decay_s
        1.0
    """

    by: Literal["peak_ewma", "round_robin"] = "peak_ewma"
    decay_s: float = 1.0
    warm_up_s: float = 1.0
    warm_up_answers: int = 100
    outliers: OutlierOptions | None = field(default_factory=OutlierOptions)

    def __post_init__(self) -> None:
        is_known = self.by in ("peak_ewma", "round_robin")
        refuse_misfit(self, "by", is_known, '"peak_ewma" or "round_robin"')
        are_outliers = isinstance(self.outliers, OutlierOptions | None)
        refuse_misfit(self, "outliers", are_outliers, "OutlierOptions(...), or None")
        refuse_wrong_numbers(
            self, (ABOVE_0, "decay_s"), (FROM_0, "warm_up_s"), (FROM_1, "warm_up_answers")
        )


class Balancer:
    """Chooses an instance for each call of one caller to one service, and learns from its end.

    Each `pick` is followed by one `observe`, whatever became of the call. A pure machine: it
    belongs to one loop. A pick takes constant time while the same list is given; a changed one
    takes as long as to sort it. Who sees a single instance listed needs none of this.

    Args:
        service: whose instances, for messages.
        rng: draws the two that are compared.
        options: how it chooses, and whom it leaves out.
        on_ejection: called after an instance was ejected, or came back; must not raise.

    Example:
        >>> class Lowest:
        ...     def random(self) -> float:
        ...         return 0.0
        >>> a, b = (Endpoint(name, "billing", f"sim://{name}") for name in "ab")
        >>> balancer = Balancer("billing", rng=Lowest())
        >>> first, second = (balancer.pick((a, b), now=0.0) for _ in range(2))
        >>> first, second
        (<Member a 1 in flight, 0 ms, 0% failing>, <Member b 1 in flight, 0 ms, 0% failing>)
        >>> balancer.observe(first, now=0.01, took_s=0.01, end=CallEnd.ANSWERED)
        True
    """

    __slots__ = ("_has_weights", "_listed", "_options", "_outliers", "_rng", "_service", "_turns",
                 "_usual_s", "_usual_until_s")  # fmt: skip

    def __init__(
        self,
        service: str,
        *,
        rng: Chance,
        options: BalancerOptions = BalancerOptions(),
        on_ejection: Callable[[Ejection], None] | None = None,
    ) -> None:
        self._service = service
        self._rng = rng
        self._options = options
        # None ejected is what a share of none comes to.
        outliers = options.outliers or OutlierOptions(ejected_max=0)
        self._outliers = Outliers(outliers, warm_s=options.warm_up_s, on_ejection=on_ejection)
        self._turns: RoundRobin[Member] | None = None
        if options.by == "round_robin":
            self._turns = RoundRobin(service)
        self._listed: tuple[Endpoint, ...] = ()
        self._has_weights = False
        self._usual_s = 0.0
        self._usual_until_s = -math.inf

    @property
    def ejected(self) -> tuple[str, ...]:
        """The names of the instances that are ejected."""
        return self._outliers.ejected

    def pick(
        self, listed: tuple[Endpoint, ...], now: float, tried: frozenset[str] = frozenset()
    ) -> Member:
        """Return the member that the next call goes to, with that call counted as under way.

        Args:
            listed: what the registry lists.
            now: the time of the loop's clock.
            tried: instances that failed this call already. They come last, but before those that
                are ejected.

        Raises:
            NoInstance: no endpoint is listed.
        """
        outliers = self._outliers
        # A tuple does not change: the same one, which is kept alive here, lists the same.
        if listed is not self._listed:
            if listed != self._listed:
                outliers.list(listed, now)
                self._has_weights = any(each.weight is not None for each in listed)
                self._usual_until_s = -math.inf
            self._listed = listed
        if now >= outliers.due_s:
            probed = outliers.probe(now, tried)
            if probed is not None:
                probed.begin(now)
                return probed
        left = outliers.open
        if tried:
            left = tuple(each for each in left if each.endpoint.instance not in tried) or left
        if not left:
            raise NoInstance(_none_ready(self._service))
        chosen = self._choose(left, now)
        while chosen.unanswered >= UNANSWERED_MIN and outliers.is_hung(
            chosen, now, self._usual(now)
        ):
            left = tuple(each for each in left if each is not chosen) or outliers.open
            chosen = self._choose(left, now)
        chosen.begin(now)
        return chosen

    def observe(
        self,
        member: Member,
        now: float,
        took_s: float,
        end: CallEnd,
        half_open_s: float | None = None,
    ) -> bool:
        """Learn how a call ended.

        Args:
            member: what `pick` gave for it.
            now: the time of the loop's clock.
            took_s: how long it took.
            end: what that says about the instance.
            half_open_s: since when the edge's breaker is half-open; None where it is not. Then one
                instance must not decide for all: a failure counts once the others were asked too.

        Returns:
            Whether the edge's breaker is to be told. False for a failure of this instance while
            another one is well: the service is not down, and closing the door to all of it would
            take away what works. Such an end is neutral there.
        """
        member.end(now, took_s, end, self._options.decay_s)
        if end is CallEnd.ANSWERED and self._outliers.due_s == math.inf:
            return True  # what nearly every call is: there is nobody to judge
        counts = self._outliers.observe(member, now, took_s, end)
        if half_open_s is None or end is not CallEnd.FAILED or not counts:
            return counts
        members = self._outliers.open
        asked = sum(each.sent_s >= half_open_s for each in members)
        return asked >= min(len(members), _ASKED_MAX)

    def __repr__(self) -> str:
        return f"<Balancer {self._service} by {self._options.by}, {self._outliers!r}>"

    def _choose(self, left: tuple[Member, ...], now: float) -> Member:
        if self._has_weights:
            return self._by_weight(left, now)
        if self._turns is not None:
            return self._turns.pick(left)
        count = len(left)
        if count == 1:
            return left[0]
        draw = self._rng.random
        at = int(draw() * count)
        other_at = int(draw() * (count - 1))
        one, other = left[at], left[other_at if other_at < at else other_at + 1]
        if one.failures_in_row and other.failures_in_row:
            # What is known of them is old, or bad: who has been asked least lately may be well now.
            return min(left, key=_sent_s)
        if one.warm_s > now or other.warm_s > now:
            # What warms up stands back for the other by chance; two that do are compared.
            if self._stands_back(one, now) and other.warm_s <= now:
                return other
            if self._stands_back(other, now) and one.warm_s <= now:
                return one
        usual_s = self._usual_s if now < self._usual_until_s else self._usual(now)
        return one if self._cost(one, now, usual_s) <= self._cost(other, now, usual_s) else other

    def _by_weight(self, left: tuple[Member, ...], now: float) -> Member:
        """Draw one; what warms up, or fails, has the less of its weight."""
        weights = [
            (each.endpoint.weight or 1)
            * self._warmed(each, now)
            * max(1.0 - each.failing - each.refusing, 1.0 / _FAILED_TIMES)
            for each in left
        ]
        drawn = self._rng.random() * sum(weights)
        for each, weight in zip(left, weights, strict=True):
            drawn -= weight
            if drawn < 0.0:
                return each
        return left[-1]  # what rounding has left

    def _stands_back(self, member: Member, now: float) -> bool:
        return member.warm_s > now and self._rng.random() >= self._warmed(member, now)

    def _warmed(self, member: Member, now: float) -> float:
        """Return how warm a member is, up to 1."""
        if member.warm_s <= now:
            return 1.0
        options = self._options
        passed = 1.0 - (member.warm_s - now) / options.warm_up_s
        return min(1.0, max(_WARM_LEAST, passed, member.answers / options.warm_up_answers))

    def _cost(self, member: Member, now: float, usual_s: float) -> float:
        """Return the latency to expect, and what failures add to it, times the calls to share."""
        latency_s = member.latency_s
        if latency_s > usual_s:
            # A peak fades, so that one who is no longer asked for it is asked again some day.
            above_s = min(latency_s, _PEAK_TIMES * usual_s) - usual_s if usual_s else latency_s
            faded = math.exp(min(0.0, member.seen_s - now) / self._options.decay_s)
            latency_s = usual_s + above_s * faded
        elif member.success_s == _NEVER:
            # Nothing is known of it, or how quickly it says no.
            latency_s = usual_s
        cost = (latency_s or _LEAST_S) * (member.in_flight + 1)
        not_answered = member.failing + member.refusing
        if not_answered:
            # As many attempts as it takes until one succeeds.
            cost /= max(1.0 - not_answered, 1.0 / _FAILED_TIMES)
        return cost

    def _usual(self, now: float) -> float:
        """Return the lower median of the latencies, as it was up to a tenth of a second ago."""
        if now >= self._usual_until_s:
            known = sorted(
                each.latency_s for each in self._outliers.open if each.success_s > _NEVER
            )
            self._usual_s = known[(len(known) - 1) // 2] if known else 0.0
            self._usual_until_s = now + _USUAL_FOR_S
        return self._usual_s


class RoundRobin(Generic[T]):
    """Gives each instance a call in turn, by the order of their names.

    It remembers the name it gave last, not an index: when instances come or go, the turns of the
    others stay as they were. A pick takes constant time, and the first from a list that has changed
    as long as to sort it.

    Example:
        >>> a, b = (Endpoint(name, "billing", f"sim://{name}") for name in "ab")
        >>> balancer = RoundRobin("billing")
        >>> [balancer.pick((a, b)).instance for _ in range(3)]
        ['a', 'b', 'a']
    """

    __slots__ = ("_last", "_listed", "_next", "_order", "_service")

    def __init__(self, service: str) -> None:
        self._service = service
        self._last = ""
        self._listed: tuple[T, ...] = ()
        self._order: list[T] = []
        self._next = 0

    def pick(self, listed: tuple[T, ...], excluded: frozenset[str] = frozenset()) -> T:
        """Return the one whose turn it is, passing over the instances in `excluded`.

        Raises:
            NoInstance: none is listed, or all of them are excluded.
        """
        # A tuple does not change: the same one, which is kept alive here, lists the same.
        if listed is not self._listed:
            self._sort(listed)
        order, at = self._order, self._next
        for _ in order:
            chosen = order[at]
            at = (at + 1) % len(order)
            if chosen.instance not in excluded:
                self._next, self._last = at, chosen.instance
                return chosen
        raise NoInstance(self._why(listed))

    def _sort(self, listed: tuple[T, ...]) -> None:
        by_name = {each.instance: each for each in reversed(listed)}
        names = sorted(by_name)
        self._listed, self._order = listed, [by_name[name] for name in names]
        self._next = bisect_right(names, self._last) % len(names) if names else 0

    def __repr__(self) -> str:
        return f"<RoundRobin {self._service} after {self._last!r}>"

    def _why(self, listed: tuple[T, ...]) -> str:
        if not listed:
            return _none_ready(self._service)
        names = ", ".join(each.instance for each in listed[:5])
        more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
        return (
            f"no instance of service {self._service!r} is left to try: {names}{more} "
            "failed this call already; retry later"
        )


def _none_ready(service: str) -> str:
    return (
        f"no instance of service {service!r} is ready: none is registered, or all drain; start "
        "one, or look why it does not register"
    )
