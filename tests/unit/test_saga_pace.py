"""The pace at which runs come back: literal times and no sleep."""

from __future__ import annotations

from synchromesh.saga.pace import FIRST, LEAST, RecoveryPace


def through(pace: RecoveryPace, count: int, took_s: float = 0.1) -> None:
    for _ in range(count):
        pace.enter()
        pace.leave(took_s)


def test_the_window_doubles_while_all_goes_well() -> None:
    """Each run that ends makes room for itself and one more, up to the bound."""
    pace = RecoveryPace(100)
    through(pace, FIRST)
    assert pace.room == 2 * FIRST
    through(pace, 1000)
    assert pace.room == 100


def test_trouble_halves_the_window_once_for_all_that_is_told_at_once() -> None:
    """A hundred that time out together say one thing; the window never closes."""
    pace = RecoveryPace(100)
    for _ in range(100):
        pace.slow(now_s=5.0)
    assert pace.room == FIRST // 2
    for second in range(6, 20):
        pace.slow(now_s=float(second))
    assert pace.room == LEAST


def test_after_trouble_it_grows_by_little() -> None:
    """Where the bound is was seen: it is come near to, not jumped over."""
    pace = RecoveryPace(100)
    pace.slow(now_s=0.0)
    through(pace, FIRST // 2)
    assert FIRST // 2 < pace.room <= FIRST // 2 + LEAST


def test_runs_that_take_longer_for_their_number_stop_the_growth_and_shrink_it() -> None:
    """Three times as long is a queue somewhere, in which new work waits, too."""
    pace = RecoveryPace(512)
    through(pace, 128, took_s=0.1)
    wide = pace.room
    through(pace, 63, took_s=0.25)
    assert pace.room == wide
    for _ in range(20):
        through(pace, 32, took_s=0.5)
    assert pace.room == FIRST < wide


def test_one_that_waits_for_its_next_attempt_makes_room() -> None:
    """Whoever waits for a service that is down does not keep those back who need another one."""
    pace = RecoveryPace(2)
    pace.enter()
    pace.enter()
    assert pace.room == 0
    pace.step_aside()
    assert pace.room == 1


def test_a_bound_of_one_is_a_window_of_one() -> None:
    """No window is so small that nothing comes back, nor larger than its bound."""
    pace = RecoveryPace(1)
    pace.slow(now_s=0.0)
    pace.slow(now_s=9.0)
    assert pace.room == 1
