"""Tells who asks by the certificate that a client has proved itself by, in TLS (mutual TLS).

Which authorities may issue such certificates is said by `[gateway] tls client_ca`; the chain is
verified when a connection is made. Here a certificate becomes a principal, by a rule.

Source: RFC 5280, section 4.2.1.6 (subjectAltName); RFC 9525 (names in certificates).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from msgspec.structs import replace

from synchromesh.errors import ConfigError, Unauthenticated
from synchromesh.gateway.keys import is_scope
from synchromesh.gateway.principal import NAME_MAX, Folders, is_name
from synchromesh.gateway.shapes import is_a
from synchromesh.http import HttpRequest
from synchromesh.identity import Principal, checked
from synchromesh.runtime import Runtime

if TYPE_CHECKING:
    from synchromesh.certificate import ClientCertificate

NAMES = ("uri", "dns", "email", "cn")
# A name takes no more as JSON.
_LONGEST = "\U00010348" * NAME_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """Authenticates by the certificate of a client's connection: mutual TLS.

    It goes with `[gateway] tls`, whose `client_ca` names the authorities. A request that also
    carries a key or a token has to be of the same principal by both.

    Attributes:
        names: where a certificate says whom it is for: "uri", "dns" or "email", which are of its
            subjectAltName, or "cn", the common name of its subject.
        principals: who it stands for, by that name, to the letter; others are nobody. None takes
            whoever has a certificate as the principal `prefix` and that name.
        scopes: what those may do, where `principals` is None.
        prefix: what their names begin with, so that nobody who has names put into certificates can
            take that of an API key.

    Example:
        >>> partners = Certificates(
        ...     names="uri",
        ...     principals={
        ...         "spiffe://partners/acme": Principal("acme", frozenset({"orders:write"}))
        ...     },
        ... )
        >>> partners.mistakes()
        ()
    """

    kind: ClassVar[str] = "certificate"

    names: str = "uri"
    principals: Mapping[str, Principal] | None = None
    scopes: AbstractSet[str] = frozenset()
    prefix: str = "cert:"

    def open(self, folders: Folders, runtime: Runtime) -> CertificateVerifier:
        """Return it at work; it reads no file.

        Raises:
            ConfigError: the rule is wrong.
        """
        del folders
        mistakes = self.mistakes()
        if mistakes:
            raise ConfigError("; ".join(mistakes))
        return CertificateVerifier(self, runtime)

    def security_schemes(self) -> Mapping[str, Mapping[str, object]]:
        """Return how a client shows its certificate."""
        told = "A certificate of the client, by TLS, from an authority that the gateway knows."
        return {"Certificate": {"type": "mutualTLS", "description": told}}

    def mistakes(self) -> tuple[str, ...]:
        """Return what is wrong with the rule, a sentence each."""
        return tuple(f"Certificates: {mistake}" for mistake in self._mistakes())

    def _mistakes(self) -> Iterator[str]:
        if self.names not in NAMES:
            yield f"names is {self.names!r}; take one of {', '.join(NAMES)}"
        if self.principals is None:
            yield from _wrong_scopes(self.scopes, "scopes", Principal(_LONGEST))
            if not self.prefix or not self.prefix.isprintable():
                yield (
                    "prefix is empty; without principals the names are those of certificates, and "
                    'one could be that of an API key: write one such as "cert:"'
                )
            return
        if self.scopes:
            yield "scopes go with no principals; write them at each Principal"
        for name, principal in self.principals.items():
            if not is_a(principal, Principal) or not is_name(principal.name):
                yield (
                    f"principals[{name[:80]!r}] is no Principal with a name of 1 to 128 printable "
                    'characters; write one such as Principal("acme", frozenset({"orders:write"}))'
                )
                continue
            yield from _wrong_scopes(principal.scopes, f"principals[{name[:80]!r}]", principal)


def _wrong_scopes(scopes: AbstractSet[str], where: str, of: Principal) -> Iterator[str]:
    """Find why a principal cannot have some scopes, or cannot be at all; a sentence each."""
    if not is_a(scopes, AbstractSet):
        yield f'{where}: scopes are a set of texts, such as {{"orders:write"}}'
        return
    wrong = [scope for scope in scopes if not is_scope(scope)]
    for scope in sorted(map(repr, wrong)):
        yield f'{where}: {scope[:42]} is no scope; write one such as "orders:write"'
    if wrong:
        return
    try:
        checked(replace(of, scopes=scopes, kind=Certificates.kind))
    except ValueError as error:
        yield f"{where}: no principal can be made of it: {error}"


class CertificateVerifier:
    """Says which principal a certificate stands for."""

    def __init__(self, rule: Certificates, runtime: Runtime) -> None:
        self._names, self._prefix = rule.names, rule.prefix
        self._scopes = frozenset(rule.scopes)
        self._principals = (
            None
            if rule.principals is None
            else {
                name: checked(replace(each, kind=Certificates.kind))
                for name, each in rule.principals.items()
            }
        )
        self._wall_us = runtime.wall_us

    async def authenticate(self, request: HttpRequest) -> Principal | None:
        """Return whose connection a request came by; None where that has no name here.

        Raises:
            Unauthenticated: the certificate has expired since, or names several.
        """
        return None if request.certificate is None else self.of(request.certificate)

    def of(self, certificate: ClientCertificate) -> Principal | None:
        """Return whose certificate it is; None where it has no name here.

        Raises:
            Unauthenticated: it has expired since the connection was made, or names several.
        """
        found = self._found(certificate)
        if not found:
            return None
        if certificate.expires_s * 1e6 <= self._wall_us():
            raise Unauthenticated("the certificate of the client has expired; connect by a new one")
        if len(found) > 1:
            raise Unauthenticated(
                "the certificate of the client names several principals; use one that names one"
            )
        return found[0]

    def refresh(self) -> None:
        """Do nothing: authorities are those of the connections."""

    async def close(self) -> None:
        """Do nothing: it runs nothing."""

    def __repr__(self) -> str:
        return f"<CertificateVerifier by {self._names}>"

    def _found(self, certificate: ClientCertificate) -> list[Principal]:
        names = certificate.named(self._names)
        if self._principals is not None:
            known = (self._principals.get(name) for name in names)
            return list(dict.fromkeys(each for each in known if each is not None))
        named = [self._prefix + name for name in names if name]
        return [Principal(name, self._scopes, Certificates.kind) for name in named if is_name(name)]
