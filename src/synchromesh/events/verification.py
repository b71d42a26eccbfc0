"""Whether an event log is whole: versions and positions without holes, checkpoints of this log."""

from __future__ import annotations

from synchromesh.events.log import covered
from synchromesh.store import StoreReader

_SHOWN = 5


async def log_faults(reader: StoreReader) -> list[str]:
    """Return what is wrong with the log of a service (E1, E3); it goes through all of it.

    Raises:
        StoreError: it cannot be read.
    """
    (count, end), (last_removed, given) = await reader.read(
        "select count(*), coalesce(max(position), 0) from sm_event union all "
        "select (select coalesce(max(last), 0) from sm_removal), "
        "(select coalesce(max(seq), 0) from sqlite_sequence where name = 'sm_event')"
    )
    present, end = int(count or 0), max(int(end or 0), int(last_removed or 0))
    ranges = [
        (int(first or 0), int(last or 0))
        for first, last in await reader.read("select first, last from sm_removal")
    ]
    faults = []
    removed = covered(ranges, 1, end)
    if present + removed < end:
        faults.append(
            f"{end - present - removed} positions up to {end} are missing from the log, and no "
            "removal recorded them"
        )
    if present + removed > end:
        faults.append(
            f"{present + removed - end} events of the log are there and recorded as removed"
        )
    if int(given or 0) < end:
        faults.append(f"the next position would be {int(given or 0) + 1}, and {end} is taken")
    return [*faults, *await _stream_faults(reader, removed), *await _checkpoint_faults(reader, end)]


async def _stream_faults(reader: StoreReader, removed: int) -> list[str]:
    rows = await reader.read(
        "select stream, max(version) - count(*) from sm_event group by stream "
        "having max(version) <> count(*)"
    )
    missing = sum(int(holes or 0) for _, holes in rows)
    if missing <= removed:
        return []  # those that went are holes of their streams, too
    names = ", ".join(repr(stream) for stream, _ in rows[:_SHOWN])
    more = ", ..." if len(rows) > _SHOWN else ""
    said = f"{len(rows)} streams lack {missing} versions, and only {removed} events were removed"
    return [f"{said}: {names}{more}"]


async def _checkpoint_faults(reader: StoreReader, end: int) -> list[str]:
    faults = []
    for name, log_id, position in await reader.read(
        "select name, log_id, position from sm_checkpoint order by name"
    ):
        if log_id != reader.log_id:
            faults.append(
                f"checkpoint {name!s} is of log {log_id!s}, and this is {reader.log_id}: restore "
                "the backup with synchromesh db restore, which carries checkpoints over"
            )
        elif int(position or 0) > end:
            faults.append(f"checkpoint {name!s} is at {position!s}, and the log ends at {end}")
    return faults
