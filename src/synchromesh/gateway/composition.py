"""The progress of an aggregate: which branches can start, and their outcomes. A pure machine.

    waiting ──what it needs has data──▶ running ──▶ ok | stale | static | rejected | failed
       ├──what it needs has none──────▶ skipped
       └──there is nothing to ask for─▶ absent

A branch waits for the branches that its arguments name and for nothing else. The first required
branch without data ends the whole.

A branch *over an array* is asked once for each element of another's answer: so many at once, begun
in the order of the array, and given in that order whatever came first.

    running ──every element has ended──▶ ok | partial | failed, where there are too many of them
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, cast

import msgspec

from synchromesh.errors import SynchromeshError, TooManyElements


class BranchStatus(Enum):
    """The outcome of a branch; hashed as the one object that it is, for counts are kept by it."""

    __hash__ = object.__hash__

    OK = "ok"
    STALE = "stale"
    STATIC = "static"
    PARTIAL = "partial"
    REJECTED = "rejected"
    FAILED = "failed"
    SKIPPED = "skipped"
    ABSENT = "absent"


# A tuple: a set would ask each member for its hash, by a function of Python's.
_WITH_DATA = (BranchStatus.OK, BranchStatus.STALE, BranchStatus.STATIC, BranchStatus.PARTIAL)


class BranchOutcome(msgspec.Struct, frozen=True):
    """The outcome of one branch, with its answer or error.

    Attributes:
        value: the answer, where there is one.
        error: why it is not a fresh one, where a call failed.
        age_s: how old a stale answer is, in seconds.
        because: the branch for want of which it was skipped, or has nothing to ask for.
        elements: of a branch over an array that is partial, what became of each that was asked for.
        count: of such a branch, how many there are, where not all were asked for.

    Example:
        >>> BranchOutcome(BranchStatus.STALE, 5, age_s=2.0).is_partial
        True
    """

    status: BranchStatus
    value: object = None
    error: SynchromeshError | None = None
    age_s: float | None = None
    because: str = ""
    elements: tuple[BranchOutcome, ...] = ()
    count: int | None = None

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
class EachNode:
    """What a branch over an array takes from it.

    Attributes:
        source: the array.
        arguments: by parameter, what comes from the element; their `branch` says nothing.
        at_most: how many elements are asked for; `at_once`: how many of them at a time.
        is_cut: whether a longer array is cut; else the branch fails, and nothing is asked.
    """

    source: Reference
    arguments: Mapping[str, Reference]
    at_most: int
    at_once: int
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class BranchNode:
    """A branch as the machine has it: by parameter, the references to other branches.

    Attributes:
        is_required: without data it ends the whole; one of an array, without that of any element.
        each: of a branch over an array.
        needs: the branches that it waits for.
    """

    references: Mapping[str, Reference]
    is_required: bool = False
    each: EachNode | None = None
    needs: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        named = [reference.branch for reference in self.references.values()]
        if self.each is not None:
            named.append(self.each.source.branch)
        object.__setattr__(self, "needs", tuple(dict.fromkeys(named)))


class Start(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """A decision to start a branch, with the arguments that come from other branches.

    Attributes:
        index: of the element that it is for; below 0 where the branch is not over an array.
    """

    name: str
    arguments: dict[str, object]
    index: int = -1


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
        self._elements: dict[str, _Elements] = {}
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

    def finish(self, name: str, outcome: BranchOutcome, index: int = -1) -> list[Start]:
        """Record the outcome of a running branch; return the branches that can start now.

        With the `index` of an element it is the outcome for that.
        """
        if index >= 0:
            elements = self._elements[name]
            starts = elements.finish(index, outcome)
            if self._steps[name].is_required and not outcome.has_data:
                pass  # it decides, whatever others come to
            elif elements.is_over:
                outcome = elements.outcome
            else:
                return starts
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
        if (
            self._steps[name].is_required
            and not outcome.has_data
            and outcome.status is not BranchStatus.ABSENT
            and not self.failed
        ):
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
                if isinstance(decided, _Elements):
                    self._elements[name] = decided
                    begun = decided.begin()
                    if begun:
                        self._running[name] = None
                        starts += begun
                        continue
                    decided = decided.outcome
                if isinstance(decided, BranchOutcome):
                    self._conclude(name, decided)
                else:
                    self._running[name] = None
                    starts.append(decided)
        return [] if self.failed else starts

    def _decide(self, name: str) -> Start | _Elements | BranchOutcome | None:
        node = self._steps[name]
        if not node.needs:
            return Start(name, {})
        for other in node.needs:
            if other not in self.outcomes:
                return None
        references, each = node.references, node.each
        arguments: dict[str, object] = {}
        absent = ""
        array: object = None
        taken = [*references.items(), *([] if each is None else [("", each.source)])]
        for parameter, reference in taken:
            outcome = self.outcomes[reference.branch]
            if outcome.status is BranchStatus.ABSENT:
                absent = absent or reference.branch
            elif not outcome.has_data:
                return BranchOutcome(
                    BranchStatus.SKIPPED, error=outcome.error, because=reference.branch
                )
            else:
                value = value_at(outcome.value, reference.fields)
                if value is None and not reference.is_nullable:
                    absent = absent or reference.branch
                if parameter:
                    arguments[parameter] = value
                else:
                    array = value
        if absent:
            return BranchOutcome(BranchStatus.ABSENT, because=absent)
        if each is None:
            return Start(name, arguments)
        assert isinstance(array, Collection), "the check of the definition knows its type"
        if len(array) > each.at_most and not each.is_cut:
            told = (
                f"there are {len(array)} elements, and {name} is asked for {each.at_most} at most"
            )
            return BranchOutcome(BranchStatus.FAILED, error=TooManyElements(told))
        return _Elements(name, each, arguments, array)


class _Elements:
    """The elements of one branch over an array: which are asked for, and what became of them."""

    def __init__(
        self, name: str, each: EachNode, arguments: dict[str, object], array: Collection[object]
    ) -> None:
        self._name = name
        self._each = each
        self._arguments = arguments
        self._count = len(array)
        self._left = _ordered(array)[: each.at_most]
        self._left.reverse()
        self._outcomes: list[BranchOutcome | None] = [None] * len(self._left)
        self._under_way = 0

    @property
    def is_over(self) -> bool:
        """True once nothing is left to ask, and everything asked has ended."""
        return not self._left and not self._under_way

    @property
    def outcome(self) -> BranchOutcome:
        """What became of the branch, once it is over."""
        found = tuple(each for each in self._outcomes if each is not None)
        values = [each.value for each in found]
        is_cut = self._count > len(found)
        if not is_cut and not any(each.is_partial for each in found):
            return BranchOutcome(BranchStatus.OK, values)
        count = self._count if is_cut else None
        return BranchOutcome(BranchStatus.PARTIAL, values, elements=found, count=count)

    def begin(self) -> list[Start]:
        """Start with the first elements; none where there is nothing to ask for."""
        return self._startable()

    def finish(self, index: int, outcome: BranchOutcome) -> list[Start]:
        """Record the outcome for an element; return those that can start now."""
        self._under_way -= 1
        self._outcomes[index] = outcome
        return self._startable()

    def _startable(self) -> list[Start]:
        starts: list[Start] = []
        while self._left and self._under_way < self._each.at_once:
            index = len(self._outcomes) - len(self._left)
            element = self._left.pop()
            found = {
                parameter: value_at(element, reference.fields)
                for parameter, reference in self._each.arguments.items()
            }
            taken = self._each.arguments
            if any(found[name] is None and not taken[name].is_nullable for name in found):
                self._outcomes[index] = BranchOutcome(BranchStatus.ABSENT)
                continue
            self._under_way += 1
            starts.append(Start(self._name, {**self._arguments, **found}, index))
        return starts


def _ordered(array: Collection[object]) -> list[Any]:
    """Return the elements of an array as an answer shows them: those of a set in sorted order."""
    if isinstance(array, AbstractSet):
        with suppress(TypeError):  # the codec refuses these
            return sorted(cast("Any", array))
    return list(array)


def value_at(value: object, fields: tuple[str, ...]) -> object:
    """Return the field of a value that a path of names leads to; null where the path ends early."""
    for name in fields:
        if value is None:
            return None
        value = getattr(value, name)
    return value
