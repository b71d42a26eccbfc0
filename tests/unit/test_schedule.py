"""When a schedule is due: each time once, where clocks change, too."""

from __future__ import annotations

import datetime as dt
import itertools
from zoneinfo import ZoneInfo

import pytest

from synchromesh.codec import to_datetime
from synchromesh.errors import ContractError
from synchromesh.service.schedule import Missed, Schedule

BERLIN = "Europe/Berlin"
MINUTE_US = 60_000_000
LATE_US = MINUTE_US


def us(text: str, zone: str = "UTC", fold: int = 0) -> int:
    """Return a local time as microseconds since 1970 UTC."""
    local = dt.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return round(local.timestamp()) * 1_000_000


def times(schedule: Schedule, after_us: int, count: int) -> list[str]:
    """Return the next times, in UTC."""
    found = []
    for _ in range(count):
        after_us = schedule.next_after(after_us)
        found.append(to_datetime(after_us).strftime("%m-%dT%H:%M"))
    return found


def test_a_time_that_spring_leaves_out_is_due_when_it_is_over() -> None:
    """02:30 does not exist on 29 March 2026 in Berlin: it is run at 03:00, once."""
    half_past_two = Schedule("30 2 * * *", BERLIN)
    found = times(half_past_two, us("2026-03-28T00:00"), 4)
    assert found == ["03-28T01:30", "03-29T01:00", "03-30T00:30", "03-31T00:30"]


def test_a_time_that_autumn_repeats_is_due_once() -> None:
    """02:30 comes twice on 25 October 2026 in Berlin: the first one counts."""
    half_past_two = Schedule("30 2 * * *", BERLIN)
    found = times(half_past_two, us("2026-10-24T00:00"), 4)
    assert found == ["10-24T00:30", "10-25T00:30", "10-26T01:30", "10-27T01:30"]


@pytest.mark.parametrize("minute", range(0, 60, 7))
def test_who_begins_in_the_repeated_hour_does_not_do_it_again(minute: int) -> None:
    """Whatever the minute of the second 02:xx, the next time is tomorrow's."""
    half_past_two = Schedule("30 2 * * *", BERLIN)
    begun_us = us(f"2026-10-25T02:{minute:02}", BERLIN, fold=1)
    assert times(half_past_two, begun_us, 2) == ["10-26T01:30", "10-27T01:30"]


@pytest.mark.parametrize("zone", [BERLIN, "America/New_York", "Australia/Lord_Howe", "UTC"])
@pytest.mark.parametrize("expression", ["30 2 * * *", "0 9 * * mon-fri", "15 0,6,12,18 * * *"])
def test_times_ascend_and_none_is_repeated_whoever_begins_where(zone: str, expression: str) -> None:
    """From any instant of a year the next time is the same as that of who was there before."""
    schedule = Schedule(expression, zone)
    at_us, end_us = us("2026-01-01T00:00"), us("2027-01-01T00:00")
    known = []
    while at_us < end_us:
        later_us = schedule.next_after(at_us)
        assert later_us > at_us
        known.append(later_us)
        at_us = later_us
    for before, after in itertools.pairwise(known):
        for begun_us in (before, before + 1, (before + after) // 2, after - 1):
            assert schedule.next_after(begun_us) == after


@pytest.mark.parametrize(
    ("expression", "zone", "said"),
    [
        ("0 9 * *", "UTC", "has 4 fields; expected 5"),
        ("0 0 9 * * *", "UTC", "has 6 fields; expected 5"),
        ("", "UTC", "has 0 fields"),
        ("0 25 * * *", "UTC", "cannot be read: Bad hour"),
        ("0 9 * * someday", "UTC", "cannot be read: Bad day-of-week"),
        ("0 0 31 2 *", "UTC", "cannot be read: Bad day-of-month"),
        ("0 0 30 feb mon", "UTC", "never due|cannot be read"),
        ("0 9 * * *", "Mars/Olympus", "time zone 'Mars/Olympus', which is not known here"),
        ("0 9 * * *", "../etc/passwd", "is not known here"),
        ("0 9 * * *", "", "is not known here"),
    ],
)
def test_a_wrong_schedule_is_refused(expression: str, zone: str, said: str) -> None:
    """With what is wrong, where it is written."""
    if expression == "0 0 30 feb mon":
        # The 30th or a Monday: it is due on Mondays of February.
        assert times(Schedule(expression), us("2026-02-01T12:00"), 1) == ["02-02T00:00"]
        return
    with pytest.raises(ContractError, match=said):
        Schedule(expression, zone)


@pytest.mark.parametrize(
    ("missed", "now", "due"),
    [
        # Done at 09:00 on the 1st; then off.
        (Missed.LAST, "2026-06-01T09:00", None),
        (Missed.LAST, "2026-06-02T08:59", None),
        (Missed.LAST, "2026-06-02T09:00", "06-02T09:00"),
        (Missed.LAST, "2026-06-02T23:00", "06-02T09:00"),
        (Missed.LAST, "2026-06-09T08:00", "06-08T09:00"),
        (Missed.LAST, "2036-06-09T08:00", "06-08T09:00"),
        (Missed.ALL, "2026-06-09T08:00", "06-02T09:00"),
        (Missed.SKIP, "2026-06-02T09:01", "06-02T09:00"),
        (Missed.SKIP, "2026-06-02T09:02", None),
        (Missed.SKIP, "2026-06-09T08:00", None),
        (Missed.SKIP, "2026-06-09T09:00", "06-09T09:00"),
        # The wall clock was put back.
        (Missed.LAST, "2026-05-01T09:00", None),
        (Missed.ALL, "2026-05-01T09:00", None),
    ],
)
def test_what_was_missed(missed: Missed, now: str, due: str | None) -> None:
    """The last one, all of them, or none."""
    nine = Schedule("0 9 * * *")
    found = nine.due(us("2026-06-01T09:00"), us(now), missed, late_us=LATE_US)
    assert (None if found is None else to_datetime(found).strftime("%m-%dT%H:%M")) == due


@pytest.mark.parametrize("expression", ["* * * * *", "*/7 * * * *", "0 9 * * *", "0 0 1 * *"])
@pytest.mark.parametrize("days", [0.01, 1, 40, 400])
def test_the_last_is_the_last(expression: str, days: float) -> None:
    """As if all times since then were walked."""
    schedule = Schedule(expression)
    last_us = schedule.next_after(us("2026-01-01T00:00"))
    now_us = last_us + int(days * 86_400e6) + 5 * MINUTE_US
    found = schedule.due(last_us, now_us, Missed.LAST, late_us=LATE_US)
    if schedule.next_after(last_us) > now_us:
        assert found is None
    else:
        assert found is not None
        assert found <= now_us < schedule.next_after(found)
