"""Reads the log into an application's tables, each batch in one transaction with its checkpoint."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from synchromesh.errors import Fenced, LogGap, LogReplaced, StoreError
from synchromesh.events import Checkpoint, StoredEvent, load_checkpoint, read
from synchromesh.events.subscription import Wakeup
from synchromesh.store import Store, Unit

PREFIX = "alone/"
"""How the names of the checkpoints begin."""

_MOVE = (
    "insert into sm_checkpoint(name, log_id, position) values (?, ?, ?) "
    "on conflict(name) do update set log_id = excluded.log_id, position = excluded.position "
    "where sm_checkpoint.position = ? returning 1"
)
_BATCH_MAX = 100
_PAUSE_S = 0.1
_PAUSE_MAX_S = 5.0
# What asking again does not mend.
_FINAL = (Fenced, LogReplaced, LogGap)
_log = logging.getLogger("synchromesh.alone")


class OpensUnits(Protocol):
    """Opens a unit in the transaction of a session, as `Alone.unit` does."""

    def __call__(self, session: Any, /) -> AbstractAsyncContextManager[Unit]:
        """Open a unit."""
        ...


class LogProjection:
    """Hands the events of a log to a function, in their order, effect once (E5).

    Args:
        begin: begins a transaction of the application's, as `sessionmaker.begin` does.
        opens: opens a unit in it.
        names: the stored names of the events that are wanted; others are passed over.
        take: is called with the session and each of them.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        begin: Callable[[], AbstractAsyncContextManager[Any]],
        opens: OpensUnits,
        names: frozenset[str],
        take: Callable[[Any, StoredEvent], Awaitable[None]],
        poll_s: float,
    ) -> None:
        self._store = store
        self.checkpoint_name = f"{PREFIX}{name}"
        self._begin = begin
        self._opens = opens
        self._names = names
        self._take = take
        self._poll_s = poll_s

    async def run(self) -> None:
        """Read until cancelled; what the function or its transaction refuses is tried again.

        Raises:
            Fenced: another process does this now.
            LogReplaced, LogGap: a person has to look at the log first.
        """
        fence = self._store.owners.fence((self.checkpoint_name,))
        checkpoint: Checkpoint | None = None
        wakeup, pause_s, batch_max = Wakeup(self._store, poll_s=self._poll_s), _PAUSE_S, _BATCH_MAX
        try:
            while True:
                wakeup.clear()
                try:
                    if checkpoint is None:
                        checkpoint = await load_checkpoint(self._store, self.checkpoint_name)
                    events = await read(self._store, after=checkpoint, limit=batch_max)
                    if not events:
                        await wakeup.wait()
                        continue
                    checkpoint = await self._apply(checkpoint, events, fence.check)
                except _FINAL:
                    raise
                except Exception as error:  # noqa: BLE001 - the function's, whatever it is
                    _log.exception("%s waits at %r: %r", self.checkpoint_name, checkpoint, error)
                    checkpoint = None  # its commit may have been cut, and may stand
                    await asyncio.sleep(pause_s)
                    # One by one, so that what is well before the one that fails is done.
                    pause_s, batch_max = min(_PAUSE_MAX_S, 2 * pause_s), 1
                else:
                    pause_s, batch_max = _PAUSE_S, min(_BATCH_MAX, 2 * batch_max)
        finally:
            wakeup.close()

    async def _apply(
        self,
        checkpoint: Checkpoint,
        events: Sequence[StoredEvent],
        check: Callable[[Unit], Awaitable[None]],
    ) -> Checkpoint:
        """Apply a batch in a transaction that moves the checkpoint on from where it was read.

        A commit that was cut may come to stand later: the row is taken first, which waits for it.
        """
        reached = checkpoint.past(events[-1])
        async with self._begin() as session, self._opens(session) as unit:
            await check(unit)
            moved = await unit.execute(
                _MOVE, self.checkpoint_name, reached.log_id, reached.position, checkpoint.position
            )
            if not moved:
                raise StoreError(f"{self.checkpoint_name} has moved on from {checkpoint.position}")
            for each in events:
                if each.name in self._names:
                    await self._take(session, each)
        return reached
