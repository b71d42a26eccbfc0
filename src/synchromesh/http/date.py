"""The Date of answers: made once a second, while there is somebody to tell it to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = (
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
)  # fmt: skip
_SECOND_US: Final = 1_000_000
# How the field begins within a head.
DATE: Final = b"\r\ndate: "


def http_date(wall_us: int) -> str:
    """Return a moment as HTTP has it (RFC 9110, section 5.6.7), whatever the locale.

    Example:
        >>> http_date(784111777_000000)
        'Sun, 06 Nov 1994 08:49:37 GMT'
    """
    at = time.gmtime(wall_us // _SECOND_US)
    return (
        f"{_DAYS[at.tm_wday]}, {at.tm_mday:02} {_MONTHS[at.tm_mon - 1]} {at.tm_year:04} "
        f"{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} GMT"
    )


class DateLine:
    """Keeps the field for the second that it is; with no clock there is none (RFC 9110, 6.6.1).

    Args:
        wall_us: the wall clock; None where there is none.

    Attributes:
        now: the line with its end, b"" where it has to be made: `line` does.

    Example:
        >>> async def main() -> bytes:
        ...     return DateLine(lambda: 784111777_000000).line()
        >>> asyncio.run(main())
        b'date: Sun, 06 Nov 1994 08:49:37 GMT\\r\\n'
    """

    __slots__ = ("_wall_us", "now")

    def __init__(self, wall_us: Callable[[], int] | None) -> None:
        self._wall_us = wall_us
        self.now = b""

    def line(self) -> bytes:
        """Return the line, and keep it until the second is over."""
        if self.now or self._wall_us is None:
            return self.now
        wall_us = self._wall_us()
        self.now = b"date: %b\r\n" % http_date(wall_us).encode("ascii")
        left_s = (_SECOND_US - wall_us % _SECOND_US) / _SECOND_US
        asyncio.get_running_loop().call_later(left_s, self._forget)
        return self.now

    def line_for(self, head: bytes) -> bytes:
        """Return the line for an answer with such a head: nothing where it has one of its own."""
        return b"" if DATE in head else self.line()

    def __repr__(self) -> str:
        return f"<DateLine {self.now.decode('ascii').strip()}>"

    def _forget(self) -> None:
        self.now = b""
