"""The outage of a database whose file fails: why it is closed, and when it is opened again.

    open ──it failed twice in a row──▶ down ──pause──▶ tried ──a commit succeeds──▶ open
                                        ▲────it fails again────┘

A pure machine. Pauses double with each try; they begin anew once the file has been well for a
while, so that one which fails again and again is left alone for longer and longer.
"""

from __future__ import annotations

import math

from synchromesh.errors import StoreBroken, StoreError, StoreUnavailable

PAUSE_BASE_S = 0.05
PAUSE_CAP_S = 5.0
WELL_AFTER_S = 60.0
_DOUBLINGS_MAX = 16

OUTAGE = "outage"
"""The topic of those who want to know whether the database can be used."""

CLOSED_IN_DOUBT = (
    "was under way when the file failed, and it was closed before it was back: whether the unit "
    "took effect is known when it is opened again; ask again under the same key"
)
FAILS_AGAIN = (
    "met a fault of the file each time it was run: look at the disk; whether it took effect is "
    "known by asking again under the same key"
)
REPLACED = (
    " is no longer the file that was opened: it, its -wal or its .lock was deleted, moved or "
    "replaced. Nothing is acknowledged any more, for it would be lost, or somebody else may write. "
    "Stop the service, put the database and its -wal back or restore a backup, start it again, and "
    "ask again under the same key"
)


class Outage:
    """Decides when a database that was closed is opened again.

    Attributes:
        reason: why it is closed; None while it is open.

    Example:
        >>> outage = Outage("shop.db")
        >>> outage.begin("disk I/O error")
        >>> [outage.pause_s() for _ in range(3)]
        [0.05, 0.1, 0.2]
        >>> outage.error("unit 'fill'").code
        'store_unavailable'
        >>> outage.end(now=1.0)
        >>> outage.reason is None
        True
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._tries = 0
        self._well_since_s = math.inf
        self._needs_person = False
        self.reason: str | None = None

    def begin(self, reason: str, *, needs_person: bool = False) -> None:
        """Close the database; the first reason counts, unless a later one needs a person."""
        if self.reason is None or (needs_person and not self._needs_person):
            self.reason, self._needs_person = reason, needs_person

    def pause_s(self, *, now: float = -math.inf) -> float:
        """Return for how long it is left alone before the next try."""
        if now - self._well_since_s >= WELL_AFTER_S:
            self._tries = 0
        self._well_since_s = math.inf
        pause_s = PAUSE_BASE_S * float(2 ** min(self._tries, _DOUBLINGS_MAX))
        self._tries += 1
        return min(PAUSE_CAP_S, pause_s)

    def end(self, *, now: float) -> None:
        """Open it again."""
        self.reason, self._needs_person, self._well_since_s = None, False, now

    def error(self, what: str) -> StoreError:
        """Return the error of what is refused meanwhile; where no person is needed, ask again."""
        assert self.reason is not None
        if self._needs_person:
            return StoreBroken(self.reason)
        return StoreUnavailable(
            f"{self._path} is closed for now, and {what} was not run: {self.reason}; it is opened "
            "again by itself as soon as that works: ask again"
        )

    def __repr__(self) -> str:
        return f"<Outage of {self._path}: {self.reason or 'none'}, tried {self._tries} times>"
