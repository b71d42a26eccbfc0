"""Who is let in to a call: a process of the system, or a client from outside within its scopes."""

from __future__ import annotations

from typing import Any

from synchromesh.calls.contract import Operation
from synchromesh.clients import ClientCredential
from synchromesh.errors import Forbidden
from synchromesh.identity import Credential, Signer

# So begin the paths of what the services of a system ask of each other, such as deliveries.
INTERNAL = "/_"


def admitted(
    signer: Signer,
    credential: str,
    service: str,
    operation: Operation[..., Any],
    now_us: int,
) -> tuple[Credential, bool]:
    """Return who calls, and whether that may be kept for a while.

    What a client from outside may do, and whether it still may, is looked up for each call.

    Args:
        operation: what is called.

    Raises:
        Unauthenticated: the credential is missing, forged, expired, revoked or for another service.
        Forbidden: a client may not call this.
    """
    who = signer.admit(credential, audience=service, now_us=now_us)
    if not isinstance(who, ClientCredential):
        return who, True
    if operation.path.startswith(INTERNAL):
        raise Forbidden(f"{operation.full_name} is for services of this system alone")
    who.check(service, operation.name)
    return who, False


def refuse_undo(who: Credential, operation: Operation[..., Any]) -> None:
    """Refuse to undo a command for who is no service of the system.

    Raises:
        Forbidden: a client from outside asks for it; a saga of the system does so.
    """
    if isinstance(who, ClientCredential):
        raise Forbidden(
            f"client {who.grant.name!r} may call {operation.full_name} and not undo it: that is "
            "for sagas of this system; leave out the header Undoes, and call what takes it back"
        )
