"""The clock of the running loop, which is also what is shown to people: spans, metrics, `why`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

# Where a loop's `time` comes from that tells the system's: asyncio's loops, uvloop's, which cuts it
# to whole milliseconds, and `time.monotonic` itself.
_SYSTEM_CLOCKS = ("asyncio.base_events", "uvloop.loop", "time")
# The classes of loops that are known to be real.
_REAL: set[type] = set()


def is_real(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether a loop runs by the system's clock, as asyncio's and uvloop's do.

    Example:
        >>> from synchromesh.testing import SimLoop
        >>> real, simulated = asyncio.new_event_loop(), SimLoop(seed=1)
        >>> is_real(real), is_real(simulated)
        (True, False)
        >>> real.close(), simulated.close()
        (None, None)
    """
    kind = type(loop)
    if kind in _REAL:
        return True
    if getattr(kind.time, "__module__", "") not in _SYSTEM_CLOCKS:
        return False
    _REAL.add(kind)
    return True


def loop_clock(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return the clock of a loop, as fine as the system has it.

    A real loop only hands the system's on: it is read without a frame of the loop, and without
    being cut to milliseconds, as uvloop does. A timer of uvloop's own loop may come one of them
    early: whoever is called at a time does not ask this clock whether that has come.
    """
    return time.monotonic if is_real(loop) else loop.time


def loop_now() -> float:
    """Return the time of the running loop, by `loop_clock`."""
    loop = asyncio.get_running_loop()
    return time.monotonic() if type(loop) in _REAL or is_real(loop) else loop.time()
