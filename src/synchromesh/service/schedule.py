"""When a schedule is due: a pure machine over a cron expression and a time zone.

Source: Debian's cron(8) for what is done where clocks change: a time that spring leaves out is due
when it is over, one that autumn repeats is due the first time only. A minute or an hour that begins
with `*` counts real time, so that such a schedule is due each time its minute passes.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from synchromesh.calls.contract import Call
from synchromesh.codec import to_datetime
from synchromesh.errors import ContractError

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
# In the hour that autumn repeats, cronsim begins anew at its first time.
_TRIES_MAX = 200


class Missed(Enum):
    """What is done with times that passed while the service was off or busy."""

    LAST = "last"  # the last of them is run, once
    ALL = "all"
    SKIP = "skip"


class Schedule:
    """Tells when a cron expression is due in a time zone.

    Args:
        expression: minute, hour, day of the month, month, day of the week.
        zone: an IANA time zone, such as "Europe/Berlin".

    Raises:
        ContractError: the expression or the zone is wrong, or it is never due.

    Example:
        >>> nine = Schedule("0 9 * * mon-fri", "Europe/Berlin")
        >>> friday = dt.datetime(2026, 3, 27, 12, 0, tzinfo=dt.UTC)
        >>> to_datetime(nine.next_after(int(friday.timestamp()) * 1_000_000)).isoformat()
        '2026-03-30T07:00:00+00:00'
    """

    def __init__(self, expression: str, zone: str = "UTC") -> None:
        given: tuple[tuple[str, object, str], ...] = (
            ("expression", expression, "0 9 * * mon-fri"), ("zone", zone, "Europe/Berlin"),
        )  # fmt: skip
        for what, text, right in given:
            if not isinstance(text, str):
                raise ContractError(
                    f"the {what} of a schedule is {text!r:.80}; make it a text, such as {right!r}"
                )
        # Most services have no schedule, and these bring a calendar along.
        from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

        from cronsim import CronSim, CronSimError

        self.expression, self.zone = expression, zone
        if len(expression.split()) != 5:
            raise ContractError(
                f"the schedule {expression!r} has {len(expression.split())} fields; expected 5: "
                'minute, hour, day of the month, month, day of the week, such as "0 9 * * mon-fri"'
            )
        try:
            self._zone = ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ContractError(
                f"the schedule {expression!r} has the time zone {zone!r}, which is not known here; "
                'use a name such as "Europe/Berlin", or install tzdata'
            ) from error
        try:
            next(CronSim(expression, _EPOCH.astimezone(self._zone)))
        except CronSimError as error:
            raise ContractError(f"the schedule {expression!r} cannot be read: {error}") from error
        except StopIteration:
            raise ContractError(
                f"the schedule {expression!r} is never due; look at its day and month"
            ) from None

    def next_after(self, at_us: int) -> int:
        """Return the next time it is due after an instant; both in microseconds since 1970 UTC."""
        from cronsim import CronSim

        found = CronSim(self.expression, to_datetime(at_us).astimezone(self._zone))
        for _ in range(_TRIES_MAX):
            due_us = (next(found).astimezone(dt.UTC) - _EPOCH) // _MICROSECOND
            if due_us > at_us:
                return due_us
        raise AssertionError(f"{self!r} stands still at {at_us}")

    def due(self, last_us: int, now_us: int, missed: Missed, *, late_us: int) -> int | None:
        """Return the time that is to be run now, after the last one that was; None for none yet.

        Args:
            late_us: what a time may be late and is not missed yet.
        """
        due_us = self.next_after(last_us)
        if due_us > now_us:
            return None
        if missed is Missed.ALL:
            return due_us
        oldest_us = now_us - late_us
        if due_us < oldest_us:
            due_us = self._last_before(due_us, oldest_us if missed is Missed.SKIP else now_us)
            if missed is Missed.SKIP:
                due_us = self.next_after(due_us)
        return due_us if due_us <= now_us else None

    def _last_before(self, due_us: int, at_us: int) -> int:
        """Return the last time that is due at or before an instant; `due_us` is one of them."""
        # Backwards in growing strides, so that a year of minutes is not walked.
        stride_us = 60_000_000
        while True:
            found_us = self.next_after(max(due_us - 1, at_us - stride_us))
            if found_us <= at_us:
                break
            stride_us *= 4
        while (later_us := self.next_after(found_us)) <= at_us:
            found_us = later_us
        return found_us

    def __repr__(self) -> str:
        return f"<Schedule {self.expression} {self.zone}>"


@dataclass(frozen=True, slots=True)
class ScheduleDefinition:
    """A schedule of a service, and the command that it sends when it is due."""

    name: str
    schedule: Schedule
    missed: Missed
    function: Callable[[dt.datetime], Call[Any]]
