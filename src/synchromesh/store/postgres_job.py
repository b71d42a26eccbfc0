"""A unit of work that is queued, or runs, on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from typing import Any

from synchromesh.store.unit import Once, Unit


class UnitJob:
    """A queued unit; whoever runs it fills in its outcome."""

    __slots__ = (
        "body", "conflicts", "context", "error", "future", "has_appended", "has_duplicate",
        "has_session", "is_careful", "is_doubtful", "is_durable", "name", "once", "result",
        "topics", "unit_id",
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
        self.is_careful = self.is_doubtful = self.is_durable = False
        self.has_appended = self.has_duplicate = self.has_session = False
        self.unit_id = ""
        self.result: object = None
        self.error: BaseException | None = None
        self.topics: set[str] = set()

    @property
    def lane(self) -> tuple[str, str] | None:
        """The key of which one unit runs at a time."""
        return None if self.once is None else (self.once.caller, self.once.key)
