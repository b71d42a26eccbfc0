"""What is claimed of every scenario, and whether a run keeps it.

*Possible* is what the culprit can do while the fault lasts, times what one of its requests needs of
it; where clients ask for less, it is what they ask for. *Goodput* is distinct answers within the
client's deadline. A figure of n answers is only known to about 1/sqrt(n): the claims about rates
allow for that, and one about which nothing can be said, as nothing is possible, is not made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from benchmarks.cascade.experiment import (
    CLIENT_BACKOFF_S,
    CLIENT_TRIES,
    FAULT_AT_S,
    PROBES,
    REST_S,
    SETTLE_REPLICA_S,
    SETTLE_S,
    WARM_S,
    Asked,
    Observed,
)
from benchmarks.cascade.faults import FAULTS
from synchromesh.calls import Policies
from synchromesh.resilience import BreakerOptions, RetryOptions

UNRELATED_MIN, GOODPUT_MIN, RECOVERED_MIN = 0.99, 0.9, 0.95
RECOVERY_MAX_S = 1.0
SUCCESS_MIN, ATTEMPTS_MAX, SLOWER_MAX = 0.99, 0.01, 2.0
ASKED_MAX = 0.1
# Less than this possible, and nothing is claimed of a rate.
ANSWERS_MIN = 20
WINDOW_S, STEP_S, LOOK_S = 1.0, 0.1, 2.0
LATE_S = 0.001


@dataclass(frozen=True, slots=True)
class Claim:
    """One figure of one run.

    Attributes:
        value: what was measured; infinity where it never came about.
        bound: with what it is compared, the noise of the figure allowed for.
    """

    name: str
    value: float
    bound: float
    at_most: bool
    detail: str = ""

    @property
    def is_kept(self) -> bool:
        """Whether the run kept the claim."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.name} {self.value:.3g} {sign} {self.bound:.3g}{detail}"


def claims(observed: Observed) -> list[Claim]:
    """Return the claims about a run, whether it kept them or not."""
    return [claim for make in _MAKERS for claim in make(observed)]


def possible_per_s(observed: Observed, fault: str) -> float:
    """Return how many requests that need the culprit it can answer a second, under a fault."""
    scenario = observed.scenario
    part = scenario.shape.part(scenario.culprit)
    left_s = min(
        patience_s(scenario.deadline_s, tries=1), Policies().default.timeout_s or math.inf
    ) - scenario.shape.before_s(part.name)
    return FAULTS[fault].possible_per_s(part, left_s) / max(1.0, observed.visits)


def patience_s(deadline_s: float | None, *, tries: int) -> float:
    """Return the longest that a client may wait: without a deadline what the default says."""
    if deadline_s is not None:
        return deadline_s
    policy = Policies().default
    retry = policy.retry or RetryOptions(attempts_max=1)
    assert policy.timeout_s is not None, "the default policy has a timeout"
    each_s = retry.attempts_max * policy.timeout_s + (retry.attempts_max - 1) * retry.cap_s
    return tries * each_s + (tries - 1) * 2 * CLIENT_BACKOFF_S


def _unrelated(observed: Observed) -> Iterator[Claim]:
    """What does not need the culprit is answered, while the fault lasts and after it."""
    told = _began(observed, FAULT_AT_S, observed.load_ended_s, is_dependent=False)
    if told:
        yield Claim(
            "unrelated", _share(told), UNRELATED_MIN, at_most=False, detail=f"of {len(told)}"
        )


def _healthy(observed: Observed) -> Iterator[Claim]:
    """Clients who ask for more than there is get what there is, without any fault."""
    yield from _goodput(observed, "goodput before", [(WARM_S, FAULT_AT_S)], "none")


def _faulty(observed: Observed) -> Iterator[Claim]:
    """What needs the culprit gets what the culprit can still do."""
    if observed.scenario.is_replica:
        return
    fault = observed.fault
    if fault.flaps_every_s is None:
        spans = [(FAULT_AT_S + SETTLE_S, observed.healed_s)]
        yield from _goodput(observed, "goodput", spans, fault.name)
        return
    every_s = fault.flaps_every_s
    ups = range(round(fault.lasts_s / every_s) // 2)
    # Between two strikes it works, and what it can do counts once it may take to recover is over.
    spans = [
        (FAULT_AT_S + (2 * up + 1) * every_s + RECOVERY_MAX_S, FAULT_AT_S + (2 * up + 2) * every_s)
        for up in ups
    ]
    yield from _goodput(observed, "goodput", spans, "none")


def _recovery(observed: Observed) -> Iterator[Claim]:
    """Soon after the healing as much is answered as before the fault."""
    before = _used(observed, WARM_S, FAULT_AT_S)
    if before is None or observed.fault.name == "none":
        return
    for step in range(round(LOOK_S / STEP_S) + 1):
        after_s = step * STEP_S
        begin_s = observed.healed_s + after_s
        now = _used(observed, begin_s, begin_s + WINDOW_S)
        if now is not None and now[0] >= RECOVERED_MIN * before[0] - _noise(now[1]):
            break
    else:
        after_s = math.inf
    yield Claim("recovery s", after_s, RECOVERY_MAX_S, at_most=True)


def _waiting(observed: Observed) -> Iterator[Claim]:
    """No client waits past its deadline."""
    scenario = observed.scenario
    most_s = patience_s(scenario.deadline_s, tries=CLIENT_TRIES if scenario.is_retrying else 1)
    longest_s = max(each.took_s for each in observed.asked)
    yield Claim("longest wait s", longest_s, most_s + LATE_S, at_most=True)


def _edges(observed: Observed) -> Iterator[Claim]:
    """Only edges to the culprit open."""
    wrong = sorted(
        {
            f"{caller} -> {callee}"
            for _, caller, callee in observed.opened
            if callee != observed.scenario.culprit
        }
    )
    yield Claim("wrong edges open", len(wrong), 0, at_most=True, detail=", ".join(wrong))


def _left_alone(observed: Observed) -> Iterator[Claim]:
    """A service of which nothing can come is hardly asked any more once that has lasted."""
    fault = observed.fault
    window_s = BreakerOptions().window_s
    if observed.scenario.is_replica or fault.flaps_every_s or fault.lasts_s < 1.5 * window_s:
        return
    culprit = observed.scenario.culprit
    needed = _began(observed, observed.counted_s, observed.healed_s, is_dependent=True)
    share = observed.attempts.get(f"{culprit}-1", 0) / (len(needed) * observed.visits)
    yield Claim("asked when dead", share, ASKED_MAX, at_most=True, detail=f"of {len(needed)}")


def _rested(observed: Observed) -> Iterator[Claim]:
    """Once the load has been gone for a while, all is well: nothing feeds on itself."""
    yield Claim(
        f"answered {REST_S:g} s after load",
        observed.probes_good / PROBES,
        1.0,
        at_most=False,
    )


def _replica(observed: Observed) -> Iterator[Claim]:
    """One bad instance of several is found and left alone."""
    if not observed.scenario.is_replica:
        return
    from_s, until_s = FAULT_AT_S + SETTLE_REPLICA_S, observed.healed_s
    told = _began(observed, from_s, until_s, is_dependent=True)
    if observed.fault.is_dead:
        yield Claim("success", _share(told), SUCCESS_MIN, at_most=False, detail=f"of {len(told)}")
        culprit = observed.scenario.culprit
        counts = {
            name: count
            for name, count in observed.attempts.items()
            if name.rpartition("-")[0] == culprit
        }
        bad = counts.get(f"{culprit}-{len(counts)}", 0) / sum(counts.values())
        yield Claim("attempts to it", bad, ATTEMPTS_MAX, at_most=True)
    else:
        before = _began(observed, WARM_S, FAULT_AT_S, is_dependent=True)
        ratio = _p99(each.took_s for each in told) / _p99(each.took_s for each in before)
        yield Claim("p99 / healthy p99", ratio, SLOWER_MAX, at_most=True)


_MAKERS: tuple[Callable[[Observed], Iterator[Claim]], ...] = (
    _unrelated, _healthy, _faulty, _recovery, _replica, _waiting, _edges, _left_alone, _rested,
)  # fmt: skip


def _goodput(
    observed: Observed, name: str, spans: list[tuple[float, float]], fault: str
) -> Iterator[Claim]:
    good = possible = 0.0
    can_per_s = possible_per_s(observed, fault)
    for begin_s, end_s in spans:
        offered = len(_began(observed, begin_s, end_s, is_dependent=True))
        good += len(_answered(observed, begin_s, end_s))
        possible += min(offered, can_per_s * (end_s - begin_s))
    if possible >= ANSWERS_MIN:
        yield Claim(
            name,
            good / possible,
            GOODPUT_MIN - _noise(possible),
            at_most=False,
            detail=f"{good:.0f} of {possible:.0f}",
        )


def _used(observed: Observed, begin_s: float, end_s: float) -> tuple[float, float] | None:
    """Return the share that was answered of what is possible without a fault, and how much is."""
    offered = len(_began(observed, begin_s, end_s, is_dependent=True))
    possible = min(offered, possible_per_s(observed, "none") * (end_s - begin_s))
    if not possible:
        return None
    return len(_answered(observed, begin_s, end_s)) / possible, possible


def _began(observed: Observed, begin_s: float, end_s: float, *, is_dependent: bool) -> list[Asked]:
    return [
        each
        for each in observed.asked
        if each.is_dependent is is_dependent and begin_s <= each.began_s < end_s
    ]


def _answered(observed: Observed, begin_s: float, end_s: float) -> list[Asked]:
    return [
        each
        for each in observed.asked
        if each.is_dependent and each.is_good and begin_s <= each.ended_s < end_s
    ]


def _share(told: list[Asked]) -> float:
    return sum(each.is_good for each in told) / len(told) if told else math.nan


def _noise(count: float) -> float:
    return 1 / math.sqrt(count)


def _p99(took_s: Iterable[float]) -> float:
    ordered = sorted(took_s)
    return ordered[max(0, math.ceil(len(ordered) * 0.99) - 1)]
