"""A bulkhead, or concurrency limit: so many at once, so many queued, and the rest is shed."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from synchromesh.durations import is_count
from synchromesh.errors import ConfigError, Shed
from synchromesh.resilience.deadline import DeadlinePassed, within


@dataclass(frozen=True, slots=True)
class LimitOptions:
    """Configures a concurrency limit and its queue.

    Attributes:
        in_flight_max: how many run at once.
        queue_max: how many more may wait for a slot, in the order in which they came.

    Raises:
        ConfigError: a value is outside its range.

    Example:
        >>> LimitOptions(in_flight_max=8, queue_max=16)
        LimitOptions(in_flight_max=8, queue_max=16)
    """

    in_flight_max: int = 64
    queue_max: int = 0

    def __post_init__(self) -> None:
        are_counts = is_count(self.in_flight_max) and is_count(self.queue_max)
        if not are_counts or self.in_flight_max < 1 or self.queue_max < 0:
            raise ConfigError(
                f"limit options in_flight_max and queue_max are {self.in_flight_max!r} and "
                f"{self.queue_max!r}; make them whole numbers, 1 or more, and 0 or more"
            )


class Limiter:
    """Limits how many run concurrently; `async with limiter:` holds one slot.

    Attributes:
        in_flight: how many slots are held; `in_flight_max`: how many there are.
        queue: who waits for one. Where it is empty, a slot is taken and given back by counting, for
            those who cannot afford a frame; the methods do all else.

    Raises on entry:
        Shed: every slot is taken and the queue is full. It never waits for room in the queue.

    Example:
        >>> async def main() -> str:
        ...     limiter = Limiter(LimitOptions(in_flight_max=1), name="billing")
        ...     async with limiter:
        ...         return repr(limiter)
        >>> asyncio.run(main())
        '<Limiter billing 1/1 in flight, 0/0 waiting>'
    """

    def __init__(self, options: LimitOptions, *, name: str) -> None:
        self._options = options
        self._name = name
        self.in_flight_max = options.in_flight_max
        self.in_flight = 0
        self.queue: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many are queued for a slot."""
        return len(self.queue)

    def take(self) -> bool:
        """Acquire a slot if one is free at this moment; to be given back with `release`."""
        # A slot that becomes free goes to the head of the queue, so a free one means no queue.
        if self.in_flight < self.in_flight_max:
            self.in_flight += 1
            return True
        return False

    async def acquire(self, deadline_s: float | None = None) -> None:
        """Acquire a slot, at once or in turn; to be given back with `release`.

        Raises:
            Shed: the queue is full, or no slot was free by `deadline_s` on the loop's clock.
        """
        # A slot that becomes free goes to the head of the queue, so a free one means no queue.
        if self.in_flight < self.in_flight_max:
            self.in_flight += 1
            return
        if len(self.queue) >= self._options.queue_max:
            raise Shed(
                f"{self._name} already runs {self.in_flight} at once with "
                f"{len(self.queue)} waiting, and took no more; retry later"
            )
        try:
            await within(self._turn, deadline_s)
        except DeadlinePassed:
            raise Shed(
                f"{self._name} runs {self.in_flight} at once and no slot was free in time, "
                "nothing was run; retry later"
            ) from None

    def release(self) -> None:
        """Release a slot: to the head of the queue, if there is one."""
        while self.queue:
            turn = self.queue.popleft()
            if not turn.cancelled():
                turn.set_result(None)
                return
        self.in_flight -= 1

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        held = f"{self.in_flight}/{self._options.in_flight_max} in flight"
        return f"<Limiter {self._name} {held}, {self.waiting}/{self._options.queue_max} waiting>"

    async def _turn(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):
                    self.queue.remove(turn)
            else:
                # The slot was handed over in the moment of the cancellation: pass it on.
                self.release()
            raise
