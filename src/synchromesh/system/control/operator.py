"""The credential of an operator, who commands replicas that nobody supervises.

It is signed with the system's key like that of a hop, for one replica alone, and runs out soon: one
that is overheard commands one replica for a minute, and no service takes it for a call.
"""

from __future__ import annotations

from collections.abc import Callable

from synchromesh.codec import to_datetime
from synchromesh.errors import Unauthenticated
from synchromesh.identity import SKEW_S, Principal, Signer

# Who signs it, and what begins its audience: a service's name has no such letter.
OPERATOR = "@operator"
LIFETIME_S = 60.0


class Operator:
    """Makes the credentials of a person.

    Args:
        key: the system's.
        who: recorded with all that is done.
        wall_us: the wall clock.

    Example:
        >>> ada = Operator(b"0" * 32, "ada", lambda: 7_000_000)
        >>> shown = ada.credential("orders#1@a")
        >>> identify(Signer(b"0" * 32), shown, instance="orders#1@a", now_us=8_000_000)
        'ada'
    """

    def __init__(self, key: bytes, who: str, wall_us: Callable[[], int]) -> None:
        self._signer = Signer(key, lifetime_s=LIFETIME_S)
        self._wall_us = wall_us
        self.who = who

    def credential(self, instance: str) -> str:
        """Return one for a replica, good for half a minute at least."""
        return self._signer.token(
            OPERATOR, Principal(self.who), audience=_audience(instance), now_us=self._wall_us()
        )

    def __repr__(self) -> str:
        return f"<Operator {self.who}>"


def identify(signer: Signer, shown: str, *, instance: str, now_us: int) -> str:
    """Return who shows a credential to a replica.

    Raises:
        Unauthenticated: there is none, it is of another system, for another replica, or no
            operator's; or it is not good now by this host's clock, and the message says how far.
    """
    if not shown:
        raise Unauthenticated(
            "verbs need an operator's credential; have `synchromesh status` and the others ask, "
            "from a host that has the system's key"
        )
    # As of the beginning of time: when it is good is told below, with both clocks.
    found = signer.verify(shown, audience=_audience(instance), now_us=0)
    if found.service != OPERATOR or not found.principal.name:
        raise Unauthenticated(f"the credential is one of {found.service!r}, and no operator's")
    late_s = (now_us - found.expires_us) / 1e6
    early_s = -late_s - LIFETIME_S
    if max(late_s, early_s) > SKEW_S:
        off = f"expired {late_s:.0f} s ago" if late_s > 0 else f"is of {early_s:.0f} s from now"
        raise Unauthenticated(
            f"the operator's credential {off} by the clock of {instance}, which says "
            f"{to_datetime(now_us):%Y-%m-%d %H:%M:%S} UTC; it is good for {LIFETIME_S:.0f} s, and "
            f"clocks may differ by {SKEW_S:g} s: set the clocks of both hosts, and try again"
        )
    return found.principal.name


def _audience(instance: str) -> str:
    return f"{OPERATOR}/{instance}"
