"""What has come of the copies of one route's requests: counts, and the last differences.

A pure machine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from synchromesh.gateway.comparing import AnswerDifference

# What is compared by number and not by content: no words of an upstream are in it.
_SHOWN_ALWAYS: Final = frozenset({"status", "length", "type"})
_PATH_CHARS_MAX: Final = 200


class MirrorCounts(msgspec.Struct):
    """How many copies came to what.

    Attributes:
        same, different: both upstreams have answered, alike or not.
        failed: the mirror gave no answer.
        dropped: no copy was made: there were too many at once.
        too_long: no copy was made, or none was compared: a body was too long, or is encoded in a
            way that is not read.
        unanswered: the first upstream gave no whole answer to compare with.
    """

    same: int = 0
    different: int = 0
    failed: int = 0
    dropped: int = 0
    too_long: int = 0
    unanswered: int = 0


class KeptDifference(msgspec.Struct, frozen=True):
    """A request whose answers differed.

    Attributes:
        at_us: when, in microseconds since 1970.
        trace_id: of the request.
        target: what was asked, where values are kept; else "".
        statuses: of the first upstream and of the mirror.
        differences: the first few.
    """

    at_us: int
    trace_id: str
    target: str
    statuses: tuple[int, int]
    differences: tuple[AnswerDifference, ...]


class MirrorBook:
    """Counts the copies of one route, and keeps the last differences.

    Args:
        in_flight_max: how many copies there may be at once.
        kept_max: how many differences are kept.
        has_values: whether they are kept with what differs.

    Example:
        >>> book = MirrorBook(in_flight_max=1, kept_max=10, has_values=False)
        >>> book.take(), book.take(), book.counts.dropped
        (True, False, 1)
    """

    def __init__(self, *, in_flight_max: int, kept_max: int, has_values: bool) -> None:
        self.counts = MirrorCounts()
        self.in_flight = 0
        self.last_failure = ""
        self._in_flight_max = in_flight_max
        self._has_values = has_values
        self._kept: deque[KeptDifference] = deque(maxlen=kept_max)

    @property
    def kept(self) -> Sequence[KeptDifference]:
        """The last differences, the oldest first."""
        return tuple(self._kept)

    def take(self) -> bool:
        """Begin a copy; False where there are too many. Each that begins is to `release`."""
        if self.in_flight >= self._in_flight_max:
            self.counts.dropped += 1
            return False
        self.in_flight += 1
        return True

    def release(self) -> None:
        """End a copy."""
        self.in_flight -= 1

    def fail(self, code: str) -> None:
        """Count a copy that was not answered."""
        self.counts.failed += 1
        self.last_failure = code

    def tell(self, found: KeptDifference) -> None:
        """Count a comparison, and keep it where something differs."""
        if not found.differences:
            self.counts.same += 1
            return
        self.counts.different += 1
        if not self._has_values:
            found = msgspec.structs.replace(
                found, target="", differences=tuple(map(_bare, found.differences))
            )
        self._kept.append(msgspec.structs.replace(found, target=found.target[:_PATH_CHARS_MAX]))

    def __repr__(self) -> str:
        counts = self.counts
        return f"<MirrorBook {counts.same} same, {counts.different} different>"


def _bare(difference: AnswerDifference) -> AnswerDifference:
    if difference.where in _SHOWN_ALWAYS or difference.why == "length":
        return difference
    return AnswerDifference(difference.where, difference.why)
