"""A batch on PostgreSQL that is foretold: one statement, which is the transaction.

A batch, as sagas write it, asks whether anything is in the way of what it has to write, and nearly
always nothing is. So its body says what has to hold and what it writes then, and is over as if it
did hold, before anything is sent. The statement checks it all, writes all of it with the mark of
the commit, or nothing: then the body is run again, step by step, and finds out what is in the way.

If the connection is lost, and the mark is there, all is as it was foretold (I3).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from synchromesh.store.postgres_answers import Lost
from synchromesh.store.postgres_append import COLUMNS, LOG, as_rows, as_values
from synchromesh.store.postgres_connection import Connection, run
from synchromesh.store.postgres_dialect import Translation
from synchromesh.store.postgres_errors import PostgresFault, is_lost
from synchromesh.store.postgres_job import UnitJob, UnitLane, steps_of
from synchromesh.store.postgres_pooled import PooledConnection
from synchromesh.store.postgres_transaction import send
from synchromesh.store.postgres_unit import AskedForetold, PostgresUnit, Steps

_NAMES = ", ".join(COLUMNS)
# As `begin` and its locks do it: see `APPEND_FORETOLD`. What is not there is not asked for, since a
# batch alone takes as long for each part as for what it writes.
_CHECKED = """\
checked as materialized (
    select set_config('lock_timeout', '250', true) is not null
        and not exists (select from sm_turn for share) {conditions} as is_so
)"""
# An event whose predecessor has no position gets none, so that all streams are asked.
_ASKED = f"""\
asked as materialized (
    select number, given.stream, coalesce(last.version, 0) as version,
        coalesce(is_numbered, true) and coalesce(expected = coalesce(last.version, 0), true) as fits
    from {as_rows(["text", "bigint"])} with ordinality as given(stream, expected, number)
    left join lateral (
        select version, position is not null as is_numbered from {LOG}
        where {LOG}.stream = given.stream order by version desc limit 1
    ) as last on true
)"""
_FITS = "not exists (select from asked where not fits)"
_APPENDED = f"""\
fit as materialized (
    select {_NAMES}, asked.stream, asked.version + nth as version, at
    from {as_rows(["bigint", "bigint", *COLUMNS.values()])}
        with ordinality as event(number, nth, {_NAMES}, at)
    join asked using (number) where (select is_so from checked)
), moved as (
    update sm_log set last = last + (select count(*) from fit)
    where name = '{LOG}' and exists (select from fit)
    returning last - (select count(*) from fit) as base
), written as (
    insert into {LOG}(position, {_NAMES}, stream, version)
    select base + at, {_NAMES}, stream, version from moved cross join fit order by at
)"""
_MARKED = """\
marked as (
    insert into sm_commit(unit, at_us) select ?, ? where (select is_so from checked)
)"""
# Each part that writes does under this.
_IS_SO = "(select is_so from checked)"


@lru_cache(maxsize=64)
def plan_of(conditions: tuple[str, ...], puts: str, *, appends: bool) -> Translation:
    """Return the statement of a batch that writes parts, and appends, under conditions."""
    asked, appended = ([_ASKED], [_APPENDED]) if appends else ([], [])
    every = [*[_FITS] * appends, *conditions]
    checked = _CHECKED.format(conditions="".join(f"\n        and ({each})" for each in every))
    written = [puts.format(so=_IS_SO)] if puts else []
    parts = ", ".join([*asked, checked, *written, *appended, _MARKED])
    return Translation(f"with {parts} select is_so from checked")


async def foretell(
    job: UnitJob, unit: PostgresUnit, lane: UnitLane, connection: Connection
) -> bool | None:
    """Run a batch in one statement; return False where it is to go on, None where it foretold none.

    Behind a pooler none is foretold: no `begin` sees whether the session is the same.

    Raises:
        Lost: the connection is; where the job is doubtful, the commit may have happened.
    """
    if type(connection) is PooledConnection:
        return None
    steps = steps_of(job, unit)
    if (asked := _foretold(steps)) is None:
        return None
    if lane.is_used:
        await send(connection, "reset all")
        lane.is_used = False
    job.result, job.topics, job.has_appended = steps.result, unit.topics, False
    try:
        told = await run(connection, *_statement(asked, unit))
    except PostgresFault as error:
        if is_lost(error):
            job.is_doubtful = True
            raise Lost(error) from error
        return False
    job.is_durable = told == [(True,)]
    return job.is_durable


def _foretold(steps: Steps) -> AskedForetold | None:
    """Drive a batch to its end, and return what it foretold; None where it did not, or goes on."""
    try:
        asked = steps.go()
        return asked if isinstance(asked, AskedForetold) and steps.go(True) is None else None
    except BaseException:  # noqa: BLE001 - it is raised again where the batch goes step by step
        return None
    finally:
        steps.close()


def _statement(asked: AskedForetold, unit: PostgresUnit) -> tuple[Translation, list[Any]]:
    streams, expected, *events = as_values(asked.appends)
    values: list[Any] = [streams, expected] if streams else []
    for condition in asked.conditions:
        values += condition.values
    values += [*asked.columns, *(events if streams else ()), unit.unit_id, unit.now_us]
    conditions = tuple(each.sql for each in asked.conditions)
    return plan_of(conditions, asked.puts, appends=bool(streams)), values
