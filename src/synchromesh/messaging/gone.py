"""Subscribers that nobody declares any more: what is kept for them until they are forgotten.

A relay's checkpoint outlives its relay, so that a release which is taken back loses nothing. Events
behind the checkpoint of a subscriber that never comes back are kept for ever, and what it refused,
too. Only a person knows that it never does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from synchromesh.codec import encode
from synchromesh.errors import BadRequest
from synchromesh.events import RELAY_PREFIX, NewEvent, append, saved_checkpoint
from synchromesh.events.log import COUNTED_MAX
from synchromesh.messaging.subscriptions import DeliveredUpTo, load_entries, save_entries
from synchromesh.store import Store, StoreReader, Unit, fetch_as

_GONE = (
    "select substr(name, ?) as subscriber, log_id, position from sm_checkpoint "
    "where substr(name, 1, ?) = ? and not exists (select 1 from sm_subscription "
    "where subscriber = substr(sm_checkpoint.name, ?) and is_wanted = 1) order by name"
)
_PREFIX = (len(RELAY_PREFIX) + 1, len(RELAY_PREFIX), RELAY_PREFIX, len(RELAY_PREFIX) + 1)
_BEHIND = (
    "select count(*) from (select 1 from sm_event where is_public = 1 and position > ? limit ?)"
)
_LETTERS = "select count(*) from (select 1 from sm_parked where subscriber = ? limit ?)"


class GoneSubscriber(msgspec.Struct, frozen=True):
    """A subscriber that the release which ran last does not have.

    Attributes:
        position: the last one of the log that it has passed.
        behind: public events after that, which are kept for it; `COUNTED_MAX` are that or more.
        set_aside: messages that it refused, or that wait behind those; likewise.
    """

    subscriber: str
    position: int
    behind: int
    set_aside: int


class Forgotten(msgspec.Struct, frozen=True):
    """The event that records a subscriber whom an operator had forgotten, and what it had to get.

    Attributes:
        position: the last one of the log that it had passed.
        dropped: messages of it that were set aside, and are gone.
    """

    subscriber: str
    position: int
    dropped: int
    who: str
    why: str


class _Checkpoint(msgspec.Struct):
    subscriber: str
    log_id: str
    position: int


async def gone_subscribers(reader: StoreReader) -> list[GoneSubscriber]:
    """Return the subscribers whose checkpoints are kept, and who take nothing any more.

    It costs the same however much is kept for them.

    Raises:
        StoreError: the database cannot be read.
    """
    found = []
    for each in await fetch_as(reader, _Checkpoint, _GONE, _PREFIX):
        position = each.position if each.log_id == reader.log_id else 0
        (behind,) = await fetch_as(reader, int, _BEHIND, (position, COUNTED_MAX))
        (letters,) = await fetch_as(reader, int, _LETTERS, (each.subscriber, COUNTED_MAX))
        found.append(GoneSubscriber(each.subscriber, position, behind, letters))
    return found


async def end_subscriptions(store: Store, declared: Collection[str]) -> None:
    """Note that those who are not declared take nothing any more; their checkpoints stay.

    One who is declared again goes on where it was. To be called before any relay runs.
    """
    rows = await store.read("select distinct subscriber from sm_subscription where is_wanted = 1")
    for subscriber in sorted({str(subscriber) for (subscriber,) in rows} - set(declared)):
        saved = await saved_checkpoint(store, f"{RELAY_PREFIX}{subscriber}")
        reached = 0 if saved is None else saved.position
        ended = {
            name: DeliveredUpTo(False, max(entry.position, reached))
            for name, entry in (await load_entries(store, subscriber)).items()
            if entry.is_wanted
        }

        async def body(
            unit: Unit, of: str = subscriber, entries: Mapping[str, DeliveredUpTo] = ended
        ) -> None:
            await save_entries(unit, of, entries)

        await store.write(body, name=f"{subscriber} takes nothing any more")


async def forget_subscriber(
    store: Store, subscriber: str, *, who: str, why: str
) -> Forgotten | None:
    """Forget a subscriber for ever: its checkpoint, and what it refused; None where there is none.

    Who did it and why is an event of this service's log, in the same commit. One of this name that
    is declared later is a new one, and begins with what the log still has.

    Raises:
        BadRequest: the release that runs declares it.
        StoreError: the database refused; nothing was forgotten.
    """

    async def body(unit: Unit) -> Forgotten | None:
        sql = "select 1 from sm_subscription where subscriber = ? and is_wanted = 1 limit 1"
        if await unit.execute(sql, subscriber):
            raise still_declared(subscriber, unit.service)
        return await forget_in(unit, subscriber, who=who, why=why)

    return await store.write(body, name="forget a subscriber")


async def forget_in(
    unit: Unit, subscriber: str, *, who: str, why: str, prefix: str = RELAY_PREFIX
) -> Forgotten | None:
    """Forget, within a unit, one that is gone as the caller knows; None where there is none.

    Args:
        prefix: how the name of its checkpoint begins: one of those that are no relay's, and read
            the log in order, has refused nothing.
    """
    name, letters = f"{prefix}{subscriber}", list[object]()
    positions = await fetch_as(
        unit, int, "delete from sm_checkpoint where name = ? returning position", (name,)
    )
    if prefix == RELAY_PREFIX:
        letters += await unit.execute(
            "delete from sm_parked where subscriber = ? returning 1", subscriber
        )
        await unit.execute("delete from sm_subscription where subscriber = ?", subscriber)
    if not positions and not letters:
        return None
    told = Forgotten(subscriber, sum(positions), len(letters), who, why)
    event = NewEvent(f"{unit.service}.subscriber_forgotten", encode(told))
    await append(unit, name, [event], expected=None)
    return told


def still_declared(subscriber: str, publisher: str) -> BadRequest:
    """Return the error that a subscriber is not gone."""
    return BadRequest(
        f"{subscriber} is not gone: a process that runs declares that it takes events of "
        f"{publisher}; nothing was forgotten. Restart both with releases in which it does not, or "
        "name the publisher where it is gone: --service"
    )
