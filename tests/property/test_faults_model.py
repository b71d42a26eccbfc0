"""The table of faults against a list that is read from its end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from synchromesh.calls import Fault, FaultTable
from synchromesh.errors import BadRequest

NAMES = ("a", "b")
TARGETS = (*NAMES, *(f"{x}:{y}" for x in NAMES for y in NAMES))
RULES_MAX = 3

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(TARGETS), st.none() | st.integers(0, 4)),
        st.tuples(st.just("heal"), st.sampled_from((*TARGETS, None)), st.none()),
        st.tuples(st.just("wait"), st.integers(1, 3), st.none()),
        st.tuples(st.just("strike"), st.sampled_from(NAMES), st.sampled_from(NAMES)),
    ),
    max_size=40,
)


class Never:
    """Chance that is not asked."""

    def random(self) -> float:
        raise AssertionError("latency is no matter of chance")


@given(STEPS)
def test_the_table_is_what_was_said_to_it(steps: list[tuple[str, object, object]]) -> None:
    """The last fault of the edge, or else of the callee, strikes while it lasts; never another."""
    table, now, struck = FaultTable(rules_max=RULES_MAX), 0.0, 0
    # (target, end) of what was put and not healed; the reference knows no expiry but by reading.
    model: dict[str, float | None] = {}

    def alive() -> dict[str, float | None]:
        return {target: end for target, end in model.items() if end is None or now < end}

    for number, (what, first, second) in enumerate(steps, 1):
        if what == "put":
            assert isinstance(first, str)
            end = None if second is None else now + float(str(second))
            is_full = first not in alive() and len(alive()) >= RULES_MAX
            try:
                table.put(first, Fault(latency_s=number), now=now, until_s=end)
            except BadRequest:
                assert is_full
            else:
                assert not is_full
                model[first] = end
        elif what == "heal":
            target = None if first is None else str(first)
            targets = [rule.target for rule in table.heal(target, now=now)]
            assert sorted(targets) == sorted(t for t in alive() if first in (None, t))
            for healed in targets:
                del model[healed]
        elif what == "wait":
            now += float(str(first))
        else:
            wanted = next((t for t in (f"{first}:{second}", second) if t in alive()), None)
            strike = table.strike(str(first), str(second), now=now, rng=Never())
            assert (strike is None) == (wanted is None)
            if strike is not None:
                assert strike.why.endswith(f" at {wanted}")
                struck += 1
        assert [rule.target for rule in table.in_force(now)] == sorted(alive())
        assert table.is_empty == (not alive())
        assert table.struck == struck
