"""What an operator reads of the databases of services, or repairs in them.

An action has a name, such as "saga.show", and a request. One that reads is run over the database of
each service that it asks for: by the process that owns it, or, where the system is stopped, by the
command line. One that repairs is run by the running instance alone, and records who asked for it
and why, in the commit of what it does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from synchromesh.codec import decode
from synchromesh.errors import BadRequest, SynchromeshError
from synchromesh.store import StoreReader

if TYPE_CHECKING:
    from synchromesh.service import ServiceInstance

WHO_MAX, WHY_MAX = 100, 1000
WITHIN_S = 30.0
# The query with which a process is asked for itself: what it has not, another may have.
OWN = "own"


class ReadRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The request of an action that reads; `service` "" asks all."""

    service: str = ""


class RepairRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The request of an action that repairs: who asks for it, and why."""

    service: str = ""
    who: str
    why: str


Q = TypeVar("Q", bound=ReadRequest | RepairRequest)
Read = TypeVar("Read", bound=ReadRequest)
Repair = TypeVar("Repair", bound=RepairRequest)


@dataclass(frozen=True, slots=True)
class ReadAction(Generic[Read]):
    """An action that reads.

    Attributes:
        run: returns what the database of one service says to the request; None where what is asked
            for is not there.
        unknown: returns the error that it is with no service at all; without it that is no mistake.
        within_s: how long it may take.
    """

    name: str
    request: type[Read]
    run: Callable[[StoreReader, Read], Awaitable[object | None]]
    unknown: Callable[[Read], SynchromeshError] | None = None
    within_s: float = WITHIN_S


@dataclass(frozen=True, slots=True)
class RepairAction(Generic[Repair]):
    """An action that changes something by hand; what it is, `ReadAction` says.

    Attributes:
        check: raises where the running system speaks against it; it is given the public events
            that each service takes, by any of its processes.
    """

    name: str
    request: type[Repair]
    run: Callable[[ServiceInstance, Repair], Awaitable[object | None]]
    unknown: Callable[[Repair], SynchromeshError]
    within_s: float = WITHIN_S
    check: Callable[[Mapping[str, frozenset[str]], Repair], None] | None = None


Action = ReadAction[Any] | RepairAction[Any]


class Answers(msgspec.Struct, frozen=True):
    """What the services answered, by name, and the processes that did not answer."""

    answers: dict[str, Any] = {}
    silent: list[str] = []


def parse_request(action: Action, body: bytes) -> Any:
    """Parse the request of an action.

    Raises:
        BadRequest: it does not fit, or nobody says who and why.
    """
    wanted = decode(body or b"{}", action.request)
    if isinstance(wanted, RepairRequest):
        check_by_whom(action.name, wanted.who, wanted.why)
    return wanted


def check_by_whom(what: str, who: str, why: str) -> None:
    """Raise `BadRequest` where nobody says who asks for something, or why."""
    for name, text, longest in (("who", who, WHO_MAX), ("why", why, WHY_MAX)):
        if not text.strip() or len(text) > longest:
            raise BadRequest(
                f"{what} records who asks for it and why; {name!r} needs 1 to {longest} "
                f"characters, not {len(text)}"
            )
