"""The checker of histories against all orders there are, and by the looks of each anomaly."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synchromesh.testing.list_append import Append, ListRead, Txn, TxnEnd, anomalies

KEYS = ("x", "y")
ABORTED, UNKNOWN = TxnEnd.ABORTED, TxnEnd.UNKNOWN


def is_explained(txns: list[Txn], final: dict[str, tuple[int, ...]]) -> bool:
    """Try every order of every choice of those of which nobody knows whether they committed."""
    certain = [each for each in txns if each.end is TxnEnd.COMMITTED]
    unknown = [each for each in txns if each.end is UNKNOWN]
    return any(
        _replays(order, final)
        for chosen in range(2 ** len(unknown))
        for order in permutations(
            certain + [each for at, each in enumerate(unknown) if chosen >> at & 1]
        )
    )


def _replays(order: tuple[Txn, ...], final: dict[str, tuple[int, ...]]) -> bool:
    lists: dict[str, tuple[int, ...]] = dict.fromkeys(KEYS, ())
    for at, txn in enumerate(order):
        if any(
            later.ended_s is not None and txn.began_s is not None and later.ended_s < txn.began_s
            for later in order[at + 1 :]
        ):
            return False
        for each in txn.operations:
            if isinstance(each, Append):
                lists[each.key] += (each.value,)
            elif lists[each.key] != each.values:
                return False
    return lists == final


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Txn], dict[str, tuple[int, ...]]]:
    """Draw transactions that ran one by one, of which some saw other moments than their own."""
    count = draw(st.integers(1, 4))
    past: dict[str, list[tuple[int, ...]]] = {key: [()] for key in KEYS}
    value, txns = 0, []
    for number in range(count):
        end = draw(st.sampled_from(list(TxnEnd)))
        is_kept = end is TxnEnd.COMMITTED or (end is UNKNOWN and draw(st.booleans()))
        lists = {key: past[key][-1] for key in KEYS}
        operations: list[Append | ListRead] = []
        for key, is_read in draw(
            st.lists(st.tuples(st.sampled_from(KEYS), st.booleans()), max_size=3)
        ):
            if is_read:
                is_stale = draw(st.integers(0, 3)) == 0
                seen = draw(st.sampled_from(past[key])) if is_stale else lists[key]
                operations.append(ListRead(key, seen))
            else:
                value += 1
                operations.append(Append(key, value))
                lists[key] += (value,)
        if is_kept or draw(st.integers(0, 3)) == 0:
            for key in KEYS:
                past[key].append(lists[key])
        times = (number * 2.0, number * 2.0 + draw(st.sampled_from([1.0, 5.0])))
        began_s, ended_s = times if draw(st.booleans()) else (None, None)
        ended_s = None if end is UNKNOWN else ended_s
        txns.append(Txn(f"t{number}", tuple(operations), end, began_s, ended_s))
    return draw(st.permutations(txns)), {key: past[key][-1] for key in KEYS}


@settings(max_examples=600, deadline=None)
@given(histories())
def test_it_finds_something_exactly_where_no_order_explains_a_history(
    drawn: tuple[list[Txn], dict[str, tuple[int, ...]]],
) -> None:
    """Nothing is found that some order explains, and nothing is missed that none does."""
    txns, final = drawn
    assert (anomalies(txns, final) == []) is is_explained(txns, final)


@pytest.mark.parametrize(
    ("txns", "final", "kind"),
    [
        ([Txn("a", (Append("x", 1),))], {"x": ()}, "lost append"),
        ([Txn("a", (Append("x", 1),)), Txn("b", (Append("x", 2),))], {"x": (2,)}, "lost append"),
        ([Txn("a", (ListRead("x", (7,)),))], {"x": (7,)}, "phantom"),
        (
            [Txn("a", (Append("x", 1),), ABORTED), Txn("b", (ListRead("x", (1,)),))],
            {"x": ()},
            "G1a",
        ),
        ([Txn("a", (Append("x", 1),), ABORTED)], {"x": (1,)}, "G1a"),
        (
            [Txn("a", (Append("x", 1), Append("x", 2))), Txn("b", (ListRead("x", (1,)),))],
            {"x": (1, 2)},
            "G1b",
        ),
        ([Txn("a", (Append("x", 1), ListRead("x", ())))], {"x": (1,)}, "internal"),
        ([Txn("a", (Append("x", 1),))], {"x": (1, 1)}, "duplicate"),
        (
            [
                Txn("a", (Append("x", 1),)),
                Txn("b", (Append("x", 2),)),
                Txn("c", (ListRead("x", (2,)),)),
            ],
            {"x": (1, 2)},
            "incompatible order",
        ),
        (
            [
                Txn("a", (Append("x", 1), Append("y", 1))),
                Txn("b", (Append("x", 2), Append("y", 2))),
            ],
            {"x": (1, 2), "y": (2, 1)},
            "G0",
        ),
        (
            [
                Txn("a", (Append("x", 1), ListRead("y", (2,)))),
                Txn("b", (Append("y", 2), ListRead("x", (1,)))),
            ],
            {"x": (1,), "y": (2,)},
            "G1c",
        ),
        (
            [
                Txn("a", (Append("x", 1), Append("y", 2))),
                Txn("b", (ListRead("x", (1,)), ListRead("y", ()))),
            ],
            {"x": (1,), "y": (2,)},
            "G-single",
        ),
        (
            [
                Txn("a", (Append("x", 1),), began_s=0, ended_s=1),
                Txn("b", (ListRead("x", ()),), began_s=2, ended_s=3),
            ],
            {"x": (1,)},
            "G-single-realtime",
        ),
    ],
)
def test_each_anomaly_has_its_name(
    txns: list[Txn], final: dict[str, tuple[int, ...]], kind: str
) -> None:
    """As the literature has it, so that a finding can be looked up."""
    assert kind in {each.kind for each in anomalies(txns, final)}


def test_an_unknown_end_is_judged_by_who_read_it() -> None:
    """It may have committed or not, but not both: its two appends are seen together."""
    both = Txn("a", (Append("x", 1), Append("y", 1)), UNKNOWN)
    assert anomalies([both], {"x": (1,), "y": (1,)}) == []
    assert anomalies([both], {"x": (), "y": ()}) == []
    (half,) = anomalies([both], {"x": (1,), "y": ()})
    assert str(half) == "lost append: a appended 1 to y, where it is not"
