"""Finds out who asks, by all of a gateway's authenticators.

A request says who asks by a credential of its own, such as a key or a token: the first
authenticator that knows it decides. The connection may say so too, by a certificate; then both have
to name the same principal. Where two credentials contradict each other nobody can tell which of
them was meant, and one of the two may be stolen: such a request is refused.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from synchromesh.clock import loop_now
from synchromesh.errors import Shed, Unauthenticated
from synchromesh.gateway.api_keys import KeyRing
from synchromesh.gateway.certificates import CertificateVerifier
from synchromesh.gateway.jwt import TokenVerifier
from synchromesh.gateway.own import OwnAuthenticator
from synchromesh.gateway.principal import (
    API_KEY,
    AUTHORIZATION,
    Authenticator,
    Keeping,
    KeptVerdict,
    Known,
    QuickAuthenticator,
    bearer_of,
    credential_of,
)
from synchromesh.gateway.shapes import is_a
from synchromesh.gateway.tokens import issuer_of
from synchromesh.http import HttpExchange, HttpRequest, KeptFields
from synchromesh.identity import Principal, checked

if TYPE_CHECKING:
    from synchromesh.certificate import ClientCertificate

# How often the log is told of tokens of unknown issuers.
TOLD_EVERY_S = 10.0

_FIELDS = (AUTHORIZATION.encode(), API_KEY.encode())

# What makes no principal that it has not checked; an application's own may.
_CHECKING = (KeyRing, TokenVerifier, OwnAuthenticator)
# Whose verdicts rest on the fields of a request alone.
_KEEPING = (KeyRing, TokenVerifier)
_log = logging.getLogger("synchromesh.gateway")


class Identification:
    """Tells who asks.

    Args:
        authenticators: in the order in which they are asked.
    """

    def __init__(self, authenticators: Sequence[Authenticator]) -> None:
        self._authenticators = tuple(authenticators)
        self._asked = [each for each in authenticators if not isinstance(each, CertificateVerifier)]
        self._issuers = [each.issuer for each in authenticators if isinstance(each, TokenVerifier)]
        self._told_s = -math.inf
        self._shown = [each for each in authenticators if isinstance(each, CertificateVerifier)]
        # The first that is sure decides; one that cannot tell at once leaves those behind it out.
        self._quick: list[Known] = []
        # Those whose verdicts are kept: what stands behind an application's own is asked each time,
        # for nobody knows what that may come to know.
        self._keeping: set[Keeping] = set()
        for each in self._asked:
            if not isinstance(each, QuickAuthenticator):
                break
            if isinstance(each, _KEEPING) and len(self._keeping) == len(self._quick):
                self._keeping.add(each)
            self._quick.append(each.known if isinstance(each, _CHECKING) else _sure(each))

    async def of(self, request: HttpRequest, kinds: AbstractSet[str] = frozenset()) -> Principal:
        """Return who asks; it may wait.

        Args:
            kinds: the kinds of credentials that are accepted; any where there are none.

        Raises:
            Unauthenticated: no credential came, it is not valid or of another kind, or two
                contradict each other.
            Shed: an authenticator of the application's own returned what is no principal.
            CallError: what the authenticators raise otherwise.
        """
        shown = None
        if self._shown and request.certificate is not None:
            shown = self._of_connection(request.certificate)
        asked = None
        for authenticator in self._asked:
            asked = await authenticator.authenticate(request)
            if asked is not None and not isinstance(authenticator, _CHECKING):
                asked = _checked(asked, authenticator)
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
            self._tell_of_issuer(request)
            raise Unauthenticated("this needs a credential, and none came that is known here")
        for found in (asked, shown):
            if found is not None and (not kinds or found.kind in kinds):
                return found
        raise Unauthenticated(
            f"this needs a credential of another kind: {' or '.join(sorted(kinds))}"
        )

    def known(self, kinds: AbstractSet[str] = frozenset()) -> Known:
        """Return what tells principals at once; what it does not know is left to `of`."""
        quick, keeping = self._quick, self._keeping

        def known(exchange: HttpExchange) -> Principal | None:
            fields = exchange.pairs
            verdict = fields.verdict if isinstance(fields, KeptFields) else None
            if (
                isinstance(verdict, KeptVerdict)
                # Others may have given it: before a reload, or to a gateway's other host.
                and verdict.by in keeping
                and verdict.by.holds(verdict)
            ):
                return verdict.principal
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
        try:
            return self._of_connection(certificate)
        except Unauthenticated:
            return None  # `of` says why

    def _tell_of_issuer(self, request: HttpRequest) -> None:
        """Tell the log, never the client, that a token is of an issuer that is not known here."""
        found = credential_of(request.headers)
        if found is None or not self._issuers:
            return
        issuer = issuer_of(bearer_of(found[1]) or "")
        now = loop_now()
        # Whoever can send a request can have it logged.
        if issuer is None or issuer in self._issuers or now < self._told_s + TOLD_EVERY_S:
            return
        self._told_s = now
        _log.warning(
            "a token of the issuer %s was refused: it is not known here; known, to the letter: %s",
            repr(issuer[:200]),
            ", ".join(map(repr, self._issuers)),
        )

    def _of_connection(self, certificate: ClientCertificate) -> Principal | None:
        for each in self._shown:
            found = each.of(certificate)
            if found is not None:
                return found
        return None


def _checked(found: Principal, by: Authenticator) -> Principal:
    try:
        if not is_a(found, Principal):
            raise ValueError("it is none")
        return checked(found)
    except ValueError as error:
        _log.error("%s returned no Principal that can be taken: %s", type(by).__name__, error)
        raise Shed("who asks could not be found out; try again", retry_after_s=1) from error


def _sure(by: QuickAuthenticator) -> Known:
    """Return what one of an application's own is sure of, where that can be taken."""

    def known(exchange: HttpExchange) -> Principal | None:
        found = by.known(exchange)
        try:
            return None if found is None else checked(found)
        except (ValueError, TypeError):
            return None  # `of` says why

    return known
