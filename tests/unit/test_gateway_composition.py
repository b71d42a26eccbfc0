"""An aggregate under way: what starts when, and what becomes of each branch."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import pytest

from synchromesh.codec import encode
from synchromesh.errors import CircuitOpen, TimedOut
from synchromesh.gateway.composition import (
    BranchNode,
    BranchOutcome,
    BranchStatus,
    Composition,
    EachNode,
    Reference,
    Start,
    value_at,
)


class Site(NamedTuple):
    city: str | None


class Machine(NamedTuple):
    order: str | None
    site: Site | None = None


LATE = TimedOut("late")
FAILED = BranchOutcome(BranchStatus.FAILED, error=LATE)
CHAIN = {
    "machine": BranchNode({}),
    "order": BranchNode({"id": Reference("machine", ("order",))}),
    "bill": BranchNode({"order": Reference("order")}),
    "news": BranchNode({}),
}


def ok(value: object) -> BranchOutcome:
    return BranchOutcome(BranchStatus.OK, value)


def test_what_needs_nothing_starts_at_once_and_the_rest_by_its_use() -> None:
    """Independent branches run at once; one that uses another starts with what that answered."""
    composition = Composition(CHAIN)
    assert composition.begin() == [Start("machine", {}), Start("news", {})]
    assert composition.finish("news", ok("none")) == []
    assert composition.finish("machine", ok(Machine("A-1"))) == [Start("order", {"id": "A-1"})]
    assert composition.finish("order", ok("an order")) == [Start("bill", {"order": "an order"})]
    assert repr(composition).endswith("bill running, news ok>")
    assert composition.finish("bill", ok(5)) == []
    assert composition.is_ended
    assert (composition.partial, composition.failed) == ((), "")


def test_a_failure_skips_what_needs_it_and_nothing_else() -> None:
    """An optional branch that failed is marked, with all that cannot be asked without it."""
    composition = Composition(CHAIN)
    composition.begin()
    assert composition.finish("machine", FAILED) == []
    assert composition.outcomes["order"] == BranchOutcome(
        BranchStatus.SKIPPED, error=LATE, because="machine"
    )
    assert composition.outcomes["bill"] == BranchOutcome(
        BranchStatus.SKIPPED, error=LATE, because="order"
    )
    assert composition.finish("news", ok("none")) == []
    assert composition.is_ended
    assert composition.partial == ("machine", "order", "bill")


@pytest.mark.parametrize("status", [BranchStatus.REJECTED, BranchStatus.FAILED])
def test_a_required_branch_without_data_ends_the_whole(status: BranchStatus) -> None:
    """The first required branch that has no answer ends it, whatever still runs."""
    composition = Composition({**CHAIN, "machine": BranchNode({}, is_required=True)})
    composition.begin()
    assert composition.finish("machine", BranchOutcome(status, error=LATE)) == []
    assert composition.is_ended
    assert composition.failed == "machine"
    assert composition.running == ("news",)


def test_a_fallback_is_data() -> None:
    """What fell back is marked, stands for a required answer, and others may use it."""
    composition = Composition({**CHAIN, "machine": BranchNode({}, is_required=True)})
    composition.begin()
    stale = BranchOutcome(BranchStatus.STALE, Machine("A-1"), error=CircuitOpen("open"), age_s=3.0)
    assert composition.finish("machine", stale) == [Start("order", {"id": "A-1"})]
    assert composition.failed == ""
    assert composition.partial == ("machine",)


@pytest.mark.parametrize(
    ("machine", "fields"),
    [
        (Machine(None), ("order",)),
        (Machine("A-1"), ("site", "city")),
        (Machine("A-1", Site(None)), ("site", "city")),
        (None, ("order",)),
    ],
)
def test_null_leaves_nothing_to_ask_for(machine: object, fields: tuple[str, ...]) -> None:
    """A branch whose argument is null is absent, which makes the whole no less than it could be."""
    steps = {
        "machine": BranchNode({}),
        "order": BranchNode({"id": Reference("machine", fields)}),
        "bill": BranchNode({"order": Reference("order")}),
    }
    composition = Composition(steps)
    composition.begin()
    assert composition.finish("machine", ok(machine)) == []
    assert composition.outcomes["order"] == BranchOutcome(BranchStatus.ABSENT, because="machine")
    assert composition.outcomes["bill"] == BranchOutcome(BranchStatus.ABSENT, because="order")
    assert composition.is_ended
    assert composition.partial == ()


def test_a_parameter_that_takes_null_gets_it() -> None:
    """Null is an argument like others where the parameter takes it."""
    steps = {
        "machine": BranchNode({}),
        "order": BranchNode({"id": Reference("machine", ("order",), is_nullable=True)}),
    }
    composition = Composition(steps)
    composition.begin()
    assert composition.finish("machine", ok(Machine(None))) == [Start("order", {"id": None})]


def test_values_are_found_by_their_fields() -> None:
    """A reference leads through fields, and ends early at null."""
    machine = Machine("A-1", Site("Graz"))
    assert value_at(machine, ()) is machine
    assert value_at(machine, ("site", "city")) == "Graz"
    assert value_at(Machine("A-1"), ("site", "city")) is None


def test_it_shows_its_state() -> None:
    """Each branch is shown with what it does or what became of it."""
    composition = Composition(CHAIN)
    composition.begin()
    composition.finish("machine", FAILED)
    assert repr(composition) == (
        "<Composition machine failed, order skipped, bill skipped, news running>"
    )


@pytest.mark.parametrize(
    "tags", [{f"t{n}" for n in range(20)}, frozenset({40, 8, -3, 1000}), {(2, "b"), (1, "z")}]
)
def test_elements_of_a_set_are_asked_for_in_the_order_in_which_it_is_shown(tags: object) -> None:
    """Which is not the one in which Python goes through it; answers line up with what is shown."""
    each = EachNode(Reference("tags"), {"name": Reference("")}, at_most=50, at_once=50)
    composition = Composition({"tags": BranchNode({}), "found": BranchNode({}, each=each)})
    composition.begin()
    starts = composition.finish("tags", ok(tags))
    asked = [start.arguments["name"] for start in starts]
    assert encode(asked) == encode(tags)
    cut = Composition({
        "tags": BranchNode({}),
        "found": BranchNode({}, each=EachNode(each.source, each.arguments, 1, 1, is_cut=True)),
    })  # fmt: skip
    cut.begin()
    (start,) = cut.finish("tags", ok(tags))
    assert (
        msgspec.json.decode(encode(start.arguments["name"])) == msgspec.json.decode(encode(tags))[0]
    )
