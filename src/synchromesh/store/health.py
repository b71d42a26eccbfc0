"""What a database is made of, whether it is whole, and whether it is the service's alone.

These are questions to a `StoreReader`. Some go through every page, so that they are asked on a
connection of their own, beside the loop.
"""

from __future__ import annotations

import re

import msgspec

from synchromesh.errors import StoreBroken, StoreError
from synchromesh.store.rows import fetch_as
from synchromesh.store.unit import OURS, Store, StoreReader, Unit

DAY_US = 86_400_000_000
CHANGES_SHOWN = 5

TABLES = (
    (
        "create table sm_change(at_us bigint not null, what text not null, who text not null, "
        "why text not null)"
    ),
    "create table sm_size(at_us bigint primary key, bytes bigint not null)",
    (
        "create table sm_retention(what text primary key, keep_s double precision not null, "
        "cursor bigint not null, removed bigint not null, held_by text not null, "
        "swept_us bigint not null)"
    ),
)
"""Changes by hand, the sizes that the file had, and what is forgotten after which time."""

_MADE = re.compile(
    r"create\s+(?:virtual\s+)?table\s+(?:if\s+not\s+exists\s+)?\"?(\w+)", re.IGNORECASE
)
# The columns that say when a row came, in our tables and in those of services that name them so.
_TIMES = ("recorded_us", "started_us", "parked_us", "held_us", "taken_us", "at_us", "created_us")
_UNWATCHED = "select value from sm_meta where name = 'unwatched_us'"


class TableSize(msgspec.Struct, frozen=True):
    """A table: who owns it, its rows, its bytes with its indexes; None where nobody counts them.

    `rows_a_day` is how many of its rows are of the last day, where they have a time.
    """

    name: str
    owner: str
    rows: int
    rows_a_day: int | None = None
    bytes: int | None = None


class ChangeByHand(msgspec.Struct, frozen=True):
    """What somebody did to the database by hand, and why."""

    at_us: int
    what: str
    who: str
    why: str


class Retained(msgspec.Struct, frozen=True):
    """What is forgotten after a time: how much of it has gone, and what it waits for, if anything.

    `cursor` is how far the log has been looked through; of what is no log it is 0.
    """

    what: str
    keep_s: float
    cursor: int
    removed: int
    held_by: str
    swept_us: int


class Contents(msgspec.Struct, frozen=True):
    """What a database holds.

    Attributes:
        bytes: of all of it, what is free in it too; without the write-ahead log.
        bytes_a_day: how fast it grows, as the last week has it; None before there are two sizes.
        versions: of the tables, by their owner.
        changes: the last ones that were made by hand.
    """

    log_id: str
    bytes: int
    free_bytes: int
    bytes_a_day: int | None
    versions: dict[str, int]
    tables: list[TableSize]
    retention: list[Retained]
    changes: list[ChangeByHand]


class _Size(msgspec.Struct):
    used: int
    free: int


class _Applied(msgspec.Struct):
    owner: str
    version: int
    statements: str


async def bytes_of(reader: StoreReader) -> int:
    """Return the bytes of all of a database, as its engine counts them.

    Raises:
        StoreError: it cannot be read.
    """
    (size,) = await fetch_as(reader, _Size, reader.dialect.size, ())
    return size.used


async def contents_of(reader: StoreReader, *, now_us: int) -> Contents:
    """Return what a database holds; it counts all rows, which takes a while where there are many.

    Raises:
        StoreError: it cannot be read.
    """
    (size,) = await fetch_as(reader, _Size, reader.dialect.size, ())
    applied = await _applied(reader)
    owners = {
        table: each.owner
        for each in applied
        for statement in msgspec.json.decode(each.statements, type=list[str])
        for table in _MADE.findall(statement)
    }
    sizes = await _bytes_of_tables(reader)
    tables = []
    for name in await fetch_as(reader, str, reader.dialect.tables, ()):
        quoted = _quoted(name)
        (count,) = await fetch_as(reader, int, f"select count(*) from {quoted}", ())
        owner = owners.get(name, f"{OURS}store")
        a_day = await _rows_since(reader, name, quoted, now_us - DAY_US)
        tables.append(TableSize(name, owner, count, a_day, sizes.get(name)))
    return Contents(
        log_id=reader.log_id,
        bytes=size.used,
        free_bytes=size.free,
        bytes_a_day=await _growth(reader, size.used),
        versions={each.owner: each.version for each in applied},
        tables=tables,
        retention=await fetch_as(reader, Retained, "select * from sm_retention order by what", ()),
        changes=await fetch_as(
            reader,
            ChangeByHand,
            "select * from sm_change order by at_us desc limit ?",
            (CHANGES_SHOWN,),
        ),
    )


async def faults_of(reader: StoreReader) -> list[str]:
    """Return what is wrong with a database: pages, references, records of migrations.

    Raises:
        StoreError: it cannot be read at all.
    """
    faults = []
    for sql in reader.dialect.faults:
        faults += await fetch_as(reader, str, sql, ())
    if reader.dialect.scan:
        for table in await fetch_as(reader, str, reader.dialect.tables, ()):
            try:
                await reader.read(reader.dialect.scan.format(table=_quoted(table)))
            except StoreBroken as error:
                faults.append(f"damaged: table {table} cannot be read: {error.message}")
    versions: dict[str, list[int]] = {}
    for each in await _applied(reader):
        versions.setdefault(each.owner, []).append(each.version)
    for owner, found in versions.items():
        if found != list(range(1, len(found) + 1)):
            faults.append(f"the migrations of {owner} that were applied are {found}; some are lost")
    return faults


async def isolation_faults(reader: StoreReader) -> list[str]:
    """Try to reach other services' databases by a service's connection; return what was (P1)."""
    return [
        f"not isolated: the connection of {reader.service} reaches {other}"
        for other in await reader.beside.others()
        if await reader.reaches(other)
    ]


async def _applied(reader: StoreReader) -> list[_Applied]:
    sql = "select owner, version, statements from sm_migration order by owner, version"
    return await fetch_as(reader, _Applied, sql, ())


async def _rows_since(reader: StoreReader, table: str, quoted: str, since_us: int) -> int | None:
    columns = await fetch_as(reader, str, reader.dialect.columns, (table,))
    timed = next((each for each in _TIMES if each in columns), None)
    if timed is None:
        return None
    sql = f"select count(*) from {quoted} where {timed} >= ?"
    (count,) = await fetch_as(reader, int, sql, (since_us,))
    return count


async def _bytes_of_tables(reader: StoreReader) -> dict[str, int]:
    """Return the bytes of each table with its indexes; nothing where the engine does not count."""
    try:
        rows = await reader.read(reader.dialect.table_sizes)
    except StoreError:
        return {}
    return {str(name): int(size or 0) for name, size in rows}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


async def _growth(reader: StoreReader, now: int) -> int | None:
    """Return the bytes a day by which the database has grown since the oldest size of a week."""
    sizes = await reader.read(
        "select at_us, bytes from sm_size where at_us >= "
        "(select max(at_us) from sm_size) - ? order by at_us",
        7 * DAY_US,
    )
    if len(sizes) < 2:
        return None
    (began_us, first), (ended_us, _) = sizes[0], sizes[-1]
    took_us = int(ended_us or 0) - int(began_us or 0)
    return round((now - int(first or 0)) * DAY_US / took_us) if took_us else None


async def retained(reader: StoreReader, what: str) -> Retained | None:
    """Return what is noted of something that is forgotten after a time."""
    found = await fetch_as(reader, Retained, "select * from sm_retention where what = ?", (what,))
    return found[0] if found else None


async def note_retention(
    unit: Unit, what: str, *, keep_s: float, cursor: int, removed: int, held_by: str, now_us: int
) -> None:
    """Note in a unit what it has forgotten, and how far it has looked."""
    await unit.execute(
        "insert into sm_retention(what, keep_s, cursor, removed, held_by, swept_us) "
        "values (?, ?, ?, ?, ?, ?) on conflict(what) do update set keep_s = excluded.keep_s, "
        "cursor = excluded.cursor, removed = sm_retention.removed + excluded.removed, "
        "held_by = excluded.held_by, swept_us = excluded.swept_us",
        what,
        keep_s,
        cursor,
        removed,
        held_by,
        now_us,
    )


async def note_size(store: Store, now_us: int) -> None:
    """Note the size of the database, and forget what it was a month ago."""
    (size,) = await fetch_as(store, _Size, store.dialect.size, ())

    async def body(unit: Unit) -> None:
        await unit.execute(
            "insert into sm_size(at_us, bytes) values (?, ?) on conflict(at_us) do nothing",
            now_us,
            size.used,
        )
        await unit.execute("delete from sm_size where at_us < ?", now_us - 30 * DAY_US)

    await store.write(body, name="note the size")


async def unwatched_us(unit: Unit, now_us: int, *, longest_us: int) -> int:
    """Return how much of the time by the wall clock nobody has watched, in all.

    Between two sizes that are further apart than `longest_us` the service was down, or somebody
    set the clock; the two cannot be told apart.
    """
    (last_us,) = await fetch_as(unit, int, "select coalesce(max(at_us), 0) from sm_size", ())
    found = await fetch_as(unit, str, _UNWATCHED, ())
    total_us = int(found[0]) if found else 0
    if last_us and now_us - last_us > longest_us:
        total_us += now_us - last_us
        await unit.execute(
            "insert into sm_meta(name, value) values ('unwatched_us', ?) "
            "on conflict(name) do update set value = excluded.value",
            str(total_us),
        )
    return total_us
