"""Whether an event log is whole: versions and positions without holes, checkpoints of this log."""

from __future__ import annotations

from collections.abc import Iterable

from synchromesh.events.log import covered
from synchromesh.store import Row, StoreReader

_SHOWN = 5

# Each is one statement, which sees one state: others write, relay and remove meanwhile.
_POSITIONS = (
    "select 'log', count(position), coalesce(max(position), 0) from sm_event union all "
    "select 'given', coalesce(({given}), 0), 0 "
    "union all select 'removed', first, last from sm_removal"
)
_STREAMS = (
    "select 'stream', stream, max(version) - count(*), 0 from sm_event group by stream "
    "having max(version) <> count(*) union all select 'removed', '', first, last from sm_removal"
)
_CHECKPOINTS = (
    "select name, log_id, position, (select coalesce(max(position), 0) from sm_event), "
    "(select coalesce(max(last), 0) from sm_removal) from sm_checkpoint order by name"
)


async def log_faults(reader: StoreReader) -> list[str]:
    """Return what is wrong with the log of a service (E1, E3); it goes through all of it.

    The service may work on it meanwhile.

    Raises:
        StoreError: it cannot be read.
    """
    return [
        *_position_faults(await reader.read(_POSITIONS.format(given=reader.dialect.given))),
        *_stream_faults(await reader.read(_STREAMS)),
        *_checkpoint_faults(reader.log_id, await reader.read(_CHECKPOINTS)),
    ]


def _position_faults(rows: Iterable[Row]) -> list[str]:
    told: dict[str, list[tuple[int, int]]] = {"log": [], "given": [], "removed": []}
    for what, first, second in rows:
        told[str(what)].append((int(first or 0), int(second or 0)))
    ((present, end),), ((given, _),), ranges = told.values()
    end = max([end, *(last for _, last in ranges)])
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
    if given < end:
        faults.append(f"the next position would be {given + 1}, and {end} is taken")
    return faults


def _stream_faults(rows: Iterable[Row]) -> list[str]:
    streams, ranges = [], []
    for what, stream, first, last in rows:
        if what == "stream":
            streams.append((str(stream), int(first or 0)))
        else:
            ranges.append((int(first or 0), int(last or 0)))
    missing = sum(holes for _, holes in streams)
    removed = covered(ranges, 1, max((last for _, last in ranges), default=0))
    if missing <= removed:
        return []  # those that went are holes of their streams, too
    names = ", ".join(repr(stream) for stream, _ in streams[:_SHOWN])
    more = ", ..." if len(streams) > _SHOWN else ""
    said = f"{len(streams)} streams lack {missing} versions, and only {removed} events were removed"
    return [f"{said}: {names}{more}"]


def _checkpoint_faults(log_id: str, rows: Iterable[Row]) -> list[str]:
    faults = []
    for name, own, position, last, last_removed in rows:
        end = max(int(last or 0), int(last_removed or 0))
        if own != log_id:
            faults.append(
                f"checkpoint {name!s} is of log {own!s}, and this is {log_id}: restore the backup "
                "with synchromesh db restore, which carries checkpoints over"
            )
        elif int(position or 0) > end:
            faults.append(f"checkpoint {name!s} is at {position!s}, and the log ends at {end}")
    return faults
