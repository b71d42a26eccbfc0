"""What an operator reads of the logs of events."""

from __future__ import annotations

from synchromesh.errors import BadRequest
from synchromesh.events.inspection import EventRecord, find_event, list_events
from synchromesh.store import StoreReader
from synchromesh.system.control.actions import Action, ReadAction, ReadRequest


class ListEvents(ReadRequest, frozen=True):
    """Which events: of a stream, a name, or all; the last, or the first after a position."""

    stream: str = ""
    name: str = ""
    after: int | None = None
    limit: int = 50


class ShowEvent(ReadRequest, frozen=True):
    """Which event: by its id, or by its position, which is its service's own."""

    id: str = ""
    position: int = 0


async def _list(reader: StoreReader, wanted: ListEvents) -> list[EventRecord]:
    return await list_events(
        reader, stream=wanted.stream, name=wanted.name, after=wanted.after, limit=wanted.limit
    )


async def _show(reader: StoreReader, wanted: ShowEvent) -> EventRecord | None:
    return await find_event(reader, position=wanted.position, id=wanted.id)


def _unknown(wanted: ShowEvent) -> BadRequest:
    which = f"the id {wanted.id!r}" if wanted.id else f"position {wanted.position}"
    return BadRequest(f"no event has {which}; synchromesh events list shows the last ones")


ACTIONS: tuple[Action, ...] = (
    ReadAction("events.list", ListEvents, _list),
    ReadAction("events.show", ShowEvent, _show, _unknown),
)
