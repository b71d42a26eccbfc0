"""Finds out who asks, by all of a gateway's authenticators.

A request says who asks by a credential of its own, such as a key or a token: the first
authenticator that knows it decides. The connection may say so too, by a certificate; then both have
to name the same principal. Where two credentials contradict each other nobody can tell which of
them was meant, and one of the two may be stolen: such a request is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from synchromesh.errors import Unauthenticated
from synchromesh.gateway.certificates import CertificateVerifier
from synchromesh.gateway.principal import (
    API_KEY,
    AUTHORIZATION,
    Authenticator,
    Known,
    QuickAuthenticator,
    credential_of,
)
from synchromesh.http import HttpExchange, HttpRequest
from synchromesh.identity import Principal

if TYPE_CHECKING:
    from synchromesh.certificate import ClientCertificate

_FIELDS = (AUTHORIZATION.encode(), API_KEY.encode())


class Identification:
    """Tells who asks.

    Args:
        authenticators: in the order in which they are asked.
    """

    def __init__(self, authenticators: Sequence[Authenticator]) -> None:
        self._authenticators = tuple(authenticators)
        self._asked = [each for each in authenticators if not isinstance(each, CertificateVerifier)]
        self._shown = [each for each in authenticators if isinstance(each, CertificateVerifier)]
        # The first that is sure decides; one that cannot tell at once leaves those behind it out.
        self._quick: list[Known] = []
        for each in self._asked:
            if not isinstance(each, QuickAuthenticator):
                break
            self._quick.append(each.known)

    async def of(self, request: HttpRequest, kinds: AbstractSet[str] = frozenset()) -> Principal:
        """Return who asks; it may wait.

        Args:
            kinds: the kinds of credentials that are accepted; any where there are none.

        Raises:
            Unauthenticated: no credential came, it is not valid or of another kind, or two
                contradict each other.
            CallError: what the authenticators raise otherwise.
        """
        shown = self._of_connection(request) if self._shown else None
        asked = None
        for authenticator in self._asked:
            asked = await authenticator.authenticate(request)
            if asked is not None and asked.name:
                break
        else:
            asked = None
            if shown is not None and credential_of(request.headers) is not None:
                raise Unauthenticated(
                    "the request carries a credential that is not known here, and its connection a "
                    "certificate that is; send one of them"
                )
        if asked is not None and shown is not None and asked.name != shown.name:
            raise Unauthenticated(
                "the credential of the request and the certificate of its connection are of "
                "different principals; send one of them, or two of the same"
            )
        if asked is None and shown is None:
            raise Unauthenticated("this needs a credential, and none came that is known here")
        for found in (asked, shown):
            if found is not None and (not kinds or found.kind in kinds):
                return found
        raise Unauthenticated(
            f"this needs a credential of another kind: {' or '.join(sorted(kinds))}"
        )

    def known(self, kinds: AbstractSet[str] = frozenset()) -> Known:
        """Return what tells principals at once; what it does not know is left to `of`."""
        quick = self._quick
        if not kinds and not self._shown and len(quick) == 1:
            return quick[0]

        def known(exchange: HttpExchange) -> Principal | None:
            for ask in quick:
                found = ask(exchange)
                if found is not None:
                    return found
            return None

        is_shown = bool(self._shown)

        def known_of(exchange: HttpExchange) -> Principal | None:
            certificate = exchange.certificate if is_shown else None
            if certificate is None:
                found = known(exchange)
            else:
                found = self._known_by_connection(exchange, certificate)
            return found if found is None or not kinds or found.kind in kinds else None

        return known_of if kinds or is_shown else known

    def refresh(self) -> None:
        """Look once whether what credentials are verified by has changed."""
        for each in self._authenticators:
            each.refresh()

    async def close(self) -> None:
        """End what verifies credentials. May be repeated."""
        for each in self._authenticators:
            await each.close()

    def __repr__(self) -> str:
        return f"<Identification by {len(self._authenticators)} authenticators>"

    def _known_by_connection(
        self, exchange: HttpExchange, certificate: ClientCertificate
    ) -> Principal | None:
        """Return whose certificate it is, where nothing else is to be asked."""
        # Whether a credential of the request is of the same is looked at by `of`.
        if len(self._quick) < len(self._asked) or any(n in _FIELDS for n, _ in exchange.pairs):
            return None
        known = (each.known_by(certificate) for each in self._shown)
        return next((found for found in known if found is not None), None)

    def _of_connection(self, request: HttpRequest) -> Principal | None:
        certificate = request.certificate
        if certificate is None:
            return None
        for each in self._shown:
            found = each.of(certificate)
            if found is not None:
                return found
        return None
