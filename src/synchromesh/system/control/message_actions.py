"""What an operator does with messages that were set aside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import msgspec

from synchromesh.errors import BadRequest, SynchromeshError
from synchromesh.messaging import (
    LetterState,
    Replayed,
    drop_letter,
    find_letter,
    forget_subscriber,
    list_messages,
    parked_numbers,
    show_message,
    still_declared,
)
from synchromesh.service import ServiceInstance
from synchromesh.store import StoreReader
from synchromesh.system.control.actions import (
    Action,
    ReadAction,
    ReadRequest,
    RepairAction,
    RepairRequest,
)

REPLAYED_AT_ONCE = 1000
_TOLD_ALONE = ("payload", "text")


class ListMessages(ReadRequest, frozen=True):
    """Which messages: of a publisher, a partition key, a state; "" is any."""

    source: str = ""
    key: str = ""
    state: str = ""
    limit: int = 50


class ShowMessage(ReadRequest, frozen=True):
    """Which message: by its number in the service, or by its id wherever it is."""

    number: int = 0
    id: str = ""


class ReplayMessage(RepairRequest, frozen=True, kw_only=True):
    """Which message: by its number; 0 are all that are parked, of a publisher and a key."""

    number: int = 0
    source: str = ""
    key: str = ""


class DropMessage(RepairRequest, frozen=True, kw_only=True):
    """Which message."""

    number: int


class ForgetSubscriber(RepairRequest, frozen=True, kw_only=True):
    """Which subscriber: of a publisher, or of all that keep something for it."""

    subscriber: str


async def _list(reader: StoreReader, wanted: ListMessages) -> list[dict[str, Any]]:
    found = await list_messages(
        reader, source=wanted.source, key=wanted.key, state=wanted.state, limit=wanted.limit
    )
    # What customers wrote is for `show`, one at a time.
    return [{k: v for k, v in asdict(each).items() if k not in _TOLD_ALONE} for each in found]


async def _show(reader: StoreReader, wanted: ShowMessage) -> list[dict[str, Any]] | None:
    found = await show_message(reader, number=wanted.number, message_id=wanted.id)
    return [asdict(each) for each in found] or None


async def _replay(instance: ServiceInstance, wanted: ReplayMessage) -> list[dict[str, Any]] | None:
    numbers = (
        [wanted.number]
        if wanted.number
        else await parked_numbers(
            instance.store, source=wanted.source, key=wanted.key, limit=REPLAYED_AT_ONCE
        )
    )
    done = []
    for number in numbers:
        ref = f"{instance.service.name}:{number}"
        try:
            told = await _replay_one(instance, number, wanted)
        except SynchromeshError as error:
            if wanted.number:
                raise
            # Of many each has an end of its own.
            done.append({"ref": ref, "outcome": "not replayed", "error": error.message})
            continue
        if told is not None:
            done.append({"ref": ref, **_told(told)})
    return done or None


async def _replay_one(
    instance: ServiceInstance, number: int, wanted: ReplayMessage
) -> Replayed | None:
    letter = await find_letter(instance.store, number)
    if letter is None:
        return None
    if letter.is_incoming:
        return await instance.consumer.replay(letter.number, who=wanted.who, why=wanted.why)
    subscriber = letter.lane.subscriber
    relay = instance.relays.by_subscriber.get(subscriber)
    if relay is None:
        raise BadRequest(
            f"message {letter.number} was refused by {subscriber!r}, who takes nothing of "
            f"{instance.service.name} any more; drop it"
        )
    return await relay.replay(letter, who=wanted.who, why=wanted.why)


async def _drop(instance: ServiceInstance, wanted: DropMessage) -> dict[str, Any] | None:
    letter = await drop_letter(instance.store, wanted.number, who=wanted.who, why=wanted.why)
    if letter is None:
        return None
    return {
        "ref": f"{instance.service.name}:{letter.number}",
        "message_id": letter.message.id,
        "event": letter.message.name,
        "key": letter.lane.scope,
    }


async def _forget(instance: ServiceInstance, wanted: ForgetSubscriber) -> dict[str, Any] | None:
    told = await forget_subscriber(
        instance.store, wanted.subscriber, who=wanted.who, why=wanted.why
    )
    return None if told is None else msgspec.structs.asdict(told)


def _check_gone(taken: Mapping[str, frozenset[str]], wanted: ForgetSubscriber) -> None:
    """Raise `BadRequest` where a process that runs takes events for the subscriber."""
    of = {name.partition(".")[0] for name in taken.get(wanted.subscriber, ())}
    if wanted.service:
        of &= {wanted.service}
    if of:
        raise still_declared(wanted.subscriber, " and of ".join(sorted(of)))


def _told(told: Replayed) -> dict[str, Any]:
    is_done = told.outcome not in {state.value for state in LetterState}
    return {
        "message_id": told.message_id,
        "event": told.name,
        "key": told.scope,
        "outcome": told.outcome,
        "error": "" if is_done else told.reason,
    }


def _unknown(wanted: ShowMessage | ReplayMessage | DropMessage) -> BadRequest:
    if wanted.number:
        asked = f"there is no message {wanted.service}:{wanted.number}"
    elif isinstance(wanted, ShowMessage):
        asked = f"no message with the id {wanted.id!r} was set aside"
    else:
        asked = "no message is parked there"
    return BadRequest(f"{asked}; those that are set aside: synchromesh messages list")


def _not_gone(wanted: ForgetSubscriber) -> BadRequest:
    where = wanted.service or "no service"
    keeps = "keeps nothing" if wanted.service else "keeps anything"
    return BadRequest(
        f"{where} {keeps} for a subscriber {wanted.subscriber[:80]!r}; those that are gone: "
        "synchromesh db status"
    )


ACTIONS: tuple[Action, ...] = (
    ReadAction("messages.list", ListMessages, _list),
    ReadAction("messages.show", ShowMessage, _show, _unknown),
    RepairAction("messages.replay", ReplayMessage, _replay, _unknown),
    RepairAction("messages.drop", DropMessage, _drop, _unknown),
    RepairAction("messages.forget", ForgetSubscriber, _forget, _not_gone, check=_check_gone),
)
