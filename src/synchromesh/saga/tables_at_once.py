"""What a batch of runs reads and writes most, in one statement each, where the engine takes arrays.

It is the engine's own SQL, PostgreSQL's: each table a part of one statement. Its parts see the
tables as they were before it, so that no row is inserted and changed by the same one.

An array comes by a subquery, into which the planner does not look, and `limit` keeps to the index:
so the plan is made once, and is good for any number of runs, also where it was made while the table
was small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from synchromesh.events import NewEvent
from synchromesh.store import ArrayUnit, Condition, SqlValue, StreamRows

_RUN = {
    "id": "text", "name": "text", "version": "integer", "lock_key": "text", "digest": "text",
    "input": "bytea", "status": "text", "reason": "text", "owner": "text", "trace_id": "text",
    "span_id": "text", "caller": "text", "principal": "text", "deadline_us": "bigint",
    "result": "bytea", "started_us": "bigint", "ended_us": "bigint", "shard": "integer",
}  # fmt: skip
_RECORD = {
    "saga": "text", "seq": "integer", "kind": "text", "step": "text", "attempt": "integer",
    "digest": "text", "body": "bytea", "at_us": "bigint",
}  # fmt: skip
_END = {"status": "text", "result": "bytea", "ended_us": "bigint", "id": "text"}
_COUNT = {"status": "text", "count": "bigint"}


def _rows(columns: dict[str, str]) -> str:
    """Return what reads rows from an array for each column."""
    return f"unnest({', '.join(f'(select ?::{each}[])' for each in columns.values())})"


_FOUND = """\
select there.id, there.name, there.digest from unnest((select ?::text[])) as asked(id)
cross join lateral (
    select id, name, digest from sm_saga where sm_saga.id = asked.id limit 1
) as there"""
_STARTED = f"""\
started as (
    insert into sm_saga({", ".join(_RUN)}) select * from {_rows(_RUN)} where {{so}}
)"""
_RECORDED = f"""\
recorded as (
    insert into sm_saga_record({", ".join(_RECORD)}) select * from {_rows(_RECORD)} where {{so}}
)"""
# A run that ends is inserted as it is, so that it is its key by which the row is found and changed:
# a plan of `update ... from` made for a small table reads all of it, and is in conflict with all.
_ENDED = f"""\
ended as (
    insert into sm_saga({", ".join(_RUN)})
    select {", ".join(f"new.{each}" if each in _END else f"was.{each}" for each in _RUN)}
    from {_rows(_END)} as new({", ".join(_END)}) cross join lateral (
        select * from sm_saga where sm_saga.id = new.id limit 1
    ) as was where {{so}}
    on conflict(id) do update set status = excluded.status, result = excluded.result,
        ended_us = excluded.ended_us, wake_us = null
), counted as (
    insert into sm_saga_count({", ".join(_COUNT)}) select * from {_rows(_COUNT)} where {{so}}
    on conflict(status) do update set count = sm_saga_count.count + excluded.count
), forgotten as (
    delete from sm_saga_signal where saga = any((select ?::text[])::text[]) and {{so}}
)"""
PUTS = f"{_STARTED}, {_RECORDED}, {_ENDED}"
"""What a batch writes, as parts of a statement, each where `{so}` holds."""

_NONE_THERE = f"not exists ({_FOUND})"

STATEMENTS = (_FOUND, f"with {PUTS.format(so='true')} select")
"""All statements, with all parts."""

_Rows = Sequence[tuple[SqlValue, ...]]


async def found(unit: ArrayUnit, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return name and digest of the runs that are there already."""
    rows = await unit.execute_arrays(_FOUND, ids)
    return {str(id_): (str(name), str(digest)) for id_, name, digest in rows}


class Rows(NamedTuple):
    """Rows of runs, records, ends of runs that are there already, and what is counted of them."""

    starts: _Rows
    records: _Rows
    ends: _Rows
    counts: Sequence[tuple[str, int]]


class Gathered(NamedTuple):
    """What parts write: rows, changes to runs that are there, and milestones.

    `changes` are signals that are taken, runs that fall asleep, and other turns.
    """

    rows: Rows
    changes: tuple[_Rows, _Rows, _Rows]
    milestones: list[tuple[str, NewEvent]]

    @property
    def is_one_by_one(self) -> bool:
        """Whether a run that starts is changed, too."""
        changed = {row[-1] for rows in (*self.changes[1:], self.rows.ends) for row in rows}
        return not changed.isdisjoint(start[0] for start in self.rows.starts)

    @property
    def is_plain(self) -> bool:
        """Whether runs start, go on and end, and do nothing else."""
        return not any(self.changes) and not self.is_one_by_one


async def put(unit: ArrayUnit, rows: Rows) -> None:
    """Write them all."""
    puts, columns = _parts_of(rows)
    if puts:
        await unit.execute_arrays(f"with {puts.format(so='true')} select", *columns)


async def foretell(
    unit: ArrayUnit, owned: Condition, rows: Rows, appends: Sequence[StreamRows]
) -> bool:
    """Write them all, and append to streams, where no run that starts is there, and all are owned.

    Return False if nothing was written, as `ArrayUnit.foretell` says.
    """
    conditions = [owned]
    if rows.starts:
        conditions.append(Condition(_NONE_THERE, [[start[0] for start in rows.starts]]))
    return await unit.foretell(conditions, *_parts_of(rows), appends)


def _parts_of(rows: Rows) -> tuple[str, list[Sequence[SqlValue]]]:
    """Return the parts of the statement for what there is to write, and their arrays."""
    puts: list[str] = []
    columns: list[Sequence[SqlValue]] = []
    if rows.starts:
        puts.append(_STARTED)
        columns += map(list, zip(*rows.starts, strict=True))
    if rows.records:
        puts.append(_RECORDED)
        columns += map(list, zip(*rows.records, strict=True))
    if rows.ends:
        puts.append(_ENDED)
        columns += map(list, zip(*rows.ends, strict=True))
        columns += map(list, zip(*rows.counts, strict=True))
        columns.append([end[-1] for end in rows.ends])
    return ", ".join(puts), columns
