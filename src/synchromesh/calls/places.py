"""The places of a service: one of an operation, and one of the service, for each call."""

from __future__ import annotations

import asyncio

from synchromesh.clock import loop_clock
from synchromesh.priority import Priority
from synchromesh.resilience import AdaptiveLimitOptions, Limiter

# An operation begins with fewer places than an edge: what it waits for holds none of them.
INITIAL = 32


def limits_of_operation(in_flight_max: int, queue_max: int, *, of: int) -> AdaptiveLimitOptions:
    """Return the limits of each operation of a service that answers `of` of them.

    Example:
        >>> limits_of_operation(1000, 256, of=3).limit_max
        750
    """
    most = max(1, in_flight_max * 3 // 4) if of > 1 else in_flight_max
    default = AdaptiveLimitOptions()
    return AdaptiveLimitOptions(
        initial=min(INITIAL, most),
        limit_min=min(default.limit_min, most),
        limit_max=most,
        queue_max=queue_max,
    )


def took_places(limiter: Limiter, places: Limiter, priority: Priority) -> bool:
    """Take a place of the operation and one of the service, where both are free at this moment."""
    if not limiter.take(priority):
        return False
    if not places.take(priority):
        limiter.release()
        return False
    return True


async def take_places(
    limiter: Limiter, places: Limiter, deadline_s: float | None, priority: Priority
) -> tuple[float, dict[str, str]]:
    """Wait for a place of the operation, and then for one of the service.

    Returns when it had both, and what the span says of the wait. Raises Shed.
    """
    clock = loop_clock(asyncio.get_running_loop())
    began_s = clock()
    await limiter.acquire(deadline_s, priority)
    try:
        if deadline_s is not None:
            # Half of what is left: a refusal at the deadline itself would come too late (B5).
            deadline_s = (clock() + deadline_s) / 2
        await places.acquire(deadline_s, priority)
    except BaseException:
        limiter.release()
        raise
    now = clock()
    return now, {"place_ms": str(round((now - began_s) * 1e3, 3))}
