"""Whatever answers first: a composition ends as its branches, one by one in order, would say."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from synchromesh.errors import TimedOut, TooManyElements
from synchromesh.gateway.composition import (
    BranchNode,
    BranchOutcome,
    BranchStatus,
    Composition,
    EachNode,
    Reference,
    Start,
)


class Answer(NamedTuple):
    of: str
    field: str | None


class Universe(NamedTuple):
    steps: dict[str, BranchNode]
    outcomes: dict[str, BranchOutcome]


@st.composite
def universes(draw: st.DrawFn) -> Universe:
    """Branches that use earlier ones, and what each would answer if it were asked."""
    steps: dict[str, BranchNode] = {}
    outcomes: dict[str, BranchOutcome] = {}
    for number in range(draw(st.integers(1, 6))):
        name = f"b{number}"
        needs = draw(st.lists(st.sampled_from(sorted(steps)), max_size=2)) if steps else []
        references = {
            f"p{at}": Reference(need, ("field",), draw(st.booleans()))
            for at, need in enumerate(needs)
        }
        # As `check` asks: what a required branch needs is required, and never null for it.
        may_require = all(steps[r.branch].is_required for r in references.values())
        is_required = may_require and draw(st.booleans())
        if is_required:
            references = {p: Reference(r.branch, r.fields, True) for p, r in references.items()}
        steps[name] = BranchNode(references, is_required)
        status = draw(
            st.sampled_from(
                [
                    BranchStatus.OK,
                    BranchStatus.OK,
                    BranchStatus.OK,
                    BranchStatus.STALE,
                    BranchStatus.FAILED,
                    BranchStatus.REJECTED,
                ]
            )
        )
        if status in (BranchStatus.OK, BranchStatus.STALE):
            outcomes[name] = BranchOutcome(
                status, Answer(name, draw(st.sampled_from(["x", "y", None])))
            )
        else:
            outcomes[name] = BranchOutcome(status, error=TimedOut(name))
    shuffled = draw(st.permutations(sorted(steps)))
    return Universe({name: steps[name] for name in shuffled}, outcomes)


def ends_as(universe: Universe, name: str) -> BranchStatus:
    """Say what becomes of a branch, by looking at what it needs first."""
    is_absent = False
    for reference in universe.steps[name].references.values():
        status = ends_as(universe, reference.branch)
        if status in (BranchStatus.FAILED, BranchStatus.REJECTED, BranchStatus.SKIPPED):
            return BranchStatus.SKIPPED
        if status is BranchStatus.ABSENT:
            is_absent = True
        else:
            answer = universe.outcomes[reference.branch].value
            assert isinstance(answer, Answer)
            is_absent = is_absent or (answer.field is None and not reference.is_nullable)
    return BranchStatus.ABSENT if is_absent else universe.outcomes[name].status


@given(universes(), st.randoms(use_true_random=False))
def test_a_composition_is_its_branches_one_by_one(universe: Universe, rng: object) -> None:
    """In every order of answers the end is the same, and nothing starts before what it needs."""
    composition = Composition(universe.steps)
    started: list[str] = []

    def start(starts: list[Start]) -> None:
        for begun in starts:
            references = universe.steps[begun.name].references
            assert begun.arguments.keys() == references.keys()
            for parameter, reference in references.items():
                answer = composition.outcomes[reference.branch].value
                assert isinstance(answer, Answer)
                assert begun.arguments[parameter] == answer.field
            assert begun.name not in started
            started.append(begun.name)

    start(composition.begin())
    while not composition.is_ended:
        assert composition.running, "neither ended nor is anything under way"
        name = rng.choice(composition.running)  # type: ignore[attr-defined]
        start(composition.finish(name, universe.outcomes[name]))

    required = [name for name, step in universe.steps.items() if step.is_required]
    doomed = {
        n for n in required if ends_as(universe, n) not in (BranchStatus.OK, BranchStatus.STALE)
    }
    assert bool(composition.failed) == bool(doomed)
    if doomed:
        assert composition.failed in doomed
        return
    ends = {name: ends_as(universe, name) for name in universe.steps}
    assert {name: outcome.status for name, outcome in composition.outcomes.items()} == ends
    assert set(composition.partial) == {
        name
        for name, status in ends.items()
        if status not in (BranchStatus.OK, BranchStatus.ABSENT)
    }
    # An answer that nobody was asked for is nobody's.
    assert set(started) == {
        name
        for name, status in ends.items()
        if status not in (BranchStatus.SKIPPED, BranchStatus.ABSENT)
    }


class Element(NamedTuple):
    key: str | None


# What becomes of an element: no argument for it, or what its call ends with.
ENDS = [
    BranchStatus.ABSENT, BranchStatus.OK, BranchStatus.OK, BranchStatus.STALE,
    BranchStatus.REJECTED, BranchStatus.FAILED,
]  # fmt: skip


@given(
    ends=st.lists(st.sampled_from(ENDS), max_size=12),
    at_most=st.integers(1, 12),
    at_once=st.integers(1, 4),
    is_cut=st.booleans(),
    is_required=st.booleans(),
    rng=st.randoms(use_true_random=False),
)
def test_an_array_is_its_elements_one_by_one(
    ends: list[BranchStatus],
    at_most: int,
    at_once: int,
    is_cut: bool,
    is_required: bool,
    rng: Random,
) -> None:
    """Whatever comes first, values stand in order, and no more are under way than is said."""
    array = [Element(None if s is BranchStatus.ABSENT else f"k{n}") for n, s in enumerate(ends)]
    each = EachNode(
        Reference("list"), {"key": Reference("each", ("key",))}, at_most, at_once, is_cut=is_cut
    )
    composition = Composition(
        {
            "list": BranchNode({}, is_required=True),
            "each": BranchNode({}, is_required, each),
        }
    )
    composition.begin()
    starts = composition.finish("list", BranchOutcome(BranchStatus.OK, array))
    under_way: list[int] = []
    begun: list[int] = []

    def outcome_of(index: int) -> BranchOutcome:
        if ends[index] in (BranchStatus.OK, BranchStatus.STALE):
            return BranchOutcome(ends[index], f"v{index}")
        return BranchOutcome(ends[index], error=TimedOut(str(index)))

    while True:
        for start in starts:
            assert (start.name, start.arguments) == ("each", {"key": f"k{start.index}"})
            under_way.append(start.index)
            begun.append(start.index)
        assert len(under_way) <= at_once
        if composition.is_ended:
            break
        assert under_way, "neither ended nor is anything under way"
        index = under_way.pop(rng.randrange(len(under_way)))
        starts = composition.finish("each", outcome_of(index), index)

    outcome = composition.outcomes["each"]
    asked = [n for n, s in enumerate(ends[:at_most]) if s is not BranchStatus.ABSENT]
    assert begun == asked[: len(begun)], "they begin in the order of the array"
    if len(ends) > at_most and not is_cut:
        assert (outcome.status, begun) == (BranchStatus.FAILED, [])
        assert isinstance(outcome.error, TooManyElements)
        assert bool(composition.failed) is is_required
        return
    bad = {n for n in asked if ends[n] in (BranchStatus.REJECTED, BranchStatus.FAILED)}
    if is_required and bad:
        assert composition.failed == "each"
        assert (outcome.status, str(outcome.error)) in {(ends[n], str(n)) for n in bad}
        return
    assert composition.failed == ""
    assert begun == asked
    assert outcome.value == [outcome_of(n).value for n in range(min(len(ends), at_most))]
    is_whole = len(ends) <= at_most and not bad and BranchStatus.STALE not in ends
    assert outcome.status is (BranchStatus.OK if is_whole else BranchStatus.PARTIAL)
    assert outcome.count == (len(ends) if len(ends) > at_most else None)
    assert [each.status for each in outcome.elements] == ([] if is_whole else ends[:at_most])
