"""Advice: a code that stays, what was seen, and the pattern that mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from synchromesh.advisor.facts import Facts

EVIDENCE_MAX = 5


class AdviceCase(NamedTuple):
    """What one check found: a sentence, and where it is seen.

    Attributes:
        evidence: ids of traces, "file:line", keys of the configuration.
    """

    what: str
    evidence: tuple[str, ...]


class AdviceCode(msgspec.Struct, frozen=True):
    """A kind of advice.

    Attributes:
        code: it stays as it is, so that it can be ignored by name.
        why: what follows where nothing is done.
        pattern: what mends it, and `page`, below `docs/`, where that is described.
        change: the smallest change that helps.
        found: finds it.
    """

    code: str
    why: str
    pattern: str
    page: str
    change: str
    found: Callable[[Facts], Iterator[AdviceCase]]


class Advice(msgspec.Struct, frozen=True):
    """One piece of advice, as people and other programs read it."""

    code: str
    what: str
    evidence: tuple[str, ...]
    why: str
    pattern: str
    page: str
    change: str
