"""What an operator reads of the databases of services, or repairs in them.

An action has a name, such as "saga.show", and a request. One that reads is run over the database of
each service that it asks for: by the process that owns it, or, where the system is stopped, by the
command line. One that repairs is run by the running instance alone, and records who asked for it
and why, in the commit of what it does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from synchromesh.codec import decode, encode
from synchromesh.errors import BadRequest, ConnectFailed, SynchromeshError
from synchromesh.store import StoreReader
from synchromesh.system.config.schema import GATEWAY

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
        several: returns the error that it is where several services have what one is asked for;
            without it that is no mistake.
    """

    name: str
    request: type[Read]
    run: Callable[[StoreReader, Read], Awaitable[object | None]]
    unknown: Callable[[Read], SynchromeshError] | None = None
    within_s: float = WITHIN_S
    several: Callable[[Read, list[str]], SynchromeshError] | None = None


@dataclass(frozen=True, slots=True)
class RepairAction(Generic[Repair]):
    """An action that changes something by hand; what it is, `ReadAction` says.

    Attributes:
        check: raises where the running system speaks against it; it is given the public events
            that each service takes, by any of its processes.
        look: returns what is asked first where no service is named: which one has what is
            repaired. Without it the action runs at every one that has it.
    """

    name: str
    request: type[Repair]
    run: Callable[[ServiceInstance, Repair], Awaitable[object | None]]
    unknown: Callable[[Repair], SynchromeshError]
    within_s: float = WITHIN_S
    check: Callable[[Mapping[str, frozenset[str]], Repair], None] | None = None
    look: Callable[[Repair], tuple[ReadAction[Any], ReadRequest]] | None = None


Action = ReadAction[Any] | RepairAction[Any]


class Answers(msgspec.Struct, frozen=True):
    """What the services answered, by name, and the processes that did not answer."""

    answers: dict[str, Any] = {}
    silent: list[str] = []


Ask = Callable[[Action, Any, bytes], Awaitable[Answers]]


def joined(found: Iterable[Answers]) -> Answers:
    """Return the answers of several processes as one."""
    all_joined = Answers({}, [])
    for each in found:
        all_joined.answers.update(each.answers)
        all_joined.silent.extend(each.silent)
    return all_joined


def check_several(action: Action, wanted: Any, answers: Mapping[str, object]) -> None:
    """Raise the error of an action where several services have what one is asked for."""
    if isinstance(action, ReadAction) and action.several is not None and len(answers) > 1:
        raise action.several(wanted, sorted(answers))


async def act(action: Action, wanted: Any, body: bytes, ask: Ask) -> Answers:
    """Run an action by what asks all processes that it is for, as far as a service is named.

    Raises:
        SynchromeshError: what is asked for is nowhere, or where it is is not certain, or none that
            was to answer did.
    """
    wanted, body = await aimed(action, wanted, body, ask)
    found = await ask(action, wanted, body)
    # What a process that starts or hangs has is not unknown.
    if not found.answers and found.silent and (action.unknown is not None or wanted.service):
        raise _silent(found.silent, "look at status, and try again")
    if not found.answers and action.unknown is not None:
        raise action.unknown(wanted)
    check_several(action, wanted, found.answers)
    return found


async def aimed(action: Action, wanted: Any, body: bytes, ask: Ask) -> tuple[Any, bytes]:
    """Return a request with the one service that has what it repairs, where it names none.

    Raises:
        SynchromeshError: no service has it, or several, or one that may did not answer.
    """
    if not isinstance(action, RepairAction) or action.look is None or wanted.service:
        return wanted, body
    look, asked = action.look(wanted)
    found = await ask(look, asked, encode(asked))
    check_several(look, asked, found.answers)
    # A gateway keeps nothing.
    silent = [name for name in found.silent if name.partition("#")[0] != GATEWAY]
    if silent:
        more = "it may be there, too: look at status, and try again, or say whose: --service NAME"
        raise _silent(silent, more)
    if not found.answers:
        raise action.unknown(wanted)
    (service,) = found.answers
    fields = {**msgspec.json.decode(body, type=dict[str, msgspec.Raw]), "service": service}
    return msgspec.structs.replace(wanted, service=service), encode(fields)


def _silent(names: list[str], more: str) -> ConnectFailed:
    return ConnectFailed(f"no answer from {'; '.join(names)}; {more}")


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
