"""How far messages have passed through a stream: the machine and the names."""

from __future__ import annotations

import random

from synchromesh.messaging.passage import MARKS_MAX, PARTITIONS, Passage, StreamNames, partition_of


def test_a_position_is_reached_when_all_that_was_put_before_it_has_left() -> None:
    """The oldest that is still there bounds what was taken, not the number of those that left."""
    passage = Passage(10)
    passage.put(1)
    passage.mark(11)
    passage.put(2)
    passage.put(5)
    passage.mark(13)
    assert [passage.left(oldest) for oldest in (1, 2, 5, 6)] == [10, 11, 11, 13]


def test_nothing_in_the_stream_is_everything_taken() -> None:
    """Also what was passed over without a message."""
    passage = Passage(0)
    assert passage.mark(40)
    assert passage.left(0) == 40
    assert not passage.mark(40)


def test_what_is_put_after_a_mark_is_not_part_of_it() -> None:
    """An answer about the stream is never taken for more than was marked before it was asked."""
    passage = Passage(0)
    passage.put(3)
    passage.mark(1)
    passage.put(4)
    assert passage.left(0) == 1
    assert repr(passage) == "<Passage taken up to 1, 0 marks, last 4>"


def test_marks_are_bounded_and_the_last_position_is_reached_all_the_same() -> None:
    """While a subscriber is away for long, only steps between are lost."""
    passage = Passage(0)
    for n in range(1, 3 * MARKS_MAX):
        passage.put(n)
        passage.mark(n)
    assert passage.left(MARKS_MAX - 1) == MARKS_MAX - 2
    assert passage.left(3 * MARKS_MAX - 1) == MARKS_MAX - 1
    assert passage.left(0) == 3 * MARKS_MAX - 1


def test_a_random_stream_is_never_said_to_be_further_than_it_is() -> None:
    """Against a list: up to the position that is told, no message is in the stream."""
    for seed in range(200):
        rng = random.Random(seed)
        passage, there, sequence, position = Passage(0), {}, 0, 0
        for _ in range(60):
            act = rng.random()
            if act < 0.4:
                sequence += rng.randint(1, 3)
                position += rng.randint(1, 2)
                there[sequence] = position
                passage.put(sequence)
            elif act < 0.6:
                passage.mark(position)
            elif act < 0.8 and there:
                del there[rng.choice([*there])]
            else:
                reached = passage.left(min(there, default=0))
                assert all(at > reached for at in there.values())
        passage.mark(position)
        assert passage.left(0) == position


def test_partitions_are_the_same_in_every_release() -> None:
    """Another number or hash would break the order of keys while two releases run."""
    assert PARTITIONS == 16
    assert [partition_of(key) for key in ("", "a", "SX90", "*shop.counted", "Ä")] == [
        0, 3, 14, 3, 11,
    ]  # fmt: skip


def test_names_of_a_system_are_good_for_subjects_whatever_it_is_called() -> None:
    """Blanks, dots and wildcards would be other subjects; two systems never share a name."""
    names = {StreamNames.of(system).stream for system in ("a b", "a.b", "a>b", "a*b", "a=20b")}
    assert len(names) == 5
    assert all(not set(name) & set(" .*>\t/\\") for name in names)
