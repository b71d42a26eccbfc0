"""Whether an instance is ready: whether its database can be used."""

from __future__ import annotations

import asyncio

from synchromesh.service.no_store import NoStore
from synchromesh.store import OUTAGE, Store


class Readiness:
    """Tells when the database of an instance fails, and when it is back.

    Example:
        >>> from synchromesh.testing import run
        >>> async def main(_: object) -> bool:
        ...     readiness = Readiness(NoStore("quoting"))
        ...     await readiness.usable()
        ...     return readiness.is_ready
        >>> run(main)
        True
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changed = asyncio.Event()
        if not isinstance(store, NoStore):
            store.listen(OUTAGE, self._note_change)

    @property
    def is_ready(self) -> bool:
        """False while the database cannot be used."""
        return self._store.broken is None

    @property
    def why_not(self) -> str:
        """Why it cannot be used; "" where it can."""
        return self._store.broken or ""

    async def changed(self) -> None:
        """Wait until the database fails, or is back."""
        await self._changed.wait()

    async def usable(self) -> None:
        """Wait until the database can be used."""
        while not self.is_ready:
            await self.changed()

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Readiness {'ready' if self.is_ready else self.why_not}>"
