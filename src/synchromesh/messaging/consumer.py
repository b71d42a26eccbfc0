"""The consumer: takes delivered messages into this service's own units, each with one effect.

A message that a handler cannot take is parked in the consumer's own database and acknowledged, and
so are the later ones of its scope, in order, until a person replays or drops it; other scopes flow
(O5).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import msgspec

from synchromesh.codec import digest
from synchromesh.errors import (
    Rejection,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
    SynchromeshError,
)
from synchromesh.messaging.message import Message, Receipt
from synchromesh.store import Migration, Once, Schema, Store, Unit

MessageHandler = Callable[[Unit, Message], Awaitable[None]]

SCHEMA = Schema(
    "messaging",
    (
        Migration(
            1,
            (
                (
                    "create table sm_parked(source text not null, log_id text not null, "
                    "position bigint not null, scope text not null, message {blob} not null, "
                    "reason text not null, parked_us bigint not null, "
                    "primary key(source, log_id, position))"
                ),
                "create index sm_parked_scope on sm_parked(source, scope, position)",
            ),
            readable_by_min=1,
        ),
    ),
)

FAILURES_MAX = 10_000

_log = logging.getLogger("synchromesh.messaging")


@dataclass(frozen=True, slots=True)
class Parked:
    """A message that waits for a person, or behind one that does."""

    source: str
    scope: str
    message: Message
    reason: str
    parked_us: int


class Consumer:
    """Runs this service's message handlers, each message in one unit with its inbox record.

    Args:
        store: the service's database.
        handlers: by stored event name; each runs inside a unit and may await nothing else.
        attempts_max: how often a handler may fail on a message before it is parked.
        keep_s: how long a message's id is remembered.
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
        """Take a message; what acknowledges it is returned only once durable.

        Raises:
            StoreFull, StoreLocked, StoreReadOnly: the database is at fault, not the message.
        """
        if message.name not in self._handlers:
            return Receipt("ignored")
        known = (source, message.id)
        try:
            receipt = await self._take_once(source, message, known, self._handle)
        except (StoreFull, StoreLocked, StoreReadOnly):
            raise
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
                source, message, known, lambda unit, s, m: _park(unit, s, m, reason)
            )
        self._failures.pop(known, None)
        return receipt

    async def _take_once(
        self,
        source: str,
        message: Message,
        known: tuple[str, str],
        act: Callable[[Unit, str, Message], Awaitable[Receipt]],
    ) -> Receipt:
        async def body(unit: Unit) -> bytes:
            return msgspec.json.encode(await act(unit, source, message))

        once = Once(known[0], known[1], digest(message.payload), self._keep_s)
        recorded = await self._store.write_once(body, once, name=f"on {message.name}")
        return msgspec.json.decode(recorded.body, type=Receipt)

    async def _handle(self, unit: Unit, source: str, message: Message) -> Receipt:
        if await _is_blocked(unit, source, message.scope):
            return await _park(unit, source, message, "behind a parked message")
        try:
            await self._handlers[message.name](unit, message)
        except Rejection as error:
            # A consumer has nobody to refuse to, and a refusal must not be recorded as an answer.
            raise RejectedMessage(f"{message.name} was rejected: {error.code}") from error
        return Receipt("handled")

    async def parked(self, *, limit: int = 100) -> list[Parked]:
        """Return what waits for a person, oldest first within each scope."""
        rows = await self._store.read(
            "select source, scope, message, reason, parked_us from sm_parked "
            "order by source, scope, log_id, position limit ?",
            limit,
        )
        return [
            Parked(
                str(source),
                str(scope),
                msgspec.json.decode(message if isinstance(message, bytes) else b"", type=Message),
                str(reason),
                int(parked_us or 0),
            )
            for source, scope, message, reason, parked_us in rows
        ]

    async def replay(self, source: str, scope: str) -> int:
        """Handle the parked messages of a scope in order; returns how many are done.

        It stops at the first that fails again, which stays parked with those behind it, and raises
        what its handler raised. Each is handled in the commit that takes it off the list, so a
        replay that is repeated or killed has each effect once.
        """
        done = 0
        while (first := await self._first(source, scope)) is not None:

            async def body(unit: Unit, message: Message = first) -> None:
                if await _unpark(unit, source, message):
                    await self._handlers[message.name](unit, message)

            await self._store.write(body, name=f"replay {first.name}")
            done += 1
        return done

    async def drop(self, source: str, message_id: str, *, who: str, why: str) -> bool:
        """Take one parked message off the list unhandled; False where it is not parked."""
        log_id, _, position = message_id.rpartition(":")

        async def body(unit: Unit) -> bool:
            rows = await unit.execute(
                "delete from sm_parked where source = ? and log_id = ? and position = ? "
                "returning 1",
                source,
                log_id,
                int(position),
            )
            return bool(rows)

        is_dropped = await self._store.write(body, name="drop a parked message")
        if is_dropped:
            _log.warning("message %s of %s was dropped by %s: %s", message_id, source, who, why)
        return is_dropped

    async def _first(self, source: str, scope: str) -> Message | None:
        rows = await self._store.read(
            "select message from sm_parked where source = ? and scope = ? "
            "order by log_id, position limit 1",
            source,
            scope,
        )
        if not rows or not isinstance(rows[0][0], bytes):
            return None
        return msgspec.json.decode(rows[0][0], type=Message)


class RejectedMessage(Exception):
    """Tells that a handler raised a `Rejection`, which no publisher waits for."""


async def _is_blocked(unit: Unit, source: str, scope: str) -> bool:
    return bool(
        await unit.execute(
            "select 1 from sm_parked where source = ? and scope = ? limit 1", source, scope
        )
    )


async def _park(unit: Unit, source: str, message: Message, reason: str) -> Receipt:
    await unit.execute(
        "insert into sm_parked(source, log_id, position, scope, message, reason, parked_us) "
        "values(?, ?, ?, ?, ?, ?, ?) on conflict do nothing",
        source,
        message.log_id,
        message.position,
        message.scope,
        msgspec.json.encode(message),
        reason,
        unit.now_us,
    )
    return Receipt("parked")


async def _unpark(unit: Unit, source: str, message: Message) -> bool:
    return bool(
        await unit.execute(
            "delete from sm_parked where source = ? and log_id = ? and position = ? returning 1",
            source,
            message.log_id,
            message.position,
        )
    )
