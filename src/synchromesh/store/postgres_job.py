"""A unit of work that is queued, or runs, on PostgreSQL."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any

from synchromesh.codec import encode
from synchromesh.errors import Rejection, StoreBroken, StoreUnavailable, to_problem
from synchromesh.store import inbox
from synchromesh.store.bodies import as_coroutine
from synchromesh.store.postgres_answers import Lost
from synchromesh.store.postgres_connection import Connection
from synchromesh.store.postgres_unit import PostgresUnit, Steps
from synchromesh.store.unit import InboxState, Once, Recorded, Unit

ROUNDS_MAX = 64
"""Losses of the connection under one unit, and other reasons to run it again, each of which is
learnt from: it ends long before."""

CLOSED_WITHIN_S = 1.5
"""How long units are waited for that are queued or under way where their store is closed: handlers
have had their time by then, and a process is to end within 10 s, whatever its server does."""

_log = logging.getLogger("synchromesh.store")


@dataclass(frozen=True, slots=True)
class UnitsOptions:
    """Whose units they are, and their bounds, as `PostgresOptions` has them.

    Attributes:
        path: where the database is, as messages show it.
        life_id: what the ids of its units begin with: 23 characters of a UUID.
        logs: tables that are logs.
    """

    path: str
    service: str
    life_id: str
    logs: Sequence[str]
    limit_s: float
    backlog_max: int
    connections_max: int


class UnitJob:
    """A queued unit; whoever runs it fills in its outcome. A single one is in no group."""

    __slots__ = (
        "body", "conflicts", "context", "error", "future", "has_appended", "has_duplicate",
        "has_session", "is_careful", "is_doubtful", "is_durable", "is_single", "name", "once",
        "result", "topics", "unit_id",
    )  # fmt: skip

    def __init__(
        self,
        body: Callable[[Unit], Awaitable[object]],
        once: Once | None,
        name: str,
        future: asyncio.Future[Any],
    ) -> None:
        self.body = body
        self.once = once
        self.name = name
        self.future = future
        self.context: Context = copy_context()
        self.conflicts = 0
        self.is_careful = self.is_doubtful = self.is_durable = self.is_single = False
        self.has_appended = self.has_duplicate = self.has_session = False
        self.unit_id = ""
        self.result: object = None
        self.error: BaseException | None = None
        self.topics: set[str] = set()

    @property
    def lane(self) -> tuple[str, str] | None:
        """The key of which one unit runs at a time."""
        return None if self.once is None else (self.once.caller, self.once.key)

    def lost_too_often(self, path: str) -> StoreUnavailable:
        """Return the error of one that has lost its connection again and again."""
        return StoreUnavailable(
            f"{path}: unit {self.name!r} lost its connection {ROUNDS_MAX} times: look at the "
            "server's log, and ask again under the same key"
        )

    def not_over(self, path: str, *, is_away: bool) -> StoreBroken:
        """Return the error of one that was not over as the store was closed; it may stand.

        Args:
            is_away: the server was known to be.
        """
        why = f"was not over {CLOSED_WITHIN_S:g} s after the store was closed: look at the server"
        if is_away:
            why = (
                "was under way when the server went away, and the store was closed before it was "
                "back"
            )
        return StoreBroken(f"{path}: unit {self.name!r} {why}; ask again under the same key")


class UnitLane:
    """One of the connections that units run on.

    Attributes:
        connection: None before it is needed, and after it was lost.
        is_used: its session may be changed by what ran in it.
    """

    __slots__ = ("connection", "is_used")

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.is_used = False

    def drop(self) -> None:
        """End the connection, if there is one."""
        if self.connection is not None:
            self.connection.terminate()
        self.connection, self.is_used = None, False

    def lose(self, lost: Lost, path: str) -> None:
        """End the connection, which was lost."""
        _log.warning("%s: a connection was lost (%s)", path, lost.error)
        self.drop()


class GroupTurn:
    """The turn of a group among units."""

    lane = None


def steps_of(job: UnitJob, unit: PostgresUnit) -> Steps:
    """Return the steps of a unit's body; of one under a key, of its inbox around it."""
    steps = _plainly(job, unit) if job.once is None else _once(job, job.once, unit)
    return Steps(steps, job.body, unit, job.context)


async def _plainly(job: UnitJob, unit: PostgresUnit) -> object:
    return await as_coroutine(job.body(unit), job.body, job.name)


async def _once(job: UnitJob, once: Once, unit: PostgresUnit) -> Recorded:
    """Look up the inbox, run the body and record its conclusion."""
    known = await inbox.recall(unit, once)
    if known is not None:
        return known
    kind = InboxState.ANSWER
    try:
        body: Any = await as_coroutine(job.body(unit), job.body, job.name)
    except Rejection as rejection:
        if unit.is_late:
            raise
        # What it executed and told goes; that it was refused stays.
        await unit.undo()
        kind, body = InboxState.REJECTION, encode(to_problem(rejection))
        # It is told from the record. Whoever keeps it is in a frame of its traceback.
        rejection.__traceback__ = None
    return await inbox.conclude(unit, once, kind, body)
