"""What a drill calls an answer, and how it writes down what it saw; a pure machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from synchromesh.drill.probes import Probe

# An answer within this time did not wait for anything.
AT_ONCE_S = 0.1
BOUNDS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)

NO_ANSWER, FRESH, NOT_TAKEN = "no answer", "fresh", "not taken"


@dataclass(frozen=True, slots=True)
class ToldAnswer:
    """What one request was answered, in words, and after how long."""

    words: str
    took_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What one probe was answered while a part was away.

    Attributes:
        usual: its answer while all is well.
        first: the first answer.
        then: the usual answer once that had settled.
        longest_s: what the slowest of all took.
    """

    usual: str
    first: ToldAnswer
    then: ToldAnswer
    longest_s: float

    @property
    def is_touched(self) -> bool:
        """Whether anything was otherwise than always."""
        told = (self.first, self.then)
        return any(each.words != self.usual or each.took_s > AT_ONCE_S for each in told)

    def cell(self) -> str:
        """Return the cell of the table: "as always", or the first answer and the usual one."""
        if not self.is_touched:
            return "as always"
        first = _bounded(self.first.words, self.first.took_s)
        then = _bounded(self.then.words, self.then.took_s)
        return first if then == first else f"{first} → {then}"


def words_of(probe: Probe, status: int, headers: Mapping[str, str], body: bytes) -> str:
    """Say in a few words what an answer is.

    Args:
        headers: by name in lower case.

    Example:
        >>> probe = Probe("GET /stock", target="/stock")
        >>> words_of(probe, 200, {"synchromesh-fallback": "stale;age_s=2;code=timed_out"}, b"5")
        'stale, timed_out'
    """
    try:
        value = msgspec.json.decode(body) if body else None
    except msgspec.DecodeError:
        value = None
    if status >= 400:
        code = value.get("code", "") if isinstance(value, dict) else ""
        return f"{status} {code}".strip()
    mark = headers.get("synchromesh-fallback", "")
    if mark:
        source, *more = mark.split(";")
        codes = [each.removeprefix("code=") for each in more if each.startswith("code=")]
        return ", ".join([source, *codes])
    partial = headers.get("synchromesh-partial", "")
    if partial:
        return "; ".join(_branch(name, value) for name in partial.split(", "))
    for each in probe.says:
        if value_at(value, each.at) == each.value:
            return each.words
    return str(value_at(value, probe.word)) if probe.word else FRESH


def value_at(value: object, place: str) -> Any:
    """Return what stands at a place of a JSON value, by names and dots; None where nothing does."""
    for name in place.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def usual_of(told: Sequence[ToldAnswer]) -> ToldAnswer:
    """Return the usual answer: a breaker lets one call through now and then, to see."""
    words = Counter(each.words for each in told).most_common(1)[0][0]
    times = sorted(each.took_s for each in told if each.words == words)
    return ToldAnswer(words, times[len(times) // 2])


def bound_of(took_s: float) -> str:
    """Return the bound that a time is within, as it is written: "≤ 0.5 s".

    Example:
        >>> bound_of(0.3), bound_of(4.0)
        ('≤ 0.5 s', '≤ 5 s')
    """
    bound_s = next((each for each in BOUNDS_S if took_s <= each), None)
    return f"≤ {bound_s:g} s" if bound_s is not None else f"> {BOUNDS_S[-1]:g} s"


def _bounded(words: str, took_s: float) -> str:
    return words if took_s <= AT_ONCE_S else f"{words}, {bound_of(took_s)}"


def _branch(name: str, value: object) -> str:
    """Say what a branch of a page is; one that is over an array has no word of its own."""
    mark = value_at(value, f"branches.{name}")
    if not isinstance(mark, dict):
        return f"{name} partial"
    return f"{name} {mark.get('status', '')}, {mark.get('code', '')}".rstrip(", ")
