"""Delivers messages to a function of the application's, as a relay delivers to a service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from synchromesh.alone.unit import KEYLESS
from synchromesh.context import CallContext
from synchromesh.durations import ABOVE_0, FROM_1, refuse_wrong_numbers
from synchromesh.errors import RemoteFailed
from synchromesh.events import EventTypes, StoredEvent
from synchromesh.messaging import Message
from synchromesh.messaging.message import Receipt

_log = logging.getLogger("synchromesh.alone")


class Delivered(msgspec.Struct, frozen=True):
    """A message as a function gets it.

    Attributes:
        id: the same in every delivery of it, and no other's: what `AloneUnit.once` is asked for.
        name: the stored name of its class.
        event: what was published, as its class is today.
        key: what it was published under; "" without one.
        position: where it stands in the log.
        trace_id: the trace in which it was published; "" where there was none.

    Example:
        >>> Delivered("018f", "shop.order_placed", {"id": "A-1"}, "A-1", 7, "").key
        'A-1'
    """

    id: str
    name: str
    event: Any
    key: str
    position: int
    trace_id: str


@dataclass(frozen=True, slots=True)
class DeliverOptions:
    """Bounds a delivery; times in seconds.

    Attributes:
        timeout_s: how long the function may take for a message.
        attempts_max: after so many failures in a row a message is set aside, with those of its key
            behind it, so that it holds up no other key; it is tried again every few seconds.
        in_flight_max: how many messages are handed out at once, one for each key.
        poll_s: how often it looks where nothing wakes it.

    Example:
        >>> DeliverOptions(attempts_max=3).timeout_s
        30.0
    """

    timeout_s: float = 30.0
    attempts_max: int = 5
    in_flight_max: int = 32
    poll_s: float = 0.25

    def __post_init__(self) -> None:
        refuse_wrong_numbers(
            self,
            (ABOVE_0, "timeout_s poll_s"),
            (FROM_1, "attempts_max in_flight_max"),
        )


class FunctionDelivery:
    """Hands messages to a function; what it returns from is taken."""

    def __init__(
        self,
        name: str,
        function: Callable[[Delivered], Awaitable[None]],
        types: EventTypes,
        options: DeliverOptions,
    ) -> None:
        self._name = name
        self._function = function
        self._types = types
        self._options = options
        self._failures: dict[str, int] = {}

    async def begin(self, position: int) -> None:  # noqa: ARG002
        """Forget the failures of an earlier run."""
        self._failures.clear()

    async def deliver(self, message: Message, context: CallContext) -> Receipt:  # noqa: ARG002
        """Call the function.

        Raises:
            RemoteFailed: it has failed so often in a row that the message is to be set aside.
        """
        try:
            async with asyncio.timeout(self._options.timeout_s):
                await self._function(self._read(message))
        except Exception as error:
            failures = self._failures[message.id] = self._failures.get(message.id, 0) + 1
            _log.warning(
                "%s failed %d times at %s, position %d: %r; it is delivered again",
                self._name, failures, message.name, message.position, error,
                exc_info=failures == 1,
            )  # fmt: skip
            if failures < self._options.attempts_max:
                return Receipt("failed")
            del self._failures[message.id]
            raise RemoteFailed(
                f"{self._name} failed {failures} times: {error!r:.200}", is_final=True
            ) from error
        self._failures.pop(message.id, None)
        return Receipt("handled")

    async def taken(self, position: int) -> int:
        """Return the position: what the function returned from is taken."""
        return position

    def _read(self, message: Message) -> Delivered:
        version, key = message.type_version, message.scope
        stored = StoredEvent(
            message.position, message.id, "", 0, message.name, version, bytes(message.payload),
            True, key, message.trace_id, 0, version,
        )  # fmt: skip
        return Delivered(
            message.id, message.name, self._types.decode(stored),
            "" if key.startswith(KEYLESS) else key, message.position, message.trace_id,
        )  # fmt: skip
