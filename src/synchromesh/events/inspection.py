"""Reads events and the state of projections, of a running service or a stopped one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from synchromesh.codec import to_datetime
from synchromesh.errors import BadRequest
from synchromesh.events.generations import Parked, list_generations
from synchromesh.events.log import StoredEvent, following, head, select_events
from synchromesh.store import StoreReader

LISTED_MAX = 1000
PAGE_BYTES_MAX = 1 << 20
_PAGE = 500
_SCAN = 5000
# Ids are ordered by time, as positions are; those of one moment may be a little apart.
_NEAR = 5000


class ProjectionSummary(msgspec.Struct, frozen=True):
    """How a generation of a projection is.

    Attributes:
        state: "live", or "standby".
        behind: positions that it has not taken yet.
        is_waiting: the release that ran last has no code of its version.
    """

    name: str
    generation: int
    version: int
    state: str
    position: int
    behind: int
    skipped: int
    is_waiting: bool
    parked: Parked | None


class EventRecord(msgspec.Struct, frozen=True):
    """An event as people and programs are shown it; `body` is its JSON."""

    position: int
    id: str
    stream: str
    version: int
    name: str
    type_version: int
    is_public: bool
    key: str
    trace_id: str
    recorded_at: str
    body: msgspec.Raw


async def list_projections(reader: StoreReader) -> list[ProjectionSummary]:
    """Return how each generation of each projection is, the live one first."""
    found = await list_generations(reader)
    end = (await head(reader)).position if found else 0
    return [
        ProjectionSummary(
            name=each.name,
            generation=each.number,
            version=each.version,
            state="live" if each.is_live else "standby",
            position=each.position,
            behind=max(0, end - each.position),
            skipped=each.skipped,
            is_waiting=each.is_waiting,
            parked=each.parked,
        )
        for each in found
    ]


async def list_events(
    reader: StoreReader,
    *,
    stream: str = "",
    name: str = "",
    after: int | None = None,
    limit: int = 50,
) -> list[EventRecord]:
    """Return events of a stream, a name, or all, oldest first, up to 1 MiB of them.

    They are the first ones after a position; without one, the last ones.

    Raises:
        BadRequest: the limit is not 1 to 1,000.
    """
    if not 1 <= limit <= LISTED_MAX:
        raise BadRequest(f"limit is {limit}; use 1 to {LISTED_MAX}")
    where = {column: said for column, said in (("stream", stream), ("name", name)) if said}
    end = (await head(reader)).position
    if after is None:
        found = await _backwards(reader, end, where, limit)
    else:
        found = await _forwards(reader, after, end, where, limit)
    page: list[EventRecord] = []
    size = 0
    for each in found:
        size += len(each.body)
        if page and size > PAGE_BYTES_MAX:
            break
        page.append(_record(each))
    if after is None:
        page.reverse()
    return page


async def _forwards(
    reader: StoreReader, after: int, end: int, where: dict[str, str], limit: int
) -> list[StoredEvent]:
    # A name has no index: whoever reads the log of a running service lets it work in between.
    step = end if "name" not in where or "stream" in where else _SCAN
    found: list[StoredEvent] = []
    while after < end and len(found) < limit:
        last = min(end, after + step)
        found += await select_events(reader, after, last, where, limit=limit - len(found))
        after = last
        await asyncio.sleep(0)
    return found


async def _backwards(
    reader: StoreReader, end: int, where: dict[str, str], limit: int
) -> list[StoredEvent]:
    """Return the last events, the newest first."""
    step = end if "name" not in where or "stream" in where else _SCAN
    found: list[StoredEvent] = []
    while end > 0 and len(found) < limit:
        first = max(0, end - step)
        found += await select_events(reader, first, end, where, limit=len(found) - limit)
        end = first
        await asyncio.sleep(0)
    return found


async def find_event(reader: StoreReader, *, position: int = 0, id: str = "") -> EventRecord | None:  # noqa: A002
    """Return the event at a position, or with an id; None where there is none.

    By its id it is found where the clock did not go back by more than some thousand events.
    """
    if not id:
        found = await following(reader, position - 1, 1)
        is_there = bool(found) and found[0].position == position
        return _record(found[0]) if is_there else None
    first, last = 0, (await head(reader)).position
    while last - first > _NEAR:
        middle = (first + last) // 2
        at = await following(reader, middle, 1)
        if at and at[0].id < id:
            first = at[0].position
        else:
            last = middle
    for start in range(first - _NEAR, last + _NEAR, _PAGE):
        for each in await following(reader, max(0, start), _PAGE):
            if each.id == id:
                return _record(each)
    return None


async def export_events(
    reader: StoreReader, *, stream: str = "", name: str = "", after: int = 0
) -> AsyncIterator[bytes]:
    """Yield all events after a position as lines of JSON, page by page."""
    while page := await list_events(reader, stream=stream, name=name, after=after, limit=_PAGE):
        after = page[-1].position
        yield b"".join(msgspec.json.encode(each) + b"\n" for each in page)


def _record(event: StoredEvent) -> EventRecord:
    return EventRecord(
        position=event.position,
        id=event.id,
        stream=event.stream,
        version=event.version,
        name=event.name,
        type_version=event.type_version,
        is_public=event.is_public,
        key=event.partition_key,
        trace_id=event.trace_id,
        recorded_at=to_datetime(event.recorded_us).isoformat(),
        body=msgspec.Raw(_json(event.body)),
    )


def _json(body: bytes) -> bytes:
    """Return a body that is JSON as it is, and any other as a text."""
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return msgspec.json.encode(body.decode(errors="replace"))
    return body
