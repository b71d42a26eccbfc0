"""Subscriptions: stored events, then live ones, in one order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

from synchromesh.clock import loop_now
from synchromesh.events.appending import TOPIC
from synchromesh.events.log import Checkpoint, StoredEvent, read
from synchromesh.store import Store


class Wakeup:
    """Waits for appends, or for `poll_s` seconds: a wake-up is only a hint.

    Look at the log after `clear` and before `wait`: what comes in between is then not missed.
    """

    def __init__(self, store: Store, *, poll_s: float, topics: Sequence[str] = (TOPIC,)) -> None:
        self._poll_s = poll_s
        self._grown = asyncio.Event()
        self._stops = [store.listen(topic, self._grown.set) for topic in topics]

    def clear(self) -> None:
        """Reset the wake-ups up to now."""
        self._grown.clear()

    async def wait(self, *, until_s: float | None = None) -> None:
        """Wait until the log has grown since `clear`, or it is time to poll, or `until_s`."""
        poll_at_s = loop_now() + self._poll_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(min(poll_at_s, until_s or poll_at_s)):
                await self._grown.wait()

    def close(self) -> None:
        """Unsubscribe."""
        for stop in self._stops:
            stop()


async def subscribe(
    store: Store,
    after: Checkpoint,
    *,
    batch_max: int = 256,
    poll_s: float = 1.0,
    public_only: bool = False,
) -> AsyncGenerator[list[StoredEvent], None]:
    """Yield all events after a checkpoint in batches: stored ones, then live ones.

    It never ends by itself. Nothing is skipped and nothing comes twice (E3); a wake-up that is lost
    delays a batch by `poll_s` at most. The reader keeps its own checkpoint.

    Raises:
        LogReplaced: the checkpoint belongs to another log.
        LogGap: positions are missing that no removal recorded.

    Example:
        >>> async def follow(store: Store) -> None:
        ...     async for batch in subscribe(store, Checkpoint(store.log_id)):
        ...         print([event.name for event in batch])
    """
    wakeup = Wakeup(store, poll_s=poll_s)
    try:
        while True:
            wakeup.clear()
            batch = await read(store, after=after, limit=batch_max, public_only=public_only)
            if not batch:
                await wakeup.wait()
                continue
            after = after.past(batch[-1])
            yield batch
            # A reader that awaits nothing must not keep the loop during a long catch-up.
            await asyncio.sleep(0)
    finally:
        wakeup.close()
