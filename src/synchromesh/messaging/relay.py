"""The relay: reads public events from the log and delivers them to one subscriber.

It is the sending half of the transactional outbox; the log itself is the outbox, and the relay's
checkpoint over it says what is left. Delivery is at least once, in order within a partition key;
the consumer's inbox makes the effect once (O1 to O4).

What the subscriber refuses is set aside in the publisher's database, with what comes behind it, so
that other keys flow (O5). It is asked for again, seldom, until the subscriber takes it.

Source: Richardson, *Microservices Patterns*, section 3.3 (transactional outbox, message relay).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

import msgspec

from synchromesh.clock import loop_clock
from synchromesh.context import CallContext, new_span_id, new_trace_id
from synchromesh.durations import ABOVE_0, FROM_0, FROM_1, refuse_wrong_numbers
from synchromesh.errors import (
    BadRequest,
    CallError,
    ConnectFailed,
    Forbidden,
    Shed,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
    SynchromeshError,
    UnknownOperation,
)
from synchromesh.events import (
    RELAY_PREFIX,
    Checkpoint,
    StoredEvent,
    head,
    read,
    save_checkpoint,
    saved_checkpoint,
)
from synchromesh.messaging import dead_letters, subscriptions
from synchromesh.messaging.dead_letters import (
    Cause,
    DeadLetter,
    Lane,
    LetterState,
    Replayed,
    Room,
    story_of,
)
from synchromesh.messaging.delivery import Delivery
from synchromesh.messaging.message import Message, message_of, partition_key_of
from synchromesh.messaging.window import Window
from synchromesh.priority import Priority
from synchromesh.runtime import Runtime
from synchromesh.store import NO_FENCE, Store, Unit
from synchromesh.telemetry import Tracer

# The subscriber is well and says no.
_REFUSALS = (BadRequest, UnknownOperation, Forbidden)
# The database is at fault: what would be written there is kept in memory meanwhile.
_NOT_NOW = (StoreFull, StoreLocked, StoreReadOnly, Shed)
_LONGEST = 16
_DELIVERED = "delivered"

_log = logging.getLogger("synchromesh.messaging")


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """Configures a relay: its window, polling and backoff; times in seconds.

    Up to `refused_max` messages that the subscriber refuses are set aside, with those behind them;
    beyond it they wait in the window.

    Example:
        >>> RelayOptions(in_flight_max=8).poll_s
        1.0
    """

    in_flight_max: int = 32
    held_max: int = 1024
    refused_max: int = 10_000
    batch_max: int = 256
    poll_s: float = 1.0
    backoff_base_s: float = 0.1
    backoff_cap_s: float = 5.0

    def __post_init__(self) -> None:
        refuse_wrong_numbers(
            self,
            (FROM_1, "in_flight_max held_max batch_max"),
            (FROM_0, "refused_max backoff_base_s backoff_cap_s"),
            (ABOVE_0, "poll_s"),
        )


class Relay:
    """Delivers the events of one log to one subscriber; `run` is a supervised child.

    Of the names those that are `personal` have personal values, which travel in the plain.
    """

    def __init__(
        self,
        store: Store,
        delivery: Delivery,
        *,
        subscriber: str,
        names: frozenset[str],
        tracer: Tracer,
        runtime: Runtime,
        options: RelayOptions | None = None,
        personal: frozenset[str] = frozenset(),
    ) -> None:
        self._store = store
        self._delivery = delivery
        self._subscriber = subscriber
        self._names = names
        self._personal = personal
        self._tracer = tracer
        self._runtime = runtime
        self._options = options or RelayOptions()
        self._events: dict[int, StoredEvent] = {}
        self._changed = asyncio.Event()
        self._letters_changed = asyncio.Event()
        self._room = Room(subscriber, self._options.refused_max)
        # Whether any are set aside: as long as none are, no message is asked about.
        self._has_letters = True
        self._put_count = 0
        self._is_told = False
        self._start = subscriptions.RelayStart(0, {}, {}, {})
        self._saved = 0
        self._fence = NO_FENCE
        self._window = self._new_window(0)

    @property
    def checkpoint_name(self) -> str:
        """The name under which the checkpoint is kept in the publisher's database."""
        return f"{RELAY_PREFIX}{self._subscriber}"

    @property
    def names(self) -> frozenset[str]:
        """The stored names of the events that it delivers."""
        return self._names

    async def run(self) -> None:
        """Deliver until cancelled, or until the log itself fails. A supervised child.

        Raises:
            LogReplaced: the checkpoint belongs to another log; a person has to decide.
            LogGap: positions are missing from the log.
            StoreError: the log cannot be read, or what was delivered is lost: to be run again.
            Fenced: another process delivers to this subscriber now.
        """
        self._fence = self._store.owners.fence((self.checkpoint_name,))
        self._start, self._has_letters = await self._begin(), True
        self._saved = self._start.position
        await self._delivery.begin(self._saved)
        self._window = self._new_window(self._start.position)
        self._events.clear()
        stop_listening = [
            self._store.listen("events", self._changed.set),
            self._store.listen(dead_letters.TOPIC, self._letters_changed.set),
        ]
        try:
            async with asyncio.TaskGroup() as deliveries:
                deliveries.create_task(self._ask_again())
                while True:
                    await self._step(deliveries)
        except ExceptionGroup as errors:
            # What ended the loop or a delivery; the supervisor shows its code, not the group's.
            raise errors.exceptions[0] from None
        finally:
            for stop in stop_listening:
                stop()

    async def _begin(self) -> subscriptions.RelayStart:
        """Return where to go on; what is new about it is saved, so that no removal passes it over.

        Raises:
            LogReplaced, LogGap, StoreError: as `run` does.
        """
        saved = await saved_checkpoint(self._store, self.checkpoint_name)
        if saved is not None:
            await read(self._store, after=saved, limit=1)  # another log is refused at once
        start = subscriptions.start_of(
            self._names,
            None if saved is None else saved.position,
            await subscriptions.load_entries(self._store, self._subscriber),
            end=(await head(self._store)).position,
        )
        entries, left = start.saved_at(start.position)
        if entries and not await self._save_at(start.position, entries):
            return start
        return left

    async def _step(self, deliveries: asyncio.TaskGroup) -> None:
        self._changed.clear()
        grown = await self._fill()
        for position in self._window.ready():
            deliveries.create_task(self._deliver(self._events[position]))
        await self._save()
        if not grown:
            try:
                async with asyncio.timeout(self._options.poll_s):
                    await self._changed.wait()
            except TimeoutError:
                pass  # wake-ups are hints; polling bounds the delay

    async def _fill(self) -> bool:
        limit = min(self._options.batch_max, self._window.room)
        if not limit:
            return False
        after = Checkpoint(self._store.log_id, self._window.newest)
        events = await read(self._store, after=after, limit=limit, public_only=True)
        for event in events:
            if self._start.is_due(event.name, event.position):
                self._events[event.position] = event
                self._window.add(event.position, partition_key_of(event))
            else:
                self._window.skip(event.position)
        return bool(events)

    async def _save(self) -> None:
        position = await self._delivery.taken(self._window.checkpoint)
        if position == self._saved:
            return
        entries, left = self._start.saved_at(position)
        if await self._save_at(position, entries):
            self._start, self._saved = left, position

    async def _save_at(
        self, position: int, entries: Mapping[str, subscriptions.DeliveredUpTo]
    ) -> bool:
        async def body(unit: Unit) -> None:
            await self._fence.check(unit)
            await save_checkpoint(
                unit, self.checkpoint_name, Checkpoint(self._store.log_id, position)
            )
            await subscriptions.save_entries(unit, self._subscriber, entries)

        try:
            await self._store.write(body, name=self.checkpoint_name)
        except _NOT_NOW as error:
            # An older checkpoint delivers again what the inbox knows: no reason to deliver nothing.
            _log.warning("%s could not be saved: %s", self.checkpoint_name, error.message)
            return False
        return True

    async def _deliver(self, event: StoredEvent) -> None:
        """Send until the consumer acknowledges: an outage delays messages and loses none."""
        attempt = 0
        # Opened anew for each attempt: whose data it has may be erased meanwhile.
        while not await self._settle(await self._message_of(event)):
            attempt += 1
            if attempt == 3:
                _log.warning("%s at %d waits for %s", event.name, event.position, self._subscriber)
            await asyncio.sleep(self._wait_s(attempt))
        del self._events[event.position]
        self._window.acknowledge(event.position)
        self._changed.set()

    async def _message_of(self, event: StoredEvent) -> Message:
        vault = self._store.vault if event.name in self._personal else None
        while True:
            try:
                return message_of(event, vault)
            except StoreError as error:
                _log.error("%s at %d cannot be sent: %s", event.name, event.position, error.message)
            await asyncio.sleep(self._wait_s(_LONGEST))

    async def _settle(self, message: Message) -> bool:
        """Deliver a message, or set it aside; False where it is to be sent again."""
        if self._has_letters and await dead_letters.has_letters(self._store, self._lane(message)):
            return await self._set_aside(message, LetterState.READY, Cause())
        error = await self._send(message)
        if not _is_refused(error):
            return error == _DELIVERED
        self._tell_refused(message, error)
        if await self._set_aside(message, LetterState.REFUSED, Cause.of(error)):
            return True
        # Only a release or a person mends it, so that asking often is of no use.
        await asyncio.sleep(self._wait_s(_LONGEST))
        return False

    def _tell_refused(self, message: Message, error: SynchromeshError) -> None:
        # Where all are refused the first one says why.
        level, self._is_told = logging.INFO if self._is_told else logging.ERROR, True
        _log.log(
            level,
            "%s at %d is refused by %s: %s (%s); it is kept, and the later ones of %r wait behind "
            "it: is the subscriber's release older than the publisher's?",
            message.name,
            message.position,
            self._subscriber,
            error.message,
            error.code,
            message.scope,
        )

    async def _set_aside(self, message: Message, state: LetterState, cause: Cause) -> bool:
        """Keep a message, and let the window go on without it; False where that cannot be."""

        async def body(unit: Unit) -> None:
            await self._fence.check(unit)
            await self._room.take(unit)
            await dead_letters.put(unit, self._lane(message), message, state, cause)

        try:
            await self._store.write(body, name=f"set aside for {self._subscriber}")
        except _NOT_NOW as error:
            _log.warning("%s of %r waits: %s", message.name, message.scope, error.message)
            return False
        # Before the next one of its key is looked at: that one must find it.
        self._has_letters = True
        self._put_count += 1
        return True

    async def _ask_again(self) -> None:
        """Send what was set aside, in the order of each key: one after the other, and seldom.

        What was refused is asked for when the relay starts, with pauses as long as it is refused,
        and without any as soon as it is not.
        """
        now = loop_clock(asyncio.get_running_loop())
        after, attempt, ask_at_s = 0, 0, now()
        while True:
            self._letters_changed.clear()
            put_count = self._put_count
            letter = await self._next_letter(after)
            if letter is None:
                # One that was put meanwhile may not have been seen.
                self._has_letters = put_count != self._put_count
                if not self._has_letters:
                    self._is_told = False
                    await self._letters_changed.wait()
                    ask_at_s = now() + self._wait_s(_LONGEST)
                continue
            if letter.state is LetterState.REFUSED and ask_at_s > now():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(ask_at_s):
                        await self._letters_changed.wait()
                continue
            after = letter.number
            try:
                error = await self._send_again(letter)
            except _NOT_NOW as failed:
                error = failed
            if error == _DELIVERED:
                attempt, ask_at_s = 0, now()
            elif _is_refused(error):
                ask_at_s = now() + self._wait_s(_LONGEST)
            else:
                attempt += 1
                await asyncio.sleep(self._wait_s(attempt))

    async def _next_letter(self, after: int) -> DeadLetter | None:
        """Return what to send next: what was never refused, else all others in turn."""
        turns = ((LetterState.READY, 0), (LetterState.REFUSED, after), (LetterState.REFUSED, 0))
        for state, number in turns:
            if found := await dead_letters.heads(
                self._store, self._subscriber, state, after=number
            ):
                return found[0]
        return None

    async def _send_again(self, letter: DeadLetter) -> SynchromeshError | str:
        error = await self._send_letter(letter)
        if error == _DELIVERED:
            await self._store.write(
                lambda unit: dead_letters.remove(unit, letter),
                name=f"{self._subscriber} took what it refused",
            )
        elif _is_refused(error):
            state, cause = LetterState.REFUSED, Cause.of(error)
            await self._store.write(
                lambda unit: dead_letters.note_failure(unit, letter, state, cause),
                name=f"{self._subscriber} refuses again",
            )
        return error

    async def replay(self, letter: DeadLetter, *, who: str, why: str) -> Replayed | None:
        """Send a letter of this subscriber now, and return what came of it; None if it is gone.

        Who did it and why is an event of the publisher's log, in the commit that takes the letter
        off the list, or notes that it was refused again.

        Raises:
            BadRequest: it waits behind another one.
            SynchromeshError: the subscriber was not reached.
        """
        await dead_letters.check_is_first(self._store, letter)
        told = Replayed(*story_of(letter), who, why, "delivered")
        error = await self._send_letter(letter)
        if _is_refused(error):
            cause = Cause.of(error)
            return await dead_letters.note_replay(
                self._store, letter, LetterState.REFUSED, cause, told
            )
        if isinstance(error, SynchromeshError):
            raise error
        if error != _DELIVERED:
            raise ConnectFailed(f"{self._subscriber} gave no receipt ({error}); try again")

        async def body(unit: Unit) -> bool:
            if not await dead_letters.remove(unit, letter):
                return False
            await dead_letters.record(unit, letter, told, "message_replayed")
            return True

        is_mine = await self._store.write(body, name="replay what was refused")
        return told if is_mine else None

    def _lane(self, message: Message) -> Lane:
        return Lane(self._subscriber, self._store.service, message.scope)

    async def _send_letter(self, letter: DeadLetter) -> SynchromeshError | str:
        try:
            message = dead_letters.opened(letter, self._store.vault)
        except StoreError as error:
            return error
        return await self._send(message)

    async def _send(self, message: Message) -> SynchromeshError | str:
        """Return `_DELIVERED`, or why it was not: "failed" at the handler, or an error."""
        # A durable boundary starts a new call tree with a deadline of its own (D1).
        trace_id = message.trace_id or new_trace_id(self._runtime.rng)
        context = CallContext(
            trace_id=trace_id,
            span_id=new_span_id(self._runtime.rng),
            key=message.id,
            priority=Priority.SAGA,
            marks=self._tracer.propagation.kept(trace_id),
        )
        # What is set aside may be sent again, wherever the checkpoint is.
        settled = 0 if self._has_letters else self._saved
        span = self._tracer.start("relay", message.name, trace_id=trace_id, marks=context.marks)
        with span:
            span.note("subscriber", self._subscriber)
            try:
                receipt = await self._delivery.deliver(
                    msgspec.structs.replace(message, settled=settled),
                    msgspec.structs.replace(context, span_id=span.span_id),
                )
            except SynchromeshError as error:
                span.fail(error)
                return error
            span.note("outcome", receipt.outcome)
            return _DELIVERED if receipt.is_acknowledged else receipt.outcome

    def _wait_s(self, attempt: int) -> float:
        longest = min(
            self._options.backoff_cap_s, self._options.backoff_base_s * 2 ** min(attempt, _LONGEST)
        )
        return self._runtime.rng.uniform(longest / 2, longest)

    def _new_window(self, checkpoint: int) -> Window:
        return Window(
            checkpoint,
            in_flight_max=self._options.in_flight_max,
            held_max=self._options.held_max,
        )

    def __repr__(self) -> str:
        return f"<Relay to {self._subscriber} {self._window!r}>"


def _is_refused(error: SynchromeshError | str) -> TypeGuard[SynchromeshError]:
    """Return whether the answer will be the same until one of the two services is mended."""
    return isinstance(error, _REFUSALS) or (isinstance(error, CallError) and error.is_final)
