"""The shell of a `Wheel`: one timer of the loop for all deadlines that it holds."""

from __future__ import annotations

import asyncio

from synchromesh.clock import loop_now
from synchromesh.wheel import FAR_S, TICKS_PER_S, Deadline, Wheel


class Timers:
    """Lets the deadlines of one owner expire on the running loop, with one timer of the loop.

    An owner is a caller or a guarded function: the timer runs in the context of whoever armed it,
    so that owners of different simulated processes must not share one.

    Example:
        >>> class Bell(Deadline):
        ...     def expire(self) -> None:
        ...         print("rings")
        >>> async def main() -> None:
        ...     loop = asyncio.get_running_loop()
        ...     Timers().add(Bell(loop.time() + 0.01), loop)
        ...     await asyncio.sleep(0.05)
        >>> asyncio.run(main())
        rings
    """

    __slots__ = ("_at_s", "_handle", "_loop", "wheel")

    def __init__(self) -> None:
        self.wheel = Wheel()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._at_s = 0.0

    def add(self, deadline: Deadline, loop: asyncio.AbstractEventLoop) -> None:
        """Let a deadline expire when it is due, unless it is dropped before."""
        if loop is not self._loop:
            # The owner has outlived its loop: what was held for that one has gone with it.
            self._loop, self._handle, self.wheel = loop, None, Wheel()
        # What `Wheel.add` does where the tick has others already, without another frame.
        due_s = deadline.due_s
        slot = self.wheel.slots.get(int(due_s * TICKS_PER_S)) if due_s < FAR_S else None
        if slot is not None:
            slot[deadline] = None
            deadline.slot = slot
        elif self.wheel.add(deadline):
            self._arm(loop)

    def drop(self, deadline: Deadline) -> None:
        """Forget a deadline. May be repeated."""
        self.wheel.drop(deadline)

    def __repr__(self) -> str:
        return f"<Timers of {self.wheel!r}>"

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        at_s = self.wheel.wake_s()
        if self._handle is not None:
            if at_s is not None and self._at_s <= at_s:
                return  # it looks again by itself
            self._handle.cancel()
            self._handle = None
        if at_s is not None:
            self._at_s, self._handle = at_s, loop.call_at(at_s, self._turn, loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        # The loop may call a little before the time: what it was armed for is due all the same.
        now, self._handle = max(loop_now(), self._at_s), None
        try:
            while (deadline := self.wheel.pop(now)) is not None:
                deadline.expire()
        finally:
            self._arm(loop)
