"""uvloop's event loop with the system's clock, which is as fine as asyncio's.

uvloop tells time in whole milliseconds, and a timer of it may come half of one early: what is
measured by it is 0 or 1 ms, and who is woken at a time finds that it is not yet there.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextvars import Context
from math import ceil
from typing import TypeVarTuple

import uvloop

Ts = TypeVarTuple("Ts")

# What a float of milliseconds may be off by; as little as the clock of asyncio's loops.
_TICK_MS = 1e-6
# Later than that is never, which uvloop makes a century.
_FAR_S = 1e9


class PreciseLoop(uvloop.Loop):
    """An event loop of uvloop whose time is `time.monotonic`, and whose timers are never early.

    Example:
        >>> async def main() -> bool:
        ...     loop, came = asyncio.get_running_loop(), asyncio.Event()
        ...     due_s = loop.time() + 0.0123
        ...     loop.call_at(due_s, came.set)
        ...     await came.wait()
        ...     return loop.time() >= due_s
        >>> with asyncio.Runner(loop_factory=PreciseLoop) as runner:
        ...     runner.run(main())
        True
    """

    # libuv reads the same clock, and cuts it.
    time = staticmethod(time.monotonic)
    # Told as asyncio's loops tell it: what is guarded need not ask for the running loop.
    _thread_id: int | None = None

    def run_forever(self) -> None:
        """Run until `stop` is called."""
        self._thread_id = threading.get_ident()
        try:
            super().run_forever()
        finally:
            self._thread_id = None

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run a callback at a time of this loop's clock, or up to a few milliseconds later."""
        left_s = when - uvloop.Loop.time(self)
        if 0.0 < left_s < _FAR_S:
            left_s = ceil(left_s * 1000 - _TICK_MS) / 1000
        return super().call_later(left_s, callback, *args, context=context)

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run a callback after so many seconds, or up to a few milliseconds later."""
        if delay <= 0.0:
            return super().call_later(0.0, callback, *args, context=context)
        return self.call_at(time.monotonic() + delay, callback, *args, context=context)
