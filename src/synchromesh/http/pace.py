"""Whether the other end of a connection takes what it is sent. A pure machine.

What it takes is heard of in jumps: a kernel whose buffer is full tells of room again once a
sixteenth of it is free, and a whole segment. A reader of 20 kB/s with a buffer of 6 MiB, as a proxy
or a player has that stops reading fast, is heard of every 26 s. So it gets the more time, the more
it had taken.

Source: RFC 9293, section 3.8.6.2 (silly window syndrome); `__tcp_select_window` of Linux.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# A fifth of its buffer, with the bookkeeping of packets, is one jump at most: for a reader of
# 20 kB/s that is a second for so many bytes.
_BUFFERED_BYTES_PER_S: Final = 100_000


@dataclass(frozen=True, slots=True)
class Patience:
    """Says how slowly the other end may take what it is sent.

    Attributes:
        stall_s: how long it may take less than `bytes_min`.
        most_s: how long that may become by what it had taken before.
        bytes_min: what it has to take in each `stall_s`.
    """

    stall_s: float
    most_s: float
    bytes_min: int


class Pace:
    """Judges the other end by how much it had taken at each look.

    Example:
        >>> pace = Pace(Patience(10.0, 120.0, bytes_min=4096), now=0.0, taken=0)
        >>> [round(pace.left_s(now, taken=2048)) for now in (5.0, 14.0, 15.0)]
        [10, 1, 0]
    """

    __slots__ = ("_patience", "_since_s", "_taken")

    def __init__(self, patience: Patience, *, now: float, taken: int) -> None:
        self._patience = patience
        self._since_s, self._taken = now, taken

    def left_s(self, now: float, taken: int) -> float:
        """Return how long it may go on like this; at 0 it has stalled.

        Args:
            now: the time of the look.
            taken: a count that grows by each byte it has taken.
        """
        patience, waited_s, more = self._patience, now - self._since_s, taken - self._taken
        if more > 0 and more * patience.stall_s >= patience.bytes_min * waited_s:
            self._since_s, self._taken, waited_s = now, taken, 0.0
        buffered_s = max(0, taken) / _BUFFERED_BYTES_PER_S
        return min(patience.most_s, patience.stall_s + buffered_s) - waited_s

    def __repr__(self) -> str:
        return f"<Pace {self._taken} bytes at {self._since_s:.1f} s>"
