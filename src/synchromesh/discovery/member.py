"""A member: one listed instance as its caller knows it, by the calls that it made there."""

from __future__ import annotations

import math
from enum import Enum

from synchromesh.discovery.endpoint import Endpoint

# A failure or an answer moves the share of failures by a sixteenth: noise stays below a tenth, and
# an instance that begins to fail is past 0.3 with the sixth failure.
_MOVES = 1 / 16


class CallEnd(Enum):
    """Names what the end of a call says about the instance that it went to.

    ANSWERED: it did its work, be it to say no. FAILED: it refused the connection, broke it,
    answered with a fault of its own, or did not answer within the edge's timeout. BUSY: it
    answered that it is too busy, or that somebody behind it failed; no fault of it. LEFT: its
    caller went first; it took at least so long, and more is not known.

    Example:
        >>> [end.value for end in CallEnd]
        ['answered', 'failed', 'busy', 'left']
    """

    ANSWERED = "answered"
    FAILED = "failed"
    BUSY = "busy"
    LEFT = "left"


# A global is read faster than a member of a class.
_ANSWERED, _FAILED, _LEFT = CallEnd.ANSWERED, CallEnd.FAILED, CallEnd.LEFT


class Member:
    """What a caller knows of one instance. It is one *term* of the instance, see `Outliers`.

    Attributes:
        endpoint: the instance.
        target: what the caller keeps for it, such as a transport; the machines do not touch it.
        in_flight: its calls under way.
        latency_s: the peak-EWMA of its answers, as of `seen_s`; 0 before the first.
        answers: how many calls ended, but for those that were left.
        failing: which share of them failed lately, 0 to 1.
        refusing: which share of them was refused lately.
        failures_in_row: since the last success.
        row_began_s: when the first of these was sent.
        success_s: when the last success came; never: -inf.
        sent_s: when its last call was sent; never: -inf.
        unanswered: calls given to it since something came back.
        silent_since_s: when the first of these was sent.
        warm_s: until when it is warming up.
        began_s: when this term began.
        is_over: whether another term has begun: what its calls come to then decides nothing.
    """

    __slots__ = (
        "answers", "began_s", "endpoint", "failing", "failures_in_row", "in_flight", "is_over",
        "latency_s", "refusing", "row_began_s", "seen_s", "sent_s", "silent_since_s",
        "success_s", "target", "unanswered", "warm_s",
    )  # fmt: skip

    def __init__(self, endpoint: Endpoint, *, now: float, warm_s: float = -math.inf) -> None:
        self.endpoint = endpoint
        self.target: object = None
        self.in_flight = 0
        self.latency_s = 0.0
        self.seen_s = self.began_s = now
        self.answers = 0
        self.failing = self.refusing = 0.0
        self.failures_in_row = 0
        self.row_began_s = math.inf
        self.success_s = self.sent_s = -math.inf
        self.unanswered = 0
        self.silent_since_s = now
        self.warm_s = warm_s
        self.is_over = False

    @property
    def instance(self) -> str:
        """The name of the instance."""
        return self.endpoint.instance

    def begin(self, now: float) -> None:
        """Count a call that is sent."""
        if not self.unanswered:
            self.silent_since_s = now
        self.sent_s = now
        self.unanswered += 1
        self.in_flight += 1

    def forget(self) -> None:
        """Take back a call that was counted and then not sent."""
        self.in_flight -= 1
        self.unanswered -= 1

    def end(self, now: float, took_s: float, end: CallEnd, decay_s: float) -> None:
        """Count the end of a call that took so long; a peak of latency lasts for `decay_s`."""
        self.in_flight -= 1
        if took_s > self.latency_s:
            # The peak: it is believed at once.
            self.latency_s, self.seen_s = took_s, now
        elif end is _ANSWERED:
            weight = math.exp(min(0.0, self.seen_s - now) / decay_s)
            self.latency_s = self.latency_s * weight + took_s * (1.0 - weight)
            self.seen_s = now
        if end is _LEFT:
            return
        # One that refuses quickly is not quick: only an answer lowers the latency.
        self.answers += 1
        self.unanswered, self.silent_since_s = self.in_flight, now
        self.failing -= self.failing * _MOVES
        self.refusing -= self.refusing * _MOVES
        if end is _ANSWERED:
            self.failures_in_row, self.row_began_s, self.success_s = 0, math.inf, now
        elif end is _FAILED:
            self.failing += _MOVES
            self.row_began_s = min(self.row_began_s, now - took_s)
            self.failures_in_row += 1
        else:
            self.refusing += _MOVES

    def __repr__(self) -> str:
        return (
            f"<Member {self.instance} {self.in_flight} in flight, {self.latency_s * 1000:.3g} ms, "
            f"{self.failing:.0%} failing>"
        )
