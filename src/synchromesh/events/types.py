"""Event types: stored names and versions of classes; names outlive classes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from synchromesh.codec import decode, encode
from synchromesh.errors import BadRequest, ContractError, EventTooNew
from synchromesh.events.log import NewEvent, StoredEvent

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


class EventTypes:
    """Map event classes of a service to stored names and type versions, and events to JSON.

    An event class is a msgspec struct or a dataclass; its type version is the class attribute
    `event_version`, 1 where there is none.

    Example:
        >>> import msgspec
        >>> class StockReserved(msgspec.Struct, frozen=True):
        ...     sku: str
        >>> types = EventTypes("inventory", StockReserved)
        >>> types.encode(StockReserved("SX90")).name
        'inventory.stock_reserved'
    """

    def __init__(self, service: str, *classes: type) -> None:
        self._service = service
        self._by_name: dict[str, type] = {}
        self._by_class: dict[type, tuple[str, int]] = {}
        # The type version and the decoder of each name: all that an event takes that is in order.
        self._readers: dict[str, tuple[int, Callable[[bytes], Any]]] = {}
        for cls in classes:
            self.add(cls)

    def add(self, cls: type[T]) -> type[T]:
        """Register a class and return it. Idempotent.

        Raises:
            ContractError: another class has its stored name, or its version is not 1 or more.
        """
        name = f"{self._service}.{snake_case(cls.__name__)}"
        known = self._by_name.setdefault(name, cls)
        if known is not cls:
            raise ContractError(
                f"{cls.__module__}.{cls.__qualname__} and {known.__module__}.{known.__qualname__} "
                f"are both stored as {name!r}; rename one"
            )
        version = getattr(cls, "event_version", 1)
        if not isinstance(version, int) or version < 1:
            raise ContractError(
                f"{cls.__qualname__}.event_version is {version!r}; it must be 1, 2, 3, ..."
            )
        self._by_class[cls] = (name, version)
        self._readers[name] = (version, msgspec.json.Decoder(cls).decode)
        return cls

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
        name, version = self._by_class.get(type(event)) or self._entry(type(event))
        return NewEvent(name, encode(event), version, is_public, partition_key, trace_id)

    def decode(self, stored: StoredEvent) -> object:
        """Decode a stored event.

        Raises:
            ContractError: its name or type version is not known, or it does not fit the class.
        """
        version, read = self._readers.get(stored.name, _UNKNOWN)
        if version == stored.type_version:
            try:
                return read(stored.body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass  # told below, in words of the log's
        return self._refused(stored)

    def _refused(self, stored: StoredEvent) -> object:
        """Raise `ContractError` for an event that cannot be decoded, and say why."""
        cls = self._by_name.get(stored.name)
        where = f"position {stored.position} holds {stored.name!r} version {stored.type_version}"
        if cls is None:
            near = difflib.get_close_matches(stored.name, self._by_name, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ContractError(
                f"{where}, which has no class here{hint}; the classes known are those of "
                f"{sorted(self._by_name)}: add the event's class to them"
            )
        version = self._by_class[cls][1]
        if version < stored.type_version:
            raise EventTooNew(
                f"{where}, but {cls.__qualname__} is version {version}: run the release that wrote "
                "it, or a later one"
            )
        if version != stored.type_version:
            raise ContractError(
                f"{where}, but {cls.__qualname__} is version {version}: "
                "keep a class that reads the older version"
            )
        try:
            return decode(stored.body, cls)
        except BadRequest as error:
            raise ContractError(
                f"{where}, which does not fit {cls.__qualname__}: {error.message}; a class that "
                "changes incompatibly needs a new event_version"
            ) from error

    def _entry(self, cls: type) -> tuple[str, int]:
        entry = self._by_class.get(cls)
        if entry is None:
            raise ContractError(
                f"{cls.__qualname__} is not an event of {self._service!r}; add it to its event "
                "types (a decider's `events=` lists those it makes)"
            )
        return entry
