"""The last good answers of branches and routes, for stale fallbacks. A pure machine."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable


class LastAnswers:
    """Caches the last answer to each query, bounded in number and in bytes.

    The one that was neither given nor asked for the longest makes room.

    Args:
        answers_max: how many are kept.
        bytes_max: how much their JSON may take; one that is larger by itself is not kept.

    Example:
        >>> last = LastAnswers(answers_max=2, bytes_max=100)
        >>> last.keep("stock of SX90", b"5", now=10.0)
        >>> last.find("stock of SX90", at_most_s=60.0, now=12.5)
        (b'5', 2.5)
        >>> last.find("stock of SX90", at_most_s=60.0, now=71.0) is None
        True
    """

    def __init__(self, *, answers_max: int, bytes_max: int) -> None:
        self._answers_max = answers_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._answers: OrderedDict[Hashable, tuple[bytes, float]] = OrderedDict()

    def keep(self, question: Hashable, answer: bytes, now: float) -> None:
        """Cache an answer, in place of an older one."""
        self._drop(question)
        if len(answer) > self._bytes_max:
            return
        self._answers[question] = (answer, now)
        self._bytes += len(answer)
        while len(self._answers) > self._answers_max or self._bytes > self._bytes_max:
            self._drop(next(iter(self._answers)))

    def find(
        self, question: Hashable, *, at_most_s: float, now: float
    ) -> tuple[bytes, float] | None:
        """Return the last answer with its age in seconds; None where none is young enough."""
        found = self._answers.get(question)
        if found is None or now - found[1] > at_most_s:
            return None
        self._answers.move_to_end(question)
        return found[0], now - found[1]

    def __len__(self) -> int:
        return len(self._answers)

    def __repr__(self) -> str:
        return f"<LastAnswers {len(self)} of {self._answers_max}, {self._bytes} bytes>"

    def _drop(self, question: Hashable) -> None:
        dropped = self._answers.pop(question, None)
        if dropped is not None:
            self._bytes -= len(dropped[0])
