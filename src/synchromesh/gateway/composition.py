"""The progress of an aggregate: which branches can start, and their outcomes. A pure machine.

    waiting ──what it needs has data──▶ running ──▶ ok | stale | static | rejected | failed
       ├──what it needs has none──────▶ skipped
       └──there is nothing to ask for─▶ absent

A branch waits for the branches that its arguments name and for nothing else. The first required
branch without data ends the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import msgspec

from synchromesh.errors import SynchromeshError


class BranchStatus(Enum):
    """The outcome of a branch."""

    OK = "ok"
    STALE = "stale"
    STATIC = "static"
    REJECTED = "rejected"
    FAILED = "failed"
    SKIPPED = "skipped"
    ABSENT = "absent"


_WITH_DATA = frozenset({BranchStatus.OK, BranchStatus.STALE, BranchStatus.STATIC})


class BranchOutcome(msgspec.Struct, frozen=True):
    """The outcome of one branch, with its answer or error.

    Attributes:
        value: the answer, where there is one.
        error: why it is not a fresh one, where a call failed.
        age_s: how old a stale answer is, in seconds.
        because: the branch for want of which it was skipped, or has nothing to ask for.

    Example:
        >>> BranchOutcome(BranchStatus.STALE, 5, age_s=2.0).is_partial
        True
    """

    status: BranchStatus
    value: object = None
    error: SynchromeshError | None = None
    age_s: float | None = None
    because: str = ""

    @property
    def has_data(self) -> bool:
        """True where there is an answer, fresh or not."""
        return self.status in _WITH_DATA

    @property
    def is_partial(self) -> bool:
        """True where the branch makes the aggregate a partial result."""
        return self.status not in (BranchStatus.OK, BranchStatus.ABSENT)


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an argument comes from: another branch's answer, or a field of it.

    Attributes:
        is_nullable: whether the parameter takes null; else null means that there is nothing to ask.
    """

    branch: str
    fields: tuple[str, ...] = ()
    is_nullable: bool = False


@dataclass(frozen=True, slots=True)
class BranchNode:
    """A branch as the machine has it: by parameter, the references to other branches."""

    references: Mapping[str, Reference]
    is_required: bool = False


class Start(msgspec.Struct, frozen=True):
    """A decision to start a branch, with the arguments that come from other branches."""

    name: str
    arguments: dict[str, object]


class Composition:
    """One aggregate in progress.

    Args:
        steps: the branches by name; their references make no circle.

    Example:
        >>> steps = {"machine": BranchNode({}, is_required=True),
        ...          "order": BranchNode({"id": Reference("machine", ("order",))})}
        >>> composition = Composition(steps)
        >>> composition.begin()
        [Start(name='machine', arguments={})]
        >>> composition
        <Composition machine running, order waiting>
    """

    def __init__(self, steps: Mapping[str, BranchNode]) -> None:
        self._steps = steps
        self._waiting = dict.fromkeys(steps)
        self._running: dict[str, None] = {}
        self.outcomes: dict[str, BranchOutcome] = {}
        self.failed = ""

    @property
    def is_ended(self) -> bool:
        """True once all branches have finished, or a required one has failed."""
        return bool(self.failed) or len(self.outcomes) == len(self._steps)

    @property
    def running(self) -> tuple[str, ...]:
        """The branches in progress."""
        return tuple(self._running)

    @property
    def partial(self) -> tuple[str, ...]:
        """The branches that make the result partial."""
        return tuple(n for n in self._steps if n in self.outcomes and self.outcomes[n].is_partial)

    def begin(self) -> list[Start]:
        """Start the branches that need no other."""
        return self._startable()

    def finish(self, name: str, outcome: BranchOutcome) -> list[Start]:
        """Record the outcome of a running branch; return the branches that can start now."""
        del self._running[name]
        self._conclude(name, outcome)
        return self._startable() if self._waiting else []

    def __repr__(self) -> str:
        parts = [f"{name} {self._state(name)}" for name in self._steps]
        return f"<Composition {', '.join(parts)}>"

    def _state(self, name: str) -> str:
        if name in self.outcomes:
            return self.outcomes[name].status.value
        return "running" if name in self._running else "waiting"

    def _conclude(self, name: str, outcome: BranchOutcome) -> None:
        self.outcomes[name] = outcome
        if self._steps[name].is_required and not outcome.has_data and not self.failed:
            self.failed = name

    def _startable(self) -> list[Start]:
        starts: list[Start] = []
        # One that is skipped may be what another waits for: go round until nothing changes.
        has_changed = True
        while has_changed and not self.failed:
            has_changed = False
            for name in list(self._waiting):
                decided = self._decide(name)
                if decided is None:
                    continue
                del self._waiting[name]
                has_changed = True
                if isinstance(decided, BranchOutcome):
                    self._conclude(name, decided)
                else:
                    self._running[name] = None
                    starts.append(decided)
        return [] if self.failed else starts

    def _decide(self, name: str) -> Start | BranchOutcome | None:
        references = self._steps[name].references
        if not references:
            return Start(name, {})
        needed = [self.outcomes.get(reference.branch) for reference in references.values()]
        if None in needed:
            return None
        arguments: dict[str, object] = {}
        absent = ""
        for parameter, reference in references.items():
            outcome = self.outcomes[reference.branch]
            if outcome.status is BranchStatus.ABSENT:
                absent = absent or reference.branch
            elif not outcome.has_data:
                return BranchOutcome(
                    BranchStatus.SKIPPED, error=outcome.error, because=reference.branch
                )
            else:
                arguments[parameter] = value = value_at(outcome.value, reference.fields)
                if value is None and not reference.is_nullable:
                    absent = absent or reference.branch
        return (
            BranchOutcome(BranchStatus.ABSENT, because=absent) if absent else Start(name, arguments)
        )


def value_at(value: object, fields: tuple[str, ...]) -> object:
    """Return the field of a value that a path of names leads to; null where the path ends early."""
    for field in fields:
        if value is None:
            return None
        value = getattr(value, field)
    return value
