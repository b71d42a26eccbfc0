"""Removes events that nobody needs any more, one by one, and keeps account of the holes (E3).

`log.remove` takes a whole range by hand. Here events are chosen: those that all readers of the log
have passed. Holes side by side are recorded as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from synchromesh.codec import encode
from synchromesh.events.log import RELAY_PREFIX
from synchromesh.store import StoreReader, Unit, fetch_as, log_id_of

_LAST = 2**62
_WINDOW = (
    "select position, stream, version, name, recorded_us, body from sm_event "
    "where is_public = 1 and position > ? order by position limit ?"
)


class Reached(msgspec.Struct, frozen=True):
    """The position that all readers of a log have passed, and which of them is the last."""

    position: int
    by: str


class OldEvents(msgspec.Struct, frozen=True):
    """Public events of a name that are old enough, among those that were looked at.

    Attributes:
        cursor: the last position that was looked at.
        lines: their JSON, for an archive.
        is_last: no more are old enough.
    """

    cursor: int
    positions: list[int]
    lines: list[bytes]
    is_last: bool


class _Public(msgspec.Struct, gc=False):
    position: int
    stream: str
    version: int
    name: str
    recorded_us: int
    body: bytes


class _Saved(msgspec.Struct):
    name: str
    log_id: str
    position: int


async def reached_by_all(unit: Unit, *, is_public: bool) -> Reached:
    """Return what all projections have passed, of public events all relays, too.

    A relay passes public events alone, so that its checkpoint says nothing of others. A reader of
    another log has passed nothing.
    """
    log_id = await log_id_of(unit)
    saved = await fetch_as(unit, _Saved, "select name, log_id, position from sm_checkpoint", ())
    passed = [
        Reached(each.position if each.log_id == log_id else 0, each.name)
        for each in saved
        if is_public or not each.name.startswith(RELAY_PREFIX)
    ]
    return min(passed, key=lambda each: each.position, default=Reached(_LAST, ""))


async def old_public(
    reader: StoreReader, name: str, *, after: int, before_us: int, limit: int
) -> OldEvents:
    """Look at up to `limit` public events after a position, and return those of a name.

    Looking ends at the first that was recorded at `before_us` or later.
    """
    found = await fetch_as(reader, _Public, _WINDOW, (after, limit))
    old = [each for each in found if each.recorded_us < before_us]
    if len(old) < len(found):
        first = next(n for n, each in enumerate(found) if each.recorded_us >= before_us)
        old = found[:first]
    wanted = [each for each in old if each.name == name]
    return OldEvents(
        cursor=old[-1].position if old else after,
        positions=[each.position for each in wanted],
        lines=[archived(each.position, each.stream, each.version, each.name, each.recorded_us,
                        each.body) for each in wanted],
        is_last=len(old) < limit,
    )  # fmt: skip


def archived(
    position: int, stream: str, version: int, name: str, recorded_us: int, body: bytes
) -> bytes:
    """Return the line of an event in an archive."""
    return encode(
        {
            "position": position,
            "stream": stream,
            "version": version,
            "name": name,
            "recorded_us": recorded_us,
            "body": body.decode(errors="replace"),
        }
    )


async def remove_each(unit: Unit, positions: Sequence[int]) -> int:
    """Delete the events at these positions, record the holes, and return how many there were."""
    rows = sorted(set(positions))
    await unit.execute_many("delete from sm_event where position = ?", [(at,) for at in rows])
    for first, last in _runs(rows):
        await _record(unit, first, last)
    return len(rows)


def _runs(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the ranges of positions that follow one another."""
    first = last = None
    for at in positions:
        if first is None or last is None or at != last + 1:
            if first is not None and last is not None:
                yield first, last
            first = at
        last = at
    if first is not None and last is not None:
        yield first, last


async def _record(unit: Unit, first: int, last: int) -> None:
    """Record a hole as one with those right before and after it."""
    before = await fetch_as(
        unit, int, "delete from sm_removal where last = ? returning first", (first - 1,)
    )
    after = await fetch_as(
        unit, int, "delete from sm_removal where first = ? returning last", (last + 1,)
    )
    await unit.execute(
        "insert into sm_removal(first, last) values (?, ?) on conflict(first) do update "
        "set last = case when excluded.last > sm_removal.last then excluded.last "
        "else sm_removal.last end",
        min([first, *before]),
        max([last, *after]),
    )
