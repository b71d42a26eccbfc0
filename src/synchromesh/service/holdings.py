"""What a service holds of a subject, opened: for a person who asks what is known of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from synchromesh.codec import to_datetime, to_json
from synchromesh.events.snapshots import SEALED_STATES, state_place
from synchromesh.events.types import SEALED_EVENTS, event_place
from synchromesh.messaging.dead_letters import SEALED_LETTERS, letter_place
from synchromesh.saga.seals import (
    SEALED_INPUTS,
    SEALED_RESULTS,
    SEALED_SIGNALS,
    SEALED_STEPS,
    input_place,
    result_place,
    signal_place,
    step_place,
)
from synchromesh.sealing import MARK, PersonalPlace, Vault, open_at
from synchromesh.service.context import answer_place, request_place
from synchromesh.store import StoreReader
from synchromesh.store.inbox import SEALED_ANSWERS, SEALED_REQUESTS

HELD_MAX = 1000
_AT_ONCE = 20
_REQUEST = "recorded request"


class Holding(msgspec.Struct, frozen=True):
    """Personal values of a subject in one record.

    Attributes:
        what: the kind of record, such as "event".
        of: which one it is.
        at: when it was written; "" where that is not kept.
        values: by their place in the record.
    """

    what: str
    of: str
    at: str
    values: dict[str, Any]


class Holdings(msgspec.Struct, frozen=True):
    """What a service holds of a subject; not `is_all` where there is more than is shown."""

    found: list[Holding]
    is_all: bool


class _Only:
    """The vault for one subject: all others are erased."""

    def __init__(self, vault: Vault, subject: str) -> None:
        self._vault, self._subject = vault, subject

    def seal(self, subject: str, place: str, data: bytes) -> str | None:
        return self._vault.seal(subject, place, data)

    def open(self, subject: str, place: str, sealed: str) -> bytes | None:
        return self._vault.open(subject, place, sealed) if subject == self._subject else None

    def is_erased(self, subject: str) -> bool:
        return subject != self._subject or self._vault.is_erased(subject)


class _Room(NamedTuple):
    """Documents of one kind: what finds those with a text, and what they are sealed for."""

    what: str
    finds: str
    place: Callable[[str, str], str]
    of: str = "{0} of {1}"


_ROOMS = (
    _Room("event", SEALED_EVENTS, lambda name, _: event_place(name)),
    _Room(
        "snapshot", SEALED_STATES, lambda stream, _: state_place(stream.partition("/")[0]),
        "{0} at {1}",
    ),
    _Room("recorded answer", SEALED_ANSWERS, lambda key, caller: answer_place(caller, key)),
    _Room(_REQUEST, SEALED_REQUESTS, lambda key, caller: request_place(caller, key)),
    _Room("saga input", SEALED_INPUTS, lambda _, run_id: input_place(run_id), "{0} {1}"),
    _Room("saga result", SEALED_RESULTS, lambda _, run_id: result_place(run_id), "{0} {1}"),
    _Room("saga step", SEALED_STEPS, lambda step, run_id: step_place(run_id, step)),
    _Room("saga signal", SEALED_SIGNALS, lambda name, run_id: signal_place(run_id, name)),
    _Room("message set aside", SEALED_LETTERS, letter_place, "{0} {1}"),
)  # fmt: skip


async def holdings_of(reader: StoreReader, subject: str, vault: Vault) -> Holdings:
    """Return what a service holds of a subject; it goes through whole tables.

    Raises:
        PersonalUnreadable: the keys are lost.
        StoreError: the database cannot be read.
    """
    needle = b'{"%s":%s,' % (MARK.encode(), to_json(subject))
    only = _Only(vault, subject)
    found: list[Holding] = []
    for room in _ROOMS:
        rows = await reader.read(room.finds, needle, HELD_MAX + 1 - len(found))
        for number, (first, second, body, at_us) in enumerate(rows):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)  # others on the loop are served meanwhile
            data = body if isinstance(body, bytes) else str(body).encode()
            if room.what == _REQUEST:
                data = _arguments(data)
            names = str(first), str(second)
            opened, places = open_at(data, room.place(*names), only)
            if places:
                at = to_datetime(at_us).isoformat() if isinstance(at_us, int) else ""
                values = _values(opened, places)
                found.append(Holding(room.what, room.of.format(*names), at, values))
    return Holdings(found[:HELD_MAX], len(found) <= HELD_MAX)


def _values(document: bytes, places: tuple[PersonalPlace, ...]) -> dict[str, Any]:
    whole, values = msgspec.json.decode(document), {}
    for place in places:
        at: Any = whole
        for step in place.path:
            at = at[step]
        values["/".join(map(str, place.path))] = at
    return values


def _arguments(request: bytes) -> bytes:
    return bytes(msgspec.json.decode(request, type=dict[str, msgspec.Raw])["arguments"])
