"""Steps of sagas in transactions of the application's own, each with its run's record of it (S3).

A commit whose answer was lost is looked for: its transaction has locked the run's step, so that
whoever has the lock knows that it is over, and what became of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from synchromesh.alone.borrowed import DUPLICATE, state_of_any
from synchromesh.alone.unit import LOCK, AloneUnit
from synchromesh.context import CallContext
from synchromesh.errors import (
    ContractError,
    Shed,
    StoreError,
    StoreUnavailable,
    SynchromeshError,
    UnitTooLong,
)
from synchromesh.saga.shards import fenced
from synchromesh.saga.tables import SagaRow
from synchromesh.store import Store, Unit

R = TypeVar("R")

_log = logging.getLogger("synchromesh.alone")

# The server ends what stands still: it would keep others from the run.
_GUARD = "select set_config('idle_in_transaction_session_timeout', ?, true)"
_IDLE_MS = "10000"
_THERE = "select 1 from sm_saga_record where saga = ? and seq = ?"
# Classes of states: connection, conflict, resources, refused for now, the server's own trouble.
_PASSING_KINDS = ("OperationalError", "TimeoutError")  # also where the pool has none to give
_PASSING = ("08", "40", "53", "55", "57", "58")
_DRIVERS = ("sqlalchemy", "asyncpg", "psycopg")
_PAUSE_S = 0.5


class _Attempt:
    """One transaction of a step: its session, and how far it came.

    Attributes:
        has_raised: the user's function did: what was raised may be its own.
    """

    __slots__ = ("has_begun", "has_raised", "limit", "session")

    def __init__(self, limit_s: float) -> None:
        self.limit = asyncio.timeout(limit_s)
        self.session: Any = None
        self.has_begun = False
        self.has_raised = False


class SessionSteps:
    """Runs the functions of `s.write` in transactions that the application's function begins.

    Args:
        begin: begins one, as `async_sessionmaker.begin` does; None where there is none.
        opens: opens a unit in it.
        limit_s: how long one may take.
        at_once_max: how many there are at once.
    """

    def __init__(
        self,
        store: Store,
        begin: Callable[[], AbstractAsyncContextManager[Any]] | None,
        opens: Callable[[Any], AbstractAsyncContextManager[AloneUnit]],
        *,
        limit_s: float,
        at_once_max: int,
    ) -> None:
        self._store = store
        self._begin = begin
        self._opens = opens
        self._limit_s = limit_s
        self._gate = asyncio.Semaphore(at_once_max)
        self._attempts: dict[str, _Attempt] = {}

    async def run(
        self,
        unit: Unit,
        context: CallContext,  # noqa: ARG002
        body: Callable[[Any], Awaitable[R]],
    ) -> R:
        """Run a function of the user's on the session of a unit."""
        attempt = self._attempts[unit.unit_id]
        try:
            return await body(attempt.session)
        except Exception:
            attempt.has_raised = True
            raise

    async def write(self, row: SagaRow, last: int, body: Callable[[Unit], Awaitable[R]]) -> R:
        """Commit what the body does, as `StepWriter` says.

        Raises:
            Fenced: another engine has the run, or has written what this one was to follow.
            Shed, StoreUnavailable, UnitTooLong: the database was away, or busy; nothing was done.
        """
        written: list[R] = []
        attempt = _Attempt(self._limit_s)
        try:
            async with (
                self._gate,
                attempt.limit,
                self._begins() as session,
                self._opens(session) as unit,
            ):
                await unit.execute(_GUARD, _IDLE_MS)
                await unit.lock(f"step/{row.id}")
                attempt.has_begun, attempt.session = True, session
                self._attempts[unit.unit_id] = attempt
                try:
                    written.append(await body(unit))
                finally:
                    del self._attempts[unit.unit_id]
        except Exception as error:
            if not written or not await self._is_there(row, last):
                told = self._judged(error, attempt, row, is_written=bool(written))
                if told is error:
                    raise
                raise told from error
        return written[0]

    def _judged(
        self, error: Exception, attempt: _Attempt, row: SagaRow, *, is_written: bool
    ) -> Exception:
        """Return what is raised of an attempt of which nothing stands."""
        told = self._told(error, attempt)
        if not attempt.has_begun:
            # It is no fault of the run, which is not to be undone for it.
            is_passing = isinstance(told, Shed | StoreUnavailable)
            level = logging.WARNING if is_passing else logging.ERROR
            _log.log(level, "a step of saga %r waits for a transaction: %s", row.id, told)
            return Shed("no transaction could be begun for the step")
        if not attempt.has_raised and not is_written and state_of_any(error) == DUPLICATE:
            # Beside the function only the run's records are written there.
            return fenced(row.id)
        return told

    def _begins(self) -> AbstractAsyncContextManager[Any]:
        if self._begin is None:
            raise ContractError(
                "`run_sagas` was not told how one begins: give it a function for that, such as "
                "`sessions.begin` of an async_sessionmaker"
            )
        return self._begin()

    async def _is_there(self, row: SagaRow, last: int) -> bool:
        """Return whether what was written is committed, once that is certain.

        Outages are waited for: a further attempt would meet the record of this one.
        """

        async def wait(unit: Unit) -> None:
            await unit.execute(LOCK, f"{unit.service}/step/{row.id}")

        while True:
            try:
                await self._store.write(wait, name=f"saga {row.name} outcome")
                return bool(await self._store.read(_THERE, row.id, last))
            except (StoreError, Shed) as error:
                _log.warning("what became of a step of saga %r is not known yet: %s", row.id, error)
            await asyncio.sleep(_PAUSE_S)

    def _told(self, error: Exception, attempt: _Attempt) -> Exception:
        """Return what is told of an error: that nothing was done, where another time helps.

        The function's own error is told as it is, whatever its class is called.
        """
        if isinstance(error, SynchromeshError):
            return error
        if isinstance(error, TimeoutError) and attempt.limit.expired():
            if not attempt.has_begun:
                return Shed(f"none could be begun within {self._limit_s:g} s")
            return UnitTooLong(f"the step did not end within {self._limit_s:g} s: it was undone")
        state, kinds = state_of_any(error), {each.__name__ for each in type(error).__mro__}
        if state[:2] not in _PASSING and attempt.has_raised and not _is_of_driver(error):
            return error
        is_passing = isinstance(error, OSError) or not kinds.isdisjoint(_PASSING_KINDS)
        if is_passing or state[:2] in _PASSING:
            return Shed(f"the database refused it for now ({state or type(error).__name__})")
        if "InterfaceError" in kinds or getattr(error, "connection_invalidated", False):
            return StoreUnavailable(f"the connection is of no use ({type(error).__name__})")
        return error

    def __repr__(self) -> str:
        return f"<SessionSteps {len(self._attempts)} under way>"


def _is_of_driver(error: Exception) -> bool:
    """Return whether a driver has raised it, also one that is named after the language's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = type(error).__module__, str(trace and trace.tb_frame.f_globals.get("__name__"))
    return not {each.partition(".")[0] for each in where}.isdisjoint(_DRIVERS)
