"""What is exported next, and when: a bounded queue that retries, waits and counts what it loses.

    idle → filling → sending → (accepted, refused) → filling
                        ↓ ↑
                      waiting

Items are sent in batches, one at a time and in their order. A batch is tried again where the
collector says that it may take it later, or says nothing; whatever else it answers is final. What
does not fit the queue meanwhile is dropped, the newest, and counted.

Source: the OTLP specification 1.9, "OTLP/HTTP Response".
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from math import inf
from typing import Final, Generic, TypeVar

import msgspec

from synchromesh.chance import Chance
from synchromesh.durations import ABOVE_0, FROM_0, FROM_1, refuse_wrong_numbers

T = TypeVar("T")

# Whatever else is answered is final: neither 408, 413 nor 500 is tried again.
TRY_AGAIN: Final = frozenset({429, 502, 503, 504})

WHY_CHARS_MAX: Final = 300
_LONGEST: Final = 30


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The bounds of an export.

    Attributes:
        items_max: items that may wait, those that are under way too; further ones are dropped.
        batch_max: items that are sent at once.
        every_s: how long the first item of a batch waits for others.
        timeout_s: how long one answer may take.
        base_s: how long the first pause before another attempt is at most; it doubles up to
            `cap_s`, and half of each is by chance.
        attempts_max: attempts in all, after which a batch is dropped: it may be what is wrong.
        after_max_s: how much of a `Retry-After` is honoured.
    """

    items_max: int = 20_000
    batch_max: int = 512
    every_s: float = 1.0
    timeout_s: float = 10.0
    base_s: float = 1.0
    cap_s: float = 30.0
    attempts_max: int = 20
    after_max_s: float = 3600.0

    def __post_init__(self) -> None:
        refuse_wrong_numbers(
            self,
            (FROM_1, "items_max batch_max attempts_max"),
            (FROM_0, "every_s base_s cap_s after_max_s"),
            (ABOVE_0, "timeout_s"),
        )


class Verdict(Enum):
    """How an attempt to export a batch ended; FINAL is a failure that is not tried again."""

    ACCEPTED = "accepted"
    TRY_AGAIN = "try again"
    FINAL = "final"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt, and why.

    Attributes:
        rejected: items that were not taken of a batch that was accepted.
        after_s: when it may be tried again, as the collector says; None where it does not.
    """

    verdict: Verdict
    why: str = ""
    rejected: int = 0
    after_s: float | None = None


class _Partial(msgspec.Struct, rename="camel"):
    rejected_spans: int = 0
    rejected_data_points: int = 0
    rejected_log_records: int = 0
    error_message: str = ""


class _Answer(msgspec.Struct, rename="camel"):
    partial_success: _Partial | None = None


# Numbers of 64 bits are texts in the JSON of protobuf, and a number is taken, too.
_answers: Final = msgspec.json.Decoder(_Answer, strict=False)


def outcome_of(status: int, body: bytes, after_s: float | None = None) -> Outcome:
    """Return what an answer says of the batch that it is to.

    Args:
        status: of the answer. A redirect is not followed: it is a failure, and a final one.
        body: says how much of a batch was rejected, where it was accepted.
        after_s: what `Retry-After` says; None where it says nothing.

    Example:
        >>> outcome_of(200, b'{"partialSuccess":{"rejectedSpans":"3"}}').rejected
        3
        >>> outcome_of(301, b"").verdict, outcome_of(503, b"", 5.0).after_s
        (<Verdict.FINAL: 'final'>, 5.0)
    """
    if status in TRY_AGAIN:
        return Outcome(Verdict.TRY_AGAIN, f"it answered {status}", after_s=after_s)
    if not 200 <= status <= 299:
        moved = "; give the URL that it leads to" if 300 <= status <= 399 else ""
        return Outcome(Verdict.FINAL, f"it answered {status}{moved}")
    try:
        partial = _answers.decode(body).partial_success if body else None
    except msgspec.DecodeError:
        partial = None  # what it says otherwise does not change that it has the batch
    if partial is None:
        return Outcome(Verdict.ACCEPTED)
    rejected = partial.rejected_spans + partial.rejected_data_points + partial.rejected_log_records
    # Its words are for people, and a log line is no place for what is not printable.
    said = "".join(filter(str.isprintable, partial.error_message))[:WHY_CHARS_MAX]
    return Outcome(Verdict.ACCEPTED, said, max(0, rejected))


class ExportQueue(Generic[T]):
    """Decides which items are sent next, and when; a pure machine.

    Attributes:
        sent: items that were accepted.
        lost: items that were not, by why: "queue_full", "refused", "rejected", "gave_up" or
            "closed".
        why: what was said of the last attempt; "" where that was accepted whole.

    Example:
        >>> import random
        >>> queue = ExportQueue[str](ExportOptions(items_max=2, every_s=1.0))
        >>> queue.add(["a", "b", "c"], now=0.0)
        >>> queue.wait_s(0.25), list(queue.lost.items())
        (0.75, [('queue_full', 1)])
        >>> queue.next(1.0)
        ['a', 'b']
        >>> queue.settle(Outcome(Verdict.TRY_AGAIN, after_s=7.0), now=1.0, rng=random.Random(1))
        >>> queue.wait_s(1.0), queue.next(8.0)
        (7.0, ['a', 'b'])
    """

    def __init__(self, options: ExportOptions | None = None) -> None:
        self.options = options or ExportOptions()
        self.sent = 0
        self.lost: Counter[str] = Counter()
        self.why = ""
        self._items: deque[T] = deque()
        self._batch: list[T] = []
        self._since_s = inf  # when the first of `_items` came
        self._again_s = 0.0  # when `_batch` may be tried again
        self._attempts = 0

    def __len__(self) -> int:
        return len(self._items) + len(self._batch)

    def add(self, items: Sequence[T], now: float) -> None:
        """Take items, or drop those that do not fit."""
        free = self.options.items_max - len(self)
        if len(items) > free:
            self.lost["queue_full"] += len(items) - max(0, free)
            items = items[: max(0, free)]
        if items and not self._items:
            self._since_s = now
        self._items.extend(items)

    def wait_s(self, now: float) -> float:
        """Return how long it is until `next` has something: 0 for now, infinity for nothing."""
        if self._batch:
            return max(0.0, self._again_s - now)
        if len(self._items) >= self.options.batch_max:
            return 0.0
        return max(0.0, self._since_s + self.options.every_s - now) if self._items else inf

    def next(self, now: float, *, at_once: bool = False) -> list[T]:
        """Return the batch that is to be sent now, and settled then; none where it is too soon.

        Args:
            now: the loop's clock.
            at_once: whether nothing is waited for, as before an end.
        """
        if not at_once and self.wait_s(now) > 0:
            return []
        if not self._batch:
            self._batch = list(islice(self._items, self.options.batch_max))
            for _ in self._batch:
                self._items.popleft()
            self._since_s = now
        return self._batch

    def settle(self, outcome: Outcome, now: float, rng: Chance) -> None:
        """Take note of what came of the batch."""
        self.why = outcome.why
        if outcome.verdict is Verdict.ACCEPTED:
            rejected = min(outcome.rejected, len(self._batch))
            self.sent += len(self._batch) - rejected
            self._drop("rejected", rejected)
        elif outcome.verdict is Verdict.FINAL:
            self._drop("refused", len(self._batch))
        elif self._attempts + 1 < self.options.attempts_max:
            self._attempts += 1
            self._again_s = now + self._pause_s(outcome.after_s, rng)
            return
        else:
            self._drop("gave_up", len(self._batch))
        self._batch, self._attempts = [], 0

    def close(self) -> None:
        """Drop, and count, whatever is left."""
        self._drop("closed", len(self))
        self._items.clear()
        self._batch = []

    def _pause_s(self, after_s: float | None, rng: Chance) -> float:
        if after_s is not None:
            return min(after_s, self.options.after_max_s)
        longest_s = self.options.base_s * 2.0 ** min(self._attempts - 1, _LONGEST)
        return min(longest_s, self.options.cap_s) * (0.5 + 0.5 * rng.random())

    def _drop(self, why: str, count: int) -> None:
        if count:
            self.lost[why] += count

    def __repr__(self) -> str:
        return f"<ExportQueue {len(self)} waiting, {self.sent} sent, {self.lost.total()} lost>"
