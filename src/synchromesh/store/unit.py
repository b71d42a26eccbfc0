"""The interface of a service's database: units of work, queries, notifications.

These Protocols are implemented by SQLite here and by PostgreSQL beside it. SQL is written once, for
both: `?` marks a value, and a schema's `{blob}`, `{position}`, `{log_position}`, `{keyed}` and
`{json_array}` stand for what is the engine's own. A log position is given in the order of commits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import msgspec

from synchromesh.durations import FROM_0, FROM_1, refuse_wrong_numbers
from synchromesh.errors import ContractError
from synchromesh.sealing import SubjectKeys, SubjectRecord, Vault
from synchromesh.store.backup import Backup
from synchromesh.store.dialect import Dialect
from synchromesh.tuples import to_tuple

T = TypeVar("T")

SqlValue: TypeAlias = str | int | float | bytes | None
Row: TypeAlias = tuple[SqlValue, ...]
StreamRows: TypeAlias = tuple[str, int | None, Sequence[Sequence[SqlValue]]]
"""A stream, the version that it has to be at, None for any, and what is appended to it."""

OURS = "synchromesh."
"""How the owners of Synchromesh's own tables begin."""


class Fetched(NamedTuple):
    """Rows with the names of their columns, as the statement gives them."""

    columns: tuple[str, ...]
    rows: list[Row]


class Unit(Protocol):
    """A unit of work: all that it executes commits together, or nothing does.

    It is serializable against every other unit of the service (I1). Its body may await nothing but
    the unit itself (I2) and may be run again, after a conflict or when a unit that shares its
    commit is undone, so it has no effects of its own.
    """

    @property
    def unit_id(self) -> str:
        """The id by which a commit is looked up whose answer was lost (I3)."""
        ...

    @property
    def now_us(self) -> int:
        """The wall clock when the unit began, in microseconds since 1970 UTC."""
        ...

    @property
    def service(self) -> str:
        """The service that owns the database."""
        ...

    @property
    def vault(self) -> Vault:
        """The keys of the service's subjects."""
        ...

    def new_id(self) -> str:
        """Return a new UUIDv7. A unit that is run again gets another one."""
        ...

    async def execute(self, sql: str, *values: SqlValue) -> list[Row]:
        """Run one statement and return its rows."""
        ...

    async def fetch(self, sql: str, *values: SqlValue) -> Fetched:
        """Run one statement and return its rows with the names of their columns."""
        ...

    async def execute_many(self, sql: str, rows: Sequence[Sequence[SqlValue]]) -> None:
        """Run one statement for each row of values, in their order; no rows come back.

        Where one is refused, those before it stand as long as the unit goes on.
        """
        ...

    def notify(self, topic: str) -> None:
        """Notify the listeners of a topic after the commit: a hint to look, never data."""
        ...


class Condition(NamedTuple):
    """What has to hold for a batch: an expression in the engine's own SQL, with its values."""

    sql: str
    values: Sequence[object]


class ArrayUnit:
    """A unit whose engine takes arrays: many rows in one statement, as one costs a trip.

    Units that do nothing but append may share that statement with others, and their commit.
    """

    __slots__ = ()

    @abstractmethod
    async def append_streams(self, appends: Sequence[StreamRows], *, is_each: bool) -> list[int]:
        """Append to streams that are at the versions expected; return which those were.

        A stream that comes again goes on there; its version is returned once. A row is an event's
        id, name, type version, body, whether it is public, partition key, trace, time and oldest
        version that reads it. With `is_each` the units of that name are batches, and give positions
        themselves from the next one on.
        """
        ...

    @abstractmethod
    async def execute_arrays(self, sql: str, *columns: Sequence[SqlValue]) -> list[Row]:
        """Run one statement, in the engine's own SQL, whose values are arrays; return its rows."""
        ...

    @abstractmethod
    async def foretell(
        self,
        conditions: Sequence[Condition],
        puts: str,
        columns: Sequence[Sequence[SqlValue]],
        appends: Sequence[StreamRows],
    ) -> bool:
        """Write, and append to streams, if conditions hold; return False if nothing was written.

        `puts` are parts of a statement, whose values are arrays, each of which writes only where
        `{so}` holds. Once True is returned the unit is over: it may be told so before it is sent.
        With False it goes on, and does the same step by step.
        """
        ...


class Unprepared(BaseException):
    """Raised within a unit that needs work done before it: it is rolled back, and run again.

    The store awaits `prepare` outside of any unit, while others may write, and then runs the body
    anew. It is no `Exception`, so that what a unit catches does not hold it.

    Args:
        key: what is prepared, for the store's message where it never ends.
        prepare: the work; it is given the store, and may be cancelled.

    Example:
        >>> Unprepared("order/7", lambda store: store.close()).key
        'order/7'
    """

    def __init__(self, key: str, prepare: Callable[[Store], Awaitable[None]]) -> None:
        super().__init__(key)
        self.key = key
        self.prepare = prepare


class InboxState(Enum):
    """The state of a call under its inbox key."""

    BEGUN = "begun"  # it has had an effect and is not concluded: its request is recorded
    ANSWER = "answer"  # it answered; the answer is recorded
    REJECTION = "rejection"  # a business no; the problem is recorded
    TOMBSTONE = "tombstone"  # undone before it came: it must never run


# Structs, because each unit under a key makes both: a frozen dataclass costs ten times as much.


class Recorded(msgspec.Struct, frozen=True, gc=False):
    """The inbox record of a key, with the JSON of its answer, rejection or request."""

    kind: InboxState
    digest: str
    body: bytes


class Once(msgspec.Struct, frozen=True, gc=False):
    """The idempotency key of a unit, and the digest that tells its input from another.

    The record is kept for `keep_s` seconds, longer than anyone may still ask under the key.

    Example:
        >>> Once(caller="orders", key="delivery-1", digest="3 SX90").keep_s
        604800.0
    """

    caller: str
    key: str
    digest: str
    keep_s: float = 7 * 86_400.0


class KeyReader(Protocol):
    """Reads what is known of the subjects whose personal values a database has, never a value."""

    def subjects(self, *, is_erased: bool, limit: int) -> list[SubjectRecord]:
        """Return subjects, those that came or were erased last first; none where no keys are.

        Raises:
            StoreError: they cannot be read.
        """
        ...

    def find(self, subject: str) -> SubjectRecord | None:
        """Return what is known of a subject; None for nothing. Raises StoreError."""
        ...

    def accesses(self, subject: str, limit: int = 100) -> list[tuple[int, str, str]]:
        """Return when, to whom and why the values of a subject were shown, the last first."""
        ...

    def faults(self, expected: str) -> list[str]:
        """Return what is wrong with the keys, of which the database knows the id."""
        ...


class Beside(Protocol):
    """What is done with a database beside the loop that serves on it, however long it takes."""

    def now_us(self) -> int:
        """Return the wall clock, microseconds since 1970 UTC."""
        ...

    def keys(self) -> KeyReader:
        """Return a reader of the keys of its personal values."""
        ...

    async def reader(self) -> StoreReader:
        """Open the database once more: what this reader is asked holds up nobody on the loop.

        Cancelling who asks it ends the statement. It has to be closed.

        Raises:
            StoreError: it cannot be read.
        """
        ...

    async def others(self) -> list[str]:
        """Return where the databases of other services are that are found beside this one."""
        ...

    async def back_up(self, folder: Path, *, system: str) -> Backup:
        """Copy the database, which may be in use, to a new folder below `folder`.

        Raises:
            BadRequest: the engine's own tools make backups of it.
            StoreFull: there is no room for it; nothing is kept.
            StoreError: it cannot be read, or the folder not be written; nothing is kept.
        """
        ...


class Fence(Protocol):
    """The right to write what certain duties write, as it was when it was asked for."""

    async def lost(self, unit: Unit) -> Collection[str]:
        """Return, within a unit, those that are this process's no more.

        None of the others is taken over before the unit has ended.
        """
        ...

    async def check(self, unit: Unit) -> None:
        """Raise `Fenced`, within a unit, where any of them is this process's no more."""
        ...

    def condition(self) -> Condition | None:
        """Return what holds within a unit where `lost` returns none; None where that cannot be."""
        ...


class DutyHandler(Protocol):
    """Does duties as long as they are this process's."""

    def gained(self, duties: Collection[str]) -> None:
        """Begin to do some."""
        ...

    async def lost(self, duties: Collection[str]) -> None:
        """Release some duties, and return once nothing of them goes on."""
        ...


class Owners(Protocol):
    """Says which duties are this process's: what one of those that write a database does for all.

    A relay is a duty, a projection, a schedule, or a shard of sagas.
    """

    @property
    def is_sole(self) -> bool:
        """Whether all duties are, for as long as the database is."""
        ...

    async def run(self, duty: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run what does a duty, whenever that is this process's. It returns or raises as it does.

        Once the duty is lost the work is cancelled.
        """
        ...

    async def add(self, duties: Collection[str], handler: DutyHandler) -> None:
        """Do duties from now on, as far as they are this process's; returns after a first look."""
        ...

    async def remove(self, duties: Collection[str]) -> None:
        """Do duties no more; returns once nothing of them goes on."""
        ...

    def epoch(self, duty: str) -> int:
        """Return under which epoch a duty is this process's; 0 where it is not."""
        ...

    def fence(self, duties: Iterable[str]) -> Fence:
        """Return what checks within a unit that duties are this process's still."""
        ...


class StoreReader(Protocol):
    """The committed state of a service's database, whichever process owns it, if any."""

    @property
    def service(self) -> str:
        """The service that owns the database."""
        ...

    @property
    def log_id(self) -> str:
        """The id of the event log in it; new after a restore."""
        ...

    @property
    def dialect(self) -> Dialect:
        """What differs in the SQL of its engine."""
        ...

    async def read(self, sql: str, *values: SqlValue) -> list[Row]:
        """Query the committed state.

        Raises:
            StoreUnavailable: the file fails; it is opened again by itself.
        """
        ...

    async def fetch(self, sql: str, *values: SqlValue) -> Fetched:
        """Query the committed state; the rows come with the names of their columns."""
        ...

    @property
    def place(self) -> str:
        """Where the database is."""
        ...

    @property
    def beside(self) -> Beside:
        """What may take long, beside who serves."""
        ...

    async def reaches(self, place: str) -> bool:
        """Try to reach another service's database over this one's connection (P1)."""
        ...

    async def close(self) -> None:
        """Release the database. Idempotent."""
        ...


class Store(StoreReader, Protocol):
    """The database of one service, owned by this process."""

    @property
    def vault(self) -> SubjectKeys:
        """The keys of the service's subjects."""
        ...

    @property
    def owners(self) -> Owners:
        """Which duties are this process's."""
        ...

    @property
    def full(self) -> tuple[float, str] | None:
        """When a unit was refused last for want of room, on the loop's clock, and why."""
        ...

    @property
    def broken(self) -> str | None:
        """Why it cannot be used for now; None where it can. The topic `OUTAGE` tells of both."""
        ...

    async def write(self, body: Callable[[Unit], Awaitable[T]], *, name: str) -> T:
        """Run a unit of work and return its result once it is durable (E4).

        `name` is what the watchdog calls it. Cancelling the caller does not cancel the unit. A body
        that raises `Unprepared` is run again once what it asks for is done.

        Raises:
            ForeignAwait: the body awaited something else than the unit.
            UnitTooLong: it outlived the limit.
            StoreUnavailable: the file fails; it is opened again by itself.
            StoreError: the engine refused; nothing of the unit was written.
        """
        ...

    async def write_once(
        self, body: Callable[[Unit], Awaitable[bytes]], once: Once, *, name: str
    ) -> Recorded:
        """Run an idempotent unit: record its answer in its commit, or return the earlier record.

        A `Rejection` that the body raises rolls back what it executed and is recorded as REJECTION
        (the JSON of `errors.to_problem`). A BEGUN record is replaced by the conclusion. Any other
        error rolls back everything and is raised; nothing is recorded.

        Raises:
            KeyReused: the key is recorded with another digest (a tombstone has none).
        """
        ...

    def listen(self, topic: str, listener: Callable[[], None]) -> Callable[[], None]:
        """Subscribe to commits that notify a topic: `listener` runs on the loop; returns `stop`."""
        ...

    async def close(self) -> None:
        """Finish queued units, close the file and release its lock. Idempotent."""
        ...


async def log_id_of(unit: Unit) -> str:
    """Return, within a unit, what `Store.log_id` is."""
    return str((await unit.execute("select value from sm_meta where name = 'log_id'"))[0][0])


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of a schema, applied atomically (P2).

    `readable_by_min` is the oldest schema version whose code may still use the database after it.

    Example:
        >>> first = Migration(1, ("create table stock(sku text primary key)",), readable_by_min=1)
        >>> add_qty = ("alter table stock add column qty integer not null default 0",)
        >>> second = Migration(2, add_qty, readable_by_min=1)  # code of version 1 may go on
    """

    version: int
    statements: tuple[str, ...]
    readable_by_min: int

    def __post_init__(self) -> None:
        refuse_wrong_numbers(self, (FROM_1, "version"), (FROM_0, "readable_by_min"))
        what = f"migration {self.version}: statements"
        statements = to_tuple(self.statements, what)
        odd = [each for each in statements if not isinstance(each, str)]
        if odd:
            raise ContractError(f"{what} has {odd[0]!r:.60}; give SQL, a text for each statement")
        object.__setattr__(self, "statements", statements)


@dataclass(frozen=True, slots=True)
class Schema:
    """Holds the tables of one owner (a room, or the service itself): ascending migrations from 1.

    Example:
        >>> Schema("inventory", (Migration(1, ("create table stock(sku text)",), 1),)).owner
        'inventory'
    """

    owner: str
    migrations: tuple[Migration, ...]
