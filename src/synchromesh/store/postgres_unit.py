"""The unit of work on PostgreSQL, and how its body is driven: it asks for each statement.

A body awaits nothing but its unit, and what the unit awaits is an `Asked`: whoever drives the body
gets it, runs the statement and sends the rows back. So anything else that a body awaits is seen and
refused here as on SQLite (I2), and no cancellation reaches a body in the middle of a statement.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextvars import Context
from typing import Any

from synchromesh.errors import ForeignAwait, StoreError, UnitTooLong
from synchromesh.sealing import Vault
from synchromesh.store.bodies import awaited_by, foreign
from synchromesh.store.guard import in_unit
from synchromesh.store.postgres_append import APPEND, APPEND_IN_ORDER, refuse_events
from synchromesh.store.postgres_dialect import Translation, Translations
from synchromesh.store.postgres_errors import CANCELED, PostgresFault, state_of, translate
from synchromesh.store.unit import ArrayUnit, Condition, Fetched, Row, SqlValue, StreamRows

# Names what values are for that a database cannot keep.
_PUTS = Translation("what a batch writes")


class Asked:
    """What a unit asks of its driver: a statement, or without a plan to undo all that it did.

    Attributes:
        rows: the values of many runs of the statement; None where it runs once, with `values`.
        has_columns: the answer is a `Fetched`, not rows alone.
    """

    __slots__ = ("has_columns", "plan", "rows", "values")

    def __init__(
        self,
        plan: Translation | None,
        values: Sequence[SqlValue] = (),
        rows: Sequence[Sequence[SqlValue]] | None = None,
        *,
        has_columns: bool = False,
    ) -> None:
        self.plan = plan
        self.values = values
        self.rows = rows
        self.has_columns = has_columns

    def __await__(self) -> Generator[Asked, Any, Any]:
        return (yield self)


class AskedAppend(Asked):
    """What a unit asks that appends to streams.

    Attributes:
        appends: as `as_values` takes them.
        is_each: the units of that name are batches.
    """

    __slots__ = ("appends", "is_each")

    def __init__(
        self, plan: Translation, appends: Sequence[StreamRows], *, is_each: bool = False
    ) -> None:
        super().__init__(plan)
        self.appends = appends
        self.is_each = is_each

    @property
    def is_lone(self) -> bool:
        """Whether it is to one stream, by a unit that may share a group's statement."""
        return len(self.appends) == 1 and not self.is_each


class AskedForetold(Asked):
    """What a batch asks that writes all where nothing is in the way, as `ArrayUnit.foretell` says.

    Its answer is False, unless whoever drives it sends it as the whole unit.
    """

    __slots__ = ("appends", "columns", "conditions", "puts")

    def __init__(
        self,
        conditions: Sequence[Condition],
        puts: str,
        columns: Sequence[Sequence[SqlValue]],
        appends: Sequence[StreamRows],
    ) -> None:
        super().__init__(None)
        self.conditions = conditions
        self.puts = puts
        self.columns = columns
        self.appends = appends


class PostgresUnit(ArrayUnit):
    """Ask for the statements of one unit, until it ends or has timed out.

    Attributes:
        is_late: it has outlived its limit.
        is_refused: a statement has been refused for that.
        topics: those that it notified.
        has_order: it holds the order of the log, and gives positions to what it appends.
        has_unnumbered: something was appended behind an event without a position.
    """

    __slots__ = (
        "_is_over", "_new_id", "_path", "_plans", "_vault", "has_order", "has_unnumbered",
        "is_late", "is_refused", "name", "now_us", "service", "topics", "unit_id",
    )  # fmt: skip

    def __init__(
        self,
        unit_id: str,
        name: str,
        now_us: int,
        *,
        service: str,
        path: str,
        plans: Translations,
        new_id: Callable[[], str],
        vault: Vault,
    ) -> None:
        self.unit_id = unit_id
        self.name = name
        self.now_us = now_us
        self.service = service
        self._path = path
        self._plans = plans
        self._new_id = new_id
        self._vault = vault
        self.topics: set[str] = set()
        self.is_late = self.is_refused = False
        self.has_order = self.has_unnumbered = False
        self._is_over = False

    @property
    def vault(self) -> Vault:
        """The keys of the service's subjects."""
        return self._vault

    def new_id(self) -> str:
        """Return a new UUIDv7."""
        return self._new_id()

    async def execute(self, sql: str, *values: SqlValue) -> list[Row]:
        """Run one statement and return its rows; raises a `StoreError` for what is refused."""
        plan = self._plan(sql)
        plan.refuse_values(values, path=self._path)
        rows: list[Row] = await self._run(Asked(plan, values))
        return rows

    async def fetch(self, sql: str, *values: SqlValue) -> Fetched:
        """Run one statement and return its rows and columns; raises as `execute` does."""
        plan = self._plan(sql)
        plan.refuse_values(values, path=self._path)
        fetched: Fetched = await self._run(Asked(plan, values, has_columns=True))
        return fetched

    async def execute_many(self, sql: str, rows: Sequence[Sequence[SqlValue]]) -> None:
        """Run one statement for each row of values; raises as `execute` does, for any of them."""
        plan = self._plan(sql)
        for values in rows:
            plan.refuse_values(values, path=self._path)
        if rows:
            await self._run(Asked(plan, (), rows))

    async def append_streams(self, appends: Sequence[StreamRows], *, is_each: bool) -> list[int]:
        """Append to streams of the log, as `ArrayUnit` says."""
        self._refuse_late()
        refuse_events(appends, path=self._path)
        plan = APPEND_IN_ORDER if self.has_order else APPEND
        told: list[tuple[int, bool]] = await self._run(AskedAppend(plan, appends, is_each=is_each))
        self.has_unnumbered = self.has_unnumbered or not all(each for _, each in told)
        return [version for version, _ in told]

    async def execute_arrays(self, sql: str, *columns: Sequence[SqlValue]) -> list[Row]:
        """Run one statement whose values are arrays, as `ArrayUnit` says."""
        plan: Any = self._plan(sql)
        for values in columns:
            plan.refuse_kinds(values, path=self._path)
        rows: list[Row] = await self._run(Asked(plan, columns))  # type: ignore[arg-type]
        return rows

    async def foretell(
        self,
        conditions: Sequence[Condition],
        puts: str,
        columns: Sequence[Sequence[SqlValue]],
        appends: Sequence[StreamRows],
    ) -> bool:
        """Write all if the conditions hold, as `ArrayUnit` says."""
        self._refuse_late()
        refuse_events(appends, path=self._path)
        for values in columns:
            _PUTS.refuse_kinds(values, path=self._path)
        is_so: bool = await self._run(AskedForetold(conditions, puts, columns, appends))
        self._is_over = is_so
        return is_so

    def notify(self, topic: str) -> None:
        """Notify the listeners of a topic after the commit."""
        self.topics.add(topic)

    async def undo(self) -> None:
        """Undo all that the unit did; it goes on, in the same transaction."""
        await self._run(Asked(None))
        self.topics.clear()

    def end(self) -> None:
        """Refuse every further statement: the body has returned."""
        self._is_over = True

    def too_long(self) -> UnitTooLong:
        """Return the error of a unit that has timed out."""
        return UnitTooLong(
            f"unit {self.name!r} outlived its limit and was rolled back; move slow work out of it: "
            f"while it runs it holds a connection to the database of {self.service!r}"
        )

    def _refuse_late(self) -> None:
        if self._is_over:
            raise ForeignAwait(f"unit {self.name!r} is over; it can be used only inside its body")
        if self.is_late:
            self.is_refused = True
            raise self.too_long()

    def _plan(self, sql: str) -> Translation:
        self._refuse_late()
        return self._plans.of(sql, f"unit {self.name!r}", path=self._path)

    async def _run(self, asked: Asked) -> Any:
        try:
            return await asked
        except PostgresFault as error:
            raise self._refused(error, asked) from error

    def _refused(self, error: BaseException, asked: Asked) -> StoreError:
        if self.is_late or state_of(error) == CANCELED:
            self.is_refused = True
            return self.too_long()
        return translate(error, path=self._path, sql=asked.plan.sql if asked.plan else "")


class Steps:
    """A body that is driven by hand, in its submitter's context, from one ask to the next.

    Args:
        steps: the coroutine that runs, around the body.

    Attributes:
        result: what the body returned, once it has.
    """

    __slots__ = ("_body", "_context", "_loop", "_steps", "_unit", "result")

    def __init__(
        self,
        steps: Coroutine[Any, Any, object],
        body: Callable[..., Awaitable[object]],
        unit: PostgresUnit,
        context: Context,
    ) -> None:
        self._steps = steps
        self._body = body
        self._unit = unit
        self._context = context
        self._loop = asyncio._get_running_loop()
        self.result: object = None
        context.run(in_unit.set, unit.name)

    def go(self, value: object = None, fault: BaseException | None = None) -> Asked | None:
        """Give the body what it asked for, and return what it asks next; None at its end.

        Raises what the body raises.

        Raises:
            ForeignAwait: it awaited something else than the unit; it has to be closed.
        """
        context, steps = self._context, self._steps
        # As in SQLite's thread there is no loop for the body, so that both refuse the same.
        asyncio._set_running_loop(None)
        try:
            if fault is None:
                asked = context.run(steps.send, value)
            else:
                asked = context.run(steps.throw, fault)
        except StopIteration as end:
            self.result = end.value
            return None
        except RuntimeError as error:
            if "no running event loop" in str(error):
                raise foreign(self._unit.name, self._body, "the event loop") from error
            raise
        finally:
            asyncio._set_running_loop(self._loop)
        if not isinstance(asked, Asked):
            awaited = awaited_by(steps, past=2)
            self._unit.end()
            raise foreign(self._unit.name, self._body, awaited)
        return asked

    def close(self) -> None:
        """End the body: whatever its clean-up raises, or asks for, the unit is over."""
        self._unit.end()
        with contextlib.suppress(BaseException):
            self._steps.close()


async def drive(steps: Steps, answer: Callable[[Asked], Awaitable[object]]) -> object:
    """Run a body to its end and return its result.

    Args:
        answer: runs what is asked; a driver's error is raised in the body, any other ends it.

    Raises:
        ForeignAwait: it awaited something else than the unit; it has been closed.
    """
    value: object = None
    fault: BaseException | None = None
    try:
        while (asked := steps.go(value, fault)) is not None:
            value = fault = None
            try:
                value = await answer(asked)
            except PostgresFault as error:
                fault = error
        return steps.result
    finally:
        steps.close()
