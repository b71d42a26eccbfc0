"""An event of the log as an application reads it."""

from __future__ import annotations

from typing import Any

import msgspec

from synchromesh.events import EventTypes, StoredEvent


class LoggedEvent(msgspec.Struct, frozen=True):
    """An event of the log, which never changes.

    Attributes:
        position: where it stands in the log; 0 in the transaction that appends it, and for a moment
            after its commit.
        id: its own.
        stream: what it is about, as `append` was given it.
        version: which one of its stream it is, from 1 on.
        name: the stored name of its class.
        event: what was appended, as its class is today.
        recorded_us: when it was appended, in microseconds since 1970 UTC.
        trace_id: the trace in which it was appended; "" where there was none.

    Example:
        >>> LoggedEvent(7, "018f", "order/A-1", 1, "shop.paid", {"sum": 3}, 0, "").version
        1
    """

    position: int
    id: str
    stream: str
    version: int
    name: str
    event: Any
    recorded_us: int
    trace_id: str


def logged(types: EventTypes, stored: StoredEvent) -> LoggedEvent:
    """Return a stored event as an application reads it.

    Raises:
        ContractError: its class is not known, or does not fit.
    """
    return LoggedEvent(
        stored.position, stored.id, stored.stream, stored.version, stored.name,
        types.decode(stored), stored.recorded_us, stored.trace_id,
    )  # fmt: skip
