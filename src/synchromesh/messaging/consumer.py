"""The consumer: handles delivered messages, each exactly once, in this service's own units.

A message that a handler fails on is parked in the consumer's own database and acknowledged, and so
are the later ones of its partition key, in order, until a person replays or drops it; other keys
flow (O5). One that this release does not know, or that does not fit its type, is held the same way:
its publisher is of a newer release, and the next one of this service handles it when it starts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from synchromesh.errors import (
    ContractError,
    ContractMismatch,
    Forbidden,
    KeyReused,
    Rejection,
    Shed,
    StoreBroken,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
    StoreUnavailable,
)
from synchromesh.messaging import dead_letters
from synchromesh.messaging.dead_letters import (
    Cause,
    DeadLetter,
    Lane,
    LetterState,
    Replayed,
    Room,
    story_of,
)
from synchromesh.messaging.message import Message, Receipt
from synchromesh.store import Once, Store, Unit

MessageHandler = Callable[[Unit, Message], Awaitable[None]]

FAILURES_MAX = 10_000
LETTERS_MAX = 100_000
_INBOX_PREFIX = "message/"
# How many messages that need no person are handled at once, and the pauses between attempts.
FREED_AT_ONCE = 32
PAUSE_BASE_S, PAUSE_CAP_S = 0.1, 5.0

# The database is at fault, not the message: it is delivered again, however often that takes.
_NOT_THE_MESSAGE = (StoreFull, StoreLocked, StoreReadOnly, Shed)
_FILE_FAULTS = (StoreBroken, StoreUnavailable)

_log = logging.getLogger("synchromesh.messaging")


class Consumer:
    """Delivers messages to a service's handlers, each in one unit with its inbox record.

    Args:
        store: the service's database.
        handlers: by stored event name; each runs inside a unit and may await nothing else. What it
            cannot read it tells by `ContractMismatch`.
        ignored: stored names of events that are acknowledged and not handled.
        attempts_max: how often a handler may fail on a message before it is parked.
        keep_s: how long a message's id is remembered at least; one that its publisher does not
            know to be delivered is remembered for longer.
        letters_max: how many messages may be set aside; beyond it their publishers keep them.

    Example:
        >>> async def loop(consumer: Consumer) -> None:
        ...     await consumer.run()  # handles what an older release held, while it runs
    """

    def __init__(
        self,
        store: Store,
        handlers: Mapping[str, MessageHandler],
        *,
        ignored: frozenset[str] = frozenset(),
        attempts_max: int = 5,
        keep_s: float = 7 * 86_400.0,
        letters_max: int = LETTERS_MAX,
    ) -> None:
        self._store = store
        self._handlers = handlers
        self._ignored = ignored
        self._attempts_max = attempts_max
        self._keep_s = keep_s
        self._room = Room("", letters_max)
        # How often each message has failed here, and since when; bounded by one in flight a key.
        self._failures: dict[tuple[str, str], tuple[int, int]] = {}
        # By publisher, what it said last that it will not deliver again; unknown until it does.
        self._settled: dict[str, int] = {}
        # Those that are being taken: a delivery that comes again waits for the one before.
        self._taking: dict[tuple[str, str], tuple[Message, asyncio.Task[Receipt]]] = {}

    @property
    def takes_any(self) -> bool:
        """Whether this release handles or ignores any event."""
        return bool(self._handlers or self._ignored)

    def is_needed(self, source: str, key: str, answer: bytes) -> bool:
        """Return whether an inbox record is of a message that may be delivered again.

        So it is until its publisher has said that it knows of its delivery: one that has been away
        for longer than inboxes remember delivers again what it does not know of.
        """
        if not key.startswith(_INBOX_PREFIX):
            return False
        position = msgspec.json.decode(answer, type=Receipt).position
        return position > self._settled.get(source, 0)

    async def take(self, source: str, message: Message) -> Receipt:
        """Handle a message and return its receipt, once the outcome is durable.

        It is taken to its end also where the caller is cancelled, as by its deadline: a handler
        that is too slow each time is one that fails.

        Raises:
            StoreFull, StoreLocked, StoreReadOnly, StoreUnavailable, StoreBroken: the database is at
                fault, not the message.
            Shed: its queue is full, or too many messages are set aside.
            Forbidden: the source delivers an event that is another service's.
        """
        if message.name.partition(".")[0] != source:
            raise Forbidden(f"{source!r} delivered {message.name!r}; a service delivers its own")
        self._settled[source] = message.settled
        if message.name in self._ignored:
            return Receipt("ignored")
        # It differs from one delivery to the next, and is no part of what is taken.
        message = msgspec.structs.replace(message, settled=0)
        known = (source, message.id)
        taking = self._taking.get(known)
        if taking is None or taking[0] != message:
            task = asyncio.get_running_loop().create_task(self._take(source, message))
            taking = self._taking[known] = message, task
            task.add_done_callback(lambda done: self._taken(known, done))
        return await asyncio.shield(taking[1])

    def _taken(self, known: tuple[str, str], done: asyncio.Task[Receipt]) -> None:
        if self._taking[known][1] is done:
            del self._taking[known]
        # What it raised is for whoever still waits; the log has it.
        _ = done.cancelled() or done.exception()

    async def _take(self, source: str, message: Message) -> Receipt:
        known, began_us = (source, message.id), 0

        async def handle(unit: Unit) -> Receipt:
            nonlocal began_us
            began_us = unit.now_us
            return await self._handle(unit, source, message)

        try:
            receipt = await self._take_once(source, message, handle)
        except (*_NOT_THE_MESSAGE, *_FILE_FAULTS):
            raise
        except KeyReused as error:
            return await self._park_unknown(source, message, error)
        except ContractMismatch as error:
            _log.warning(
                "message %s of %s is held: %s",
                message.id,
                source,
                error.message,
                extra={"trace_id": message.trace_id},
            )
            cause = Cause.of(error)
            receipt = await self._set_aside(source, message, LetterState.HELD, cause)
        except Exception as error:  # noqa: BLE001  what a handler raises is the message's failure
            _log.exception(
                "message %s of %s could not be taken",
                message.id,
                source,
                extra={"trace_id": message.trace_id},
            )
            failures, first_us = self._failures.get(known, (0, began_us))
            failures += 1
            if failures < self._attempts_max:
                if len(self._failures) >= FAILURES_MAX:
                    self._failures.clear()  # counting anew only delays the parking
                self._failures[known] = failures, first_us
                return Receipt("failed")
            cause = Cause.of(error, failures, first_us)
            receipt = await self._set_aside(source, message, LetterState.PARKED, cause)
        self._failures.pop(known, None)
        return receipt

    async def _take_once(
        self, source: str, message: Message, act: Callable[[Unit], Awaitable[Receipt]]
    ) -> Receipt:
        async def body(unit: Unit) -> bytes:
            receipt = await act(unit)
            return msgspec.json.encode(Receipt(receipt.outcome, message.position))

        once = Once(source, inbox_key(message.id), message.digest(), self._keep_s)
        recorded = await self._store.write_once(body, once, name=f"on {message.name}")
        return Receipt(msgspec.json.decode(recorded.body, type=Receipt).outcome)

    async def _set_aside(
        self, source: str, message: Message, state: LetterState, cause: Cause
    ) -> Receipt:
        return await self._take_once(
            source, message, lambda unit: self._put(unit, source, message, state, cause)
        )

    async def _park_unknown(self, source: str, message: Message, error: KeyReused) -> Receipt:
        """Park a message that has the id of another one: its publisher's log is not what it was."""
        _log.error(
            "message %s of %s was taken before with another payload: was its log edited? It is "
            "parked",
            message.id,
            source,
        )
        cause = Cause.of(error)
        return await self._store.write(
            lambda unit: self._put(unit, source, message, LetterState.PARKED, cause),
            name=f"park {message.name}",
        )

    async def _handle(self, unit: Unit, source: str, message: Message) -> Receipt:
        handler = self._handlers.get(message.name)
        is_blocked = await dead_letters.is_blocked(unit, Lane("", source, message.scope))
        if handler is None or is_blocked:
            cause = self._unhandled(message) if handler is None else Cause()
            return await self._put(unit, source, message, LetterState.HELD, cause)
        await _handle(handler, unit, dead_letters.admitted(message, unit.vault))
        return Receipt("handled")

    async def _put(
        self, unit: Unit, source: str, message: Message, state: LetterState, cause: Cause
    ) -> Receipt:
        await self._room.take(unit)
        lane = Lane("", source, message.scope)
        state = await dead_letters.put(unit, lane, message, state, cause)
        return Receipt("held" if state is LetterState.HELD else "parked")

    def _unhandled(self, message: Message) -> Cause:
        return Cause(
            "UnknownEvent",
            f"this release of {self._store.service} does not handle {message.name}; start one that "
            "does, or that declares it in ignored=",
            attempts=1,
        )

    async def close(self) -> None:
        """Wait until what is being taken has ended; its database is closed already."""
        tasks = [task for _, task in self._taking.values()]
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- what was set aside ----------------------------------------------------------------------

    async def run(self) -> None:
        """Handle what needs no person, until cancelled. A supervised child.

        At its start that is what an earlier release held and this one can take; later, what waits
        behind a message that was replayed or dropped. All of it in order, each once.
        """
        changed = asyncio.Event()
        stop = self._store.listen(dead_letters.TOPIC, changed.set)
        try:
            await self._free_held()
            while True:
                changed.clear()
                while await self._free(LetterState.READY):
                    pass
                await changed.wait()
        finally:
            stop()

    async def _free_held(self) -> None:
        after = 0
        while (found := await self._heads(LetterState.HELD, after)) and found[-1].number > after:
            after = found[-1].number
            await self._free_each([each for each in found if self._is_takeable(each)])

    async def _free(self, state: LetterState) -> bool:
        found = await self._heads(state)
        await self._free_each(found)
        return bool(found)

    async def _heads(self, state: LetterState, after: int = 0) -> list[DeadLetter]:
        return await dead_letters.heads(self._store, "", state, after=after, limit=FREED_AT_ONCE)

    async def _free_each(self, letters: list[DeadLetter]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for letter in letters:
                    group.create_task(self._free_one(letter))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the supervisor shows its code, not the group's

    def _is_takeable(self, letter: DeadLetter) -> bool:
        return letter.message.name in self._ignored or letter.message.name in self._handlers

    async def _free_one(self, letter: DeadLetter) -> None:
        """Handle a letter, or note what it waits for now."""
        failed = await self._settle(letter)
        if failed is None:
            return

        async def body(unit: Unit) -> None:
            await dead_letters.note_failure(unit, letter, *failed)

        while True:
            try:
                await self._store.write(body, name=f"note why {letter.message.name} waits")
                return
            except _NOT_THE_MESSAGE as error:
                _log.warning("message %s waits: %s", letter.message.id, error.message)
            await asyncio.sleep(PAUSE_CAP_S)

    async def _settle(self, letter: DeadLetter) -> tuple[LetterState, Cause] | None:
        """Handle a letter in the commit that takes it off the list; return why it cannot be."""
        message, attempts, pause_s = letter.message, 0, PAUSE_BASE_S
        handler = self._handlers.get(message.name)
        if not self._is_takeable(letter):
            return LetterState.HELD, self._unhandled(message)

        async def body(unit: Unit) -> None:
            if await dead_letters.remove(unit, letter) and handler is not None:
                await _handle(handler, unit, dead_letters.opened(letter, unit.vault))

        while True:
            try:
                await self._store.write(body, name=f"free {message.name}")
            except _NOT_THE_MESSAGE as error:
                _log.warning("message %s waits: %s", message.id, error.message)
            except _FILE_FAULTS:
                raise  # this loop begins again once the file is open
            except ContractMismatch as error:
                return LetterState.HELD, Cause.of(error)
            except Exception as error:  # noqa: BLE001  as in `take`
                _log.exception(
                    "message %s could not be taken",
                    message.id,
                    extra={"trace_id": message.trace_id},
                )
                attempts += 1
                if attempts >= self._attempts_max:
                    return LetterState.PARKED, Cause.of(error, attempts)
            else:
                did = "handled" if handler else "ignored, as is declared"
                _log.info("message %s was set aside, and is %s", message.id, did)
                return None
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_CAP_S)

    async def replay(self, number: int, *, who: str, why: str) -> Replayed | None:
        """Handle a letter again, and return what came of it; None where there is none.

        Those behind it follow by themselves once it is handled. Who did it and why is an event of
        this service's log, in the commit that takes the letter off the list, or notes that it has
        failed again.

        Raises:
            BadRequest: it waits behind another one, which has to be replayed or dropped first.
            ContractError: this release does not handle the event.
            StoreError, Shed: the database is at fault.
        """
        letter = await dead_letters.find_letter(self._store, number)
        if letter is None or not letter.is_incoming:
            return None
        await dead_letters.check_is_first(self._store, letter)
        handler = self._handlers.get(letter.message.name)
        if not self._is_takeable(letter):
            raise ContractError(
                f"{self._unhandled(letter.message).text}. Until then drop message {number}, or "
                "leave it"
            )
        told = Replayed(*story_of(letter), who, why, "handled" if handler else "ignored")

        async def body(unit: Unit) -> bool:
            if not await dead_letters.remove(unit, letter):
                return False
            await dead_letters.record(unit, letter, told, "message_replayed")
            if handler is not None:
                await _handle(handler, unit, dead_letters.opened(letter, unit.vault))
            return True

        try:
            is_mine = await self._store.write(body, name=f"replay {letter.message.name}")
        except (*_NOT_THE_MESSAGE, *_FILE_FAULTS):
            raise
        except Exception as error:  # noqa: BLE001  as in `take`
            _log.exception(
                "message %s failed again",
                letter.message.id,
                extra={"trace_id": letter.message.trace_id},
            )
            is_held = isinstance(error, ContractMismatch)
            state = LetterState.HELD if is_held else LetterState.PARKED
            return await dead_letters.note_replay(self._store, letter, state, Cause.of(error), told)
        return told if is_mine else None


class RejectedMessage(Exception):
    """Raised when a message handler raised a `Rejection`: no caller could receive it."""


def inbox_key(message_id: str) -> str:
    """Return the inbox key of a message, apart from those of its publisher's calls."""
    return f"{_INBOX_PREFIX}{message_id}"


async def _handle(handler: MessageHandler, unit: Unit, message: Message) -> None:
    try:
        await handler(unit, message)
    except Rejection as error:
        # A consumer has nobody to refuse to, and a refusal must not be recorded as an answer.
        raise RejectedMessage(f"{message.name} was rejected: {error.code}") from error
