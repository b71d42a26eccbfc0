"""Delivers messages by a stream on NATS JetStream, which waits outside of both services.

The publisher's log stays the outbox, and its checkpoint says what was taken: a stream may be lost,
and nothing is lost with it (ADR 66).

Source: NATS documentation, "JetStream": work queues, message ids, pull consumers.
"""

from __future__ import annotations

import logging
from typing import Any

import nats.errors
import nats.js.errors
from nats.js.api import RawStreamMsg

from synchromesh.clock import loop_now
from synchromesh.codec import encode
from synchromesh.context import CREDENTIAL, CallContext, to_headers
from synchromesh.errors import CallError, StoreUnavailable
from synchromesh.identity import Signer
from synchromesh.messaging.consumer import Consumer
from synchromesh.messaging.delivery import Delivery
from synchromesh.messaging.jetstream_connection import (
    NO_MESSAGE,
    JetStreamConnection,
    JetStreamOptions,
)
from synchromesh.messaging.jetstream_feed import JetStreamFeed
from synchromesh.messaging.message import Message, Receipt
from synchromesh.messaging.passage import Passage, StreamNames
from synchromesh.runtime import Runtime
from synchromesh.telemetry import Tracer

_MESSAGE_ID = "Nats-Msg-Id"
_PUBLISHED = Receipt("published")
# How many messages that NATS has again are looked at in a row, before anything else goes on.
_FREED_MAX = 256

_log = logging.getLogger("synchromesh.messaging")


class JetStream:
    """Is the `Stream` of a system on NATS; made by `connect`, ended by `close`.

    Example:
        >>> async def way(url: str, signer: Signer, runtime: Runtime) -> Delivery:
        ...     stream = await JetStream.connect(url, "works", signer=signer, runtime=runtime)
        ...     return stream.delivery("shop", "stock")
    """

    def __init__(self, connection: JetStreamConnection) -> None:
        self._connection = connection

    @classmethod
    async def connect(
        cls,
        url: str,
        system: str,
        *,
        signer: Signer,
        runtime: Runtime,
        options: JetStreamOptions | None = None,
    ) -> JetStream:
        """Connect, and check the stream of the system; it is made where there is none.

        Raises:
            ConfigError: no such server answers, it refuses who connects, it has no JetStream with
                files, or the stream is of another kind.
        """
        return cls(await JetStreamConnection.connect(url, system, signer, runtime, options))

    def delivery(self, publisher: str, subscriber: str) -> Delivery:
        """Return what puts the messages of a publisher to a subscriber into the stream."""
        return JetStreamDelivery(self._connection, publisher, subscriber)

    async def feed(self, subscriber: str, consumer: Consumer, tracer: Tracer) -> None:
        """Have a consumer take what is in the stream for it, until cancelled."""
        await JetStreamFeed(self._connection, subscriber, consumer, tracer).run()

    async def close(self) -> None:
        """Close the connection: what is in the stream stays there. May be repeated."""
        await self._connection.close()

    def __repr__(self) -> str:
        return f"<JetStream {self._connection!r}>"


class JetStreamDelivery:
    """Puts the messages of one publisher to one subscriber into the stream of their system.

    Example:
        >>> def way(connection: JetStreamConnection) -> Delivery:
        ...     return JetStreamDelivery(connection, "shop", "stock")
    """

    def __init__(self, connection: JetStreamConnection, publisher: str, subscriber: str) -> None:
        self._connection = connection
        self._publisher = publisher
        self._subscriber = subscriber
        self._names = StreamNames.of("")
        self._passage = Passage(0)
        self._ask_at_s = 0.0
        # The oldest message that is there, and since when it is the oldest.
        self._stands = (0, 0.0)
        # Of messages that are given to nobody any more: their copies that were put behind them.
        self._copies: dict[int, int] = {}
        # Whether a publish found no stream, so that this one may be gone.
        self._is_gone = False

    async def begin(self, position: int) -> None:
        """Wait until there is a stream, and begin with the one that there is."""
        self._names = await self._connection.names()
        self._passage, self._is_gone = Passage(position), False
        self._copies.clear()

    async def deliver(self, message: Message, context: CallContext) -> Receipt:
        """Put a message into the stream; the server has it on its disk when this returns.

        A message that is there already is dropped by its id, as long as the server remembers it.

        Raises:
            Shed: the stream is full.
            BadRequest: the server takes no message of this size.
            TimedOut: the server has not answered; the message may come into the stream later.
            ConnectFailed: there is no connection, or no such stream.
        """
        now_us = self._connection.runtime.wall_us()
        headers = {
            **to_headers(context, now=loop_now(), wall_us=now_us),
            # Ids are per stream: a copy for another subscriber would be dropped as a duplicate.
            _MESSAGE_ID: f"{self._subscriber}/{message.id}",
        }
        subject = self._names.subject(self._subscriber, message.name, message.scope)
        self._passage.put(await self._put(subject, encode(message), headers))
        return _PUBLISHED

    async def _put(self, subject: str, data: bytes, headers: dict[str, str]) -> int:
        """Put a message into the stream, signed now, and return its sequence number there."""
        link = self._connection
        credential = link.signer.token(
            self._publisher, audience=self._subscriber, now_us=link.runtime.wall_us()
        )
        signed, within_s = {**headers, CREDENTIAL: credential}, link.options.timeout_s
        try:
            acknowledged = await link.ask(
                link.api.publish(subject, data, timeout=within_s, headers=signed)
            )
        except nats.errors.Error as error:
            if isinstance(error, nats.js.errors.NoStreamResponseError):
                self._is_gone = True
            raise link.translated(error) from error
        return acknowledged.seq

    async def taken(self, position: int) -> int:
        """Return up to which position all has left the stream; asks it now and then only.

        Raises:
            StoreUnavailable: the stream, or its end, is lost; the relay begins again with what was
                taken.
        """
        is_under_way = self._passage.mark(position)
        now_s = loop_now()
        if (is_under_way or self._is_gone) and now_s >= self._ask_at_s:
            self._ask_at_s = now_s + self._connection.options.taken_every_s
            try:
                return self._passage.left(await self._oldest())
            except (CallError, nats.js.errors.APIError):
                pass  # it is asked again; meanwhile nothing more is known
        return self._passage.reached

    async def _oldest(self) -> int:
        """Return the sequence number of the oldest message that is there; 0 where there is none."""
        link, sent = self._connection, self._names.sent(self._publisher, self._subscriber)
        last = self._passage.last  # more may be put while the answer is on its way
        if self._is_gone and await link.names() != self._names:
            raise self._lost("is another one now")
        names, info = await link.info(sent)
        if names != self._names:
            raise self._lost("is another one now")
        if info.state.last_seq < last:
            # A copy of before was restored, or a power cut took what was not on its disk.
            raise self._lost("has lost its end")
        self._is_gone = False
        if not info.state.subjects:
            return 0
        try:
            found = await self._next(names.stream, 1)
            if found is None:
                return 1  # taken meanwhile, or the stream is another one: the next look tells
            oldest, now_s = found.seq or 0, loop_now()
            if oldest != self._stands[0]:
                self._stands = oldest, now_s
            elif now_s - self._stands[1] > link.options.ack_wait_s:
                self._stands = oldest, now_s
                await self._free(names.stream, found)
        except nats.js.errors.APIError:
            raise
        except nats.errors.Error as error:
            raise link.translated(error) from error
        return oldest

    async def _next(self, stream: str, sequence: int) -> RawStreamMsg | None:
        """Return the first message of the publisher that is there from a sequence number on."""
        sent = self._names.sent(self._publisher, self._subscriber)
        return await self._got(stream, seq=sequence, subject=sent, next=True)

    async def _got(self, stream: str, **wanted: Any) -> RawStreamMsg | None:
        try:
            return await self._connection.ask(self._connection.api.get_msg(stream, **wanted))
        except nats.js.errors.NotFoundError as error:
            if error.err_code != NO_MESSAGE:
                raise  # the stream itself is gone
            return None

    async def _free(self, stream: str, oldest: RawStreamMsg) -> None:
        """Have messages go that are in the stream and are given to nobody any more.

        A server that was killed may know that a message was acknowledged, and have it again: it
        would be the oldest for ever. It goes once a copy of it was taken, of which the inbox knows
        whether it has had it: so nothing depends on what the server knows being right.
        """
        link, floors, removed = self._connection, dict[str, int](), 0
        found: RawStreamMsg | None = oldest
        kept = self._copies.items()
        self._copies = {of: copy for of, copy in kept if of >= (oldest.seq or 0)}
        for _ in range(_FREED_MAX):
            if found is None:
                break
            sequence, subject = found.seq or 0, found.subject or ""
            durable = self._names.durable(self._subscriber, int(subject.split(".")[4]))
            if durable not in floors:
                floors[durable] = await self._floor(stream, durable)
            if floors[durable] < sequence:
                break  # its turn comes
            copy = self._copies.get(sequence)
            if copy is None:
                await self._put_behind(found)
            elif await self._got(stream, seq=copy) is None:
                await link.ask(link.api.delete_msg(stream, sequence))
                removed += 1
            else:
                break  # until it is taken, nothing else helps
            found = await self._next(stream, sequence + 1)
        if removed:
            _log.warning(
                "%d messages in %s were acknowledged, and NATS had them again: they are removed",
                removed,
                stream,
            )

    async def _floor(self, stream: str, durable: str) -> int:
        """Return up to which sequence number a consumer of the server knows all as taken."""
        try:
            info = await self._connection.ask(self._connection.api.consumer_info(stream, durable))
        except nats.js.errors.NotFoundError:
            return 0  # nobody has taken anything yet
        return info.ack_floor.stream_seq if info.ack_floor else 0

    async def _put_behind(self, found: RawStreamMsg) -> None:
        """Put a copy of a message into the stream, one only however long it waits there."""
        sequence, headers = found.seq or 0, found.headers or {}
        # Should the answer be lost, it is the same copy when it is asked again.
        identity = f"{headers.get(_MESSAGE_ID, '')}/{sequence}"
        copy = await self._put(
            found.subject or "", found.data or b"", {**headers, _MESSAGE_ID: identity}
        )
        self._passage.put(copy)  # a stream without it has lost its end
        self._copies[sequence] = copy

    def _lost(self, what: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"the stream of NATS at {self._connection.place} {what}: what {self._subscriber} has "
            "not taken is published again"
        )

    def __repr__(self) -> str:
        return f"<JetStreamDelivery {self._publisher} to {self._subscriber} {self._passage!r}>"
