"""Appends to the log in one statement: of one unit, or of all units of a group.

It reads the last version of each stream, inserts where that is the expected one, and tells what it
was. In a group or a batch the order of the log is held (see `postgres_transaction`), so that
positions are given in the same statement, and no turn of the sequencer is needed:

    the last event of the stream has a position, or there is none ─▶ the next ones of the log
    it has none yet: a unit committed it a moment ago               ─▶ none, the sequencer gives it

Else an event would be read before the one that it follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from synchromesh.store.postgres_dialect import Translation
from synchromesh.store.unit import SqlValue, StreamRows

LOG = "sm_event"
"""The table that it appends to."""

COLUMNS = {
    "id": "text", "name": "text", "type_version": "bigint", "body": "bytea", "is_public": "integer",
    "ordering_key": "text", "trace_id": "text", "recorded_us": "bigint",
    "readable_by_min": "bigint",
}  # fmt: skip
"""What an event is appended with, beside its stream and version, and the types."""

_NAMES = ", ".join(COLUMNS)


def as_rows(kinds: Iterable[str]) -> str:
    """Return what reads rows from an array of each kind, by one plan for arrays of any length.

    The planner looks into arrays that it is given, and makes a plan for their length, each time
    anew; what a subquery returns it takes as it comes.

    Example:
        >>> as_rows(["text", "bigint"])
        'unnest((select ?::text[]), (select ?::bigint[]))'
    """
    return f"unnest({', '.join(f'(select ?::{kind}[])' for kind in kinds)})"


_ASKED = f"""\
with asked as materialized (
    select number, given.stream, expected, coalesce(last.version, 0) as version,
        coalesce(last.is_numbered, true) as is_numbered
    from {as_rows(["text", "bigint"])} with ordinality as given(stream, expected, number)
    left join lateral (
        select version, position is not null as is_numbered from {LOG}
        where {LOG}.stream = given.stream order by version desc limit 1
    ) as last on true
), fit as materialized (
    select {_NAMES}, asked.stream, asked.version + nth as version, at,
        case when is_numbered then row_number() over (partition by is_numbered order by at) end
            as place
    from {as_rows(["bigint", "bigint", *COLUMNS.values()])}
        with ordinality as event(number, nth, {_NAMES}, at)
    join asked using (number) where asked.expected is null or asked.expected = asked.version
) """
_INSERTED = f"insert into {LOG}({{}}{_NAMES}, stream, version) select {{}}{_NAMES}, stream, version"
_TOLD = "select version, is_numbered from asked order by number"

APPEND = Translation(
    f"{_ASKED}, written as ({_INSERTED.format('', '')} from fit order by at) {_TOLD}", has_log=True
)
"""Appends to streams, without positions."""

APPEND_IN_ORDER = Translation(
    f"""{_ASKED}, moved as (
    update sm_log set last = last + (select count(place) from fit)
    where name = '{LOG}' and exists (select from fit where place is not null)
    returning last - (select count(place) from fit) as base
), written as (
    {_INSERTED.format("position, ", "(select base from moved) + place, ")} from fit order by at
) {_TOLD}"""
)
"""Appends to streams with positions, while the order of the log is held."""

# The table of turns is locked as a `begin` does it, and a row that another unit has inserted is
# waited for as `HURRIED` says: all of it in the one statement, which is a transaction.
APPEND_FORETOLD = Translation(
    f"""\
with checked as materialized (
    select set_config('lock_timeout', '250', true) is not null
        and not exists (select from sm_turn for share)
        and bool_and(coalesce(version = expected and is_numbered, expected = 0)) as is_so
    from {as_rows(["text", "bigint"])} as given(stream, expected)
    left join lateral (
        select version, position is not null as is_numbered from {LOG}
        where {LOG}.stream = given.stream order by version desc limit 1
    ) as last on true
), moved as (
    update sm_log set last = last + more from (select ?::bigint as more) as new
    where name = '{LOG}' and (select is_so from checked) returning last - more as base
), written as (
    insert into {LOG}(position, {_NAMES}, stream, version)
    select base + at, {_NAMES}, stream, version
    from moved cross join {as_rows([*COLUMNS.values(), "text", "bigint"])}
        with ordinality as event({_NAMES}, stream, version, at)
), marked as (
    insert into sm_commit(unit, at_us) select ?, ? from moved
) select count(*) from moved"""
)
"""Appends to streams with positions, and leaves the mark of the commit: all of it or nothing.

It tells 1 where each stream was at the version that was expected, and 0 where nothing was done.
"""

# Both sides need half the time for it.
APPEND_ONE_FORETOLD = Translation(
    f"""\
with checked as materialized (
    select set_config('lock_timeout', '250', true) is not null
        and not exists (select from sm_turn for share)
        and coalesce((
            select version = ? and position is not null from {LOG}
            where stream = ? order by version desc limit 1
        ), ?) as is_so
), moved as (
    update sm_log set last = last + 1
    where name = '{LOG}' and (select is_so from checked) returning last
), written as (
    insert into {LOG}(position, stream, version, {_NAMES})
    select last, ?, ?, {", ".join("?" * len(COLUMNS))} from moved
), marked as (
    insert into sm_commit(unit, at_us) select ?, ? from moved
) select count(*) from moved"""
)
"""The same for one event."""

# Checks the values of an event, with its stream, and names the statement that it is for.
_ROW = Translation(
    f"insert into {LOG}(stream, {_NAMES}) values ({', '.join('?' * (len(COLUMNS) + 1))})"
)


def refuse_events(appends: Sequence[StreamRows], *, path: str) -> None:
    """Refuse what the log cannot keep as it is: raise `StatementFailed`."""
    for stream, _, rows in appends:
        for row in rows:
            _ROW.refuse_values((stream, *row), path=path)


def as_values(appends: Sequence[StreamRows]) -> list[list[SqlValue]]:
    """Return the values of either statement, for streams with what is expected and appended.

    Events get positions in the order in which they are given, also where a stream comes again; what
    was expected at its first place counts.

    Example:
        >>> row = ("id", "shop.sold", 1, b"{}", 0, "", "", 5, 1)
        >>> as_values([("s/1", 0, [row]), ("s/2", None, [row]), ("s/1", None, [row])])[:4]
        [['s/1', 's/2'], [0, None], [1, 2, 1], [1, 1, 2]]
    """
    streams: dict[str, tuple[int, int | None]] = {}
    numbers: list[SqlValue] = []
    nths: list[SqlValue] = []
    columns: list[list[SqlValue]] = [[] for _ in COLUMNS]
    given: list[int] = []
    for stream, version, rows in appends:
        if stream not in streams:
            streams[stream] = len(given) + 1, version
            given.append(0)
        number, _ = streams[stream]
        for row in rows:
            given[number - 1] += 1
            numbers.append(number)
            nths.append(given[number - 1])
            for column, value in zip(columns, row, strict=True):
                column.append(value)
    expected: list[SqlValue] = [version for _, version in streams.values()]
    return [[*streams], expected, numbers, nths, *columns]


def foretold(
    appends: Sequence[StreamRows], mark: str, now_us: int
) -> tuple[Translation, list[Any]]:
    """Return the statement, with its values, that appends to streams at versions, each once.

    Example:
        >>> row = ("id", "shop.sold", 1, b"{}", 0, "", "", 5, 1)
        >>> foretold([("s/1", 0, [row, row]), ("s/2", 7, [row])], "u-1", 5)[1][-4:]
        [['s/1', 's/1', 's/2'], [1, 2, 8], 'u-1', 5]
        >>> foretold([("s/1", 7, [row])], "u-1", 5)[1][:6]
        [7, 's/1', False, 's/1', 8, 'id']
    """
    stream, expected, rows = appends[0]
    if len(appends) == len(rows) == 1:
        checked = (expected, stream, expected == 0)
        at = (stream, (expected or 0) + 1)
        return APPEND_ONE_FORETOLD, [*checked, *at, *rows[0], mark, now_us]
    events = [
        (*row, stream, version)
        for stream, expected, rows in appends
        for version, row in enumerate(rows, (expected or 0) + 1)
    ]
    streams = [stream for stream, _, _ in appends]
    versions = [version for _, version, _ in appends]
    columns = map(list, zip(*events, strict=True))
    return APPEND_FORETOLD, [streams, versions, len(events), *columns, mark, now_us]
