"""How events come into the log: in the unit that decides them, at the end of their streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from synchromesh.errors import VersionConflict
from synchromesh.store import ArrayUnit, SqlValue, StreamRows, Unit

TOPIC = "events"
"""The topic of appends."""

_VERSION = "select coalesce(max(version), 0) from sm_event where stream = ?"
_INSERT = (
    "insert into sm_event(id, stream, version, name, type_version, body, is_public, ordering_key, "
    "trace_id, recorded_us, readable_by_min) values (?, ?, {version}, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_APPEND = _INSERT.format(version="?")
_APPEND_NEXT = _INSERT.format(
    version="(select coalesce(max(version), 0) + 1 from sm_event where stream = ?)"
)


class NewEvent(msgspec.Struct, frozen=True, gc=False):
    """A new event; `body` is JSON, `name` as in `inventory.stock_reserved`.

    A public one is delivered to other services, in order among those of its `partition_key`. Code
    that knows the type from version `readable_by_min` on may read it; 0 is its own version.
    """

    name: str
    body: bytes
    type_version: int = 1
    is_public: bool = False
    partition_key: str = ""
    trace_id: str = ""
    readable_by_min: int = 0


async def append(
    unit: Unit, stream: str, events: Sequence[NewEvent], *, expected: int | None
) -> int:
    """Append events to a stream within a unit and return the stream's new version.

    `expected` is the version that the decision was made at, 0 for a new stream; None appends
    whatever the version is.

    Raises:
        VersionConflict: the stream is at another version; nothing was appended (E2).

    Example:
        >>> async def body(unit: Unit) -> int:
        ...     return await append(unit, "stock/SX90", [NewEvent("shop.sold", b"{}")], expected=0)
    """
    if isinstance(unit, ArrayUnit):
        version = await _append_at_once(unit, stream, events, expected)
        if events:
            unit.notify(TOPIC)
        return version
    ((was,),) = await unit.execute(_VERSION, stream)
    version = int(was or 0)
    if expected is not None and version != expected:
        raise VersionConflict(stream, expected=expected, actual=version)
    if not events:
        return version
    new_id, now_us = unit.new_id, unit.now_us
    rows = [
        (
            new_id(), stream, at, event.name, event.type_version, event.body, int(event.is_public),
            event.partition_key, event.trace_id, now_us,
            event.readable_by_min or event.type_version,
        )
        for at, event in enumerate(events, version + 1)
    ]  # fmt: skip
    if len(rows) == 1:
        await unit.execute(_APPEND, *rows[0])
    else:
        await unit.execute_many(_APPEND, rows)
    unit.notify(TOPIC)
    return version + len(rows)


async def append_each(unit: Unit, events: Sequence[tuple[str, NewEvent]]) -> None:
    """Append each event to the end of its stream, without a check of versions.

    It is one statement for all of them: for what happens often and decides nothing by a version.
    """
    if isinstance(unit, ArrayUnit):
        if events:
            await unit.append_streams(rows_of(unit, events), is_each=True)
            unit.notify(TOPIC)
        return
    new_id = unit.new_id
    rows = [
        (
            new_id(), stream, stream, event.name, event.type_version, event.body,
            int(event.is_public), event.partition_key, event.trace_id, unit.now_us,
            event.readable_by_min or event.type_version,
        )
        for stream, event in events
    ]  # fmt: skip
    if rows:
        await unit.execute_many(_APPEND_NEXT, rows)
        unit.notify(TOPIC)


def rows_of(unit: Unit, events: Sequence[tuple[str, NewEvent]]) -> list[StreamRows]:
    """Return what is appended to the ends of streams, as an `ArrayUnit` takes it."""
    return [(stream, None, [_row(unit, event)]) for stream, event in events]


async def _append_at_once(
    unit: Any, stream: str, events: Sequence[NewEvent], expected: int | None
) -> int:
    """Append to a stream within a unit and return its new version; raises `VersionConflict`."""
    rows = [_row(unit, event) for event in events]
    version: int
    (version,) = await unit.append_streams([(stream, expected, rows)], is_each=False)
    if expected is not None and version != expected:
        raise VersionConflict(stream, expected=expected, actual=version)
    return version + len(rows)


def _row(unit: Unit, event: NewEvent) -> tuple[SqlValue, ...]:
    """Return what a new event is stored as, but for its stream and version."""
    return (
        unit.new_id(), event.name, event.type_version, event.body, int(event.is_public),
        event.partition_key, event.trace_id, unit.now_us,
        event.readable_by_min or event.type_version,
    )  # fmt: skip
