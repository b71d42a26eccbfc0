"""Forgets runs that ended long ago: their records, and what they told the log."""

from __future__ import annotations

from collections import Counter

import msgspec

from synchromesh.codec import encode
from synchromesh.events.removal import Reached, archived, remove_each
from synchromesh.saga import tables
from synchromesh.saga.records import ENDED
from synchromesh.store import StoreReader, Unit, fetch_as

_ENDED_BEFORE = {
    each: f"select id, ended_us from sm_saga where status = '{each.value}' "
    "and ended_us is not null and ended_us < ? order by ended_us limit ?"
    for each in ENDED
}
_DELETE_RECORDS = (
    "delete from sm_saga_record where (saga, seq) in (select saga, seq from sm_saga_record "
    "where saga = ? order by seq desc limit ?) returning 1"
)
_DELETE_RUN = "delete from sm_saga where id = ? and ended_us is not null returning status"
_MILESTONES = (
    "select position, stream, version, name, recorded_us, body from sm_event "
    "where stream = ? order by version"
)


class ForgottenRuns(msgspec.Struct, frozen=True):
    """What a unit has forgotten: runs, all rows that went, and who still has to read the rest."""

    runs: int
    rows: int
    held_by: str = ""


async def ended_runs(reader: StoreReader, *, before_us: int, limit: int) -> list[str]:
    """Return the ids of runs that ended before a time, those that ended first."""
    found: list[tuple[int, str]] = []
    for status in ENDED:
        rows = await reader.read(_ENDED_BEFORE[status], before_us, limit)
        found += [(int(ended_us or 0), str(run_id)) for run_id, ended_us in rows]
    return [run_id for _, run_id in sorted(found)[:limit]]


async def archive_lines(reader: StoreReader, run_id: str) -> list[bytes]:
    """Return the JSON lines of a run for an archive: its row with its records, and its events."""
    row = await tables.find(reader, run_id)
    if row is None:
        return []
    records = await tables.readable(reader, run_id)
    line = encode({"saga": _told(row), "records": [_told(each) for each in records]})
    events = await reader.read(_MILESTONES, f"saga/{run_id}")
    return [line, *(archived(*each) for each in events)]  # type: ignore[arg-type]


def _told(stored: object) -> object:
    """Return a stored value with its JSON as text."""
    if isinstance(stored, bytes):
        return stored.decode(errors="replace")
    if isinstance(stored, dict):
        return {name: _told(value) for name, value in stored.items()}
    if isinstance(stored, msgspec.Struct):
        return _told(msgspec.to_builtins(stored, builtin_types=(bytes,)))
    return stored


async def forget_runs(
    unit: Unit, run_ids: list[str], *, reached: Reached, rows_max: int
) -> ForgottenRuns:
    """Delete runs with all that is stored of them, up to so many rows.

    One whose events a reader of the log has yet to pass stays, and so do those behind it. Of one
    that has more records than fit the last ones go first, the run itself with its first one.
    """
    runs = rows = 0
    ended: Counter[str] = Counter()
    held_by = ""
    for run_id in run_ids:
        stream = f"saga/{run_id}"
        positions = await fetch_as(
            unit, int, "select position from sm_event where stream = ? order by position", (stream,)
        )
        if positions and positions[-1] > reached.position:
            held_by = reached.by
            break
        left = rows_max - rows
        gone = len(await unit.execute(_DELETE_RECORDS, run_id, left))
        rows += gone
        if gone == left:
            break
        rows += await remove_each(unit, positions)
        for status in await fetch_as(unit, str, _DELETE_RUN, (run_id,)):
            ended[status] += 1
            runs += 1
            rows += 1
        if rows >= rows_max:
            break
    await tables.count_ended(unit, {status: -count for status, count in ended.items()})
    return ForgottenRuns(runs, rows, held_by)
