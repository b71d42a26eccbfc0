"""What is known of a system when it is advised: its definitions, its state, and what it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from synchromesh.telemetry import SpanRecord


class OperationFacts(msgspec.Struct, frozen=True):
    """An operation of a contract.

    Attributes:
        name: in full, "service.operation".
        place: where it is defined, "file:line".
        refuses: the rejections that it declares.
        is_named: whether a route or the code of the system names it, beside its own handler.
    """

    name: str
    place: str
    is_command: bool = False
    refuses: tuple[str, ...] = ()
    is_named: bool = True


class EventFacts(msgspec.Struct, frozen=True):
    """A public event.

    Attributes:
        fields: the names of its fields that are kept in plain text, those of structs within too.
        is_taken: whether a service of the system takes it.
    """

    name: str
    place: str
    fields: tuple[str, ...] = ()
    is_taken: bool = True


class ServiceFacts(msgspec.Struct, frozen=True):
    """A service: how many operations it offers, and whether it keeps anything."""

    name: str
    operations: int
    has_state: bool


class SagaStepFacts(msgspec.Struct, frozen=True):
    """A step of a saga, in the order of its code.

    Attributes:
        saga: in full, "service.saga".
        what: the operation, in full, or the function, that it runs.
        changes: whether it changes anything.
    """

    saga: str
    place: str
    what: str
    changes: bool
    has_undo: bool
    is_pivot: bool
    refuses: tuple[str, ...] = ()


class BranchFacts(msgspec.Struct, frozen=True):
    """What a route asks for: of an aggregate one branch, of another route all of it, named ""."""

    name: str
    operation: str
    is_required: bool
    has_fallback: bool


class RouteFacts(msgspec.Struct, frozen=True):
    """A route of the gateway, by method and path."""

    name: str
    is_public: bool
    has_rate: bool
    is_read: bool
    scopes: tuple[str, ...] = ()
    branches: tuple[BranchFacts, ...] = ()


class BreakerFacts(msgspec.Struct, frozen=True):
    """The circuit breaker of an edge, as somebody has configured it; `key` is where."""

    edge: str
    key: str
    minimum_calls: int
    window_s: float


class ProjectionFacts(msgspec.Struct, frozen=True):
    """A projection: how far it was behind at first, and a moment later."""

    service: str
    name: str
    behind_first: int
    behind_then: int


class SetAsideFacts(msgspec.Struct, frozen=True):
    """Messages that were set aside for one reason, or an event that parks a projection."""

    service: str
    what: str
    count: int
    oldest_s: float


class Facts(msgspec.Struct, frozen=True):
    """All that advice is given by; what is not known is empty, and nothing is advised of it.

    Attributes:
        traces: the newest ones, the spans of each together.
        keys: the scopes of each API key, by its id.
        blocked: what blocks the event loop of a part, by the part.
        keeps: what is configured to be kept for ever, by the key that says so.
        drift: what differs from the contracts that were frozen, a sentence each.
    """

    services: Sequence[ServiceFacts] = ()
    operations: Sequence[OperationFacts] = ()
    events: Sequence[EventFacts] = ()
    steps: Sequence[SagaStepFacts] = ()
    routes: Sequence[RouteFacts] = ()
    keys: Mapping[str, Sequence[str]] = {}
    breakers: Sequence[BreakerFacts] = ()
    traces: Sequence[Sequence[SpanRecord]] = ()
    projections: Sequence[ProjectionFacts] = ()
    set_aside: Sequence[SetAsideFacts] = ()
    blocked: Mapping[str, str] = {}
    keeps: Mapping[str, str] = {}
    drift: Sequence[str] = ()
