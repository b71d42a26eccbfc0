"""Subscriptions that change with releases, against a log and a list of what was delivered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from synchromesh.messaging.subscriptions import DeliveredUpTo, start_of

NAMES = ("sold", "returned", "counted")

releases = st.lists(
    st.tuples(
        st.frozensets(st.sampled_from(NAMES), min_size=1),  # what it subscribes to
        st.lists(st.sampled_from(NAMES), max_size=6),  # what is published before it starts
        st.lists(st.sampled_from(NAMES), max_size=6),  # and while it runs
        st.integers(0, 12),  # how many positions it reads before it ends
    ),
    max_size=6,
)


@given(releases)
def test_every_event_is_delivered_once_when_all_are_subscribed_to(given: object) -> None:
    """In the order of its name; and of all that is subscribed to while it is published (O1, O3)."""
    log: list[str] = []
    delivered: list[int] = []
    entries: dict[str, DeliveredUpTo] = {}
    checkpoint: int | None = None
    every = frozenset(NAMES)
    wanted_when_published: list[bool] = []
    last: frozenset[str] = frozenset()
    for names, before, meanwhile, reads in [*given, (every, [], [], 1000)]:  # type: ignore[misc]
        log += before
        wanted_when_published += [name in last for name in before]
        start = start_of(names, checkpoint, entries, end=len(log))
        changed, start = start.saved_at(start.position)
        entries |= changed
        checkpoint = at = start.position
        log += meanwhile
        wanted_when_published += [name in names for name in meanwhile]
        while at < len(log) and reads:
            at, reads = at + 1, reads - 1
            if start.is_due(log[at - 1], at):
                delivered.append(at)
            if reads % 3 == 0:  # it is saved now and then, and at the end
                changed, start = start.saved_at(at)
                entries, checkpoint = entries | changed, at
        changed, start = start.saved_at(at)
        entries, checkpoint = entries | changed, at
        last = names
    assert sorted(delivered) == list(range(1, len(log) + 1))
    for name in NAMES:
        of_one = [at for at in delivered if log[at - 1] == name]
        assert of_one == sorted(of_one)
    in_time = [at for at in delivered if wanted_when_published[at - 1]]
    assert in_time == sorted(in_time)
