"""Outlier ejection: an instance that fails or hangs while others do not is given no calls.

    OPEN ──fails or hangs, another is well──▶ EJECTED ──rested──▶ PROBED ──success──▶ OPEN
                                                 ▲                   │     (warming up)
                                                 └─────failure───────┘

Badness is relative. An instance is ejected only where another one, that is not, is well: it has
succeeded since, and fails at most half as often. Where all are bad nobody is ejected, and whoever
is comes back: that the whole service fails is for the edge's breaker to notice, and `observe` says
which failures it should see.

Each ejection, probe and return begins a new *term* of the instance, with a `Member` of its own: a
call that was sent in an earlier term decides nothing, as with the epochs of a breaker.

Source: outlier detection as in Envoy and Finagle's failure accrual; ejected at most is half, as in
Envoy's panic threshold, but rounded up, so that two of three may be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from synchromesh.discovery.endpoint import Endpoint
from synchromesh.discovery.member import CallEnd, Member
from synchromesh.durations import (
    ABOVE_0,
    FROM_1,
    SHARE,
    SHARE_ABOVE_0,
    refuse_misfit,
    refuse_wrong_numbers,
)

# A success as old as this still shows that an instance is well, whatever the rate of calls.
_FRESH_S = 1.0
# So many calls without any answer are no accident; one alone may be a long one.
UNANSWERED_MIN = 3
# What is silent for so many times the usual latency of the others is hung.
_SILENT_TIMES = 10.0
# A probe may cost this part of the time for which its instance is ejected.
_PROBE_SHARE = 5.0


@dataclass(frozen=True, slots=True)
class OutlierOptions:
    """Configures outlier ejection: what an outlier is, and for how long it is given no calls.

    Attributes:
        failures_in_row: so many failures without a success make an outlier.
        failure_rate: so does this share of failures among the last answers, some twenty of them.
        minimum_answers: fewer answers have no rate.
        silent_for_s: so does silence for so long, and for ten times the usual latency, with three
            calls or more that nothing came back of.
        eject_for_s: how long it is ejected first; doubles with each ejection and failed probe, and
            is forgiven step by step.
        eject_for_max_s: the longest it is ejected. Reached only where a probe costs time: one that
            is refused at once is repeated after 4 * eject_for_s.
        ejected_max: the largest share of the instances, 0 to 1, that may be ejected at once;
            rounded up, and never the last one.

    Raises:
        ConfigError: a value is outside its range.

    Example:
        >>> OutlierOptions(failures_in_row=3).eject_for_s
        0.5
    """

    failures_in_row: int = 5
    failure_rate: float = 0.3
    minimum_answers: int = 16
    silent_for_s: float = 0.25
    eject_for_s: float = 0.5
    eject_for_max_s: float = 10.0
    ejected_max: float = 0.5

    def __post_init__(self) -> None:
        refuse_wrong_numbers(
            self,
            (FROM_1, "failures_in_row minimum_answers"),
            (SHARE_ABOVE_0, "failure_rate"),
            (ABOVE_0, "silent_for_s eject_for_s eject_for_max_s"),
            (SHARE, "ejected_max"),
        )
        refuse_misfit(
            self,
            "eject_for_max_s",
            self.eject_for_max_s >= self.eject_for_s,
            "at least eject_for_s",
        )


@dataclass(frozen=True, slots=True)
class Ejection:
    """Reports that an instance was ejected, or is back, at `at_s` on the loop's clock.

    `until_s` is when it will be probed; None: it is back. `why` is for people.

    Example:
        >>> Ejection("billing-2", "5 failures in a row", at_s=1.0, until_s=1.5).instance
        'billing-2'
    """

    instance: str
    why: str
    at_s: float
    until_s: float | None


@dataclass(slots=True)
class _Sentence:
    """How an instance is ejected: its current member, until when, and after how many others."""

    member: Member
    until_s: float
    count: int
    is_silent: bool = False
    is_probed: bool = False


class Outliers:
    """Ejects the instances of one service that fail or hang while others do not.

    A part of `Balancer`, which gives it members and asks it which of them may be picked.

    Args:
        options: what an outlier is.
        warm_s: for how long an instance that comes back is warming up.
        on_ejection: called after each ejection and return; must not raise.

    Attributes:
        open: the members that may be picked, by name; never empty while any is listed.
        due_s: when an ejected one is to be probed; infinity where none is.
    """

    __slots__ = (
        "_counts", "_ejected", "_listed_count", "_on_ejection", "_options", "_warm_s", "due_s",
        "open",
    )  # fmt: skip

    def __init__(
        self,
        options: OutlierOptions,
        *,
        warm_s: float = 0.0,
        on_ejection: Callable[[Ejection], None] | None = None,
    ) -> None:
        self._options = options
        self._warm_s = warm_s
        self._on_ejection = on_ejection
        self.open: tuple[Member, ...] = ()
        self.due_s = math.inf
        self._ejected: dict[str, _Sentence] = {}
        # By instance, how often it was ejected before and when it came back.
        self._counts: dict[str, tuple[int, float]] = {}
        self._listed_count = 0

    @property
    def ejected(self) -> tuple[str, ...]:
        """The names of the instances that are ejected, by name."""
        return tuple(sorted(self._ejected))

    def list(self, endpoints: Iterable[Endpoint], now: float) -> None:
        """Take over which instances there are; of those that stay, everything stays."""
        by_name = {endpoint.instance: endpoint for endpoint in reversed(tuple(endpoints))}
        known: dict[str, Member] = {}
        was_used = False
        for member in self.open:
            was_used = was_used or member.answers > 0
            if by_name.get(member.instance) == member.endpoint:
                known[member.instance] = member
            else:
                member.is_over = True
        for name, sentence in tuple(self._ejected.items()):
            if by_name.get(name) == sentence.member.endpoint:
                del by_name[name]
            else:
                sentence.member.is_over = True
                del self._ejected[name]
        self._counts = {name: self._counts[name] for name in by_name if name in self._counts}
        # Where all are new there is nobody to spare any of them.
        warm_s = now + self._warm_s if was_used else -math.inf
        self.open = tuple(
            known.get(name) or Member(endpoint, now=now, warm_s=warm_s)
            for name, endpoint in sorted(by_name.items())
        )
        self._listed_count = len(self.open) + len(self._ejected)
        if len(self._ejected) > self._most():
            self._return_all(now, "too few instances are listed to eject any")
        self._look_up_due()

    def probe(self, now: float, tried: frozenset[str]) -> Member | None:
        """Return an ejected instance whose time is over, for one call, if there is any.

        It stays ejected, and what the call comes to decides. A probe that never ends is as one
        that failed: the next comes when it would then.
        """
        due = [
            (sentence.until_s, name)
            for name, sentence in self._ejected.items()
            if sentence.until_s <= now and name not in tried
        ]
        if not due:
            return None
        sentence = self._ejected[min(due)[1]]
        sentence.count += 1
        sentence.is_probed = True
        sentence.member = self._next_term(sentence.member, now)
        sentence.until_s = now + self._rest_s(sentence.count, 0.0)
        self._look_up_due()
        return sentence.member

    def is_hung(self, member: Member, now: float, usual_s: float) -> bool:
        """Tell whether an open member is silent while others answer; then it is ejected now.

        Args:
            member: one with `UNANSWERED_MIN` calls that nothing came back of.
            now: the time of the loop's clock.
            usual_s: the usual latency of the service's instances.
        """
        since_s = member.silent_since_s
        silent_s = now - since_s
        if silent_s < max(self._options.silent_for_s, _SILENT_TIMES * usual_s):
            return False
        if not self._is_another_well(member, since_s):
            self._give_up(member, since_s, now)
            return False
        why = f"{member.unanswered} calls, and nothing came back for {silent_s:.3g} s"
        return self._eject(member, now, silent_s, why, is_silent=True)

    def observe(self, member: Member, now: float, took_s: float, end: CallEnd) -> bool:
        """Judge the end of a call, after `Member.end` has counted it.

        Returns:
            Whether it counts for the edge: False for a failure of this instance alone, while
            another one is well.
        """
        is_failure = end is CallEnd.FAILED
        if not is_failure and not self._ejected:
            return True
        fresh_s = now - _FRESH_S
        sentence = self._ejected.get(member.instance)
        if sentence is not None and end is not CallEnd.LEFT:
            self._judge_ejected(sentence, member, now, took_s, is_failure=is_failure)
        if not is_failure:
            return True
        if member.is_over or sentence is not None:
            return not self._is_another_well(member, fresh_s)
        options = self._options
        why = ""
        if member.failures_in_row >= options.failures_in_row:
            why = f"{member.failures_in_row} failures in a row"
        elif member.answers >= options.minimum_answers and member.failing >= options.failure_rate:
            why = f"{member.failing:.0%} of its last calls failed"
        since_s = min(member.row_began_s, fresh_s)
        if self._is_another_well(member, since_s, failing_max=member.failing / 2):
            if why:
                self._eject(member, now, took_s, why)
            return False
        if why:
            self._give_up(member, since_s, now)
        return True

    def __repr__(self) -> str:
        return f"<Outliers {len(self._ejected)}/{self._listed_count} ejected>"

    def _is_another_well(self, member: Member, since_s: float, failing_max: float = 1.0) -> bool:
        """Tell whether another one that may be picked succeeded since and has not failed since."""
        return any(
            other is not member
            and not other.failures_in_row
            and other.success_s >= since_s
            and other.failing <= failing_max
            for other in self.open
        )

    def _give_up(self, member: Member, since_s: float, now: float) -> None:
        """Let all come back where nobody is well: those that are ejected are no worse."""
        if self._ejected and not self._is_another_well(member, since_s):
            self._return_all(now, "no other instance is well")

    def _judge_ejected(
        self, sentence: _Sentence, member: Member, now: float, took_s: float, *, is_failure: bool
    ) -> None:
        if member is not sentence.member:
            # It was asked before it was ejected, and answers after all: it hangs no longer.
            if sentence.is_silent and not sentence.is_probed and not is_failure:
                sentence.until_s = now
                self._look_up_due()
        elif is_failure:
            sentence.is_probed = False
            sentence.until_s = now + self._rest_s(sentence.count, took_s)
            self._look_up_due()
            self._tell(member.instance, "the probe failed", now, sentence.until_s)
        else:
            self._return(member.instance, now, "the probe succeeded")

    def _eject(
        self, member: Member, now: float, took_s: float, why: str, *, is_silent: bool = False
    ) -> bool:
        """Eject a member, and return True; unless so many are ejected that it has to stay."""
        if len(self._ejected) >= self._most():
            return False
        name = member.instance
        count, back_s = self._counts.get(name, (0, now))
        count = 1 + max(0, count - int((now - back_s) / self._options.eject_for_max_s))
        until_s = now + self._rest_s(count, took_s)
        self.open = tuple(other for other in self.open if other is not member)
        self._ejected[name] = _Sentence(self._next_term(member, now), until_s, count, is_silent)
        self._look_up_due()
        self._tell(name, why, now, until_s)
        return True

    def _return(self, name: str, now: float, why: str, *, is_warming: bool = True) -> None:
        sentence = self._ejected.pop(name)
        self._counts[name] = (sentence.count, now)
        back = sentence.member
        if is_warming:
            # The probe's answer is the first of its new term.
            back.warm_s = now + self._warm_s
        else:
            back = self._next_term(back, now)
        self.open = tuple(sorted((*self.open, back), key=lambda each: each.instance))
        self._look_up_due()
        self._tell(name, why, now, None)

    def _return_all(self, now: float, why: str) -> None:
        for name in self.ejected:
            self._return(name, now, why, is_warming=False)

    def _next_term(self, member: Member, now: float) -> Member:
        member.is_over = True
        # Its target is made anew: that of the old term names the old member.
        return Member(member.endpoint, now=now)

    def _rest_s(self, count: int, took_s: float) -> float:
        options = self._options
        longest_s = min(
            options.eject_for_max_s, max(4 * options.eject_for_s, _PROBE_SHARE * took_s)
        )
        return min(longest_s, options.eject_for_s * 2.0 ** min(count - 1, 64))

    def _most(self) -> int:
        most = math.ceil(self._listed_count * self._options.ejected_max)
        return max(0, min(most, self._listed_count - 1))

    def _look_up_due(self) -> None:
        self.due_s = min((each.until_s for each in self._ejected.values()), default=math.inf)

    def _tell(self, name: str, why: str, now: float, until_s: float | None) -> None:
        if self._on_ejection is not None:
            self._on_ejection(Ejection(name, why, now, until_s))
