"""Reads the messages that a service has set aside, of a running service or a stopped one."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from synchromesh.codec import to_datetime
from synchromesh.errors import BadRequest
from synchromesh.messaging.dead_letters import (
    COLUMNS,
    COLUMNS_WITHOUT_PAYLOAD,
    DeadLetter,
    LetterState,
    letters_of,
)
from synchromesh.store import Row, SqlValue, StoreReader

LISTED_MAX = 10_000
# How many are looked at, of each state, to say what they wait for.
SUMMARIZED_MAX = 1000

_SUMMARY = (
    "select state, source, subscriber, name, error, count(*), min(first_us) from (select state, "
    "source, subscriber, name, error, first_us from sm_parked where state = ? limit ?) "
    "group by 1, 2, 3, 4, 5 order by 6 desc, 7"
)
_NEEDY = (LetterState.PARKED, LetterState.HELD, LetterState.REFUSED)


@dataclass(frozen=True, slots=True)
class ListedMessage:
    """A message that was set aside, as it is shown.

    Attributes:
        ref: names it in the verbs, as in "stock:17".
        subscriber: who refuses it; "" where the service itself cannot take it.
        key: later messages of this partition key wait behind it.
    """

    ref: str
    state: str
    source: str
    subscriber: str
    event: str
    key: str
    error: str
    text: str
    attempts: int
    first_at: dt.datetime
    last_at: dt.datetime
    message_id: str
    position: int
    trace_id: str
    payload: str


@dataclass(frozen=True, slots=True)
class MessageGroup:
    """How many messages wait for the same thing, and for how long the oldest does.

    Of each state 1,000 are looked at.
    """

    state: str
    source: str
    subscriber: str
    event: str
    error: str
    count: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class SetAside:
    """The messages that a service has set aside: how many in all, and what they wait for."""

    count: int = 0
    groups: tuple[MessageGroup, ...] = ()


async def list_messages(
    reader: StoreReader, *, source: str = "", key: str = "", state: str = "", limit: int = 100
) -> list[ListedMessage]:
    """Return messages that were set aside, oldest first: of a publisher, a key, a state.

    Their payloads are left out, as null.

    Raises:
        BadRequest: there is no such state, or the limit is not 1 to 10,000.
    """
    known = [each.value for each in LetterState]
    if state and state not in known:
        raise BadRequest(f"no message has the state {state!r}; known: {', '.join(known)}")
    if not 1 <= limit <= LISTED_MAX:
        raise BadRequest(f"limit is {limit}; use 1 to {LISTED_MAX}")
    wanted = {"source": source, "scope": key, "state": state}
    given = {column: value for column, value in wanted.items() if value}
    where = " and ".join(f"{column} = ?" for column in given) or "1 = 1"
    sql = f"select {COLUMNS_WITHOUT_PAYLOAD} from sm_parked where {where} order by number limit ?"
    return _shown(reader, await reader.read(sql, *given.values(), limit))


async def show_message(
    reader: StoreReader, *, number: int = 0, message_id: str = ""
) -> list[ListedMessage]:
    """Return the message of a number, or those of an id: one for each subscriber refusing it."""
    which: tuple[str, SqlValue] = ("number", number) if number else ("message_id", message_id)
    sql = f"select {COLUMNS} from sm_parked where {which[0]} = ? order by number limit 100"
    return _shown(reader, await reader.read(sql, which[1]))


async def summarize(reader: StoreReader, *, now_us: int) -> SetAside:
    """Return how many messages were set aside, and what they wait for."""
    count = int((await reader.read("select count(*) from sm_parked"))[0][0] or 0)
    if not count:
        return SetAside()
    rows: list[Row] = []
    for state in _NEEDY:
        rows += await reader.read(_SUMMARY, state.value, SUMMARIZED_MAX)
    return SetAside(count, tuple(_group(row, now_us) for row in rows))


def _group(row: Row, now_us: int) -> MessageGroup:
    state, source, subscriber, name, error, count, first_us = row
    oldest_s = max(0.0, round((now_us - int(first_us or 0)) / 1e6, 3))
    return MessageGroup(
        str(state), str(source), str(subscriber), str(name), str(error), int(count or 0), oldest_s
    )


def _shown(reader: StoreReader, rows: Sequence[Row]) -> list[ListedMessage]:
    return [_listed(letter, reader.service) for letter in letters_of(rows)]


def _listed(letter: DeadLetter, service: str) -> ListedMessage:
    message = letter.message
    return ListedMessage(
        ref=f"{service}:{letter.number}",
        state=letter.state.value,
        source=letter.lane.source,
        subscriber=letter.lane.subscriber,
        event=message.name,
        key=letter.lane.scope,
        error=letter.error,
        text=letter.text,
        attempts=letter.attempts,
        first_at=to_datetime(letter.first_us),
        last_at=to_datetime(letter.last_us),
        message_id=message.id,
        position=message.position,
        trace_id=message.trace_id,
        payload=bytes(message.payload).decode(),
    )
