"""Messages that a function has failed at, and what a person does with them."""

from __future__ import annotations

import datetime as dt

import msgspec

from synchromesh.alone.unit import KEYLESS
from synchromesh.codec import to_datetime
from synchromesh.errors import BadRequest
from synchromesh.messaging.dead_letters import (
    COLUMNS_WITHOUT_PAYLOAD,
    DeadLetter,
    drop_letter,
    letters_of,
)
from synchromesh.store import Store

_OLDEST = f"select {COLUMNS_WITHOUT_PAYLOAD} from sm_parked order by number limit ?"


class ParkedMessage(msgspec.Struct, frozen=True):
    """A message that was set aside.

    Attributes:
        number: what `Alone.drop` is told.
        subscriber: the name under which it is delivered.
        id, name, key: of the message, as in `Delivered`.
        state: "refused" where the function fails at it; "waiting" behind one of its key, and
            "ready" to be delivered next.
        error: what the function raised last; "" of one that waits.
        attempts: how often it was tried since it was set aside.
        since: when it was.
    """

    number: int
    subscriber: str
    id: str
    name: str
    key: str
    state: str
    error: str
    attempts: int
    since: dt.datetime


async def list_set_aside(store: Store, limit: int) -> list[ParkedMessage]:
    """Return what is set aside, the oldest first."""
    return [_shown(each) for each in letters_of(await store.read(_OLDEST, limit))]


async def drop_set_aside(store: Store, number: int, *, who: str, why: str) -> ParkedMessage:
    """Discard a message; who did it and why is an event of the log, in the same commit.

    Raises:
        BadRequest: nothing is set aside under that number, or it is not said who, or why.
    """
    if not who.strip() or not why.strip():
        raise BadRequest("a message is dropped for good: say who drops it, and why; it is recorded")
    dropped = await drop_letter(store, number, who=who, why=why)
    if dropped is None:
        raise BadRequest(
            f"no message {number} is set aside: it was delivered or dropped meanwhile; "
            "Alone.set_aside lists those that are"
        )
    return _shown(dropped)


def _shown(letter: DeadLetter) -> ParkedMessage:
    key = letter.lane.scope
    return ParkedMessage(
        letter.number, letter.lane.subscriber, letter.message.id, letter.message.name,
        "" if key.startswith(KEYLESS) else key, letter.state.value, letter.text, letter.attempts,
        to_datetime(letter.first_us),
    )  # fmt: skip
