"""How long a client is waited for: one timer a connection, set anew with nearly every event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from typing import Final

from synchromesh.http.limits import Limits
from synchromesh.http.states import WAITS, ReadingState, Wait

_FIRST, _NEXT = WAITS[ReadingState.FRESH], WAITS[ReadingState.IDLE]
# Who connects sends a request at once; while the server drains, this is how long it is waited for.
_FRESH_S: Final = 0.5


class ReadTimer:
    """Runs the read timeouts of one connection: head, body, idle, linger.

    An armed timer that fires before the time is let run and armed anew then: moving the time is a
    comparison, and no timer is made or cancelled while requests come and go.

    Args:
        limits: the lengths of all waits.
        on_over: called once the time is over.

    Attributes:
        wait: what is waited for; None for nothing.
    """

    __slots__ = (
        "_armed_s", "_due_s", "_idle_until_s", "_limits", "_loop", "_number", "_on_over", "_timer",
        "bytes_then", "wait",
    )  # fmt: skip

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limits: Limits, on_over: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._limits = limits
        self._on_over = on_over
        self._number = -1
        self._due_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._armed_s = 0.0
        self.wait: Wait | None = None
        self._idle_until_s = inf
        # How much of a streamed body had come when its time last began.
        self.bytes_then = 0

    def expect(self, wait: Wait | None, number: int) -> None:
        """Start a timeout unless it runs already for request `number`; None stops it."""
        if wait is self.wait and (number == self._number or wait is None):
            return
        self.wait, self._number = wait, number
        if wait is None:
            self._due_s = None
        else:
            length_s = getattr(self._limits, wait.limit)
            if wait is _NEXT:
                length_s = max(0.0, min(length_s, self._idle_until_s - self._loop.time()))
            self.restart(length_s)

    def pause(self) -> None:
        """Wait for nothing while an answer is made."""
        self.wait = self._due_s = None

    def expect_next(self, number: int) -> None:
        """Wait for the next request, behind the answer to one; see `expect`."""
        self.wait, self._number = _NEXT, number
        due_s = self._due_s = self._loop.time() + self._limits.idle_s
        # Nearly always the timer is armed for an earlier time, and is let run.
        if self._timer is None or self._armed_s > due_s:
            self.restart(self._limits.idle_s)

    def expect_part(self, wait: Wait | None, number: int, body_bytes: int) -> None:
        """Start or keep the timeout of a streamed body; enough progress restarts it."""
        if wait is not self.wait or number != self._number:
            self.bytes_then = body_bytes
            self.expect(wait, number)
        elif wait is not None and body_bytes - self.bytes_then >= self._limits.body_bytes_min:
            self.bytes_then = body_bytes
            self.restart(getattr(self._limits, wait.limit))

    def restart(self, after_s: float) -> None:
        """Restart the timeout at `after_s` from now."""
        due_s = self._due_s = self._loop.time() + after_s
        if self._timer is not None:
            if self._armed_s <= due_s:
                return
            self._timer.cancel()
        self._arm(due_s)

    def drain(self, idle_s: float) -> None:
        """Wait for a next request until so many seconds from now; for a first one a moment."""
        self._idle_until_s = self._loop.time() + idle_s
        if self.wait is _FIRST:
            self.restart(min(_FRESH_S, self._limits.head_s))
        elif self.wait is _NEXT and self._due_s is not None and self._idle_until_s < self._due_s:
            self.restart(idle_s)

    def told(self, wait: Wait) -> str:
        """Return what is told to who did not send in time."""
        return f"the {wait.what} did not come in {getattr(self._limits, wait.limit):g} s"

    def end(self) -> None:
        """Stop for good: until then the timer and who is called hold each other."""
        self.wait = self._due_s = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        del self._on_over

    def __repr__(self) -> str:
        return f"<ReadTimer for {self.wait.limit if self.wait else 'nothing'}>"

    def _arm(self, due_s: float) -> None:
        self._armed_s, self._timer = due_s, self._loop.call_at(due_s, self._fire)

    def _fire(self) -> None:
        self._timer = None
        if self._due_s is None:
            return
        # The loop may fire a clock tick early, so that the timer's own time is compared.
        if self._armed_s < self._due_s:
            self._arm(self._due_s)
            return
        self._due_s = None
        self._on_over()
