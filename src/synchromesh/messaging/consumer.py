"""The consumer: handles delivered messages, each exactly once, in this service's own units.

A message that a handler cannot take is parked in the consumer's own database and acknowledged, and
so are the later ones of its scope, in order, until a person replays or drops it; other scopes flow
(O5).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import msgspec

from synchromesh.codec import digest, encode
from synchromesh.errors import (
    BadRequest,
    ContractError,
    Forbidden,
    KeyReused,
    Rejection,
    Shed,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
    SynchromeshError,
)
from synchromesh.events import NewEvent, append
from synchromesh.messaging.message import Message, Receipt
from synchromesh.store import Migration, Once, Schema, SqlValue, Store, Unit

MessageHandler = Callable[[Unit, Message], Awaitable[None]]

SCHEMA = Schema(
    "messaging",
    (
        Migration(
            1,
            (
                (
                    "create table sm_parked(seq {position}, source text not null, "
                    "message_id text not null, scope text not null, message {blob} not null, "
                    "reason text not null, parked_us bigint not null, unique(source, message_id))"
                ),
                "create index sm_parked_scope on sm_parked(source, scope, seq)",
            ),
            readable_by_min=1,
        ),
    ),
)

FAILURES_MAX = 10_000

# The database is at fault, not the message: it is delivered again, however often that takes.
_NOT_THE_MESSAGE = (StoreFull, StoreLocked, StoreReadOnly, Shed)

_log = logging.getLogger("synchromesh.messaging")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A parked message: it failed, or waits behind one of its partition key that did."""

    source: str
    scope: str
    message: Message
    reason: str
    parked_us: int


class Dropped(msgspec.Struct, frozen=True):
    """The event that records a dead letter dropped by an operator."""

    source: str
    message_id: str
    name: str
    scope: str
    reason: str
    who: str
    why: str


class Consumer:
    """Delivers messages to a service's handlers, each in one unit with its inbox record.

    Args:
        store: the service's database.
        handlers: by stored event name; each runs inside a unit and may await nothing else.
        attempts_max: how often a handler may fail on a message before it is parked.
        keep_s: how long a message's id is remembered.

    Example:
        >>> async def waiting(consumer: Consumer) -> list[str]:
        ...     return [letter.message.id for letter in await consumer.parked()]
    """

    def __init__(
        self,
        store: Store,
        handlers: Mapping[str, MessageHandler],
        *,
        attempts_max: int = 5,
        keep_s: float = 7 * 86_400.0,
    ) -> None:
        self._store = store
        self._handlers = handlers
        self._attempts_max = attempts_max
        self._keep_s = keep_s
        # How often each message has failed here; bounded by one in flight a scope.
        self._failures: dict[tuple[str, str], int] = {}

    async def take(self, source: str, message: Message) -> Receipt:
        """Handle a message and return its receipt, once the outcome is durable.

        Raises:
            StoreFull, StoreLocked, StoreReadOnly, Shed: the database is at fault, not the message.
            Forbidden: the source delivers an event that is another service's.
        """
        if message.name.partition(".")[0] != source:
            raise Forbidden(f"{source!r} delivered {message.name!r}; a service delivers its own")
        if message.name not in self._handlers:
            return Receipt("ignored")
        known = (source, message.id)
        try:
            receipt = await self._take_once(source, message, self._handle)
        except _NOT_THE_MESSAGE:
            raise
        except KeyReused:
            return await self._park_unknown(source, message)
        except Exception as error:  # noqa: BLE001  what a handler raises is the message's failure
            _log.exception("message %s of %s could not be taken", message.id, source)
            failures = self._failures.get(known, 0) + 1
            if failures < self._attempts_max:
                if len(self._failures) >= FAILURES_MAX:
                    self._failures.clear()  # counting anew only delays the parking
                self._failures[known] = failures
                return Receipt("failed")
            reason = error.code if isinstance(error, SynchromeshError) else type(error).__name__
            receipt = await self._take_once(
                source, message, lambda unit, s, m: _park(unit, s, m, reason)
            )
        self._failures.pop(known, None)
        return receipt

    async def _take_once(
        self,
        source: str,
        message: Message,
        act: Callable[[Unit, str, Message], Awaitable[Receipt]],
    ) -> Receipt:
        async def body(unit: Unit) -> bytes:
            return msgspec.json.encode(await act(unit, source, message))

        once = Once(source, inbox_key(message.id), digest(message.payload), self._keep_s)
        recorded = await self._store.write_once(body, once, name=f"on {message.name}")
        return msgspec.json.decode(recorded.body, type=Receipt)

    async def _park_unknown(self, source: str, message: Message) -> Receipt:
        """Park a message that has the id of another one: its publisher's log is not what it was."""
        _log.error(
            "message %s of %s was taken before with another payload: was its log restored or "
            "edited? It is parked",
            message.id,
            source,
        )
        return await self._store.write(
            lambda unit: _park(unit, source, message, KeyReused.code), name=f"park {message.name}"
        )

    async def _handle(self, unit: Unit, source: str, message: Message) -> Receipt:
        if await _is_blocked(unit, source, message.scope):
            return await _park(unit, source, message, "behind a parked message")
        try:
            await self._handlers[message.name](unit, message)
        except Rejection as error:
            # A consumer has nobody to refuse to, and a refusal must not be recorded as an answer.
            raise RejectedMessage(f"{message.name} was rejected: {error.code}") from error
        return Receipt("handled")

    async def parked(self, *, limit: int = 100) -> list[DeadLetter]:
        """Return the dead letters, oldest first within each partition key."""
        rows = await self._store.read(
            "select source, scope, message, reason, parked_us from sm_parked "
            "order by source, scope, seq limit ?",
            limit,
        )
        return [
            DeadLetter(str(source), str(scope), _message(message), str(reason), int(parked_us or 0))
            for source, scope, message, reason, parked_us in rows
        ]

    async def parked_count(self) -> int:
        """Return the number of dead letters."""
        return int((await self._store.read("select count(*) from sm_parked"))[0][0] or 0)

    async def replay(self, source: str, scope: str) -> int:
        """Handle the parked messages of a scope in order; returns how many this call handled.

        It stops at the first that fails again, which stays parked with those behind it, and raises
        what its handler raised. Each is handled in the commit that takes it off the list, so a
        replay that is repeated or killed has each effect once.

        Raises:
            ContractError: the service handles the event no longer.
        """
        done = 0
        while (first := await self._first(source, scope)) is not None:
            handler = self._handlers.get(first.name)
            if handler is None:
                raise ContractError(
                    f"nothing here handles {first.name!r} any more; drop message {first.id}, or "
                    "handle its event again"
                )

            async def body(
                unit: Unit, message: Message = first, handle: MessageHandler = handler
            ) -> bool:
                if not await _unpark(unit, source, message):
                    return False
                await handle(unit, message)
                return True

            done += await self._store.write(body, name=f"replay {first.name}")
        return done

    async def drop(self, source: str, message_id: str, *, who: str, why: str) -> bool:
        """Discard one parked message unhandled; False where it is not parked.

        Who did it and why is an event of this service's log, in the same commit.

        Raises:
            BadRequest: nobody says who and why.
        """
        if not (who.strip() and why.strip()):
            raise BadRequest(f"dropping message {message_id} needs a name and a reason")

        async def body(unit: Unit) -> bool:
            rows = await unit.execute(
                "delete from sm_parked where source = ? and message_id = ? "
                "returning message, reason",
                source,
                message_id,
            )
            if not rows:
                return False
            message, reason = _message(rows[0][0]), str(rows[0][1])
            dropped = Dropped(source, message_id, message.name, message.scope, reason, who, why)
            event = NewEvent(
                f"{unit.service}.message_dropped", encode(dropped), trace_id=message.trace_id
            )
            await append(unit, f"parked/{source}/{message.scope}", [event], expected=None)
            return True

        return await self._store.write(body, name="drop a parked message")

    async def _first(self, source: str, scope: str) -> Message | None:
        rows = await self._store.read(
            "select message from sm_parked where source = ? and scope = ? order by seq limit 1",
            source,
            scope,
        )
        return _message(rows[0][0]) if rows else None


def inbox_key(message_id: str) -> str:
    """Return the inbox key of a message, apart from those of its publisher's calls."""
    return f"message/{message_id}"


class RejectedMessage(Exception):
    """Raised when a message handler raised a `Rejection`: no caller could receive it."""


async def _is_blocked(unit: Unit, source: str, scope: str) -> bool:
    return bool(
        await unit.execute(
            "select 1 from sm_parked where source = ? and scope = ? limit 1", source, scope
        )
    )


async def _park(unit: Unit, source: str, message: Message, reason: str) -> Receipt:
    await unit.execute(
        "insert into sm_parked(source, message_id, scope, message, reason, parked_us) "
        "values(?, ?, ?, ?, ?, ?) on conflict do nothing",
        source,
        message.id,
        message.scope,
        msgspec.json.encode(message),
        reason,
        unit.now_us,
    )
    return Receipt("parked")


async def _unpark(unit: Unit, source: str, message: Message) -> bool:
    return bool(
        await unit.execute(
            "delete from sm_parked where source = ? and message_id = ? returning 1",
            source,
            message.id,
        )
    )


def _message(stored: SqlValue) -> Message:
    return msgspec.json.decode(stored if isinstance(stored, bytes) else b"", type=Message)
