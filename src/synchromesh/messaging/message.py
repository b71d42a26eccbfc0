"""A public event on its way to a subscriber, and the internal operation that carries it."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import msgspec

from synchromesh.calls.contract import Command, PublicEvent
from synchromesh.codec import digest, encode
from synchromesh.errors import BadRequest, ContractError
from synchromesh.events import NewEvent, StoredEvent, append
from synchromesh.events.types import event_place
from synchromesh.sealing import NO_PLACES, PersonalPlace, Vault, mask_at, open_at
from synchromesh.store import Unit

DELIVER = "deliver_message"

# What fits every subscriber's limit of a body, with room for the rest of the message.
PAYLOAD_BYTES_MAX = 256 * 1024


class Message(msgspec.Struct, frozen=True):
    """One public event as it is delivered.

    Attributes:
        id: that of the event, the same in every delivery of it.
        position: where it stood in its publisher's log: it orders, and tells nothing apart.
        scope: events of one publisher and scope are delivered one after the other (O3).
        payload: the event's JSON.
        personal: where personal values are in the payload, and whose; it travels in the plain, and
            whoever keeps it seals them, also where the event is of a type that is not known there.
        settled: up to which position the publisher will deliver nothing again, as far as it knows.
    """

    id: str
    position: int
    name: str
    type_version: int
    scope: str
    payload: msgspec.Raw
    trace_id: str
    personal: tuple[PersonalPlace, ...] = ()
    settled: int = 0

    def digest(self) -> str:
        """Return what tells the payload from another one, without what is personal in it."""
        return digest(mask_at(self.payload, self.personal) if self.personal else self.payload)


class Receipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """The outcome of a delivery: "handled", "parked", "held", "ignored" (declared so), or "failed".

    All but "failed" acknowledge; a failed message is delivered again. It is an answer and no error,
    so that one poison message does not open the breaker for all others. `position` is the message's
    in its publisher's log, for the subscriber's own memory.
    """

    outcome: str
    position: int = 0

    @property
    def is_acknowledged(self) -> bool:
        """True where the message need not be delivered again."""
        return self.outcome != "failed"


async def publish(unit: Unit, event: PublicEvent[Any], payload: object, *, trace_id: str) -> None:
    """Append a public event to the log, so that it is published if and only if the unit commits.

    The log is the outbox: what commits is delivered to every subscriber (O1), nothing else is (O2).

    Raises:
        BadRequest: the payload cannot be encoded, or is larger than 256 KiB.
        ContractError: it is not of the event's type.
    """
    if not _is_of(event.kind, payload):
        raise ContractError(
            f"{event!r} carries a {event.kind.__name__}, and was given a {type(payload).__name__}"
        )
    body = encode(payload)
    if len(body) > PAYLOAD_BYTES_MAX:
        raise BadRequest(
            f"the payload of {event!r} has {len(body)} bytes, at most {PAYLOAD_BYTES_MAX} can be "
            "delivered; publish where it is to be found instead"
        )
    if (personal := event.personal) is not None:
        body = personal.seal(body, event_place(event.full_name), unit.vault)
    key = event.partition_key(payload)
    new = NewEvent(event.full_name, body, is_public=True, partition_key=key, trace_id=trace_id)
    await append(unit, f"{event.full_name}/{key}", [new], expected=None)


def _is_of(kind: Any, payload: object) -> bool:
    # Annotations such as `list[int]` are not classes; what they hold is checked by the subscriber.
    return not isinstance(kind, type) or isinstance(payload, kind)


def message_of(stored: StoredEvent, vault: Vault | None = None) -> Message:
    """Return the message that carries a stored event; with a vault its personal values are opened.

    Raises:
        PersonalUnreadable: their keys are not there.
    """
    body, places = stored.body, NO_PLACES
    if vault is not None:
        body, places = open_at(body, event_place(stored.name), vault)
    return Message(
        id=stored.id,
        position=stored.position,
        name=stored.name,
        type_version=stored.type_version,
        scope=partition_key_of(stored),
        payload=msgspec.Raw(body),
        trace_id=stored.trace_id,
        personal=places,
    )


def partition_key_of(stored: StoredEvent) -> str:
    """Return the partition key of an event: its key, or its name where it has none."""
    return stored.partition_key or f"*{stored.name}"


Deliver: TypeAlias = Command[[Message], Receipt]


@cache
def deliver_to(subscriber: str) -> Deliver:
    """Return the internal command that delivers a message to a subscriber."""

    async def deliver_message(_: object, message: Message) -> Receipt:
        raise AssertionError(f"a contract's stub is never called, but it was with {message.id}")

    operation = Command(deliver_message, "POST /_messages", ())
    operation.belong_to(subscriber, operation.name)
    return operation
