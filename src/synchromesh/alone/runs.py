"""The runs of an application's sagas: what became of them, and what a person does with one."""

from __future__ import annotations

from typing import Any, TypeVar

from synchromesh.clock import loop_now
from synchromesh.codec import encode
from synchromesh.durations import FROM_0, refuse_wrong_number
from synchromesh.errors import BadRequest
from synchromesh.saga import SagaDefinition, elsewhere, tables
from synchromesh.saga.handle import Conclusion, result_of
from synchromesh.saga.history import SagaHistory, SagaSummary, cause_of
from synchromesh.saga.inspection import StoredRuns
from synchromesh.saga.records import ENDED, RepairVerb, SagaStatus
from synchromesh.saga.repair import RepairWish
from synchromesh.store import Store

R = TypeVar("R")


class AloneRuns:
    """Tells of the runs of an application, in any process that has its database open.

    Example:
        >>> async def look(runs: AloneRuns) -> None:
        ...     for run in await runs.list("stuck"):
        ...         print(run.id, run.reason)
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stored = StoredRuns(store, store.service)

    async def result(
        self,
        saga: SagaDefinition[Any, R],
        id: str,  # noqa: A002
        *,
        within_s: float,
    ) -> R | None:
        """Return the result once a run has completed; None where it has not after `within_s`.

        Raises:
            Rejection: the no that turned the run, once it is undone.
            SagaUndone: it was undone for a technical reason, or cancelled.
            Stuck: it needs a person.
            UnknownSaga: no run has this id: its start is not committed, or it ended long ago.
            ConfigError: `within_s` is no time.
        """
        refuse_wrong_number("within_s", within_s, FROM_0)
        until_s = loop_now() + within_s
        while True:
            row = await self._stored.find(id)
            if row.status in ENDED or row.status is SagaStatus.STUCK:
                cause = cause_of(row, await tables.readable(self._store, id))
                ended = Conclusion(row.status, row.result or b"", cause)
                return result_of(id, ended, saga.load_result)
            if not await elsewhere.has_changed(self._store, row, until_s):
                return None

    async def list(self, status: str = "", *, limit: int = 100) -> list[SagaSummary]:
        """Return the newest runs, of one status; "" is any.

        Raises:
            BadRequest: there is no such status, or the limit is not 1 to 10,000.
        """
        return await self._stored.runs(status, limit)

    async def show(self, id: str) -> SagaHistory:  # noqa: A002
        """Return the story of a run: each record with its step, attempt, time and reason.

        Raises:
            UnknownSaga: no run has this id.
        """
        return await self._stored.show(id)

    async def retry(
        self,
        id: str,  # noqa: A002
        *,
        who: str,
        why: str,
        not_done: bool = False,
    ) -> SagaHistory:
        """Have a stuck run try again what it is stuck at, with new deadlines; return its story.

        As the other verbs do, it waits for the process that runs the run: that does it, and records
        who and why with it.

        Args:
            not_done: you have looked up what nobody remembers, and it was not done.

        Raises:
            UnknownSaga: no run has this id.
            ActionRefused: the run is not stuck, or it is not safe; it says what is.
            TimedOut: no process that runs its sagas has answered.
            BadRequest: it is not said who, or why.
        """
        return await self._ask(id, RepairVerb.RETRY, RepairWish(who, why, None, not_done))

    async def skip(
        self,
        id: str,  # noqa: A002
        *,
        who: str,
        why: str,
        result: object = None,
    ) -> SagaHistory:
        """Have a stuck run go on as if what it is stuck at was done: you have done it by hand.

        Args:
            result: what the step returns; None where it is an undo, or returns nothing.

        Raises:
            UnknownSaga, ActionRefused, TimedOut, BadRequest: as `retry` does.
        """
        told = None if result is None else encode(result)
        return await self._ask(id, RepairVerb.SKIP, RepairWish(who, why, told))

    async def undo(
        self,
        id: str,  # noqa: A002
        *,
        who: str,
        why: str,
        not_done: bool = False,
    ) -> SagaHistory:
        """Turn a stuck run that is not past its pivot: what it did is undone, backwards.

        Args:
            not_done: you have looked up its pivot, and it was not done.

        Raises:
            UnknownSaga, ActionRefused, TimedOut, BadRequest: as `retry` does.
        """
        return await self._ask(id, RepairVerb.UNDO, RepairWish(who, why, None, not_done))

    async def cancel(self, id: str, *, who: str, why: str) -> SagaHistory:  # noqa: A002
        """Turn a run that goes on, before its pivot: what it did is undone, backwards.

        Raises:
            UnknownSaga, TimedOut, BadRequest: as `retry` does.
            ActionRefused, SagaError: it has ended, is stuck, or there is no way back.
        """
        return await self._ask(id, RepairVerb.CANCEL, RepairWish(who, why))

    async def _ask(self, id: str, verb: RepairVerb, wish: RepairWish) -> SagaHistory:  # noqa: A002
        if not wish.who.strip() or not wish.why.strip():
            raise BadRequest(f"{verb.value} of a run: say who does it, and why; it is recorded")
        await self._stored.find(id)
        await elsewhere.ask(self._store, id, verb.value, wish)
        return await self.show(id)

    def __repr__(self) -> str:
        return f"<AloneRuns of {self._store.service}>"
