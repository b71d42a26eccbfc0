"""Places that calls share: all are served at once, each at its share, and none waits.

So do threads, or tasks of an event loop, on processors that are short.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools


class Sharing:
    """Serves all calls at once; with more calls than places each becomes slower by as much.

    What a call has been given since the beginning is one sum for all, so that only the next one to
    end needs a timer.

    Attributes:
        places: how many calls are served at full pace; `admit` is to be called after a change.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self._given_s = self._at_s = self._pace = 0.0
        self._ends: list[tuple[float, int, asyncio.Future[None]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._count = itertools.count()

    def __len__(self) -> int:
        """How many are served now."""
        return len(self._ends)

    async def serve(self, work_s: float) -> None:
        """Return when a call has been given so much time at full pace."""
        self._give()
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (self._given_s + work_s, next(self._count), ended)
        heapq.heappush(self._ends, entry)
        self._wait()
        try:
            await ended
        except asyncio.CancelledError:
            if entry in self._ends:
                self._give()
                self._ends.remove(entry)
                heapq.heapify(self._ends)
                self._wait()
            raise

    def admit(self) -> None:
        """Take a change of the places into account."""
        self._give()
        self._wait()

    def _give(self) -> None:
        """Take the time since the last change into account, at the pace that there was."""
        now = asyncio.get_running_loop().time()
        self._given_s += (now - self._at_s) * self._pace
        self._at_s = now

    def _wait(self) -> None:
        self._pace = min(1.0, max(0, self.places) / max(1, len(self._ends)))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ends and self._pace:
            after_s = max(0.0, self._ends[0][0] - self._given_s) / self._pace
            self._timer = asyncio.get_running_loop().call_later(after_s, self._end)

    def _end(self) -> None:
        self._timer = None
        given_s = self._ends[0][0]
        self._give()
        self._given_s = max(self._given_s, given_s)  # a rounding error is no reason to wait again
        while self._ends and self._ends[0][0] <= self._given_s:
            _, _, ended = heapq.heappop(self._ends)
            if not ended.done():
                ended.set_result(None)
        self._wait()
