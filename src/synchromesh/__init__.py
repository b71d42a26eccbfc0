"""Synchromesh: the patterns of a microservice system in one Python toolkit, meshing.

These are the names that most systems need. The other errors are in `synchromesh.errors`, and the
rest of each pattern is in its room: `synchromesh.resilience` has the options of a `Policy`. A name
is loaded when it is first asked for (PEP 562), so that importing the package costs next to nothing
and loads neither an event loop nor a database.
"""

from __future__ import annotations

import sys
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
    from synchromesh.gateway import Branch as Branch
    from synchromesh.gateway import Forward as Forward
    from synchromesh.gateway import Gateway as Gateway
    from synchromesh.gateway import Rate as Rate
    from synchromesh.gateway import Route as Route
    from synchromesh.gateway import Stale as Stale
    from synchromesh.gateway import Static as Static
    from synchromesh.resilience import Policy as Policy
    from synchromesh.resilience import deadline as deadline
    from synchromesh.saga import Saga as Saga
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
    "gateway": "Aggregate ApiKeys Branch Forward Gateway JWT Rate Route Stale Static",
    "resilience": "Policy deadline",
    "saga": "Saga",
    "service": "Context Service Transaction",
    "store": "Migration",
    "system.client": "Client SyncClient",
}
# Where names are that are not here, those first that most people look for.
_OTHERS = (
    "resilience gateway saga personal errors service events store messaging calls alone testing "
    "discovery telemetry http"
)
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names.split()}

__all__ = sorted(_ROOM_OF)


if not TYPE_CHECKING:  # a type checker that saw this would take any name for a public one

    def __getattr__(name: str) -> object:
        room = _ROOM_OF.get(name)
        if room is None:
            asker = sys._getframe(1)
            is_import = _is_import(asker.f_code.co_code, asker.f_lasti)
            raise _not_here(name, is_import=is_import)
        value = getattr(import_module(f"synchromesh.{room}"), name)
        globals()[name] = value  # the next use is a plain attribute
        return value


def _is_import(code: bytes, at: int) -> bool:
    """Tell whether code asks by `from synchromesh import ...`, and not by `hasattr` or a dot."""
    from opcode import opmap  # it is seldom needed

    return at >= 0 and code[at] == opmap["IMPORT_FROM"]


def _not_here(name: str, *, is_import: bool) -> Exception:
    """Return the error that a name is not here; of one that a room has, an import is told which.

    That is an ImportError: of an AttributeError `from synchromesh import ...` does not show a word.
    Whoever only asks whether a name is here, such as `hasattr`, gets an AttributeError, and no room
    is imported for it.
    """
    if is_import and name[:1].isalpha():
        for room in _OTHERS.split():
            try:
                module = import_module(f"synchromesh.{room}")
            except Exception:  # noqa: BLE001, S112  an extra of it is not installed
                continue
            public = getattr(module, "__all__", ())
            found = getattr(module, name, None)
            if name in public or getattr(found, "__module__", "") == module.__name__:
                return ImportError(
                    f"synchromesh has no {name!r} at its front door; write: from "
                    f"{module.__name__} import {name}"
                )
    return AttributeError(f"synchromesh has no public name {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
