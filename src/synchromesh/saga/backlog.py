"""The backlog of an engine: runs that are in its store, have to go on, and are not in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence

from synchromesh.errors import SagaError
from synchromesh.saga import tables
from synchromesh.saga.records import SagaRecord, SagaStatus
from synchromesh.saga.shards import RunFence
from synchromesh.saga.tables import SagaRow
from synchromesh.store import Row, StoreReader, Unit

_UNFINISHED = (
    f"select id, status from sm_saga where {tables.UNFINISHED_SQL} and {tables.OWN} "
    "order by started_us, id"
)


class Backlog:
    """Holds the ids of a backlog, each with those before it: nothing else of a run is in memory.

    Attributes:
        queued: those that were started when there was no place.
        interrupted: those that a process left.

    Example:
        >>> backlog = Backlog()
        >>> backlog.queued["A-1"] = None
        >>> backlog.take(queued=5, interrupted=5), backlog
        (['A-1'], <Backlog 0 queued, 0 interrupted>)
    """

    def __init__(self) -> None:
        self.queued: OrderedDict[str, None] = OrderedDict()
        self.interrupted: OrderedDict[str, None] = OrderedDict()

    def take(self, *, queued: int, interrupted: int) -> list[str]:
        """Take so many out at most, the oldest first."""
        taken = [self.queued.popitem(last=False)[0] for _ in range(min(queued, len(self.queued)))]
        count = min(interrupted, len(self.interrupted))
        return taken + [self.interrupted.popitem(last=False)[0] for _ in range(count)]

    def put_back(self, ids: Sequence[str]) -> None:
        """Put some back that were taken; which kind they are is seen when they are loaded."""
        for each in reversed(ids):
            self.interrupted[each] = None
            self.interrupted.move_to_end(each, last=False)

    def drop(self, id: str) -> None:  # noqa: A002
        """Take one out."""
        self.queued.pop(id, None)
        self.interrupted.pop(id, None)

    def clear(self) -> None:
        """Take all out."""
        self.queued.clear()
        self.interrupted.clear()

    def __contains__(self, id: str) -> bool:  # noqa: A002
        return id in self.queued or id in self.interrupted

    def __repr__(self) -> str:
        return f"<Backlog {len(self.queued)} queued, {len(self.interrupted)} interrupted>"


async def unfinished(store: StoreReader, mask: int) -> list[tuple[str, bool]]:
    """Return the ids of the runs of own shards that have to go on, the oldest first.

    With each is said whether it is queued.

    No more of them is read, for there may be very many.
    """
    rows = await store.read(_UNFINISHED, mask)
    return [(str(each), status == SagaStatus.QUEUED._value_) for each, status in rows]


async def not_ended(store: StoreReader) -> list[str]:
    """Return the ids of all runs that have not ended, also of those that sleep or are stuck."""
    rows = await store.read(
        f"select id from sm_saga where {tables.UNFINISHED_SQL} union "
        "select id from sm_saga where status = 'stuck' union "
        "select id from sm_saga where wake_us is not null order by id"
    )
    return [str(each) for (each,) in rows]


async def last_ended(store: StoreReader, limit: int) -> list[str]:
    """Return the ids of runs that have ended, the newest first."""
    rows = await store.read(
        "select id from sm_saga where status in ('completed', 'undone') and ended_us is not null "
        "order by ended_us desc limit ?",
        limit,
    )
    return [str(each) for (each,) in rows]


async def with_records(
    store: StoreReader, ids: Sequence[str]
) -> list[tuple[SagaRow, list[SagaRecord] | SagaError]]:
    """Return runs in the order of their ids, with their records, or with why these cannot be read.

    Two statements read them, however many they are. One that is not there is left out.
    """
    if not ids:
        return []  # PostgreSQL has no empty list
    holes = ", ".join("?" * len(ids))
    rows = await store.read(f"select {tables.COLUMNS} from sm_saga where id in ({holes})", *ids)
    found = {str(row[0]): tables.row_of(row) for row in rows}
    rows_of: dict[str, list[Row]] = {each: [] for each in ids}
    for saga, *row in await store.read(
        f"select saga, {tables.RECORD_COLUMNS} from sm_saga_record where saga in ({holes}) "
        "order by saga, seq",
        *ids,
    ):
        rows_of[str(saga)].append(tuple(row))
    told: list[tuple[SagaRow, list[SagaRecord] | SagaError]] = []
    for each, its in rows_of.items():
        if each in found:
            try:
                told.append((found[each], [one.record for one in tables.in_order(each, its)]))
            except SagaError as error:
                told.append((found[each], error))
    return told


async def leave_queue(unit: Unit, rows: Iterable[SagaRow], fence: RunFence) -> Collection[int]:
    """Say of runs that they are in the queue no more; one that has changed is left as it is.

    So are those of shards that are this engine's no more, which are returned.
    """
    lost = await fence.lost(unit)
    await unit.execute_many(
        "update sm_saga set status = 'running' where id = ? and status = 'queued'",
        [(row.id,) for row in rows if row.shard not in lost],
    )
    return lost
