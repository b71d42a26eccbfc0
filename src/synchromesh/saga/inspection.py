"""Reads the runs of a service's sagas, of a running service or a stopped one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from synchromesh.errors import BadRequest, UnknownSaga
from synchromesh.saga import tables
from synchromesh.saga.history import SagaHistory, SagaSummary, SagaTeller, summarize
from synchromesh.saga.records import SagaStatus
from synchromesh.saga.repair import RepairImpact
from synchromesh.saga.tables import SagaRow, StoredRecord, UnreadableRecord
from synchromesh.store import Store, StoreReader

LISTED_MAX = 10_000
# Records that are read in one turn of the loop: some 3 ms.
PART = 250
_OLDEST = (
    f"select status, min(started_us) from sm_saga where {tables.UNFINISHED_SQL} group by status "
    "union all select 'stuck', min(started_us) from sm_saga where status = 'stuck'"
)


async def oldest_runs(reader: StoreReader) -> dict[str, int]:
    """Return when the oldest run started that has not ended, by its status, in microseconds.

    Those that sleep do so on purpose, and are left out. It costs a step a run that is under way.
    """
    rows = await reader.read(_OLDEST)
    return {str(status): int(str(at)) for status, at in rows if at is not None}


async def list_runs(reader: StoreReader, status: str = "", limit: int = 100) -> list[SagaSummary]:
    """Return the newest runs, of one status; "" is any.

    Raises:
        BadRequest: there is no such status, or the limit is not 1 to 10,000.
    """
    wanted = {each.value: each for each in SagaStatus}
    if status and status not in wanted:
        raise BadRequest(f"no saga status is {status!r}; known: {', '.join(wanted)}")
    if not 1 <= limit <= LISTED_MAX:
        raise BadRequest(f"limit is {limit}; use 1 to {LISTED_MAX}")
    found = await tables.latest(reader, wanted[status] if status else None, limit)
    return [summarize(row, records) for row, records in found]


async def impact_of(reader: StoreReader, id: str) -> list[RepairImpact] | None:  # noqa: A002
    """Return what each verb of a person would do with a run; None where no run has this id.

    Raises:
        SagaError: its records cannot be read.
    """
    teller = await told_run(reader, id, lines_max=0)
    return None if teller is None else teller.impacts()


async def show_run(reader: StoreReader, id: str) -> SagaHistory | None:  # noqa: A002
    """Return the story of a run; a record that this code cannot read says why in its line.

    None where no run has this id.

    Raises:
        SagaError: this code does not know the status of the run.
    """
    teller = await told_run(reader, id)
    return None if teller is None else teller.history()


async def told_run(
    reader: StoreReader,
    id: str,  # noqa: A002
    lines_max: int | None = None,
) -> SagaTeller | None:
    """Return who has been told all records of a run; None where no run has this id.

    Args:
        lines_max: how many records have a line, the newest; None is all of them.

    Raises:
        SagaError: this code does not know the status of the run.
    """
    row = await tables.find(reader, id)
    if row is None:
        return None
    teller = SagaTeller(row, lines_max)
    async for part in _parts(reader, id):
        teller.take(part)
    return teller


async def _parts(
    reader: StoreReader,
    id: str,  # noqa: A002
) -> AsyncIterator[list[StoredRecord | UnreadableRecord]]:
    """Yield the records of a run in parts, so that a long one does not hold the loop."""
    rows = await tables.record_rows(reader, id)
    for at in range(0, len(rows), PART):
        if at:
            await asyncio.sleep(0)
        yield tables.readable_of(rows[at : at + PART])


class StoredRuns:
    """The runs of one service as its database has them, whichever process drives them."""

    def __init__(self, store: Store, service: str) -> None:
        self._store = store
        self._service = service

    async def find(self, id: str) -> SagaRow:  # noqa: A002
        """Return what is stored of a run.

        Raises:
            UnknownSaga: no run has this id.
            SagaError: this code does not know the status of the run.
        """
        row = await tables.find(self._store, id)
        if row is None:
            raise self._unknown(id)
        return row

    async def runs(self, status: str = "", limit: int = 100) -> list[SagaSummary]:
        """Return the newest runs, as `list_runs` does."""
        return await list_runs(self._store, status, limit)

    async def statuses(self) -> dict[str, int]:
        """Return how many runs there are of each status that one has."""
        return await tables.count_by_status(self._store)

    async def show(self, id: str) -> SagaHistory:  # noqa: A002
        """Return the story of a run; a record that this code cannot read says why in its line.

        Raises:
            UnknownSaga, SagaError: as `find` does.
        """
        story = await show_run(self._store, id)
        if story is None:
            raise self._unknown(id)
        return story

    def _unknown(self, id: str) -> UnknownSaga:  # noqa: A002
        return UnknownSaga(f"no saga of {self._service} has the id {id[:80]!r}")
