"""How a message reaches its subscriber: by a call, or by a stream that waits outside of both."""

from __future__ import annotations

from typing import Protocol

from synchromesh.calls import Sender
from synchromesh.codec import decode, encode
from synchromesh.context import CallContext
from synchromesh.errors import BadRequest, RemoteFailed
from synchromesh.messaging.consumer import Consumer
from synchromesh.messaging.message import Message, Receipt, deliver_to
from synchromesh.telemetry import Tracer


class Delivery(Protocol):
    """Delivers the messages of one publisher to one subscriber; the relay decides which and when.

    Example:
        >>> async def hand_over(delivery: Delivery, message: Message, context: CallContext) -> int:
        ...     await delivery.begin(message.position - 1)
        ...     await delivery.deliver(message, context)
        ...     return await delivery.taken(message.position)
    """

    async def begin(self, position: int) -> None:
        """Prepare to deliver what comes after a position, up to which all was taken."""
        ...

    async def deliver(self, message: Message, context: CallContext) -> Receipt:
        """Deliver a message; where the receipt acknowledges, it need not be delivered again.

        Raises:
            SynchromeshError: it was not delivered, or nobody knows.
        """
        ...

    async def taken(self, position: int) -> int:
        """Return up to which position the subscriber has taken all: it is durable there.

        Args:
            position: up to which all was delivered.

        Raises:
            StoreError: what was delivered is lost; the relay begins again with its checkpoint.
        """
        ...


class Stream(Protocol):
    """The stream of a system, by which messages are delivered.

    Example:
        >>> def way(stream: Stream) -> Delivery:
        ...     return stream.delivery("shop", "stock")
    """

    def delivery(self, publisher: str, subscriber: str) -> Delivery:
        """Return what delivers the messages of a publisher to a subscriber."""
        ...

    async def feed(self, subscriber: str, consumer: Consumer, tracer: Tracer) -> None:
        """Have a consumer take what is in the stream for it; a supervised child."""
        ...


class DirectDelivery:
    """Delivers by signed calls: what is acknowledged is taken.

    Example:
        >>> def of(sender: Sender) -> Delivery:
        ...     return DirectDelivery(sender, "stock")
    """

    def __init__(self, sender: Sender, subscriber: str, *, timeout_s: float = 5.0) -> None:
        self._sender = sender
        self._subscriber = subscriber
        self._timeout_s = timeout_s

    async def begin(self, position: int) -> None:
        """Do nothing: a call needs no preparation."""

    async def deliver(self, message: Message, context: CallContext) -> Receipt:
        """Call the subscriber.

        Raises:
            CallError: as of any call; `RemoteFailed` where what it answered is no receipt.
        """
        answer = await self._sender.send(
            deliver_to(self._subscriber),
            encode({"message": message}),
            context=context,
            timeout_s=self._timeout_s,
        )
        try:
            return decode(answer, Receipt)
        except BadRequest as error:
            # It says nothing about the message.
            raise RemoteFailed(f"{self._subscriber} gave no receipt: {error.message}") from error

    async def taken(self, position: int) -> int:
        """Return the position: whoever acknowledged a message has taken it."""
        return position
