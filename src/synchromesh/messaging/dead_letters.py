"""Dead letters: messages that were set aside, in the order of their partition key, and why.

A consumer sets aside what it took in and cannot handle; a relay sets aside, in its publisher's
database, what a subscriber refuses. The first message of a partition key says what it waits for,
and the later ones wait behind it, so that other keys flow (O5):

    PARKED, HELD or REFUSED ── handled, delivered or dropped ──▶ (gone; the next one is READY)
    READY ── handled or delivered ──▶ (gone; the next one is READY)
      └──── fails ──▶ PARKED, HELD or REFUSED

Source: Hohpe & Woolf, *Enterprise Integration Patterns*, "Dead Letter Channel".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import msgspec

from synchromesh.codec import encode
from synchromesh.errors import BadRequest, Shed, SynchromeshError
from synchromesh.events import NewEvent, append
from synchromesh.messaging.message import Message
from synchromesh.sealing import Vault, erase_at, open_at, seal_at
from synchromesh.store import Migration, Row, Schema, SqlValue, Store, StoreReader, Unit

TOPIC = "dead letters"
"""The topic of letters that come and go."""

SCHEMA = Schema(
    "messaging",
    (
        Migration(
            1,
            (
                (
                    "create table sm_parked(number {position}, state text not null, "
                    "subscriber text not null, source text not null, scope text not null, "
                    "message_id text not null, name text not null, message {blob} not null, "
                    "payload {blob} not null, error text not null, text text not null, "
                    "attempts integer not null, "
                    "first_us bigint not null, last_us bigint not null, "
                    "unique(subscriber, source, message_id))"
                ),
                "create index sm_parked_scope on sm_parked(subscriber, source, scope, number)",
                "create index sm_parked_state on sm_parked(state, subscriber, number)",
                (
                    "create table sm_subscription(subscriber text not null, name text not null, "
                    "is_wanted integer not null, position bigint not null, "
                    "primary key(subscriber, name)) {keyed}"
                ),
            ),
            readable_by_min=1,
        ),
    ),
)

TEXT_MAX = 1000
_NO_PAYLOAD = msgspec.Raw(b"null")
# How many letters are put before they are counted anew.
_UNCOUNTED_MAX = 1000

# Lists do without the payloads, which may be large.
_COLUMNS = (
    "number, state, subscriber, source, scope, message, {payload}, error, text, attempts, "
    "first_us, last_us"
)
COLUMNS = _COLUMNS.format(payload="payload")
COLUMNS_WITHOUT_PAYLOAD = _COLUMNS.format(payload="'null'")
_OF_LANE = "subscriber = ? and source = ? and scope = ?"
_IS_BLOCKED = f"select 1 from sm_parked where {_OF_LANE} limit 1"
_PUT = (
    "insert into sm_parked(state, subscriber, source, scope, message_id, name, message, "
    "payload, error, text, attempts, first_us, last_us) "
    "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
    "on conflict do nothing"
)
_NEXT_IS_READY = (
    "update sm_parked set state = 'ready' where state = 'waiting' and number = "
    f"(select min(number) from sm_parked where {_OF_LANE})"
)
_HEADS = (
    f"select {COLUMNS} from sm_parked where subscriber = ? and state = ? and number > ? "
    "order by number limit ?"
)


class LetterState(Enum):
    """What a message that was set aside waits for."""

    PARKED = "parked"  # a person: its handler failed on it
    HELD = "held"  # a release: the one that runs does not know it
    REFUSED = "refused"  # its subscriber, which is asked again
    READY = "ready"  # nothing: it is next
    WAITING = "waiting"  # one before it, of its partition key


class Lane(NamedTuple):
    """The messages that wait for each other; `subscriber` is "" for those taken in here."""

    subscriber: str
    source: str
    scope: str


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a message was set aside: the type of the error, its text, and how often, from when."""

    error: str = ""
    text: str = ""
    attempts: int = 0
    first_us: int = 0

    @classmethod
    def of(cls, error: BaseException, attempts: int = 1, first_us: int = 0) -> Cause:
        """Tell a failure by its error; the traceback is for the log."""
        try:
            text = error.message if isinstance(error, SynchromeshError) else str(error)
        except Exception:  # noqa: BLE001 - a user's __str__ may be what is broken
            text = "(its text cannot be told)"
        # A lone surrogate cannot be stored.
        text = text.encode(errors="replace").decode()
        return cls(type(error).__name__, text[:TEXT_MAX], attempts, first_us)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was set aside.

    Attributes:
        number: its own in the database; no other letter ever has it.
        first_us, last_us: when it failed first, and last; of one that waits, when it came.
    """

    number: int
    state: LetterState
    lane: Lane
    message: Message
    error: str
    text: str
    attempts: int
    first_us: int
    last_us: int

    @property
    def is_incoming(self) -> bool:
        """True where it was taken in here, False where a subscriber refuses it."""
        return not self.lane.subscriber


class Dropped(msgspec.Struct, frozen=True):
    """The event that records a dead letter dropped by an operator; `reason` is its error."""

    source: str
    subscriber: str
    message_id: str
    name: str
    scope: str
    reason: str
    who: str
    why: str


class Replayed(msgspec.Struct, frozen=True):
    """The event that records a dead letter replayed by an operator, and what came of it."""

    source: str
    subscriber: str
    message_id: str
    name: str
    scope: str
    reason: str
    who: str
    why: str
    outcome: str


class Room:
    """Bounds the letters of a subscriber, and counts them now and then only."""

    def __init__(self, subscriber: str, letters_max: int) -> None:
        self._subscriber = subscriber
        self._letters_max = letters_max
        self._left = 0

    async def take(self, unit: Unit) -> None:
        """Take the place of a letter that is about to be put.

        Raises:
            Shed: there is none.
        """
        if self._left <= 0:
            rows = await unit.execute(
                "select count(*) from sm_parked where subscriber = ?", self._subscriber
            )
            self._left = min(_UNCOUNTED_MAX, self._letters_max - int(rows[0][0] or 0))
            if self._left <= 0:
                raise Shed(
                    f"{self._letters_max} messages are set aside, which is the bound; mend what "
                    "they wait for, or drop some: synchromesh messages list"
                )
        self._left -= 1


async def is_blocked(unit: Unit, lane: Lane) -> bool:
    """Return whether a message of a lane has to wait behind another."""
    return bool(await unit.execute(_IS_BLOCKED, *lane))


async def has_letters(reader: StoreReader, lane: Lane) -> bool:
    """Return whether a lane has letters, as is committed."""
    return bool(await reader.read(_IS_BLOCKED, *lane))


async def put(
    unit: Unit, lane: Lane, message: Message, state: LetterState, cause: Cause
) -> LetterState:
    """Set a message aside, behind those of its lane where there are any; return its state.

    One that is there already stays as it is.
    """
    if await is_blocked(unit, lane):
        state, cause = LetterState.WAITING, Cause()
    now_us, payload = unit.now_us, bytes(message.payload)
    if message.personal:
        payload = seal_at(
            payload, message.personal, letter_place(message.name, message.id), unit.vault
        )
    await unit.execute(
        _PUT,
        state.value,
        *lane,
        message.id,
        message.name,
        msgspec.json.encode(msgspec.structs.replace(message, payload=_NO_PAYLOAD)),
        payload,
        cause.error,
        cause.text,
        cause.attempts,
        cause.first_us or now_us,
        now_us,
    )
    unit.notify(TOPIC)
    return state


def opened(letter: DeadLetter, vault: Vault) -> Message:
    """Return the message of a letter as it came: what is sealed of it is opened.

    Raises:
        PersonalUnreadable: the keys are not there.
    """
    message = letter.message
    if not message.personal:
        return message
    payload, places = open_at(bytes(message.payload), letter_place(message.name, message.id), vault)
    return msgspec.structs.replace(message, payload=msgspec.Raw(payload), personal=places)


def admitted(message: Message, vault: Vault) -> Message:
    """Return a message without the values of those who are erased here, if not at its publisher."""
    if not message.personal:
        return message
    payload = erase_at(bytes(message.payload), message.personal, vault)
    return msgspec.structs.replace(message, payload=msgspec.Raw(payload))


SEALED_LETTERS = (
    "select name, message_id, payload, first_us from sm_parked where instr(payload, ?) limit ?"
)
"""Finds the letters in which a text occurs, as `SEALED_EVENTS` does events."""


def letter_place(name: str, message_id: str) -> str:
    """Return what personal values in a message that is set aside are sealed for."""
    return f"message/{name}/{message_id}"


async def remove(unit: Unit, letter: DeadLetter) -> bool:
    """Take a letter off the list, so that the next of its lane is ready; False if it is gone."""
    gone = await unit.execute("delete from sm_parked where number = ? returning 1", letter.number)
    if not gone:
        return False
    await unit.execute(_NEXT_IS_READY, *letter.lane)
    unit.notify(TOPIC)
    return True


async def note_failure(unit: Unit, letter: DeadLetter, state: LetterState, cause: Cause) -> None:
    """Record that a letter has failed again."""
    await unit.execute(
        "update sm_parked set state = ?, error = ?, text = ?, attempts = attempts + ?, "
        "last_us = ? where number = ?",
        state.value,
        cause.error,
        cause.text,
        cause.attempts,
        unit.now_us,
        letter.number,
    )


async def heads(
    reader: StoreReader, subscriber: str, state: LetterState, *, after: int = 0, limit: int = 1
) -> list[DeadLetter]:
    """Return the oldest letters of a state, from a number on; each is the first of its lane."""
    return letters_of(await reader.read(_HEADS, subscriber, state.value, after, limit))


async def parked_numbers(
    reader: StoreReader, *, source: str = "", key: str = "", limit: int = 1000
) -> list[int]:
    """Return which letters need a person, oldest first: of a publisher and a key; "" is any."""
    rows = await reader.read(
        "select number from sm_parked where state = 'parked' and ? in ('', source) "
        "and ? in ('', scope) order by number limit ?",
        source,
        key,
        limit,
    )
    return [_int(number) for (number,) in rows]


async def find_letter(reader: StoreReader, number: int) -> DeadLetter | None:
    """Return a letter by its number."""
    found = letters_of(
        await reader.read(f"select {COLUMNS} from sm_parked where number = ?", number)
    )
    return found[0] if found else None


async def first_of(reader: StoreReader, lane: Lane) -> DeadLetter | None:
    """Return the letter for which all others of its lane wait."""
    sql = f"select {COLUMNS} from sm_parked where {_OF_LANE} order by number limit 1"
    found = letters_of(await reader.read(sql, *lane))
    return found[0] if found else None


async def drop_letter(store: Store, number: int, *, who: str, why: str) -> DeadLetter | None:
    """Discard a letter; None if it is gone. The next of its lane is ready.

    Who did it and why is an event of this service's log, in the same commit.
    """

    async def body(unit: Unit) -> DeadLetter | None:
        rows = await unit.execute(f"select {COLUMNS} from sm_parked where number = ?", number)
        if not rows:
            return None
        (letter,) = letters_of(rows)
        await remove(unit, letter)
        await record(unit, letter, Dropped(*story_of(letter), who, why), "message_dropped")
        return letter

    return await store.write(body, name="drop a message")


async def check_is_first(store: Store, letter: DeadLetter) -> None:
    """Check that nothing is before a letter in its lane.

    Raises:
        BadRequest: something is.
    """
    first = await first_of(store, letter.lane)
    if first is not None and first.number < letter.number:
        raise BadRequest(
            f"message {letter.number} waits behind message {first.number} of its key, which is "
            f"{first.state.value}; replay or drop that one first"
        )


async def note_replay(
    store: Store, letter: DeadLetter, state: LetterState, cause: Cause, told: Replayed
) -> Replayed:
    """Record that a letter which a person replayed has failed again; return the record."""
    told = msgspec.structs.replace(told, reason=cause.error, outcome=state.value)

    async def body(unit: Unit) -> None:
        await note_failure(unit, letter, state, cause)
        await record(unit, letter, told, "message_replayed")

    await store.write(body, name="note a replay")
    return told


async def record(unit: Unit, letter: DeadLetter, told: Dropped | Replayed, name: str) -> None:
    """Append what an operator did with a letter to the service's own log."""
    stream = f"parked/{letter.lane.subscriber or letter.lane.source}/{letter.lane.scope}"
    event = NewEvent(f"{unit.service}.{name}", encode(told), trace_id=letter.message.trace_id)
    await append(unit, stream, [event], expected=None)


def story_of(letter: DeadLetter) -> tuple[str, str, str, str, str, str]:
    """Return the fields with which the record of an operator's act begins."""
    lane, message = letter.lane, letter.message
    return lane.source, lane.subscriber, message.id, message.name, lane.scope, letter.error


def letters_of(rows: Sequence[Row]) -> list[DeadLetter]:
    """Return the letters of rows."""
    return [
        DeadLetter(
            _int(number),
            LetterState(state),
            Lane(str(subscriber), str(source), str(scope)),
            _message(message, payload),
            str(error),
            str(text),
            _int(attempts),
            _int(first_us),
            _int(last_us),
        )
        for (
            number, state, subscriber, source, scope, message, payload, error, text, attempts,
            first_us, last_us,
        ) in rows
    ]  # fmt: skip


def _message(message: SqlValue, payload: SqlValue) -> Message:
    head = msgspec.json.decode(message if isinstance(message, bytes) else b"", type=Message)
    whole = payload if isinstance(payload, bytes) else str(payload).encode()
    return msgspec.structs.replace(head, payload=msgspec.Raw(whole))


def _int(value: SqlValue) -> int:
    return value if isinstance(value, int) else int(value or 0)
