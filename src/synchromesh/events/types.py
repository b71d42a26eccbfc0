"""Event types: stored names and versions of classes; names outlive classes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from synchromesh.codec import NO_FIT, encode
from synchromesh.errors import ContractError
from synchromesh.events.appending import NewEvent
from synchromesh.events.log import StoredEvent
from synchromesh.events.versions import EventVersions
from synchromesh.personal_types import PersonalFields, personal_fields
from synchromesh.sealing import Vault, open_if_ours, open_sealed
from synchromesh.spelling import nearest

T = TypeVar("T")

_UNKNOWN: tuple[int, Callable[[bytes], Any]] = (0, bytes)
_WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z0-9]+|[A-Z]+[0-9]*")


def snake_case(name: str) -> str:
    """Convert a class name to its stored form.

    Example:
        >>> snake_case("StockReserved"), snake_case("HTTPCallFailed")
        ('stock_reserved', 'http_call_failed')
    """
    return "_".join(word.lower() for word in _WORDS.findall(name))


SEALED_EVENTS = "select name, stream, body, recorded_us from sm_event where instr(body, ?) limit ?"
"""Finds the events in which a text occurs: their place by its names, the document and its time."""


def event_place(name: str) -> str:
    """Return what personal values in an event are sealed for, by its stored name."""
    return f"event/{name}"


class EventTypes:
    """Map event classes of a service to stored names and type versions, and events to JSON.

    An event class is a msgspec struct or a dataclass. Class attributes say its version and how
    others are read, as `EventVersions` has them; `event_name` is its stored name where that is not
    its class's, as after a class was renamed.

    Personal fields are sealed with the keys of a `vault`, and opened again.

    Example:
        >>> import msgspec
        >>> class StockReserved(msgspec.Struct, frozen=True):
        ...     sku: str
        >>> types = EventTypes("inventory", StockReserved)
        >>> types.encode(StockReserved("SX90")).name
        'inventory.stock_reserved'
    """

    def __init__(self, service: str, *classes: type, vault: Vault | None = None) -> None:
        self._service = service
        self._vault = vault
        # Of those classes alone that have any.
        self._personal: dict[type, PersonalFields] = {}
        self._by_name: dict[str, type] = {}
        self._by_class: dict[type, tuple[str, EventVersions]] = {}
        # The type version and the decoder of each name: all that an event takes that is in order.
        self._readers: dict[str, tuple[int, Callable[[bytes], Any]]] = {}
        for cls in classes:
            self.add(cls)

    def add(self, cls: type[T]) -> type[T]:
        """Register a class and return it. Idempotent.

        Raises:
            ContractError: another class has its stored name, or what it says of its versions is
                wrong.
        """
        name = f"{self._service}.{getattr(cls, 'event_name', snake_case(cls.__name__))}"
        known = self._by_name.setdefault(name, cls)
        if known is not cls:
            raise ContractError(
                f"{cls.__module__}.{cls.__qualname__} and {known.__module__}.{known.__qualname__} "
                f"are both stored as {name!r}; rename one"
            )
        versions = EventVersions.of(cls)
        # First: where a field is declared in a way that cannot be read, this says what is right.
        personal = personal_fields(cls)
        read: Callable[[bytes], T] = msgspec.json.Decoder(cls).decode
        if personal is not None:
            personal.check_subject(name)
            self._personal[cls] = personal
        self._by_class[cls] = (name, versions)
        self._readers[name] = (
            versions.version,
            read if personal is None else self._opens(name, read),
        )
        return cls

    def _opens(self, name: str, read: Callable[[bytes], T]) -> Callable[[bytes], T]:
        where = event_place(name)
        return lambda body: read(open_sealed(body, where, self._keys(name)))

    def _keys(self, name: str) -> Vault:
        if self._vault is None:
            raise ContractError(f"{name} has personal fields, and these event types have no vault")
        return self._vault

    def __contains__(self, cls: type) -> bool:
        return cls in self._by_class

    def name_of(self, cls: type) -> str:
        """Return the stored name of a class. Raises ContractError for one that was not added."""
        return self._entry(cls)[0]

    def encode(
        self,
        event: object,
        *,
        is_public: bool = False,
        partition_key: str = "",
        trace_id: str = "",
    ) -> NewEvent:
        """Encode an event. Raises ContractError for a class that is not registered."""
        name, of = self._by_class.get(type(event)) or self._entry(type(event))
        body = encode(event)
        if self._personal and (personal := self._personal.get(type(event))) is not None:
            body = personal.seal(body, event_place(name), self._keys(name))
        return NewEvent(
            name, body, of.version, is_public, partition_key, trace_id, of.readable_by_min
        )

    def decode(self, stored: StoredEvent) -> object:
        """Decode a stored event of any version as today's class.

        Raises:
            EventTooNew: a newer release wrote it, and this one may not read it.
            ContractError: its name is not known, it does not fit the class, or an upcaster failed.
        """
        version, read = self._readers.get(stored.name, _UNKNOWN)
        if version == stored.type_version:
            try:
                return read(stored.body)
            except NO_FIT:
                pass  # told below, in words of the log's
        return self._read(stored)

    def _read(self, stored: StoredEvent) -> object:
        """Read an event of another version; or say what is wrong with it, and where it is."""
        cls = self._by_name.get(stored.name)
        where = f"position {stored.position} holds {stored.name!r} version {stored.type_version}"
        if cls is None:
            near = nearest(stored.name, self._by_name)
            hint = f" (did you mean {near!r}?)" if near else ""
            raise ContractError(
                f"{where}, which has no class here{hint}; the classes known are those of "
                f"{sorted(self._by_name)}: add the event's class to them"
            )
        versions, body = self._by_class[cls][1], stored.body
        if cls in self._personal:
            # Of another version, which had its personal fields elsewhere.
            body = open_if_ours(body, event_place(stored.name), self._keys(stored.name))
        try:
            return versions.read(body, stored.type_version, stored.readable_by_min)
        except ContractError as error:
            raise type(error)(f"{where}: {error.message}") from error

    def _entry(self, cls: type) -> tuple[str, EventVersions]:
        entry = self._by_class.get(cls)
        if entry is None:
            raise ContractError(
                f"{cls.__qualname__} is not an event of {self._service!r}; add it to its event "
                "types (a decider's `events=` lists those it makes)"
            )
        return entry
