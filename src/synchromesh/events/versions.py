"""Versions of an event class: today's class, and the chain of functions that older events pass.

An event is stored as it was written, with the version of its type, and never changes. What reads it
changes: an *upcaster* makes of a version the next one, v1 → v2 → v3, so that code knows only
today's (E7). In the other direction an event says which older code may still read it.

Source: Young, *Versioning in an Event Sourced System*, 2017, "Weak Schema", "Upcasting".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import msgspec

from synchromesh.codec import NO_FIT
from synchromesh.errors import ContractError, EventTooNew

T = TypeVar("T")

Upcaster: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class EventVersions:
    """How the versions of an event are read, as its class says by class attributes.

    Attributes:
        version: `event_version` of the class, 1 where there is none.
        readable_by_min: `event_readable_by`: the oldest version whose code may read what this one
            writes; its own where there is none.
        upcasters: `event_upcasters`: by version, the function that makes the next one of it.
    """

    cls: type
    version: int
    readable_by_min: int
    upcasters: Mapping[int, Upcaster]

    @classmethod
    def of(cls, event: type) -> EventVersions:
        """Return what a class says.

        Raises:
            ContractError: a version is not 1, 2, 3, ..., or there is a gap in the chain.
        """
        version = getattr(event, "event_version", 1)
        readable_by_min = getattr(event, "event_readable_by", version)
        upcasters: Mapping[int, Upcaster] = getattr(event, "event_upcasters", {})
        if not isinstance(version, int) or version < 1:
            raise ContractError(
                f"{event.__qualname__}.event_version is {version!r}; it must be 1, 2, 3, ..."
            )
        if not isinstance(readable_by_min, int) or not 1 <= readable_by_min <= version:
            raise ContractError(
                f"{event.__qualname__}.event_readable_by is {readable_by_min!r}; it must be from 1 "
                f"to its event_version, {version}"
            )
        known = sorted(upcasters)
        if known and known != list(range(known[0], version)):
            raise ContractError(
                f"{event.__qualname__}.event_upcasters are from {known}; they must lead without a "
                f"gap to its event_version, {version}: the last one is from {version - 1}"
            )
        return cls(event, version, readable_by_min, upcasters)

    def read(self, body: bytes, version: int, readable_by_min: int) -> Any:
        """Read the JSON of an event of any version.

        Raises:
            EventTooNew: a newer release wrote it, and this one may not read it.
            ContractError: it does not fit; or an upcaster failed, or is missing.
        """
        name = self.cls.__qualname__
        if version > self.version < readable_by_min:
            raise EventTooNew(
                f"{name} is version {self.version} here, and version {version} needs code of "
                f"version {readable_by_min}: run the release that wrote it, or a later one"
            )
        try:
            if version >= self.version:
                # Fields of a newer one that are not known here are passed over.
                return msgspec.json.decode(body, type=self.cls)
            return msgspec.convert(self._upcast(msgspec.json.decode(body), version), self.cls)
        except NO_FIT as error:
            raise ContractError(
                f"it does not fit {name}: {error}; a class that changes incompatibly needs a new "
                "event_version, and an upcaster"
            ) from error

    def _upcast(self, value: Any, version: int) -> Any:
        for each in range(version, self.version):
            upcaster = self.upcasters.get(each)
            if upcaster is None:
                raise ContractError(
                    f"{self.cls.__qualname__} is version {self.version} and has no upcaster from "
                    f"{each}; add it to event_upcasters"
                )
            try:
                value = upcaster(value)
            except Exception as error:
                raise ContractError(
                    f"the upcaster of {self.cls.__qualname__} from version {each} failed: "
                    f"{type(error).__name__}: {error}"
                ) from error
        return value


def read_event(cls: type[T], version: int, body: bytes) -> T:
    """Read the JSON of an event that a release wrote, as today's class: for a table of all of them.

    Raises:
        ContractError: it cannot be read.

    Example:
        >>> class Sold(msgspec.Struct, frozen=True):
        ...     event_version = 2
        ...     event_upcasters = {1: lambda sold: {**sold, "qty": 1}}
        ...     sku: str
        ...     qty: int
        >>> read_event(Sold, 1, b'{"sku":"SX90"}')
        Sold(sku='SX90', qty=1)
    """
    made: T = EventVersions.of(cls).read(body, version, version)
    return made
