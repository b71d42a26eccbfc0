"""Synchromesh: the patterns of a microservice system in one Python toolkit, meshing.

These are the names that users write every day. The other errors are in `synchromesh.errors`, and
the rest of each pattern is in its room, such as `synchromesh.resilience`. A name is loaded when it
is first asked for (PEP 562), so that importing the package costs next to nothing and loads neither
an event loop nor a database.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

# What type checkers read of the names below; a test holds the two lists equal.
if TYPE_CHECKING:
    from synchromesh.calls import Call as Call
    from synchromesh.calls import Contract as Contract
    from synchromesh.calls import PublicEvent as PublicEvent
    from synchromesh.calls import command as command
    from synchromesh.calls import event as event
    from synchromesh.calls import query as query
    from synchromesh.errors import CallError as CallError
    from synchromesh.errors import NotExecuted as NotExecuted
    from synchromesh.errors import Rejection as Rejection
    from synchromesh.errors import SynchromeshError as SynchromeshError
    from synchromesh.errors import TimedOut as TimedOut
    from synchromesh.events import Decider as Decider
    from synchromesh.events import Decision as Decision
    from synchromesh.gateway import JWT as JWT
    from synchromesh.gateway import Aggregate as Aggregate
    from synchromesh.gateway import ApiKeys as ApiKeys
    from synchromesh.gateway import AuthFunction as AuthFunction
    from synchromesh.gateway import Branch as Branch
    from synchromesh.gateway import Cache as Cache
    from synchromesh.gateway import Certificates as Certificates
    from synchromesh.gateway import Cors as Cors
    from synchromesh.gateway import Each as Each
    from synchromesh.gateway import Forward as Forward
    from synchromesh.gateway import Gateway as Gateway
    from synchromesh.gateway import Mirror as Mirror
    from synchromesh.gateway import OpenApi as OpenApi
    from synchromesh.gateway import Rate as Rate
    from synchromesh.gateway import Route as Route
    from synchromesh.gateway import Split as Split
    from synchromesh.gateway import Stale as Stale
    from synchromesh.gateway import Static as Static
    from synchromesh.identity import Principal as Principal
    from synchromesh.personal import Erased as Erased
    from synchromesh.personal import Personal as Personal
    from synchromesh.personal import Subject as Subject
    from synchromesh.resilience import AdaptiveLimitOptions as AdaptiveLimitOptions
    from synchromesh.resilience import BreakerOptions as BreakerOptions
    from synchromesh.resilience import BudgetOptions as BudgetOptions
    from synchromesh.resilience import LimitOptions as LimitOptions
    from synchromesh.resilience import Policy as Policy
    from synchromesh.resilience import RetryOptions as RetryOptions
    from synchromesh.resilience import deadline as deadline
    from synchromesh.saga import Saga as Saga
    from synchromesh.saga import SagaPolicy as SagaPolicy
    from synchromesh.saga import SagaRun as SagaRun
    from synchromesh.saga import Unknown as Unknown
    from synchromesh.service import Context as Context
    from synchromesh.service import Service as Service
    from synchromesh.service import Transaction as Transaction
    from synchromesh.store import Migration as Migration
    from synchromesh.system.client import Client as Client
    from synchromesh.system.client import SyncClient as SyncClient

_ROOMS = {
    "calls": "Call Contract PublicEvent command event query",
    "errors": "CallError NotExecuted Rejection SynchromeshError TimedOut",
    "events": "Decider Decision",
    "gateway": "Aggregate ApiKeys AuthFunction Branch Cache Certificates Cors Each Forward Gateway "
    "JWT Mirror OpenApi Rate Route Split Stale Static",
    "identity": "Principal",
    "personal": "Erased Personal Subject",
    "resilience": "AdaptiveLimitOptions BreakerOptions BudgetOptions LimitOptions Policy "
    "RetryOptions deadline",
    "saga": "Saga SagaPolicy SagaRun Unknown",
    "service": "Context Service Transaction",
    "store": "Migration",
    "system.client": "Client SyncClient",
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names.split()}

__all__ = sorted(_ROOM_OF)


if not TYPE_CHECKING:  # a type checker that saw this would take any name for a public one

    def __getattr__(name: str) -> object:
        room = _ROOM_OF.get(name)
        if room is None:
            raise AttributeError(f"synchromesh has no public name {name!r}")
        value = getattr(import_module(f"synchromesh.{room}"), name)
        globals()[name] = value  # the next use is a plain attribute
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
