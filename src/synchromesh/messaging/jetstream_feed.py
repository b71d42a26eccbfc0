"""The subscriber's side of a stream on JetStream: a consumer takes what is in it, in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

from synchromesh.clock import loop_now
from synchromesh.codec import decode
from synchromesh.context import CREDENTIAL, from_headers
from synchromesh.errors import SynchromeshError
from synchromesh.messaging.consumer import Consumer
from synchromesh.messaging.jetstream_connection import JetStreamConnection
from synchromesh.messaging.message import Message, Receipt
from synchromesh.messaging.passage import PARTITIONS
from synchromesh.telemetry import Tracer

# What the server says in place of a message: that it has none, and that a request is over.
_HEARTBEAT, _OVER = "100", "408"
_PAUSE_S = 0.5
_SILENT_BEATS = 2.5

_log = logging.getLogger("synchromesh.messaging")


class JetStreamFeed:
    """Has a consumer take what is in the stream for its service; `run` is a supervised child.

    Each partition is a durable consumer of the server with one message pending, which all replicas
    share: so the order of a key is kept by the server, whoever takes, fails or dies (O3).

    Example:
        >>> async def loop(feed: JetStreamFeed) -> None:
        ...     await feed.run()
    """

    def __init__(
        self,
        connection: JetStreamConnection,
        subscriber: str,
        consumer: Consumer,
        tracer: Tracer,
    ) -> None:
        self._connection = connection
        self._subscriber = subscriber
        self._consumer = consumer
        self._tracer = tracer

    async def run(self) -> None:
        """Take messages until cancelled; one that is under way then is given to another process.

        Raises:
            ConfigError: the stream is of another kind.
        """
        await self._connection.names()
        if not self._consumer.takes_any and not await self._has_taken():
            await asyncio.Event().wait()
        try:
            async with asyncio.TaskGroup() as partitions:
                for number in range(PARTITIONS):
                    partitions.create_task(self._follow(number))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the supervisor shows its code, not the group's

    async def _has_taken(self) -> bool:
        """Return whether a release of before took messages: what is left of them is held."""
        names = self._connection.anyhow
        try:
            await self._connection.ask(
                self._connection.api.consumer_info(names.stream, names.durable(self._subscriber, 0))
            )
        except nats.js.errors.NotFoundError:
            return False
        except nats.errors.Error:
            return True
        return True

    async def _follow(self, partition: int) -> None:
        """Ask for the messages of a partition, and take each, for ever."""
        while True:
            client = self._connection.client
            try:
                await self._follow_by(client, partition)
            except nats.errors.Error as error:
                _log.debug("partition %d of %s: %s", partition, self._subscriber, error)
            await asyncio.sleep(_PAUSE_S)

    async def _follow_by(self, client: Client, partition: int) -> None:
        """Do so by one connection, until it is lost."""
        inbox = client.new_inbox()
        came: asyncio.Queue[Msg] = asyncio.Queue()
        subscription = await self._connection.ask(client.subscribe(f"{inbox}.*", cb=came.put))
        is_known, number = False, 0
        try:
            while not client.is_closed:
                try:
                    if not is_known:
                        await self._make_durable(partition)
                    number, is_known = number + 1, True
                    await self._ask(client, partition, f"{inbox}.{number}")
                    await self._take_each(came, f"{inbox}.{number}")
                except _NoConsumer as error:
                    is_known = False
                    _log.info("partition %d of %s: %s", partition, self._subscriber, error)
                    await asyncio.sleep(_PAUSE_S)
                except nats.errors.Error as error:
                    # It is said when the connection is lost, and when it is there again.
                    _log.debug("partition %d of %s: %s", partition, self._subscriber, error)
                    await asyncio.sleep(_PAUSE_S)
        finally:
            with contextlib.suppress(nats.errors.Error):
                await self._connection.ask(subscription.unsubscribe())

    async def _make_durable(self, partition: int) -> None:
        names = await self._connection.names()
        durable = names.durable(self._subscriber, partition)
        wanted = ConsumerConfig(
            name=durable,
            durable_name=durable,
            filter_subject=names.received(self._subscriber, partition),
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self._connection.options.ack_wait_s,
            # More than one would be out of order once one of them is delivered again.
            max_ack_pending=1,
            max_deliver=-1,
        )
        await self._connection.ask(self._connection.api.add_consumer(names.stream, wanted))

    async def _ask(self, client: Client, partition: int, reply: str) -> None:
        options, names = self._connection.options, self._connection.anyhow
        wanted = {
            "batch": options.asked_max,
            "expires": int(options.ask_s * 1e9),
            "idle_heartbeat": int(options.heartbeat_s * 1e9),
        }
        durable = names.durable(self._subscriber, partition)
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{names.stream}.{durable}"
        request = msgspec.json.encode(wanted)
        await self._connection.ask(client.publish(subject, request, reply))

    async def _take_each(self, came: asyncio.Queue[Msg], asked: str) -> None:
        """Take what comes, until a request is over, or the server is silent for too long.

        Raises:
            _NoConsumer: the server has no such consumer.
        """
        options, count = self._connection.options, 0
        while count < options.asked_max:
            try:
                async with asyncio.timeout(_SILENT_BEATS * options.heartbeat_s):
                    said = await came.get()
            except TimeoutError:
                return  # a request does not outlive the server, or the consumer's leader
            status = (said.headers or {}).get("Status")
            if status is None:
                # Also what an earlier request has brought: it is pending, and nothing else comes.
                await self._take(said)
                count += 1
            elif said.subject == asked and status != _HEARTBEAT:
                if status == _OVER:
                    return
                raise _NoConsumer(f"{status} {(said.headers or {}).get('Description', '')}")

    async def _take(self, said: Msg) -> None:
        try:
            receipt = await self._handle(said)
        except asyncio.CancelledError:
            with contextlib.suppress(nats.errors.Error):
                # Whoever is next need not wait for the time to pass.
                await self._connection.ask(said.nak())
            raise
        except SynchromeshError as error:
            self._tell(said, error)
            receipt = Receipt("failed")
        if receipt.is_acknowledged:
            await self._connection.ask(said.ack())
        else:
            wait_s = self._wait_s(said.metadata.num_delivered or 1)
            await self._connection.ask(said.nak(wait_s))

    async def _handle(self, said: Msg) -> Receipt:
        """Have the consumer take a message; the server is told meanwhile that it is worked on."""
        link, headers = self._connection, said.headers or {}
        stored_us = int(said.metadata.timestamp.timestamp() * 1e6)
        # It may have waited for days: what counts is that its sender was one when it was stored.
        token = headers.get(CREDENTIAL, "")
        source = link.signer.verify(token, audience=self._subscriber, now_us=stored_us).service
        message = decode(said.data, Message)
        loop = asyncio.get_running_loop()
        context = from_headers(headers, now=loop_now(), wall_us=stored_us, rng=link.runtime.rng)
        span = self._tracer.start(
            "handle",
            message.name,
            trace_id=context.trace_id,
            parent_id=context.span_id,
            marks=context.marks,
        )
        with span:
            taking = loop.create_task(self._consumer.take(source, message))
            try:
                while not (await asyncio.wait([taking], timeout=link.options.ack_wait_s / 3))[0]:
                    await link.ask(said.in_progress())
            except BaseException:
                taking.cancel()  # what it has begun is taken to its end all the same
                raise
            receipt = await taking
            span.note("outcome", receipt.outcome)
        return receipt

    def _tell(self, said: Msg, error: SynchromeshError) -> None:
        times = said.metadata.num_delivered or 1
        if times == 3 or times % 100 == 0:
            _log.warning(
                "a message in the stream is not taken by %s, and those of its partition wait "
                "behind it: %s (%s)",
                self._subscriber,
                error.message,
                error.code,
            )

    def _wait_s(self, attempt: int) -> float:
        options, rng = self._connection.options, self._connection.runtime.rng
        longest = min(options.backoff_cap_s, options.backoff_base_s * 2 ** min(attempt, 16))
        return rng.uniform(longest / 2, longest)

    def __repr__(self) -> str:
        return f"<JetStreamFeed of {self._subscriber}>"


class _NoConsumer(Exception):
    """Raised where the server has not got the consumer of a partition, or no leader for it."""
