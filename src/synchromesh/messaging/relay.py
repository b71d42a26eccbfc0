"""The relay: reads public events from the log and delivers them to one subscriber.

It is the sending half of the transactional outbox; the log itself is the outbox, and the relay's
checkpoint over it says what is left. Delivery is at least once, in order within a scope; the
consumer's inbox makes the effect once (O1 to O4).

Source: Richardson, *Microservices Patterns*, section 3.3 (transactional outbox, message relay).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from msgspec.structs import replace

from synchromesh.calls import Sender
from synchromesh.codec import decode, encode
from synchromesh.context import CallContext, new_span_id, new_trace_id
from synchromesh.errors import (
    BadRequest,
    Forbidden,
    Shed,
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
    read,
    save_checkpoint,
    saved_checkpoint,
)
from synchromesh.messaging.message import (
    Deliver,
    Receipt,
    deliver_to,
    message_of,
    partition_key_of,
)
from synchromesh.messaging.window import Window
from synchromesh.priority import Priority
from synchromesh.runtime import Runtime
from synchromesh.store import Store
from synchromesh.telemetry import Tracer

# The subscriber is well and says no: it will do so until one of the two is mended.
_PERMANENT = (BadRequest, UnknownOperation, Forbidden)
_LONGEST = 16
_DELIVERED = "delivered"

_log = logging.getLogger("synchromesh.messaging")


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """Configures a relay: its window, polling and backoff; times in seconds.

    Example:
        >>> RelayOptions(in_flight_max=8).timeout_s
        5.0
    """

    in_flight_max: int = 32
    held_max: int = 1024
    batch_max: int = 256
    poll_s: float = 1.0
    timeout_s: float = 5.0
    backoff_base_s: float = 0.1
    backoff_cap_s: float = 5.0


class Relay:
    """Delivers the events of one log to one subscriber; `run` is a supervised child."""

    def __init__(
        self,
        store: Store,
        sender: Sender,
        *,
        subscriber: str,
        names: frozenset[str],
        tracer: Tracer,
        runtime: Runtime,
        options: RelayOptions | None = None,
    ) -> None:
        self._store = store
        self._sender = sender
        self._subscriber = subscriber
        self._names = names
        self._tracer = tracer
        self._runtime = runtime
        self._options = options or RelayOptions()
        self._events: dict[int, StoredEvent] = {}
        self._changed = asyncio.Event()
        self._saved = 0
        self._window = self._new_window(0)

    @property
    def checkpoint_name(self) -> str:
        """The name under which the checkpoint is kept in the publisher's database."""
        return f"{RELAY_PREFIX}{self._subscriber}"

    async def run(self) -> None:
        """Deliver until cancelled, or until the log itself fails. A supervised child.

        Raises:
            LogReplaced: the checkpoint belongs to another log; a person has to decide.
            LogGap: positions are missing from the log.
            StoreError: the log cannot be read.
        """
        start = await self._begin()
        await read(self._store, after=start, limit=1)  # another log is refused at once
        self._saved = start.position
        self._window = self._new_window(start.position)
        self._events.clear()
        stop_listening = self._store.listen("events", self._changed.set)
        try:
            async with asyncio.TaskGroup() as deliveries:
                while True:
                    await self._step(deliveries)
        except ExceptionGroup as errors:
            # What ended the loop or a delivery; the supervisor shows its code, not the group's.
            raise errors.exceptions[0] from None
        finally:
            stop_listening()

    async def _begin(self) -> Checkpoint:
        """Return where to go on; a new relay saves it, so that no removal passes it over."""
        saved = await saved_checkpoint(self._store, self.checkpoint_name)
        if saved is not None:
            return saved
        start = Checkpoint(self._store.log_id)
        await self._save_at(start)
        return start

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
            if event.name in self._names:
                self._events[event.position] = event
                self._window.add(event.position, partition_key_of(event))
            else:
                self._window.skip(event.position)
        return bool(events)

    async def _save(self) -> None:
        if self._window.checkpoint == self._saved:
            return
        checkpoint = Checkpoint(self._store.log_id, self._window.checkpoint)
        if await self._save_at(checkpoint):
            self._saved = checkpoint.position

    async def _save_at(self, checkpoint: Checkpoint) -> bool:
        try:
            await self._store.write(
                lambda unit: save_checkpoint(unit, self.checkpoint_name, checkpoint),
                name=self.checkpoint_name,
            )
        except (StoreFull, StoreLocked, StoreReadOnly, Shed) as error:
            # An older checkpoint delivers again what the inbox knows: no reason to deliver nothing.
            _log.warning("%s could not be saved: %s", self.checkpoint_name, error.message)
            return False
        return True

    async def _deliver(self, event: StoredEvent) -> None:
        """Send until the consumer acknowledges: an outage delays messages and loses none."""
        arguments = encode({"message": message_of(event)})
        operation = deliver_to(self._subscriber)
        attempt, was_refused = 0, False
        while (error := await self._send(event, operation, arguments)) != _DELIVERED:
            attempt += 1
            if isinstance(error, _PERMANENT):
                if not was_refused:
                    self._tell_refused(event, error)
                # Only a release or a person mends it, so that asking often is of no use.
                was_refused, attempt = True, max(attempt, _LONGEST)
            await asyncio.sleep(self._wait_s(event, attempt))
        del self._events[event.position]
        self._window.acknowledge(event.position)
        self._changed.set()

    def _tell_refused(self, event: StoredEvent, error: SynchromeshError) -> None:
        _log.error(
            "%s at %d is refused by %s: %s (%s); it is kept, and the later ones of %r wait behind "
            "it: is the subscriber's release older than the publisher's?",
            event.name,
            event.position,
            self._subscriber,
            error.message,
            error.code,
            partition_key_of(event),
        )

    async def _send(
        self, event: StoredEvent, operation: Deliver, arguments: bytes
    ) -> SynchromeshError | str:
        """Return `_DELIVERED`, or why it was not: "failed" at the handler, or an error."""
        # A durable boundary starts a new call tree with a deadline of its own (D1).
        context = CallContext(
            trace_id=event.trace_id or new_trace_id(self._runtime.rng),
            span_id=new_span_id(self._runtime.rng),
            key=event.id,
            priority=Priority.SAGA,
        )
        span = self._tracer.start("relay", event.name, trace_id=context.trace_id)
        with span:
            span.note("subscriber", self._subscriber)
            try:
                answer = await self._sender.send(
                    operation,
                    arguments,
                    context=replace(context, span_id=span.span_id),
                    timeout_s=self._options.timeout_s,
                )
            except SynchromeshError as error:
                span.fail(error)
                return error
            try:
                receipt = decode(answer, Receipt)
            except BadRequest as error:
                span.fail(error)
                return "no receipt"  # the answer does not fit; it says nothing about the message
            span.note("outcome", receipt.outcome)
            return _DELIVERED if receipt.is_acknowledged else receipt.outcome

    def _wait_s(self, event: StoredEvent, attempt: int) -> float:
        if attempt == 3:
            _log.warning("%s at %d waits for %s", event.name, event.position, self._subscriber)
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
