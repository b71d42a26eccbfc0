"""Liveness against a reference that looks back over the whole course, none left out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from synchromesh.system.supervise.liveness import EVERY_S, LATE_S, SUSPECT_ROUNDS, Liveness

HANG_ROUNDS = 4
DEPTH = 7


@dataclass(frozen=True)
class Seen:
    """What the supervisor sees at one round: an answer, a debugger, and that it is late itself."""

    is_answered: bool = False
    is_traced: bool = False
    is_late: bool = False


SILENT = Seen()
SEEN = (SILENT, Seen(is_answered=True), Seen(is_traced=True), Seen(is_late=True))


def is_suspect(course: tuple[Seen, ...]) -> bool:
    """Tell it by the definition: since the last answer, so many in a row on time and silent."""
    row = 0
    for seen in course[_after_answer(course) :]:
        row = 0 if seen.is_late else row + 1
        if row >= SUSPECT_ROUNDS:
            return True
    return False


def counted(course: tuple[Seen, ...]) -> int:
    """Count the silent rounds since the last answer, late round, or round of a traced suspect."""
    since = _after_answer(course)
    for end in range(since + 1, len(course) + 1):
        last = course[end - 1]
        if last.is_late or (last.is_traced and is_suspect(course[:end])):
            since = end
    return len(course) - since


def _after_answer(course: tuple[Seen, ...]) -> int:
    return max((i for i, seen in enumerate(course, 1) if seen.is_answered), default=0)


def test_every_course_of_rounds_is_judged_as_the_definition_says() -> None:
    """Suspected and cleared once each, hung each time HANG_ROUNDS have counted."""
    for course in product(SEEN, repeat=DEPTH):
        liveness, now = Liveness[str](HANG_ROUNDS * EVERY_S), 0.0
        assert liveness.judge(["a"], now=now, wall_s=now).ask == ("a",)
        for end in range(1, DEPTH + 1):
            seen, before = course[end - 1], course[: end - 1]
            now += EVERY_S + (2 * LATE_S if seen.is_late else 0.0)
            found = liveness.judge(
                ["a"],
                answered=["a"] if seen.is_answered else [],
                traced=["a"] if seen.is_traced else [],
                now=now,
                wall_s=now,
            )
            so_far = course[:end]
            assert liveness.suspects == ("a",) * is_suspect(so_far)
            assert found.suspected == ("a",) * (is_suspect(so_far) > is_suspect(before))
            assert found.cleared == ("a",) * (is_suspect(before) > is_suspect(so_far))
            assert found.ask == ("a",) * seen.is_answered
            missed = counted(so_far)
            assert found.hung == ("a",) * (missed > 0 and missed % HANG_ROUNDS == 0)


LATENESS = st.one_of(st.floats(0.0, LATE_S), st.floats(0.0, 3600.0))


@given(st.lists(st.tuples(LATENESS, st.floats(0.0, 2 * EVERY_S)), max_size=60))
def test_no_supervisor_is_so_loaded_that_it_suspects_who_answers(
    rounds: list[tuple[float, float]],
) -> None:
    """Each answer takes up to two rounds' time, and each round comes as late as it likes."""
    liveness, now, answers_s = Liveness[str](1.0), 0.0, 0.0
    for late_s, takes_s in rounds:
        answered = ["a"] if now > 0.0 and answers_s < now else []
        found = liveness.judge(["a"], answered=answered, now=now, wall_s=now)
        assert found.suspected == found.hung == ()
        if found.ask:
            answers_s = now + takes_s
        now += EVERY_S + late_s


@given(st.lists(st.floats(0.0, LATE_S), min_size=HANG_ROUNDS, max_size=HANG_ROUNDS))
def test_who_hangs_is_found_by_a_supervisor_that_is_not_much_too_late(late_s: list[float]) -> None:
    """By the count of rounds: suspected at the second, to be replaced at the last."""
    liveness, now = Liveness[str](HANG_ROUNDS * EVERY_S), 0.0
    liveness.judge(["a"], now=now, wall_s=now)
    found = []
    for late in late_s:
        now += EVERY_S + late * 0.999
        found.append(liveness.judge(["a"], now=now, wall_s=now))
    assert [len(each.suspected) for each in found] == [0, 1, 0, 0]
    assert [len(each.hung) for each in found] == [0, 0, 0, 1]


def test_a_machine_that_slept_begins_the_count_anew() -> None:
    """The loop's clock stands still meanwhile, the wall clock does not."""
    liveness = Liveness[str](3 * EVERY_S)
    for turn in range(3):
        liveness.judge(["a"], now=turn * EVERY_S, wall_s=turn * EVERY_S)
    assert liveness.suspects == ("a",)
    found = [
        liveness.judge(["a"], now=turn * EVERY_S, wall_s=7200.0 + turn * EVERY_S).hung
        for turn in range(3, 7)
    ]
    assert found == [(), (), (), ("a",)]
    assert liveness.silent_s("a", now=6 * EVERY_S) == 6 * EVERY_S


def test_one_that_serves_no_longer_is_forgotten() -> None:
    """Its successor begins with a count of its own."""
    liveness = Liveness[str](1.0)
    for turn in range(3):
        liveness.judge(["a"], now=turn * EVERY_S, wall_s=0.0)
    assert liveness.silent_s("a", now=1.5) == 1.5
    assert liveness.judge(["b"], now=1.5, wall_s=0.0).ask == ("b",)
    assert liveness.silent_s("a", now=1.5) == 0.0
